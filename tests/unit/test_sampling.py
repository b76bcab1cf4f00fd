"""Corpora of sampled regions and known test cubes: what is refused, what is planned, what the tables say."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from tests.unit import test_config
from tests.unit.test_config import VALID
from tokenunify import config
from tokenunify.config import exclusion
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.plan import estimate
from tokenunify.plan.plan import Plan
from tokenunify.plan.workload import Workload

URL = "https://example.org/em"
EXTENT = {"offset": [3, 0, 8], "shape": [640, 4096, 2048]}
SHAPE = [64, 256, 128]
SOURCE = {"raw": {"url": URL, "format": "precomputed", "sha256": "0" * 64}}
CUBE = {"volume": "c", "box": {"offset": [103, 500, 708], "shape": [100, 300, 200]}, "reference": "a table"}


def base() -> dict:
    value = copy.deepcopy(VALID)
    value["volumes"]["large"] = {"sources": [SOURCE], "voxel_size_nm": [30, 6, 6], "roi": EXTENT, "license": "CC0"}
    sample = {"number": 6, "shape": SHAPE, "seed": 4}
    value["corpora"] = {"s": {"datasets": {"one": ["a"], "two": [{"volume": "large", "sample": sample}]}}}
    value["pretrainings"] = {
        "p": {"network": {"name": "superhuman"}, "corpus": "s", "crop": [8, 32, 48], "patch": [2, 16, 8]}
    }
    value["models"]["m"]["pretraining"] = "p"
    return value


def changed(path: str, new) -> dict:
    return test_config.changed(path, new, base())


SAMPLE = "corpora/s/datasets/two/0/sample"
NAMES = [f"large-region{index}" for index in range(6)]


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        (f"{SAMPLE}/number", 0, ["corpora.s.datasets.two.0.sample.number", "greater than or equal to 1"]),
        (f"{SAMPLE}/max_blank", 1.2, ["sample.max_blank", "less than or equal to 1"]),
        (f"{SAMPLE}/number", 1000, ["corpora.s has 1001 volumes and sampled regions, expected at most 1000"]),
        ("corpora/s/datasets/two/0/regions", [EXTENT], ["regions and sample exclude each other; remove one"]),
        ("volumes/large/roi", None, ["corpora.s.datasets.two: a sample of volume large needs volumes.large.roi"]),
        (
            "volumes/large/sources",
            [SOURCE, {"raw": {"path": "here", "format": "precomputed"}}],
            ["needs sources that are fetched in part", "volumes.large.sources.1 is not; correct or remove"],
        ),
        (
            f"{SAMPLE}/shape",
            [64, 2000, 2048],
            ["[640, 4096, 2048] has room for 20 regions", "got number 21"],
        ),
        (f"{SAMPLE}/shape", [641, 8, 48], ["has room for 0 regions of [641, 8, 48] side by side, got number 6"]),
        (
            f"{SAMPLE}/shape",
            [6, 256, 128],
            ["pretrainings.p.corpus: volume large of data set two has no place for a crop of [8, 32, 48] in the box"],
        ),
        (
            "corpora/s/exclude",
            [{"volume": "large", "offset": [0, 0, 0], "shape": [640, 4096, 2048]}],
            ["outside of the box of offset [0, 0, 0]", "has room for 0 regions"],
        ),
        (
            "corpora/t",
            {"datasets": [{"volume": "large", "sample": {"number": 6, "shape": SHAPE, "seed": 5}}]},
            ["corpora.t samples volume large otherwise than corpora.s, and large-region0 cannot be at two places"],
        ),
        ("volumes/large-region3", VALID["volumes"]["a"], ["volumes.large-region3 bears the name of a region"]),
        (
            "volumes/large/test_cubes",
            [{**CUBE, "box": None, "reference": "nobody says"}],
            ["large has the raw of test volume c at a place that is not known (nobody says)", "corpora.s.exclude"],
        ),
    ],
)
def test_what_cannot_work_is_explained(path: str, new, words: list[str]):
    value = changed(path, new)
    if path == f"{SAMPLE}/shape" and new[0] == 64:
        value["corpora"]["s"]["datasets"]["two"][0]["sample"]["number"] = 21
    with pytest.raises(InputError) as error:
        config.from_dict(value, "my.yaml")
    for word in words:
        assert word in str(error.value)


def test_regions_are_volumes_of_the_plan():
    plan = Plan(config.from_dict(base()))
    assert plan.corpus_volumes("p") == ["a", *NAMES]
    datasets = json.loads(plan.pretrain("p"))["datasets"]
    assert datasets[1] == [{"volume": name, "box": None, "avoid": []} for name in NAMES]
    download, ingest = (json.loads(stage("large-region2")) for stage in (plan.download, plan.ingest))
    raw = download["sources"][0]["raw"]
    assert (raw["url"], raw["sha256"], download["voxel_size_nm"]) == (URL, None, [30, 6, 6])
    assert ingest["roi"] is None
    assert download["sample"]["shape"] == SHAPE
    assert download["sample"]["max_blank"] == 0.2
    assert "roi" not in download
    places = [tuple(place) for name in NAMES for place in json.loads(plan.download(name))["sample"]["places"]]
    assert len(set(places)) == len(places) == 6 * 32
    assert all((z - 3) % 64 == y % 256 == (x - 8) % 128 == 0 for z, y, x in places)
    assert "sample" not in json.loads(plan.download("large"))


def test_places_are_a_function_of_the_configuration():
    one, again = (Plan(config.from_dict(base())) for _ in range(2))
    assert one.download("large-region1") == again.download("large-region1")
    other = Plan(config.from_dict(changed(f"{SAMPLE}/seed", 5)))
    assert one.download("large-region1") != other.download("large-region1")


def test_the_printed_plan_counts_the_regions():
    plan = Plan(config.from_dict(base()))
    tasks = Workload(plan, estimate.shapes(plan)).tasks("c")
    voxels = 64 * 256 * 128
    for stage in ("download", "ingest"):
        assert [task.voxels for task in tasks if task.stage == stage].count(voxels) == 6


def test_two_corpora_may_share_regions():
    plan = Plan(config.from_dict(changed("corpora/t", {"datasets": {"o": base()["corpora"]["s"]["datasets"]["two"]}})))
    assert plan.shape("large-region5") == tuple(SHAPE)


# ------------------------------------------------------------------------------------------------ test cubes


def with_cube(**keys) -> dict:
    value = changed("volumes/large/test_cubes", [{**CUBE, **keys}])
    value["corpora"]["whole"] = {"datasets": ["large"]}
    return value


def avoided(value: dict, corpus: str) -> list:
    loaded = config.from_dict(value)
    return [(box.offset, box.shape) for box in exclusion.avoided(loaded, loaded.corpora[corpus], "large")]


def test_a_test_cube_is_avoided_in_the_volumes_own_voxels():
    assert avoided(with_cube(), "whole") == [((100, 500, 700), (100, 300, 200))]
    value = with_cube()
    value["corpora"]["whole"]["allow_test"] = True
    assert avoided(value, "whole") == []


def test_no_place_of_a_region_touches_a_test_cube():
    """With the cube excluded, some places of the corpus without it are gone, and no other."""
    cube = Roi((103, 500, 708), (100, 300, 200))
    value = with_cube()
    value["corpora"]["s"]["datasets"]["two"][0]["sample"]["number"] = 49  # of 2560 cells, 32 for each
    with_it = places(value)
    value["volumes"]["large"]["test_cubes"] = []
    without = places(value)
    assert any(place.overlap(cube) for place in without)
    assert not any(place.overlap(cube) for place in with_it)
    kept = [place for place in without if not place.overlap(cube)]
    assert set(kept) <= set(with_it)


def places(value: dict) -> list[Roi]:
    plan = Plan(config.from_dict(value))
    names = [name for name in plan.corpus_volumes("p") if name != "a"]
    found = (json.loads(plan.download(name))["sample"] for name in names)
    return [Roi(tuple(place), tuple(sample["shape"])) for sample in found for place in sample["places"]]


@pytest.mark.parametrize(
    ("box", "allow", "exclude", "shown"),
    [
        (CUBE["box"], False, [], False),
        (CUBE["box"], True, [], True),
        (None, False, [{"volume": "large", "offset": [0, 0, 0], "shape": [64, 4096, 2048]}], False),
        (None, True, [], True),
    ],
)
@pytest.mark.parametrize("corpus", ["s", "whole"])
def test_whether_the_raw_of_a_cube_was_seen(box, allow: bool, exclude: list, shown: bool, corpus: str):
    value = with_cube(box=box)
    value["corpora"]["s"]["datasets"]["two"][0]["sample"]["number"] = 60
    for name in ("s", "whole"):
        value["corpora"][name] |= {"allow_test": allow, "exclude": exclude}
    loaded = config.from_dict(value)
    assert exclusion.shows(loaded, loaded.corpora[corpus], "c") is shown
    assert not exclusion.shows(loaded, loaded.corpora[corpus], "b")


def test_files_of_one_shared_folder_are_different_raw():
    value = base()
    one, other = ({"raw": {"drive": {"folder": "f", "file": file}, "format": "tiff"}} for file in ("1.tif", "2.tif"))
    third = {"raw": {"huggingface": {"repo": "o/n", "file": "3.h5"}, "format": "hdf5", "dataset": "main"}}
    for name, source in {"one": one, "other": other, "third": third}.items():
        value["volumes"][name] = {"sources": [source], "voxel_size_nm": [30, 6, 6]}
    loaded = config.from_dict(value)
    names = ("one", "other", "third")
    same = [(a, b) for a in names for b in names if exclusion.shared_raw(loaded, a, b, exclusion.ANY_SIZE)]
    assert same == [(name, name) for name in names]


# ------------------------------------------------------------------------------------------------ the catalogue

PUBLISHED = [Roi((1000, 8712, 5472), (256, 1024, 1024)), Roi((1099, 5440, 4400), (101, 1024, 1024))]
"""AC3 and AC4 in Kasthuri15, by NeuroData's table; AC4 one section earlier too, where others found it."""


def test_regions_of_kasthuri15_show_neither_ac3_nor_ac4(root: Path):
    loaded = config.load(root / "config/config.yaml")
    corpus = loaded.corpora["originals"]
    member = next(member for member in corpus.members if member.volume == "kasthuri15")
    regions = exclusion.regions(loaded, corpus, member)
    assert not any(region.overlap(cube) for region in regions for cube in PUBLISHED)
    open_to_test = corpus.model_copy(update={"allow_test": True})
    assert any(region.overlap(PUBLISHED[0]) for region in exclusion.regions(loaded, open_to_test, member))
    assert [exclusion.shows(loaded, c, "ac3") for c in (corpus, open_to_test)] == [False, True]


@pytest.mark.parametrize(("volume", "test"), [("fafb", "cremi-a"), ("fib25-whole", "fib25-test")])
def test_originals_whose_test_cubes_have_no_known_place_ask_for_a_decision(root: Path, volume: str, test: str):
    value = yaml.safe_load((root / "config/config.yaml").read_text())
    sample = {"number": 3, "shape": [128, 1024, 1024]}
    corpus = value["corpora"]["mine"] = {"datasets": [{"volume": volume, "sample": sample}]}
    with pytest.raises(
        InputError, match=rf"corpora.mine: volume {volume} has the raw of test volume {test} at a place"
    ):
        config.from_dict(value)
    corpus["exclude"] = [{"volume": volume, "offset": [0, 0, 0], "shape": [4000, 6000, 6000]}]
    config.from_dict(value)
