"""Manifests that are damaged, hollow or of another stage: whoever reads them names the file and how to make it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.stages.conftest import Workspace
from tests.stages.test_segmentation import noisy
from tokenunify import cli
from tokenunify.errors import InputError


def deep(content: dict) -> str:
    return '{"content": ' + "[" * 99_999


BAD = {
    "empty": lambda made: "",
    "half": lambda made: json.dumps(made)[: len(json.dumps(made)) // 2],
    "hollow": lambda made: json.dumps({"content": {}, "run": {}}),
    "a list": lambda made: json.dumps([made]),
    "lists": lambda made: json.dumps({"content": [], "run": []}),
    "null": lambda made: json.dumps({"content": None, "run": None}),
    "a number": lambda made: "7",
    "without run": lambda made: json.dumps({"content": made["content"]}),
    "changed": lambda made: json.dumps({**made, "content": {**made["content"], "value": 0.9, "store": "x"}}),
    "digits": lambda made: '{"content": {"value": ' + "1" * 5000 + '}, "run": {}}',
    "deep": deep,
    "wrong types": lambda made: json.dumps({"content": {key: [{}] for key in made["content"]}, "run": {}}),
    "strings": lambda made: json.dumps({"content": {key: "x" for key in made["content"]}, "run": {}}),
    "nulls": lambda made: json.dumps({"content": dict.fromkeys(made["content"]), "run": {}}),
    "not finite": lambda made: json.dumps({"content": {key: float("nan") for key in made["content"]}, "run": {}}),
    "elsewhere": lambda made: json.dumps({"content": {**made["content"], **ELSEWHERE}, "run": {}}),
}
ELSEWHERE = {"store": "/etc", "lut": 3, "value": "0.5", "raw": {"shape": [1, 0, 1]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory, labels) -> Workspace:
    space = Workspace(tmp_path_factory.mktemp("made") / "w")
    volume = space.volume("test", labels)
    predicted = space.affinities(volume, noisy(labels))
    fragments = space.fragments(predicted)
    segmented = space.relabel(fragments, space.agglomerate(space.rag(predicted, fragments), method="waterz"))
    space.evaluate(segmented, volume)
    run(space, "tune", space.folder / "tuned")
    return space


INPUTS = {
    "volume": "data/volumes/test.json",
    "affinities": "predict/prepared.json",
    "fragments": "fragments/prepared.json",
    "rag": "rag/part0of1.json",
    "lut": "segmentation/agglomerate.json",
    "prepared": "relabel/prepared.json",
    "scores": "segmentation/scores.json",
    "tuned": "tuned/out.json",
}
PARSER = cli.parser()
SEGMENTATION = {"method": "waterz", "threshold": {"tune": [0.3, 0.5]}}


def commands(space: Workspace) -> dict[str, list]:
    """A command line of each stage, whose output is in a folder of its own; inputs by their names in braces."""
    section = {
        "fragments": space.section("fragments"),
        "rag": space.section("rag"),
        "tune": space.section("tune", segmentation=SEGMENTATION, erode_labels=False, ignore_label=0),
        "agglomerate": space.section("agglomerate", segmentation={"method": "waterz"}),
        "tuned": space.section("agglomerate", segmentation=SEGMENTATION),
        "relabel": space.section("relabel"),
        "evaluate": space.section("evaluate", erode_labels=False, ignore_label=0, skeleton_spacing_nm=None),
        "blockings": space.section("blockings", segmentation={"method": "waterz"}, block_shapes=[(2, 22, 30)] * 2),
        "baseline": space.section("baseline", sigma_nm=8.0),
    }
    words = {
        "prepare": "prepare --stage relabel --inputs {fragments} {lut}",
        "prepare baseline": "prepare --stage baseline --inputs {volume}",
        "rag": "rag --affinities {affinities} --fragments {fragments} --threads 1",
        "tune": "tune --rags {rag} --fragments {fragments} --volumes {volume}",
        "agglomerate": "agglomerate --rag {rag}",
        "tuned": "agglomerate --rag {rag} --tuned {tuned}",
        "relabel": "relabel --fragments {fragments} --lut {lut} --prepared {prepared}",
        "evaluate": "evaluate --segmentation {prepared} --volume {volume}",
        "blockings": "blockings --affinities {affinities} --volume {volume} --lut {lut}",
    }
    own = {"prepare": "relabel", "prepare baseline": "baseline"}
    return {name: [*text.split(), "--config-json", section[own.get(name, name)]] for name, text in words.items()}


def run(space: Workspace, name: str, output: Path) -> None:
    paths = {key: space.folder / path for key, path in INPUTS.items()}
    words = [paths.get(word[1:-1], word) for word in commands(space)[name]]
    cli.run(PARSER.parse_args([*map(str, words), "--output", str(output / "out.json")]))


CASES = [
    (name, word[1:-1])
    for name, words in commands(Workspace(Path())).items()
    for word in words
    if word[1:-1] in INPUTS and word[0] == "{"
]


@pytest.mark.parametrize(("name", "replaced"), CASES)
def test_a_bad_manifest_is_named(made, tmp_path, name, replaced):
    path = made.folder / INPUTS[replaced]
    whole = path.read_bytes()
    try:
        for kind, spoil in BAD.items():
            path.write_text(spoil(json.loads(whole)))
            with pytest.raises(InputError, match="snakemake") as error:
                run(made, name, tmp_path)
            assert str(path) in str(error.value), kind
        path.write_bytes(b"\xff\xfe" + whole)
        with pytest.raises(InputError, match=rf"{path} is not a manifest.*make it again with `snakemake {path}`"):
            run(made, name, tmp_path)
        for make in (Path.mkdir, os.mkfifo):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            make(path)
            with pytest.raises(InputError, match=rf"{path} is not a manifest.*a folder or device"):
                run(made, name, tmp_path)
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(whole)


@pytest.mark.parametrize(("name", "replaced"), CASES)
def test_a_manifest_of_another_stage_is_refused(made, tmp_path, name, replaced):
    """A store may take its shape from a volume in place of fragments."""
    path = made.folder / INPUTS[replaced]
    whole = path.read_bytes()
    try:
        for other, place in INPUTS.items():
            if other != replaced and {other, replaced} not in ALIKE and (name, other) != ("prepare", "volume"):
                shutil.copy(made.folder / place, path)
                with pytest.raises(InputError):
                    run(made, name, tmp_path)
                path.write_bytes(whole)
    finally:
        path.write_bytes(whole)


ALIKE = ({"fragments", "prepared"}, {"tuned", "lut"})
"""Both are segmentations that can be scored; both choose a value."""
