"""Stage metrics: the table's header, its rows in the order of the configuration, its refusals."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

import tokenunify
from tokenunify import cli
from tokenunify.config import BASELINE
from tokenunify.errors import InputError
from tokenunify.evaluation import score_table
from tokenunify.stages import sections
from tokenunify.store import manifest

HEADER = (
    "volume,dataset,split,model,network,parameters,pretraining,seed,segmentation,method,threshold,threshold_source,voi_split,"
    "voi_merge,voi,arand,num_segments,num_labels,eroded,ignore_label,crop,stride,test_raw_in_pretraining,commit"
)
RUNS = [
    ("zeta", 0, "waterz"),
    ("zeta", 0, "multicut"),
    ("zeta", 4, "waterz"),
    ("alpha", 0, "waterz"),
    (BASELINE, 0, BASELINE),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[Path]]:
    """Manifests of all runs; the i-th has scores of about i."""
    made: dict[str, list[Path]] = {"scores": [], "luts": [], "predictions": [], "weights": []}
    for number, (model, seed, segmentation) in enumerate(RUNS):
        folder = tmp_path / "results" / "v1" / model / f"seed{seed}"
        values = {"voi_split": number + 1 / 3, "voi_merge": 0.5, "voi": number + 5 / 6, "arand": 1e-7}
        counts = {"num_segments": 10 * number, "num_labels": 7, "erode_labels": number % 2 == 1, "ignore_label": 0}
        contents = {
            "scores": (folder / segmentation / "scores.json", {**values, **counts}),
            "luts": (folder / segmentation / "agglomerate.json", {"value": 0.1 * 3, "source": "validation"}),
            "predictions": (
                folder / "predict/prepared.json",
                {"config": {"crop": [16, 160, 96], "stride": [8, 80, 48]}},
            ),
            "weights": (tmp_path / "models" / model / f"seed{seed}" / "weights.json", {"parameters": 1000 + seed}),
        }
        if model == BASELINE:
            contents["weights"] = contents["predictions"] = (
                folder / "predict/prepared.json",
                {"config": {"sigma_nm": 1}},
            )
        for name, (path, content) in contents.items():
            manifest.write(path, content)
            made[name].append(path)
    return made


def rows_of(runs) -> tuple[sections.Row, ...]:
    known = {"volume": "v1", "dataset": "d", "split": "test", "method": "waterz"}
    start = {"zeta": ("mae", True), "alpha": ("published", None), BASELINE: ("none", False)}
    return tuple(
        sections.Row(
            **known,
            model=m,
            network="none" if m == BASELINE else "superhuman",
            pretraining=start[m][0],
            test_raw_in_pretraining=start[m][1],
            seed=s,
            segmentation=name,
        )
        for m, s, name in runs
    )


def make_table(output: Path, files: dict[str, list[Path]], runs=RUNS) -> Path:
    section = sections.to_json("metrics", sections.Metrics(rows=rows_of(runs)))
    words = [word for name, paths in files.items() for word in (f"--{name}", *map(str, paths))]
    cli.run(cli.parser().parse_args(["metrics", "--config-json", section, "--output", str(output), *words]))
    return output


def test_header_order_and_values(tmp_path, files):
    path = make_table(tmp_path / "metrics.csv", files)
    lines = path.read_text().splitlines()
    assert lines[0] == HEADER
    found = pd.read_csv(path, keep_default_na=False)
    assert list(zip(found.model, found.seed, found.segmentation, strict=True)) == RUNS
    assert list(found.parameters) == [1000, 1000, 1004, 1000, 0]
    assert list(found.crop) == ["16x160x96"] * 4 + [""]
    assert list(found.stride) == ["8x80x48"] * 4 + [""]
    assert list(found.eroded) == ["no", "yes", "no", "yes", "no"]
    assert list(found.pretraining) == ["mae"] * 3 + ["published", "none"]
    assert list(found.test_raw_in_pretraining) == ["yes"] * 3 + ["unknown", "no"]
    assert "0.30000000000000004,validation,0.333333,0.500000,0.833333,0.000000,0,7,no,0," in lines[1]


def test_the_same_manifests_give_the_same_bytes(tmp_path, files):
    first = make_table(tmp_path / "a.csv", files).read_bytes()
    assert make_table(tmp_path / "b.csv", files).read_bytes() == first


def test_what_is_written_can_be_read(tmp_path, files):
    found = score_table.read(make_table(tmp_path / "metrics.csv", files))
    summary = score_table.summary(found)
    assert [(g.model, g.segmentation, g.seeds) for g in summary.groups] == [
        ("zeta", "waterz", 2),
        ("zeta", "multicut", 1),
        ("alpha", "waterz", 1),
        (BASELINE, BASELINE, 1),
    ]
    assert summary.groups[0].mean["voi"] == pytest.approx(1 + 5 / 6)
    assert summary.groups[0].spread["voi"] == pytest.approx(2**0.5)
    alike, all_columns = {"arand", "voi_merge"}, set(score_table.SCORES)
    assert [g.saw_raw for g in summary.groups] == [True, True, False, False]
    assert [g.best for g in summary.groups] == [all_columns, all_columns, alike, alike]  # ties are all marked


def test_lists_that_do_not_belong_together_are_refused(tmp_path, files):
    with pytest.raises(InputError, match=r"one path of each list for each of 5 rows, got .*'luts': 4"):
        make_table(tmp_path / "m.csv", {**files, "luts": files["luts"][1:]})
    swapped = {**files, "scores": [files["scores"][1], files["scores"][0], *files["scores"][2:]]}
    with pytest.raises(InputError, match=r"expected a file of v1/zeta/seed0/waterz, got .*multicut.*order of the rows"):
        make_table(tmp_path / "m.csv", swapped)
    assert not (tmp_path / "m.csv").exists()


def test_a_missing_manifest_is_named(tmp_path, files):
    files["scores"][2].unlink()
    with pytest.raises(InputError, match=r"seed4/waterz/scores\.json does not exist: make it with `snakemake"):
        make_table(tmp_path / "m.csv", files)


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_commit_tells_edits_and_places_outside_git(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "tokenunify"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(tokenunify, "__file__", str(package / "__init__.py"))
    assert score_table.commit() == "unknown"
    git(tmp_path, "init")  # a repository around the checkout is not the checkout's
    assert score_table.commit() == "unknown"
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    clean = score_table.commit()
    assert len(clean) >= 7
    assert int(clean, 16) >= 0
    (package / "untracked.py").write_text("")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert score_table.commit() == clean
    (package / "__init__.py").write_text("edited")
    assert score_table.commit() == f"{clean}-dirty"


@pytest.mark.parametrize("seen", [True, False, None])
def test_a_column_of_one_value_is_read_as_any_other(tmp_path, files, seen):
    """Readers of tables turn columns of true and false into another type."""
    rows = tuple(row.model_copy(update={"test_raw_in_pretraining": seen}) for row in rows_of(RUNS))
    words = [word for name, paths in files.items() for word in (f"--{name}", *map(str, paths))]
    section, output = sections.to_json("metrics", sections.Metrics(rows=rows)), tmp_path / "m.csv"
    cli.run(cli.parser().parse_args(["metrics", "--config-json", section, "--output", str(output), *words]))
    assert {g.saw_raw for g in score_table.summary(score_table.read(output)).groups} == {bool(seen)}
