"""Crops of unlabelled raw: who is drawn how often, and what is never seen."""

import json
from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest

from tokenunify.config import RawAugment, RoiConfig, Superhuman
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.learning import crops
from tokenunify.learning.tokens.corpus import AS_IT_IS, Corpus, Region
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

SHAPE = (7, 20, 33)
ANISOTROPIC, ISOTROPIC = (40.0, 8.0, 8.0), (10.0, 10.0, 10.0)


def numbered(shape=SHAPE, dtype=np.uint32):
    """A volume whose voxels are their numbers."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def region(raw=None, box=None, avoid=(), voxel_size_nm=ANISOTROPIC, name="a"):
    raw = numbered() if raw is None else raw
    return Region(name, raw, box or Roi((0, 0, 0), raw.shape), tuple(avoid), voxel_size_nm)


def corpus(*datasets, crop=(2, 4, 6), augment=AS_IT_IS, seed=5):
    return Corpus(datasets or [[region()]], crop, augment, seed)


def voxels(crop, dtype=np.uint32) -> np.ndarray:
    """Numbers of a crop's voxels."""
    return np.rint(crop[0].astype(np.float64) * np.iinfo(dtype).max).astype(np.int64)


def starts_of(source: Corpus, number: int, shape=SHAPE) -> Counter:
    """Number of times that each first voxel is drawn."""
    raw = source.datasets[0][0].raw
    levels = np.sort(raw.ravel())
    firsts = (source[i][0, 0, 0, 0] * np.iinfo(raw.dtype).max for i in range(number))
    return Counter(tuple(map(int, np.unravel_index(np.searchsorted(levels, round(v)), shape))) for v in firsts)


def test_crop_is_a_function_of_seed_and_index():
    every = RawAugment(flip=0.5, rotate=0.5, intensity=0.5)
    raw = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    one, two = (corpus([region(raw)], augment=every) for _ in range(2))
    for index in (5, 0, 2**40):
        two[index + 1]
        np.testing.assert_array_equal(one[index], two[index])
    assert one[0].shape == (1, 2, 4, 6)
    assert one[0].dtype == np.float32
    assert (one[0] != one[1]).any()
    assert (one[0] != corpus([region(raw)], augment=every, seed=6)[0]).any()
    drawn = np.stack([one[i] for i in range(50)])
    assert 0 <= drawn.min() < drawn.max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_full_range_of_the_type_is_0_to_1(dtype):
    raw = np.full(SHAPE, np.iinfo(dtype).max // 5, dtype)
    np.testing.assert_array_equal(corpus([region(raw)])[0], np.full((1, 2, 4, 6), 0.2, np.float32))


def test_data_sets_and_then_regions_are_drawn_alike_whatever_their_size():
    def flat(value, shape):
        return region(np.full(shape, value, np.uint8))

    whole = np.zeros((6, 8, 12), np.uint8)
    whole[:, :, :6], whole[:, :, 6:] = 40, 50
    halves = [region(whole, Roi((0, 0, x), (6, 8, 6))) for x in (0, 6)]
    source = corpus([flat(10, (2, 4, 6))], [flat(20, (9, 40, 60)), flat(30, (3, 5, 7)), *halves])
    number = 3000
    drawn = Counter(round(float(source[i].max()) * 255) for i in range(number))
    expected = {10: number / 2, **dict.fromkeys((20, 30, 40, 50), number / 8)}
    assert drawn.keys() == expected.keys()
    # chi-square with 4 degrees of freedom: 23.5 is exceeded once in ten thousand
    assert sum((drawn[k] - e) ** 2 / e for k, e in expected.items()) < 23.5


def test_positions_are_uniform_over_exactly_the_legal_ones():
    """Against a list of all positions, tried one by one."""
    box, crop = Roi((1, 2, 3), (5, 9, 11)), (2, 4, 3)
    avoid = [Roi((0, 0, 7), (3, 7, 2)), Roi((3, 8, 0), (9, 1, 40)), Roi((2, 6, 6), (2, 2, 2))]
    hidden = np.zeros(SHAPE, bool)
    for hole in avoid:
        hidden[hole.slices] = True
    legal = {
        start
        for start in product(*(range(o, e - c + 1) for o, e, c in zip(box.offset, box.end, crop, strict=True)))
        if not hidden[Roi(start, crop).slices].any()
    }
    assert 20 < len(legal) < 4 * 6 * 9
    number = 60 * len(legal)
    raw = numbered(dtype=np.uint16)
    drawn = starts_of(corpus([region(raw, box, avoid)], crop=crop), number)
    assert drawn.keys() == legal
    squares = sum((count - 60) ** 2 / 60 for count in drawn.values())
    freedom = len(legal) - 1
    assert squares < freedom + 5 * (2 * freedom) ** 0.5  # mean and five standard deviations of chi-square


@pytest.mark.parametrize(("voxel_size_nm", "orders"), [(ANISOTROPIC, 2), (ISOTROPIC, 6)])
def test_turned_crops_keep_out_too(voxel_size_nm, orders):
    raw = np.random.default_rng(1).integers(0, 60_000, (9, 14, 17)).astype(np.uint16)
    hole = Roi((3, 5, 6), (3, 4, 2))
    raw[hole.slices] = 65_535
    source = corpus([region(raw, avoid=[hole], voxel_size_nm=voxel_size_nm)], crop=(2, 3, 4), augment=RawAugment())
    seen = set()
    every = {
        turned[tuple(slice(None, None, s) for s in steps)].tobytes(): (order, steps)
        for start in product(range(8), range(13), range(16))
        for order in permutations(range(3))
        if (turned := window(raw, start, [(2, 3, 4)[order.index(a)] for a in range(3)], order)).shape == (2, 3, 4)
        for steps in product((1, -1), repeat=3)
    }
    for index in range(300):
        crop = voxels(source[index], np.uint16).astype(np.uint16)
        assert crop.max() < 65_535
        seen.add(every[crop.tobytes()])
    assert len({order for order, _ in seen}) == orders
    assert len({steps for _, steps in seen}) == 8


def window(raw, start, extent, order) -> np.ndarray:
    """A box of the raw, its axes permuted; smaller where it does not fit."""
    return raw[Roi(start, tuple(extent)).slices].transpose(order)


def test_crops_that_only_fit_unturned_are_not_turned():
    source = corpus(
        [region(numbered((3, 4, 6)), voxel_size_nm=ISOTROPIC)], crop=(2, 4, 6), augment=RawAugment(rotate=1)
    )
    assert all(source[i].shape == (1, 2, 4, 6) for i in range(20))


@pytest.mark.parametrize(
    "given",
    [{"box": Roi((0, 0, 0), (1, 20, 33))}, {"avoid": [Roi((1, 0, 0), (1, 20, 33)), Roi((3, 0, 0), (3, 99, 99))]}],
)
def test_a_region_without_room_is_named(given):
    with pytest.raises(InputError, match=r"crop of \[2, 4, 6\] does not fit into volume narrow, .*excluded boxes"):
        corpus([region(name="narrow", **given)])


def test_statistics_are_those_of_the_raw_and_the_same_for_all_seeds():
    random = np.random.default_rng(2)
    dark, bright = (random.normal(m, s, (8, 30, 40)).astype(np.uint8) for m, s in ((60, 10), (190, 20)))
    first, second = (corpus([region(dark)], [region(bright)], augment=RawAugment(intensity=1), seed=s) for s in (1, 2))
    assert first.statistics() == second.statistics()
    mean, deviation = first.statistics()
    both = np.concatenate([dark.ravel(), bright.ravel()]) / 255
    assert mean == pytest.approx(both.mean(), rel=0.2)
    assert deviation == pytest.approx(both.std(), rel=0.1)
    flat = corpus([region(np.full(SHAPE, 51, np.uint8))])
    assert flat.statistics() == (pytest.approx(0.2), pytest.approx(0, abs=1e-7))


@pytest.fixture
def ingested(tmp_path):
    """Two ingested volumes without labels."""
    paths = []
    for number, shape in enumerate([SHAPE, (6, 18, 21)]):
        path = tmp_path / f"v{number}.json"
        raw = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        grid = {"chunk_shape": (4, 8, 16), "shard_shape": (4, 16, 32)}
        store = path.with_suffix(".zarr") / "raw" / "0"
        arrays.create(store, shape=shape, dtype="uint8", attributes={}, **grid)[:] = raw
        content = {"raw": {"shape": shape, "dtype": "uint8"}, "labels": None}
        placed = {"voxel_size_nm": ANISOTROPIC, "offset_nm": (0, 0, 0)}
        manifest.write(path, {**content, **placed, "zero": "background"})
        paths.append(path)
    return paths


def section(*datasets) -> sections.Pretrain:
    text = sections.to_json("pretrain", sections.Pretrain(network=Superhuman(), datasets=datasets, crop=(2, 4, 6)))
    assert "v0" in text
    return sections.from_json("pretrain", json.dumps(json.loads(text)))[0]


def box(offset, shape) -> RoiConfig:
    return RoiConfig(offset=offset, shape=shape)


def test_opened_corpus_is_what_the_section_says(ingested, monkeypatch):
    hole = box((0, 0, 0), (7, 20, 9))
    parts = [
        sections.Region(volume="v1", box=box((1, 2, 3), (4, 8, 12)), avoid=()),
        sections.Region(volume="v0", box=None, avoid=(hole,)),
    ]
    told = section((parts[0],), (parts[1],))
    opened = Corpus.open(told, ingested, 3)
    first, second = (dataset[0] for dataset in opened.datasets)
    assert (first.name, first.box) == ("v1", Roi((1, 2, 3), (4, 8, 12)))
    assert (second.name, second.box, second.avoid) == ("v0", Roi((0, 0, 0), SHAPE), (Roi((0, 0, 0), (7, 20, 9)),))
    assert all(isinstance(r.raw, np.ndarray) for r in (first, second))
    monkeypatch.setattr(crops, "CACHE_BYTES", first.raw.nbytes)
    uncached = Corpus.open(told, ingested, 3)
    assert [isinstance(d[0].raw, np.ndarray) for d in uncached.datasets] == [True, False]
    for index in range(10):
        np.testing.assert_array_equal(opened[index], uncached[index])


def test_a_region_outside_its_volume_is_named(ingested):
    told = section((sections.Region(volume="v0", box=box((1, 2, 3), (4, 8, 31)), avoid=()),))
    with pytest.raises(
        InputError, match=r"region of volume v0 must end inside its shape \[7, 20, 33\], .*\[5, 10, 34\]"
    ):
        Corpus.open(told, ingested, 0)
