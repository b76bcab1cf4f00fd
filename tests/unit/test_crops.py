"""Training samples and the tiling of a volume into crops."""

import json
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from tokenunify import affinities
from tokenunify.config import NEAREST, Augment
from tokenunify.geometry import Blocks, Roi
from tokenunify.learning import crops
from tokenunify.learning.tiling import Tiling, blending_weight, crop_starts, read_mirrored

SHAPE = (7, 30, 41)


def labelled(name="a", shape=SHAPE, first=0, seed=0, zero="background", mask=None):
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (shape[0] + first, *shape[1:]), np.uint8)
    return crops.Labelled(name, raw, (raw // 16).astype(np.uint64), mask, first, shape, (40.0, 8.0, 8.0), zero)


def source(volumes=None, crop=(4, 12, 16), augment=None, seed=3, erode=False, **options):
    return crops.Crops(volumes or [labelled()], crop, NEAREST, erode, augment, seed, **options)


def test_sample_is_a_function_of_seed_and_index():
    augmented = Augment(**dict.fromkeys(Augment().model_dump(), 0.5))
    one, two = source(augment=augmented), source(augment=augmented)
    for index in (5, 0, 900):
        two[index + 1]
        np.testing.assert_array_equal(one[index]["raw"], two[index]["raw"])
        np.testing.assert_array_equal(one[index]["targets"], two[index]["targets"])
    assert (one[0]["raw"] != one[1]["raw"]).any()
    assert (one[0]["raw"] != source(augment=augmented, seed=4)[0]["raw"]).any()


def test_sample_shapes_and_targets_without_augmentation():
    sample = source()[0]
    assert sample["raw"].shape == (1, 4, 12, 16) and sample["raw"].dtype == np.float32
    labels = (np.rint(sample["raw"][0] * 255).astype(np.uint8) // 16).astype(np.uint64)
    targets, mask = affinities.from_labels(labels, NEAREST)
    np.testing.assert_array_equal(sample["targets"], targets)
    np.testing.assert_array_equal(sample["mask"], mask)


def test_targets_of_a_smaller_output_are_those_of_the_middle():
    augmented = Augment(**dict.fromkeys(Augment().model_dump(), 0.5))
    whole, middle = source(augment=augmented), source(augment=augmented, output=(2, 8, 6))
    for index in range(3):
        np.testing.assert_array_equal(middle[index]["raw"], whole[index]["raw"])
        for name in ("targets", "mask"):
            np.testing.assert_array_equal(middle[index][name], whole[index][name][:, 1:3, 2:10, 5:11])
    assert source(output=(2, 8, 6))[0]["mask"].all()  # every partner is inside the crop


def test_crops_turned_in_a_narrow_volume_stay_inside():
    turned = source([labelled(shape=(4, 12, 40))], crop=(4, 12, 16), augment=Augment(rotate=1.0))
    assert all(turned[i]["raw"].shape == (1, 4, 12, 16) for i in range(10))


def test_volumes_are_drawn_by_their_size():
    dark, bright = labelled("dark", (4, 12, 16)), labelled("bright", (12, 12, 16))
    dark.raw[:], bright.raw[:] = 0, 255
    drawn = [source([dark, bright])[i]["raw"].max() for i in range(400)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.07)


def test_only_the_sections_of_the_range_are_used():
    volume = labelled(first=3)
    volume.raw[:3], volume.raw[3:] = 0, 200
    for volumes in ([volume], crops.cached([volume])):
        assert all(source(volumes)[i]["raw"].min() == np.float32(200) / 255 for i in range(20))


@pytest.mark.parametrize("zero", ["background", "unlabelled"])
@pytest.mark.parametrize("erode", [False, True, "3d"])
@pytest.mark.parametrize("crop", [(4, 12, 16), (4, 12, 50)], ids=["inside", "mirrored"])
def test_labels_outside_the_mask_reach_no_sample(zero, erode, crop):
    """Whatever their type, through erosion and every augmentation."""
    inside = np.random.default_rng(5).random((SHAPE[0] + 2, *SHAPE[1:])) < 0.8
    inside[:, :, 25:] = False
    plain = replace(labelled(first=2, zero=zero, mask=inside.astype(np.uint8)), labels=np.where(inside, 3, 0))
    plain.labels[:, 7:14][inside[:, 7:14]] = 4
    garbage = np.random.default_rng(6).integers(0, 9, inside.shape)
    other = replace(plain, labels=np.where(inside, plain.labels, garbage).astype(np.uint16))
    plain = replace(plain, labels=plain.labels.astype(np.uint64))
    options = {"erode": erode, "augment": Augment(**dict.fromkeys(Augment().model_dump(), 0.7)), "crop": crop}
    one, two, held = (source([v], **options) for v in (plain, other, crops.cached([other])[0]))
    for index in range(6):
        for name in ("raw", "targets", "mask"):
            np.testing.assert_array_equal(one[index][name], two[index][name])
            np.testing.assert_array_equal(one[index][name], held[index][name])


def test_pairs_with_an_end_outside_the_mask_are_unknown():
    """Here only: a voxel, and those whose partner before them it is."""
    mask = np.ones(SHAPE, bool)
    mask[2, 3, 4] = False
    sample = source([labelled(mask=mask)], crop=SHAPE)[0]
    known = affinities.from_labels(np.ones(SHAPE, np.uint64), NEAREST)[1]
    for channel, (z, y, x) in enumerate(NEAREST):
        known[channel, 2, 3, 4] = known[channel, 2 - z, 3 - y, 4 - x] = False
    np.testing.assert_array_equal(sample["mask"], known)


def test_a_validation_volume_smaller_than_the_crop_is_mirrored():
    sample = source(crop=(4, 12, 50))[0]
    assert sample["raw"].shape == (1, 4, 12, 50)
    np.testing.assert_array_equal(sample["raw"][..., 40:], sample["raw"][..., 40:30:-1])


@pytest.mark.parametrize("length", [1, 5, 16, 23, 24, 25, 125])
def test_starts_cover_the_axis_and_end_at_the_padding(length):
    starts = crop_starts(length, padding=4, crop=16, stride=10)
    assert all(b - a <= 10 and b > a for a, b in pairwise(starts))
    covered = {v for s in starts for v in range(s, s + 16)}
    assert covered >= set(range(length))
    if length + 8 > 16:
        assert (starts[0], starts[-1] + 16) == (-4, length + 4)
    else:
        assert len(starts) == 1


def test_published_number_of_crops():
    tiling = Tiling((125, 1250, 1250), (16, 160, 160), (10, 80, 80), (4, 15, 15))
    assert len(tiling) == 2925
    assert tiling.start(0) == (-4, -15, -15)
    assert tiling.start(2924) == (113, 1105, 1105)


def test_tiling_knows_what_touches_what():
    tiling = Tiling((9, 20, 31), (4, 8, 12), (3, 5, 7), (1, 2, 3))
    blocks = Blocks((9, 20, 31), (4, 8, 16))
    for index in range(len(blocks)):
        roi = blocks.roi(index)
        expected = []
        for number, start in enumerate(product(*tiling.starts)):
            assert tiling.start(number) == start
            if all(s < e and s + c > o for s, c, o, e in zip(start, tiling.crop, roi.offset, roi.end, strict=True)):
                expected.append(number)
        assert tiling.touching(roi) == expected
        assert all(index in tiling.blocks(number, blocks) for number in expected)
    assert sum(len(tiling.blocks(n, blocks)) for n in range(len(tiling))) == sum(
        len(tiling.touching(blocks.roi(i))) for i in range(len(blocks))
    )


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 2, 4)])
def test_read_mirrored_is_numpys_reflection(shape):
    raw = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    padded = np.pad(raw, [(9, 9)] * 3, mode="reflect")
    for start in ((-9, -4, 0), (1, 2, 3), (-2, -9, 5)):
        box = tuple(slice(s + 9, s + 9 + n) for s, n in zip(start, (4, 6, 3), strict=True))
        np.testing.assert_array_equal(read_mirrored(raw, start, (4, 6, 3)), padded[box])


def test_blending_weight_is_the_formula():
    weight = blending_weight((4, 5, 1), 0.3)
    for z, y in np.ndindex(4, 5):
        squared = np.linspace(-1, 1, 4)[z] ** 2 + np.linspace(-1, 1, 5)[y] ** 2
        assert weight[z, y, 0] == pytest.approx(1e-6 + np.exp(-squared / (2 * 0.3**2)), rel=1e-4)


def test_published_weight_and_starts(golden, golden_folder):
    arrays = golden("blend_weight_16x160x160.npz")
    weight = blending_weight((16, 160, 160), 0.2)
    np.testing.assert_allclose(weight[:, ::8, ::8], arrays["weight_every_8"], atol=1e-6)
    protocol = json.loads((golden_folder / "inference_protocol.json").read_text())
    for name in ("segmamba", "superhuman", "unetr"):
        entry = protocol[name]
        for axis, key in enumerate(("z_starts", "y_starts", "x_starts")):
            padding, length = entry["pad"][axis], entry["padded_shape"][axis] - 2 * entry["pad"][axis]
            starts = crop_starts(length, padding=padding, crop=entry["crop"][axis], stride=entry["stride"][axis])
            assert [s + padding for s in starts] == entry[key]


def test_published_blending_of_crops(golden):
    arrays = golden("blend_z20_a.npz")
    crop, step = (16, 160, 160), int(arrays["sub_step"])
    tiling = Tiling((20, 1250, 1250), crop, (10, 80, 80), (4, 15, 15))
    tiling.starts[0] = [-4, 6]  # the published provider leaves out the third position at this depth
    lines = [np.linspace(0, 1, n, dtype=np.float32) for n in crop]
    ramp = (lines[0][:, None, None] + 2 * lines[1][:, None] + 4 * lines[2])[None] / 7
    roi = Roi((0, 0, 0), (20, 1250, 301))
    sums, weight = np.zeros((1, *roi.shape), np.float32), blending_weight(crop, 0.2)
    for number in tiling.touching(roi):
        in_crop, _ = tiling.overlap(number, roi)
        tiling.add(sums, number, ramp[(slice(None), *in_crop)].copy(), weight, roi)
    result = sums / tiling.total_weight(roi, weight)
    expected = arrays["ramp_result_sub"]
    np.testing.assert_allclose(result[0][:, ::step, ::step][:, :25, :6], expected[:, :, :6], atol=1e-4)
