"""Which block adds which crops, and what waits in files."""

import numpy as np
import pytest

from tokenunify.geometry import Blocks
from tokenunify.learning import waiting_crops
from tokenunify.learning.crop_schedule import Schedule
from tokenunify.learning.tiling import Tiling

SHAPE, CROP = (11, 17, 23), (5, 6, 8)
TILING = Tiling(SHAPE, CROP, (2, 4, 3), (1, 2, 3))
BLOCKS = [(2, 8, 8), (4, 5, 23), (11, 6, 7), (3, 17, 5)]


@pytest.mark.parametrize("shape", BLOCKS)
@pytest.mark.parametrize("left_out", [0, 0.3, 0.8])
def test_every_voxel_to_be_computed_sums_all_its_crops_in_order(shape, left_out):
    """Sums that are handed down are replayed as lists of the crops' numbers."""
    blocks, random = Blocks(SHAPE, shape), np.random.default_rng(0)
    todo = [block for block in range(len(blocks)) if random.random() >= left_out]
    schedule, summed, started = Schedule(TILING, blocks, todo), {}, []
    for block in todo:
        box = schedule.box(block)
        for number in TILING.touching(blocks.roi(block)):
            users = schedule.users(number)
            if block in users:
                assert users == sorted(users)
                started += [number] if block == users[0] else []
                _, inside = TILING.overlap(number, box)
                for voxel in np.ndindex(*(part.stop - part.start for part in inside)):
                    place = (n + part.start + o for n, part, o in zip(voxel, inside, box.offset, strict=True))
                    summed.setdefault(tuple(place), []).append(number)
    assert len(started) == len(set(started))
    for block in todo:
        roi = blocks.roi(block)
        for voxel in np.ndindex(*roi.shape):
            place = tuple(n + o for n, o in zip(voxel, roi.offset, strict=True))
            starts = map(TILING.start, range(len(TILING)))
            covering = [
                number
                for number, start in enumerate(starts)
                if all(s <= p < s + c for s, p, c in zip(start, place, CROP, strict=True))
            ]
            assert summed[place] == covering


def test_what_is_taken_last_goes_to_files(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting_crops, "MOST_BYTES", 24)
    found, values = waiting_crops.Waiting(tmp_path), np.arange(12, dtype=np.float32).reshape(2, 6)

    def files():
        return sorted(path.name for path in tmp_path.iterdir())

    for block, number in [(5, 3), (2, -1), (7, 1)]:
        found.put(block, number, values[:, block - 2 : block - 1])
    assert files() == [] and found.num_bytes == 24
    found.put(6, 4, values[:, 4:5])
    assert files() == ["7.1.npy"] and found.num_bytes == 24
    found.put(8, -1, values)
    assert files() == ["7.1.npy", "8.-1.npy"] and found.num_bytes == 24
    found.put(3, 0, values[:, 1:3])
    assert files() == ["5.3.npy", "6.4.npy", "7.1.npy", "8.-1.npy"] and found.num_bytes == 24
    values_of = {(2, -1): [0], (3, 0): [1, 2], (5, 3): [3], (6, 4): [4], (7, 1): [5], (8, -1): [0, 1, 2, 3, 4, 5]}
    for (block, number), columns in values_of.items():
        taken = found.take(block, number)
        np.testing.assert_array_equal(taken, values[:, columns])
        assert taken.flags.c_contiguous and not np.shares_memory(taken, values)
    assert files() == [] and found.num_bytes == 0
