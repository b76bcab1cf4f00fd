"""Chunks that a volume lacks: counted in every chunked format, whole and in boxes, in files and in shards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import wkw
import zarr

from tokenunify.data.formats import absent
from tokenunify.data.formats.absent import Count
from tokenunify.data.formats.readers import open_array
from tokenunify.data.formats.tensorstore import open_chunked
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks, Roi

SHAPE = (10, 22, 31)
CHUNK = (4, 8, 8)
GRID = (3, 3, 4)
ALL = Roi((0, 0, 0), SHAPE)
HOLE = Roi((4, 8, 16), CHUNK)
SHARDING = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 1, "minishard_bits": 1}
SHARDING |= {"shard_bits": 3, "minishard_index_encoding": "gzip", "data_encoding": "gzip"}


@pytest.fixture
def volume() -> np.ndarray:
    """Without the chunk 1, 1, 2, and with another that is stored and has one value."""
    values = np.random.default_rng(0).integers(1, 256, SHAPE).astype(np.uint8)
    values[HOLE.slices] = 0
    values[:4, :8, :8] = 7
    return values


def tensorstore(folder: Path, driver: str, values: np.ndarray, **described) -> None:
    """Chunks of zeros are not stored."""
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}, **described}
    array = ts.open(spec, create=True).result()
    array = array[..., 0] if driver == "neuroglancer_precomputed" else array
    array[ts.d[:].translate_to[0]].write(values).result()


def precomputed(folder: Path, volume: np.ndarray, **more) -> tuple[str, None]:
    scale = {"size": SHAPE[::-1], "encoding": "raw", "chunk_size": CHUNK[::-1], "resolution": [4, 8, 40]}
    scale |= {"voxel_offset": [-5, 3, 7], **more}
    info = {"type": "image", "data_type": "uint8", "num_channels": 1}
    tensorstore(folder, "neuroglancer_precomputed", volume.T, multiscale_metadata=info, scale_metadata=scale)
    return "precomputed", None


def sharded_precomputed(folder: Path, volume: np.ndarray) -> tuple[str, None]:
    return precomputed(folder, volume, sharding=SHARDING)


def n5(folder: Path, volume: np.ndarray) -> tuple[str, str]:
    described = {"dimensions": SHAPE[::-1], "blockSize": CHUNK[::-1], "dataType": "uint8"}
    tensorstore(folder / "em", "n5", volume.T, metadata={**described, "compression": {"type": "gzip"}})
    return "n5", "em"


def zarr_array(folder: Path, volume: np.ndarray, **options) -> tuple[str, None]:
    zarr.create_array(str(folder), data=volume, chunks=CHUNK, config={"write_empty_chunks": False}, **options)
    return "zarr", None


def zarr_2(folder: Path, volume: np.ndarray) -> tuple[str, None]:
    return zarr_array(folder, volume, zarr_format=2, chunk_key_encoding={"name": "v2", "separator": "/"})


def zarr_turned(folder: Path, volume: np.ndarray) -> tuple[str, None]:
    options = {"config": {"write_empty_chunks": False}, "dimension_names": list("cxyz")}
    zarr.create_array(str(folder), data=np.ascontiguousarray(volume.T)[None], chunks=(1, *CHUNK[::-1]), **options)
    return "zarr", None


def sharded_zarr(folder: Path, volume: np.ndarray) -> tuple[str, None]:
    return zarr_array(folder, volume, shards=(8, 16, 16))


WRITERS = [precomputed, sharded_precomputed, n5, zarr_array, zarr_2, zarr_turned, sharded_zarr]


def counted(array, box):
    count = array.absence.absent(box)
    assert count.unit == "chunks"
    return count.absent, count.total


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("at", [str, Path.as_uri])
def test_absent_chunks_are_counted(tmp_path, volume, write, at):
    format, dataset = write(tmp_path / "v", volume)
    place = at(tmp_path / "v")
    array = open_array(place, format, dataset) if at is str else open_chunked(place, format, dataset)
    np.testing.assert_array_equal(array[:], volume)
    assert counted(array, ALL) == (1, 36)
    assert counted(array, HOLE) == (1, 1)
    assert counted(array, Roi((7, 15, 23), (1, 1, 1))) == (1, 1)
    assert counted(array, Roi((7, 15, 23), (2, 2, 2))) == (1, 8)
    assert counted(array, Roi((8, 15, 23), (2, 2, 2))) == (0, 4)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("box", [ALL, Roi((3, 5, 9), (6, 12, 22))])
def test_absent_chunks_are_counted_block_by_block(tmp_path, volume, write, box):
    format, dataset = write(tmp_path / "v", volume)
    array = open_chunked((tmp_path / "v").as_uri(), format, dataset)
    blocks = Blocks(box.shape, (5, 7, 13))
    places = [blocks.roi(index).moved(box.offset) for index in range(len(blocks))]
    found = sum(array.absence.absent_of_block(volume[place.slices], place, box) for place in places)
    assert array.absence.size(box)._replace(absent=found) == array.absence.absent(box)
    assert found == 1


@pytest.mark.parametrize("write", [precomputed, n5, sharded_zarr])
def test_a_volume_without_any_chunk(tmp_path, volume, write):
    format, dataset = write(tmp_path / "v", np.zeros_like(volume))
    for folder in [path for path in (tmp_path / "v").iterdir() if path.is_dir() and format == "precomputed"]:
        shutil.rmtree(folder)
    assert counted(open_array(tmp_path / "v", format, dataset), ALL) == (36, 36)


def test_a_shard_that_is_gone(tmp_path, volume):
    format, dataset = sharded_zarr(tmp_path / "v", volume)
    (tmp_path / "v" / "c" / "0" / "0" / "1").unlink()  # of 8 chunks, one of which was absent
    assert counted(open_array(tmp_path / "v", format, dataset), ALL) == (8, 36)
    format, dataset = sharded_precomputed(tmp_path / "w", volume)
    before = counted(open_array(tmp_path / "w", format, dataset), ALL)[0]
    next((tmp_path / "w" / "4_8_40").glob("0.shard")).unlink()
    assert counted(open_array(tmp_path / "w", format, dataset), ALL)[0] > before


def test_files_of_wkw_that_are_gone(tmp_path):
    folder, values = tmp_path / "v", np.random.default_rng(0).integers(1, 256, (20, 10, 9)).astype(np.uint8)
    (folder / "color").mkdir(parents=True)
    with wkw.Dataset.create(str(folder / "color" / "1"), wkw.Header(np.uint8, block_len=4, file_len=2)) as file:
        file.write((6, 3, 5), values)
    box = {"topLeft": [6, 3, 5], "width": 20, "height": 10, "depth": 9}
    layer = {"name": "color", "category": "color", "boundingBox": box}
    (folder / "datasource-properties.json").write_text(json.dumps({"dataLayers": [layer], "scale": [4, 8, 40]}))
    array = open_array(folder, "wkw", "color/1")
    assert counted(array, Roi((0, 0, 0), array.shape)) == (0, 4 * 2 * 2)
    (folder / "color" / "1" / "z1" / "y0" / "x2.wkw").unlink()
    assert counted(array, Roi((0, 0, 0), array.shape)) == (1, 16)
    assert counted(array, Roi((3, 0, 10), (1, 1, 1))) == (1, 1)
    assert counted(array, Roi((2, 0, 10), (1, 1, 1))) == (0, 1)


def test_a_hollow_volume_is_counted_without_a_look_at_each_chunk(tmp_path):
    zarr.create_array(str(tmp_path / "v"), shape=(10**4,) * 3, chunks=(8, 8, 8), dtype="u1", zarr_format=2)
    (tmp_path / "v" / "3.0.1249").write_bytes(b"")
    count = open_array(tmp_path / "v", "zarr").absence.absent(Roi((0, 0, 0), (10**4,) * 3))
    assert count == (1250**3 - 1, 1250**3, "chunks")
    with pytest.raises(InputError, match=r"/v: 1953124999 of the 1953125000 chunks .* \(100 %\), more than the 1 %"):
        absent.check(str(tmp_path / "v"), count, absent.ALLOWED)


def test_a_few_absent_chunks_are_told_and_many_refused(caplog):
    absent.check("v", Count(0, 100), 0.0)
    assert not caplog.records
    absent.check("v", Count(1, 100), 0.01)
    assert "v: 1 of the 100 chunks in the volume's box are absent (1 %)" in caplog.text
    with pytest.raises(InputError, match=r"v: 2 of the 100 chunks .* set allow_missing of this source"):
        absent.check("v", Count(2, 100), 0.01)
    absent.check("v", Count(100, 100), 1.0)


def test_other_files_beside_chunks_do_not_count(tmp_path, volume):
    format, dataset = zarr_array(tmp_path / "v", volume, zarr_format=2)
    for name in ("1.1.02", "1.1.2.tmp", "1.1.2.0", "9.9.9", ".DS_Store"):
        (tmp_path / "v" / name).write_bytes(b"")
    assert counted(open_array(tmp_path / "v", format, dataset), ALL) == (1, 36)
    shutil.copy(tmp_path / "v" / "0.0.0", tmp_path / "v" / "1.1.2")
    assert counted(open_array(tmp_path / "v", format, dataset), ALL) == (0, 36)
