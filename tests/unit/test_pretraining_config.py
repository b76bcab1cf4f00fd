"""Pre-training's configuration: what is refused, what a corpus must not show, and what the tables then say."""

import copy
import json

import pytest

from tests.unit import test_config
from tests.unit.test_config import VALID
from tokenunify import config
from tokenunify.config import exclusion
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.plan.plan import Plan

FILE = {"raw": {"path": "cube.h5", "format": "hdf5", "dataset": "raw"}}
LABELS = {"labels": {"path": "cube.h5", "format": "hdf5", "dataset": "labels"}}


def cube(offset=None, shape=None, source=None) -> dict:
    """A labelled box of one file."""
    roi = {} if offset is None else {"roi": {"offset": offset, "shape": shape}}
    return {"sources": [{**FILE, **LABELS, **(source or {})}], "voxel_size_nm": [10, 10, 10], **roi}


def base() -> dict:
    """Three phantoms, and boxes of one file: two of the data set, one that overlaps the test box."""
    value = copy.deepcopy(VALID)
    value["volumes"] |= {
        "first": cube([0, 0, 0], [20, 64, 80]),
        "last": cube([30, 8, 0], [20, 64, 80]),
        "across": cube([10, 0, 16], [30, 64, 90]),
        "whole": {"sources": [FILE], "voxel_size_nm": [10, 10, 10]},
        "other": cube(source={"raw": {"path": "other.h5", "format": "hdf5", "dataset": "raw"}}),
    }
    value["datasets"]["f"] = {"train": ["first"], "test": ["last"]}
    value["corpora"] = {"c": {"datasets": {"one": ["a"], "two": ["first", "across"]}}}
    value["pretrainings"] = {
        "p": {"network": {"name": "superhuman"}, "corpus": "c", "crop": [8, 32, 48], "patch": [2, 16, 8]}
    }
    value["models"]["m"]["pretraining"] = "p"
    return value


def changed(path: str, new) -> dict:
    return test_config.changed(path, new, base())


def avoided(value: dict, name: str) -> list[tuple]:
    loaded = config.from_dict(value)
    return [(roi.offset, roi.shape) for roi in exclusion.avoided(loaded, loaded.corpora["c"], name)]


def test_defaults_are_the_papers():
    p = config.from_dict(base()).pretrainings["p"]
    assert (p.objectives, p.mode, p.period_epochs) == (("random", "next", "next-all"), "alternate", 100)
    assert (p.mask_range, p.fill, p.betas, p.weight_decay) == ((0.4, 0.4), "noise", (0.9, 0.999), 0.05)
    assert p.steps * p.batch_size == 400 * p.samples_per_epoch
    assert p.learning_rate == 1e-3 * p.batch_size / 256
    assert p.loss_weights == {"random": 1.0, "next": 1.0, "next-all": 1.0}
    assert p.augment.intensity == 0


def test_what_may_be_written_short():
    value = changed(
        "corpora/c/datasets", ["a", {"volume": "first", "regions": [{"offset": [0, 0, 0], "shape": [9, 40, 50]}]}]
    )
    value["pretrainings"]["p"] |= {"ordering": "relevance", "mask_ratio": [0.3, 0.6], "loss_weights": {"next-all": 0.5}}
    loaded = config.from_dict(value)
    assert [v.volume for v in loaded.corpora["c"].datasets["all"]] == ["a", "first"]
    p = loaded.pretrainings["p"]
    assert p.ordering == config.Relevance()
    assert p.mask_range == (0.3, 0.6)
    assert p.loss_weights == {"random": 1.0, "next": 1.0, "next-all": 0.5}


def test_learning_rate_follows_the_schedule_of_each_stage():
    value = changed("pretrainings/p/lr_schedule", "constant")
    value["finetune"]["lr_schedule"] = "constant"
    loaded = config.from_dict(value)
    assert (loaded.pretrainings["p"].lr_schedule, loaded.models["m"].finetune.lr_schedule) == ("constant", "constant")
    default = config.from_dict(base())
    assert (default.pretrainings["p"].lr_schedule, default.models["m"].finetune.lr_schedule) == ("cosine", "cosine")


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        ("models/m/pretraining", "q", ["models.m.pretraining names 'q'", "['p']"]),
        ("models/pretrain", VALID["models"]["m"], ["models.pretrain", "choose another name"]),
        (
            "models/m/network",
            {"name": "superhuman", "filters": [28, 36, 48]},
            ["models.m.network must be that of pretrainings.p", "{'filters': (28, 36, 48)}", "(28, 36, 48, 64, 80)"],
        ),
        ("pretrainings/p/corpus", "d", ["pretrainings.p.corpus names 'd'", "['c']"]),
        ("pretrainings/p/crop", [8, 33, 48], ["pretrainings.p.crop must be a multiple of [1, 16, 16]", "[8, 33, 48]"]),
        ("pretrainings/p/crop", [8, 32, 96], ["pretrainings.p.corpus: volume a", "no place for a crop of [8, 32, 96]"]),
        ("pretrainings/p/patch", [2, 16, 9], ["pretrainings.p.crop must be a multiple of patch [2, 16, 9]"]),
        (
            "pretrainings/p/patch",
            [8, 32, 48],
            ["pretrainings.p.patch [8, 32, 48] must fit twice or more into", "[8, 32"],
        ),
        ("pretrainings/p/objectives", ["next", "next"], ["expected different objectives, found ['next', 'next']"]),
        (
            "pretrainings/p/schedule",
            ["next"],
            ["pretrainings.p.schedule: this key is called objectives now; rename it"],
        ),
        ("pretrainings/p/weights", {"next": 2}, ["pretrainings.p.weights: this key is called loss_weights now"]),
        ("finetune/schedule", "cosine", ["finetune.schedule: this key is called lr_schedule now; rename it"]),
        ("pretrainings/p/objectives", [], ["pretrainings.p.objectives", "at least 1"]),
        (
            "pretrainings/p/steps",
            7812,
            ["['next-all'] would never be trained", "1999872 samples", "samples_per_epoch x period_epochs = 1000000"],
        ),
        (
            "pretrainings/p/mask_ratio",
            [0.6, 0.3],
            ["mask_ratio must be the lowest and the highest share, got [0.6, 0.3]"],
        ),
        ("pretrainings/p/mask_ratio", 1, ["pretrainings.p.mask_ratio: expected less than 1", "found 1"]),
        ("pretrainings/p/resampler", {"width": 100}, ["width must be a multiple of heads 8, got 100"]),
        ("pretrainings/p/ordering", "random", ["pretrainings.p.ordering: expected 'raster'", 'found "random"']),
        ("pretrainings/p/loss_weights", {"nxt": 1}, ["pretrainings.p.loss_weights", "'next'"]),
        ("pretrainings/p/augment", {"elastic": 0.1}, ["pretrainings.p.augment.elastic: unknown key"]),
        ("corpora/c/datasets", {"one": ["x"]}, ["corpora.c.datasets.one names 'x'"]),
        ("corpora/c/datasets", {}, ["corpora.c.datasets", "at least 1"]),
        ("corpora/c/datasets/one", [], ["corpora.c.datasets.one", "at least 1"]),
        (
            "corpora/c/exclude",
            [{"volume": "x", "offset": [0, 0, 0], "shape": [1, 1, 1]}],
            ["corpora.c.exclude names 'x'"],
        ),
        (
            "corpora/c/datasets/one",
            [{"volume": "a", "regions": [{"offset": [0, 1, 0], "shape": [20, 64, 80]}]}],
            ["corpora.c.datasets.one: a region must end inside volume a of shape [20, 64, 80]", "[20, 65, 80]"],
        ),
        ("corpora/c/datasets/one", ["c"], ["corpora.c: volume c of data set one has no place", "allow_test: true"]),
        ("corpora/c/datasets/one", ["b"], ["corpora.c: volume b of data set one has no place"]),
        (
            "corpora/c/exclude",
            [{"volume": "a", "offset": [0, 0, 40], "shape": [20, 64, 4]}],
            ["pretrainings.p.corpus: volume a of data set one has no place for a crop of [8, 32, 48]", "[0, 0, 40]"],
        ),
    ],
)
def test_wrong_key_is_explained(path: str, new, words: list[str]):
    with pytest.raises(InputError) as error:
        config.from_dict(changed(path, new), "my.yaml")
    for word in words:
        assert word in str(error.value)


def test_the_last_turn_must_begin():
    """Of three turns of a million samples each, 256 of them a step, the last begins with step 7814."""
    config.from_dict(changed("pretrainings/p/steps", 7814))
    with pytest.raises(InputError, match="would never be trained"):
        config.from_dict(changed("pretrainings/p/steps", 7813))
    joint = changed("pretrainings/p/steps", 5)
    joint["pretrainings"]["p"]["mode"] = "joint"
    config.from_dict(joint)


# ------------------------------------------------------------------------------------------------ what is not shown


def test_boxes_of_a_test_volume_are_avoided_in_the_corpus_volumes_own_voxels():
    assert avoided(base(), "a") == []
    assert avoided(base(), "first") == []
    assert avoided(base(), "across") == [((20, 8, 0), (10, 56, 64))]  # last is [30:50, 8:72, 0:80] of the file
    assert avoided(base(), "whole") == [((30, 8, 0), (20, 64, 80))]
    assert avoided(base(), "other") == []


def test_phantoms_are_told_apart_by_seed():
    value = base()
    value["volumes"]["twin"] = copy.deepcopy(value["volumes"]["c"]) | {
        "roi": {"offset": [2, 0, 8], "shape": [9, 60, 70]}
    }
    assert avoided(value, "twin") == [((0, 0, 0), (9, 60, 70))]
    value["volumes"]["twin"]["sources"][0]["phantom"]["seed"] = 77
    assert avoided(value, "twin") == []


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ({"raw": {**FILE["raw"], "sha256": "0" * 64}}, True),
        ({"raw": {**FILE["raw"], "dataset": "raw2"}}, False),
        ({"raw": {**FILE["raw"], "path": "cube2.h5"}}, False),
    ],
)
def test_one_of_several_sources_in_common_is_the_same_raw(source: dict, same: bool):
    value = base()
    value["volumes"]["again"] = {
        "sources": [{"raw": {"url": "https://x/cube.npy", "format": "npy"}}, source],
        "voxel_size_nm": [10, 10, 10],
    }
    assert avoided(value, "again") == ([((30, 8, 0), (20, 64, 80))] if same else [])


def test_excluded_boxes_hold_in_every_volume_with_that_raw():
    value = changed("corpora/c/exclude", [{"volume": "first", "offset": [15, 2, 3], "shape": [30, 5, 20]}])
    value["corpora"]["c"]["allow_test"] = True
    assert avoided(value, "first") == [((15, 2, 3), (5, 5, 20))]
    assert avoided(value, "across") == [((5, 2, 0), (5, 5, 7))]
    assert avoided(value, "last") == []


def test_a_test_volume_without_roi_leaves_nothing_of_its_file():
    value = changed("volumes/last", cube())
    with pytest.raises(
        InputError,
        match=r"volume first of data set two has no place .* outside of .*, which exclude, a test cube, or a val",
    ):
        config.from_dict(value)


@pytest.mark.parametrize(
    ("allow", "members", "volume", "shown"),
    [
        (False, ["a", "across"], "last", False),
        (True, ["a", "across"], "last", True),
        (True, ["a", "first"], "last", False),
        (True, ["a", "c"], "c", True),
        (True, ["a", "c"], "b", False),
        (True, [{"volume": "across", "regions": [{"offset": [0, 0, 0], "shape": [20, 64, 90]}]}], "last", False),
        (True, [{"volume": "across", "regions": [{"offset": [0, 0, 0], "shape": [21, 64, 90]}]}], "last", True),
        (True, ["whole"], "last", True),
    ],
)
def test_whether_a_volumes_raw_is_in_a_corpus(allow: bool, members: list, volume: str, shown: bool):
    value = changed("corpora/c", {"datasets": members, "allow_test": allow})
    loaded = config.from_dict(value)
    assert exclusion.shows(loaded, loaded.corpora["c"], volume) is shown


def test_what_is_excluded_by_hand_is_not_shown():
    value = changed("corpora/c", {"datasets": ["across"], "allow_test": True})
    value["corpora"]["c"]["exclude"] = [{"volume": "last", "offset": [0, 0, 0], "shape": [20, 64, 80]}]
    loaded = config.from_dict(value)
    assert not exclusion.shows(loaded, loaded.corpora["c"], "last")


# ------------------------------------------------------------------------------------------------ the plan


def test_section_holds_regions_and_what_they_avoid():
    value = base()
    regions = [{"offset": [0, 0, 0], "shape": [9, 40, 50]}, {"offset": [8, 0, 0], "shape": [9, 40, 50]}]
    value["corpora"]["c"]["datasets"]["two"] = [{"volume": "first", "regions": regions}, "across"]
    plan = Plan(config.from_dict(value))
    assert plan.corpus_volumes("p") == ["a", "first", "across"]
    section = json.loads(plan.pretrain("p"))
    hole = {"offset": [20, 8, 0], "shape": [10, 56, 64]}
    assert section["datasets"] == [
        [{"volume": "a", "box": None, "avoid": []}],
        [
            *({"volume": "first", "box": box, "avoid": []} for box in regions),
            {"volume": "across", "box": None, "avoid": [hole]},
        ],
    ]
    assert (section["network"]["name"], section["crop"]) == ("superhuman", [8, 32, 48])


def test_names_of_corpora_and_data_sets_are_not_in_the_section():
    """Renaming is no reason to train again."""
    value = base()
    value["corpora"] = {
        "renamed": {"datasets": dict(zip("xy", value["corpora"]["c"]["datasets"].values(), strict=True))}
    }
    value["pretrainings"]["p"]["corpus"] = "renamed"
    assert Plan(config.from_dict(value)).pretrain("p") == Plan(config.from_dict(base())).pretrain("p")


def test_unknown_pretraining_is_told_with_the_known():
    with pytest.raises(InputError, match=r"unknown pretraining 'q', the configuration has p"):
        Plan(config.from_dict(base())).pretrain("q")


@pytest.mark.parametrize(("allow", "members", "seen"), [(False, ["a"], False), (True, ["a", "c"], True)])
def test_rows_say_whether_pretraining_saw_the_volume(allow: bool, members: list, seen: bool):
    value = changed("corpora/c", {"datasets": members, "allow_test": allow})
    value["models"]["scratch"] = {**VALID["models"]["m"]}
    plan = Plan(config.from_dict(value))
    assert (plan.pretraining_of("m"), plan.pretraining_of("scratch")) == ("p", None)
    rows = json.loads(plan.metrics("c"))["rows"]
    found = {row["model"]: (row["pretraining"], row["test_raw_in_pretraining"]) for row in rows}
    assert found == {"m": ("p", seen), "scratch": ("none", False), "raw-watershed": ("none", False)}
    validation = {row["model"]: row["test_raw_in_pretraining"] for row in json.loads(plan.metrics("b"))["rows"]}
    assert validation["m"] is False


def test_extent_of_volumes():
    loaded = config.from_dict(base())
    extents = {name: exclusion.extent(loaded.volumes[name]) for name in ("a", "across", "whole")}
    assert extents == {
        "a": Roi((0, 0, 0), (20, 64, 80)),
        "across": Roi((10, 0, 16), (30, 64, 90)),
        "whole": exclusion.ANY_SIZE,
    }
