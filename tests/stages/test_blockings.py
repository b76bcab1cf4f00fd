"""Stage blockings: equal to the stages run once for each block shape, and scikit-image on what they make."""

import itertools

import numpy as np
import pytest
from skimage.metrics import adapted_rand_error, variation_of_information

from tests.stages.test_segmentation import noisy
from tokenunify import blockings, cli
from tokenunify.store import arrays, manifest

BLOCKS = [(10, 44, 60), (4, 22, 60), (2, 44, 30)]
FRAGMENTS = {"dimensions": 3, "halo": (2, 8, 8), "sigma_seeds": 1.0}
SEGMENTATIONS = [
    {"method": "waterz", "threshold": 0.4, "fragments": FRAGMENTS},
    {"method": "waterz", "threshold": 0.6, "score": "hist50", "fragments": FRAGMENTS},
    {"method": "multicut", "beta": 0.4, "fragments": FRAGMENTS},
]


@pytest.fixture
def predicted(workspace, labels):
    mask = np.ones(labels.shape, np.uint8)
    mask[3:6, :20, 5:31] = 0
    return workspace.affinities(workspace.volume("test", labels, mask=mask), noisy(labels))


def words(workspace, predicted, segmentation) -> list[str]:
    lut = workspace.folder / "agglomerate.json"
    manifest.write(lut, {"value": segmentation.get("threshold") or segmentation["beta"]})
    section = workspace.section("blockings", segmentation=segmentation, block_shapes=BLOCKS)
    files = {"volume": workspace.folder / "data/volumes/test.json", "lut": lut, "affinities": predicted}
    given = [str(word) for name, path in files.items() for word in (f"--{name}", path)]
    output = ["--output", str(workspace.folder / "segmentation" / "blockings.json")]
    return ["blockings", "--config-json", section, *given, *output]


@pytest.mark.parametrize("segmentation", SEGMENTATIONS, ids=lambda s: s.get("score", s["method"]))
def test_scores_are_those_of_the_stages_segmentations(workspace, predicted, tmp_path, segmentation):
    assert cli.main(words(workspace, predicted, segmentation)) == 0
    pairs = manifest.content(tmp_path / "segmentation" / "blockings.json")["pairs"]
    assert list((tmp_path / "segmentation").iterdir()) == [tmp_path / "segmentation" / "blockings.json"]
    found = {}
    for shape in BLOCKS:
        other = workspace.copy(tmp_path / str(shape), block_shape=shape)
        found[shape] = arrays.open_prepared(other.segment(other.folder / "predict/prepared.json", **segmentation))[:]
    assert [tuple(map(tuple, pair["blocks"])) for pair in pairs] == list(itertools.combinations(BLOCKS, 2))
    for pair in pairs:
        first, second = (found[tuple(shape)].astype(np.int64) for shape in pair["blocks"])
        split, merge = variation_of_information(first, second, ignore_labels=(0,))
        error, _, _ = adapted_rand_error(first, second, ignore_labels=(0,))
        assert (pair["voi_split"], pair["voi_merge"]) == pytest.approx((split, merge), abs=1e-9)
        assert (pair["voi"], pair["arand"]) == pytest.approx((split + merge, error), abs=1e-9)
    assert max(pair["voi"] for pair in pairs) > 0.01


def test_nothing_is_left_of_a_run_that_failed(workspace, predicted, tmp_path, monkeypatch):
    def fail(*_):
        assert len(list((tmp_path / "segmentation").iterdir())) == 1
        raise OSError("made up")

    monkeypatch.setattr(blockings, "between", fail)
    assert cli.main(words(workspace, predicted, SEGMENTATIONS[0])) == 1
    assert list((tmp_path / "segmentation").iterdir()) == []
