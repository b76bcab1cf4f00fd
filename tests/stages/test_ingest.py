"""The ingest stage: what it stores, what it refuses, and that a killed run ends with the same bytes."""

import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from math import prod
from pathlib import Path

import dask
import h5py
import imageio.v3 as imageio
import numpy as np
import ome_zarr_models
import pytest
import tifffile
import zarr
from skimage.measure import label

import tokenunify
from tests.unit.test_tiff_tags import write_set
from tokenunify import config
from tokenunify.data.download import download
from tokenunify.data.formats import images, source_array
from tokenunify.data.ingest import convert, image, ingest, streaming
from tokenunify.data.phantom import phantom
from tokenunify.errors import InputError
from tokenunify.geometry import Roi
from tokenunify.plan.plan import Plan
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest, pyramid

SHAPE = (11, 70, 150)
SECTION = {
    "version": 1,
    "voxel_size_nm": [40, 4, 5],
    "roi": None,
    "zero": "unlabelled",
    "chunk_shape": [4, 16, 32],
    "shard_shape": [4, 48, 96],
}
RIGHTS = {"license": "CC-BY-4.0", "citation": "Somebody et al."}


@pytest.fixture
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    blocks = np.random.default_rng(1).integers(0, 300, [-(-n // 5) for n in SHAPE])
    return blocks.repeat(5, 0).repeat(5, 1).repeat(5, 2)[tuple(map(slice, SHAPE))].astype(np.uint32)


@pytest.fixture
def ingested(tmp_path):
    """Run download and ingest on a source, and return the volume manifest's path."""

    def run(source: dict, threads=2, permit=sections.DEFAULT_PERMIT, **changes) -> Path:
        fetched, output = tmp_path / "sources.json", tmp_path / "volumes" / "v.json"
        section, plain = sections.from_json("download", json.dumps({"version": 1, "sources": [source], **RIGHTS}))
        download.run(section, plain, downloads=tmp_path / "downloads", output=fetched)
        section, plain = sections.from_json("ingest", json.dumps(SECTION | changes))
        ingest.run(section, plain, source=fetched, output=output, threads=threads, permit=permit)
        return output

    return run


@pytest.fixture
def store(tmp_path, ingested):
    """Write arrays to one HDF5 file and ingest it; return the volume manifest's path."""

    def run(raw=None, labels=None, attributes=None, mask=None, **options) -> Path:
        file = tmp_path / "source.h5"
        if raw is not None:
            write(file, raw, labels, attributes or {}, mask)
        with h5py.File(file) as opened:
            roles = sorted(opened, reverse=True)
        return ingested({role: {"path": str(file), "format": "hdf5", "dataset": role} for role in roles}, **options)

    return run


def write(path: Path, raw, labels, attributes, mask=None) -> None:
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        file["raw"] = raw
        file["raw"].attrs.update(attributes)
        if labels is not None:
            file["labels"] = labels
        if mask is not None:
            file["mask"] = mask


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ what is stored


def test_what_comes_in_is_what_is_stored(store, raw, labels):
    volume = arrays.open_volume(store(raw, labels))
    np.testing.assert_array_equal(volume.raw[:], raw)
    np.testing.assert_array_equal(volume.labels[:], labels)
    assert (volume.raw.dtype, volume.labels.dtype) == (np.uint8, np.uint16)
    assert (volume.voxel_size_nm, volume.zero) == ((40, 4, 5), "unlabelled")
    assert (volume.raw.array.chunks, volume.raw.array.shards) == ((4, 16, 32), (4, 48, 96))


def test_the_manifest_says_what_downstream_needs(store, raw, labels):
    content = manifest.content(store(raw, labels))
    assert content["raw"] == {"shape": list(SHAPE), "dtype": "uint8"}
    assert content["labels"] == {"shape": list(SHAPE), "dtype": "uint16"}
    assert (content["voxel_size_nm"], content["offset_nm"]) == ([40, 4, 5], [0, 0, 0])
    assert not {"license", "citation", "terms"} & set(content)  # they change no voxel
    assert content["config"] == SECTION


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_the_source_lacks_are_told_of(tmp_path, ingested, raw, caplog, version):
    path = tmp_path / "source.zarr"
    zarr.create_array(str(path), data=raw, chunks=(4, 24, 64), zarr_format=version)
    whole = manifest.content(ingested({"raw": {"path": str(path), "format": "zarr"}}))
    assert "absent" not in whole
    (path / ("1.2.0" if version == 2 else "c/1/2/0")).unlink()
    source = {"raw": {"path": str(path), "format": "zarr", "allow_missing": 0.03}}
    with pytest.raises(InputError, match=r"source\.zarr: 1 of the 27 chunks .* \(3\.7 %\), more than the 3 %"):
        ingested(source)
    source["raw"]["allow_missing"] = 0.04
    assert manifest.content(ingested(source))["absent"] == {"raw": {"absent": 1, "total": 27, "unit": "chunks"}}
    assert "source.zarr: 1 of the 27 chunks in the volume's box are absent (3.7 %)" in caplog.text
    box = {"offset": [0, 0, 0], "shape": [11, 48, 150]}
    assert "absent" not in manifest.content(ingested({"raw": source["raw"] | {"allow_missing": 0}}, roi=box))


def test_voxels_that_nobody_has_written_are_told_of(tmp_path, ingested, raw, caplog):
    path = tmp_path / "source.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", SHAPE, "u1", chunks=(4, 24, 64))[:, :, :128] = raw[:, :, :128]
    lost, whole = SHAPE[0] * SHAPE[1] * (SHAPE[2] - 128), raw.size
    source = {"raw": {"path": str(path), "format": "hdf5", "dataset": "raw"}}
    with pytest.raises(InputError, match=rf"source\.h5: {lost} of the {whole} voxels .* more than the 1 %"):
        ingested(source)
    source["raw"]["allow_missing"] = 0.2
    assert manifest.content(ingested(source))["absent"] == {"raw": {"absent": lost, "total": whole, "unit": "voxels"}}
    assert f"source.h5: {lost} of the {whole} voxels in the volume's box are absent" in caplog.text
    box = {"offset": [0, 0, 0], "shape": [11, 48, 128]}
    assert "absent" not in manifest.content(ingested({"raw": source["raw"] | {"allow_missing": 0}}, roi=box))


def test_a_hollow_volume_is_refused_before_it_is_read(tmp_path, ingested):
    zarr.create_array(str(tmp_path / "v"), shape=(10**4,) * 3, chunks=(64, 64, 64), dtype="u1")
    with pytest.raises(InputError, match=r"/v: 3869893 of the 3869893 chunks .* \(100 %\)"):
        ingested({"raw": {"path": str(tmp_path / "v"), "format": "zarr"}})


def test_only_the_volume_and_its_manifest_stay(store, raw, labels):
    output = store(raw, labels)
    (placed,) = output.parent.glob(".v.*.placed.json")
    assert {path.name for path in output.parent.iterdir()} == {"v.json", "v.zarr", ".v.locks", placed.name}


def test_a_manifest_that_was_removed_is_written_again_for_the_same_volume(store, raw, labels, monkeypatch):
    output = store(raw, labels)
    whole = output.read_bytes()
    output.unlink()  # as Snakemake does where it was killed, although its job lived on and finished
    monkeypatch.setattr(image, "write", None)
    assert store(raw, labels).read_bytes() == whole


def test_a_volume_that_was_removed_is_made_again(store, raw, labels):
    output = store(raw, labels)
    shutil.rmtree(output.with_suffix(".zarr"))
    output.unlink()
    assert (arrays.open_volume(store(raw, labels)).raw[:] == raw).all()


def test_raw_alone(store, raw):
    output = store(raw)
    assert manifest.content(output)["labels"] is None
    assert arrays.open_volume(output).labels is None


def test_a_volume_without_a_mask_has_no_word_of_it(store, raw, labels):
    output = store(raw, labels)
    assert "mask" not in manifest.content(output)
    assert arrays.open_volume(output).mask is None


@pytest.mark.parametrize("dtype", [bool, np.uint16, np.int32])
def test_a_mask_is_stored_as_0_and_1_and_reduced_to_the_most_frequent(store, raw, dtype):
    mask = np.random.default_rng(2).choice([0, 300], SHAPE).astype(dtype)
    output = store(raw, mask=mask)
    volume = arrays.open_volume(output)
    np.testing.assert_array_equal(volume.mask[:], mask != 0)
    assert manifest.content(output)["mask"] == {"shape": list(SHAPE), "dtype": "uint8"}
    half = pyramid.reduce_mode(volume.mask[:], (1, 2, 2))
    np.testing.assert_array_equal(zarr.open_array(str(output.with_suffix(".zarr") / "mask" / "1"))[:], half)


def test_a_roi_cuts_the_mask_too(store, raw):
    mask = np.random.default_rng(2).integers(0, 2, SHAPE).astype(np.uint8)
    box = {"offset": [3, 9, 21], "shape": [7, 50, 101]}
    volume = arrays.open_volume(store(raw, mask=mask, roi=box))
    np.testing.assert_array_equal(volume.mask[:], mask[3:10, 9:59, 21:122])


def test_a_roi_is_cut_out_and_keeps_its_place(store, raw, labels):
    offset, shape = [3, 9, 21], [7, 50, 101]
    output = store(raw, labels, roi={"offset": offset, "shape": shape})
    cut = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    np.testing.assert_array_equal(arrays.open_volume(output).raw[:], raw[cut])
    np.testing.assert_array_equal(arrays.open_volume(output).labels[:], labels[cut])
    assert manifest.content(output)["offset_nm"] == [120, 36, 105]
    datasets = zarr.open_group(str(output.with_suffix(".zarr")))["raw"].attrs["ome"]["multiscales"][0]["datasets"]
    assert datasets[0]["coordinateTransformations"][1] == {"type": "translation", "translation": [120, 36, 105]}


def test_the_pyramid(store, raw, labels):
    root = zarr.open_group(str(store(raw, labels).with_suffix(".zarr")))
    assert root["raw/1"].shape == (11, 35, 75)
    assert sorted(root["raw"]) == ["0", "1"]
    means = raw.reshape(11, 35, 2, 75, 2).mean(axis=(2, 4))
    assert np.abs(root["raw/1"][:] - means).max() <= 0.5
    small = root["labels/1"][:]
    for z, y, x in np.random.default_rng(2).integers(0, (11, 35, 75), (200, 3)):
        window = labels[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist()
        assert window.count(small[z, y, x]) == max(map(window.count, window))


def test_other_readers_accept_the_metadata(store, raw, labels):
    path = store(raw, labels).with_suffix(".zarr")
    for role in ("raw", "labels"):
        image = ome_zarr_models.open_ome_zarr(zarr.open_group(str(path / role), mode="r"))
        multiscale = image.attributes.ome.multiscales[0]
        assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
        assert {axis.unit for axis in multiscale.axes} == {"nanometer"}
        scales = [data.coordinateTransformations[0].scale for data in multiscale.datasets]
        shifts = [data.coordinateTransformations[1].translation for data in multiscale.datasets]
        assert scales == [[40, 4, 5], [40, 8, 10]]
        assert shifts == [[0, 0, 0], [0, 2, 2.5]]


def test_the_store_says_where_it_comes_from(store, raw, labels, tmp_path):
    output = store(raw, labels, roi={"offset": [0, 0, 0], "shape": [4, 40, 140]})
    provenance = dict(zarr.open_group(str(output.with_suffix(".zarr"))).attrs)["tokenunify"]
    assert provenance["source"]["raw"]["sha256"] == manifest.file_sha256(tmp_path / "source.h5")
    assert provenance["roi"] == {"offset": [0, 0, 0], "shape": [4, 40, 140]}
    assert (provenance["license"], provenance["citation"]) == (RIGHTS["license"], RIGHTS["citation"])
    assert provenance["tokenunify_version"] == tokenunify.__version__
    assert str(tmp_path) not in json.dumps(provenance)


def test_threads_and_earlier_runs_do_not_change_a_byte(store, raw, labels):
    first = store(raw, labels, threads=1)
    before, content = tree(first.with_suffix(".zarr")), manifest.content(first)
    second = store(raw, labels, threads=3)
    assert tree(second.with_suffix(".zarr")) == before
    assert manifest.content(second) == content


def test_another_configuration_replaces_the_store(store, raw, labels):
    store(raw, labels)
    output = store(raw, labels, roi={"offset": [1, 2, 3], "shape": [5, 33, 66]})
    assert arrays.open_volume(output).raw.shape == (5, 33, 66)
    assert sorted(zarr.open_group(str(output.with_suffix(".zarr")))["raw"]) == ["0"]


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, "uint8"), (256, "uint16"), (2**32, "uint64"), (2**64 - 1, "uint64")]
)
def test_labels_take_the_smallest_type(store, raw, largest, dtype):
    ids = np.zeros(SHAPE, np.uint64)
    ids[5, 60, 149] = largest
    stored = arrays.open_volume(store(raw, ids)).labels
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored[:], ids)


def test_a_phantom(tmp_path):
    asked = {"seed": 3, "shape": [9, 40, 50], "density": 1.0}
    manifest.write(tmp_path / "source.json", {"source": 0, "phantom": asked, "labels": None})
    section, plain = sections.from_json("ingest", json.dumps(SECTION | {"voxel_size_nm": [35, 8, 8]}))
    ingest.run(section, plain, source=tmp_path / "source.json", output=tmp_path / "v.json", threads=1)
    expected = phantom.generate((9, 40, 50), 3)
    np.testing.assert_array_equal(arrays.open_volume(tmp_path / "v.json").raw[:], expected[0])
    np.testing.assert_array_equal(arrays.open_volume(tmp_path / "v.json").labels[:], expected[1])


@pytest.mark.parametrize(("raw_value", "label"), [(0, 2**40), (9, 0)])
@pytest.mark.parametrize("block_voxels", [1, 2**24])
def test_one_value_everywhere_is_warned_of(store, caplog, monkeypatch, raw_value, label, block_voxels):
    monkeypatch.setattr(streaming, "BLOCK_VOXELS", block_voxels)
    flat = np.full(SHAPE, raw_value, np.uint8), np.full(SHAPE, label, np.uint64), np.ones(SHAPE, np.uint8)
    store(*flat[:2], mask=flat[2])
    assert f"source.h5: all voxels of raw are {raw_value} in the volume" in caplog.text
    assert f"source.h5: all voxels of labels are {label} in the volume" in caplog.text
    assert "all voxels of mask" not in caplog.text


def test_one_other_voxel_is_not_one_value(store, caplog):
    raw, labels = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint16)
    raw[0, 0, 0], labels[-1, -1, -1] = 1, 1
    store(raw, labels)
    assert "all voxels" not in caplog.text


# ------------------------------------------------------------------------------------------------ raw of other types


def test_wider_raw_is_clipped_with_a_warning(store, raw, caplog):
    wide = raw.astype(np.uint16)
    wide[3, 4, 5] = 300
    stored = arrays.open_volume(store(wide)).raw
    np.testing.assert_array_equal(stored[:], np.minimum(wide, 255))
    assert "clipped to 0..255" in caplog.text


def test_raw_of_sixteen_bits_is_refused(store, raw):
    with pytest.raises(
        InputError,
        match=r"source\.h5: raw must lie in 0\.\.255, found uint16 values \d+\.\.\d+, 100 %.*; rescale it to uint8",
    ):
        store(raw.astype(np.uint16) * 156 + 20_000)


def test_signed_raw_is_refused_with_its_own_advice(store, raw):
    with pytest.raises(InputError, match=r"found int8 values -128\.\.127.*; shift it so that its smallest value is 0"):
        store(raw.view(np.int8))


def test_float_raw_in_the_unit_interval_is_scaled(store, raw):
    stored = arrays.open_volume(store(raw.astype(np.float32) / 255)).raw
    np.testing.assert_array_equal(stored[:], raw)


def test_float_raw_beyond_the_unit_interval_is_refused(store, raw):
    with pytest.raises(InputError, match=r"float raw must lie in 0..1, found \d+..255"):
        store(raw.astype(np.float32))


def test_raw_with_nan_is_refused(store, raw):
    broken = raw.astype(np.float32) / 255
    broken[7, 8, 9] = np.nan
    with pytest.raises(InputError, match=r"source\.h5: raw has values that are not finite"):
        store(broken)


def test_boolean_raw_is_refused(store, raw):
    with pytest.raises(InputError, match="raw must be of an integer or float type, found bool"):
        store(raw > 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_raw_is_rescaled(store, raw, dtype, caplog):
    values = (raw.astype(float) * 3 - 100 if np.dtype(dtype).kind != "u" else raw).astype(dtype)
    stored = arrays.open_volume(store(values, intensity={"rescale": [20, 120]})).raw[:]
    for voxel in [(0, 0, 0), (10, 69, 149), *np.random.default_rng(3).integers(0, SHAPE, (200, 3)).tolist()]:
        exact = min(max((float(values[tuple(voxel)]) - 20) / 100 * 255, 0), 255)
        assert abs(stored[tuple(voxel)] - exact) <= 0.5001
    share = 100 * np.mean((values < 20) | (values > 120))
    assert f"{share:.3g} % of the raw values are clipped to 20..120" in caplog.text


def test_raw_is_clipped_on_demand(store, raw, caplog):
    wide = raw.astype(np.int32) * 2 - 100
    stored = arrays.open_volume(store(wide, intensity="clip")).raw
    np.testing.assert_array_equal(stored[:], np.clip(wide, 0, 255))
    assert "clipped to 0..255" in caplog.text


def test_raw_between_percentiles(store, raw):
    wide = raw.astype(np.uint16) * 200
    output = store(wide, intensity={"percentile": [1, 98]})
    low, high = np.percentile(wide, [1, 98])  # the volume is smaller than the sample
    provenance = dict(zarr.open_group(str(output.with_suffix(".zarr"))).attrs)["tokenunify"]
    assert provenance["intensity"] == [low, high]
    expected = np.clip((wide - low) / (high - low) * 255, 0, 255)
    assert np.abs(arrays.open_volume(output).raw[:] - expected).max() <= 0.5001
    with pytest.raises(InputError, match="leave no grey values between them"):
        store(np.full(SHAPE, 7, np.uint16), intensity={"percentile": [1, 99]})


@pytest.mark.parametrize("values", [1000, 20_000, prod(SHAPE)])
def test_percentiles_are_of_so_many_values_at_most(monkeypatch, raw, values):
    percentile, sizes = np.percentile, []

    def count(sample: np.ndarray, *arguments, **options) -> np.ndarray:
        sizes.append(sample.size)
        return percentile(sample, *arguments, **options)

    monkeypatch.setattr(convert, "SAMPLED_VALUES", values)
    monkeypatch.setattr(convert.np, "percentile", count)
    chosen = config.Percentile(percentile=(10, 90))
    source, shape = source_array.SourceArray("v", raw.astype(float)), (4, 16, 32)
    low, high = convert.ends(chosen, source, Roi((0, 0, 0), SHAPE), shape)
    boxes = 3 * 5 * 5
    assert values / 2 < sizes[0] <= values + boxes
    np.testing.assert_allclose((low, high), np.percentile(raw, (10, 90)), atol=0 if values == raw.size else 8)


@pytest.mark.parametrize("kept_bytes", [2**28, 0])
def test_every_section_is_decoded_once_for_percentiles(ingested, tmp_path, monkeypatch, raw, kept_bytes):
    decoded = count_decoded(tmp_path / "raw", raw, monkeypatch)
    monkeypatch.setattr(source_array, "KEPT_BYTES", kept_bytes)
    output = ingested(
        {"raw": {"path": str(tmp_path / "raw"), "format": "images"}}, intensity={"percentile": [0, 100]}, threads=1
    )
    assert max(decoded.values()) <= 3  # opening, percentiles, writing
    assert set(decoded) == set(range(len(raw)))
    assert sorted(decoded.values())[-2] <= 2
    np.testing.assert_array_equal(arrays.open_volume(output).raw[:], raw)


def count_decoded(folder: Path, volume: np.ndarray, monkeypatch) -> Counter:
    """Write the sections of a volume as images; each decoding is counted."""
    folder.mkdir()
    for z, section in enumerate(volume):
        imageio.imwrite(folder / f"{z}.png", section)
    decode, decoded = images.read_image, Counter()

    def count(path: Path, is_grey: bool) -> np.ndarray:
        decoded[int(path.stem)] += 1
        return decode(path, is_grey)

    monkeypatch.setattr(images, "read_image", count)
    return decoded


# ------------------------------------------------------------------------------------------------ labels numbered anew


@pytest.mark.parametrize("spread", [1, 2**20, 2**40])
def test_labels_are_numbered_anew(store, raw, labels, spread):
    ids = (labels.astype(np.uint64) % 200 + 3) * spread * (labels > 0)
    output = store(raw, ids, label_ids="dense")
    stored = arrays.open_volume(output).labels
    table = zarr.open_array(str(output.with_suffix(".zarr") / "labels" / "original_ids"))[:]
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(stored[:]), np.arange(len(table)))
    np.testing.assert_array_equal(table[stored[:]], ids)
    assert table[0] == 0 and (np.diff(table) > 0).all()


@pytest.mark.parametrize("shard_shape", [[4, 16, 32], [8, 32, 64], [12, 96, 160]])
@pytest.mark.parametrize("block_voxels", [1, 2**24])
def test_parts_of_labels_get_ids_of_their_own(store, raw, labels, monkeypatch, shard_shape, block_voxels):
    monkeypatch.setattr(streaming, "BLOCK_VOXELS", block_voxels)
    monkeypatch.setattr(streaming, "PIECE_VOXELS", 1000)
    roi = {"offset": [1, 3, 6], "shape": [9, 67, 141]}
    few = labels % 3 * 2**20
    output = store(raw, few, label_ids="components", shard_shape=shard_shape, roi=roi)
    stored = arrays.open_volume(output).labels[:]
    table = zarr.open_array(str(output.with_suffix(".zarr") / "labels" / "original_ids"))[:]
    inside = few[1:10, 3:70, 6:147]
    np.testing.assert_array_equal(stored, label(inside, background=0, connectivity=1))
    np.testing.assert_array_equal(table[stored], inside)
    assert (stored.dtype, len(table)) == (np.min_scalar_type(stored.max()), stored.max() + 1)


@pytest.mark.parametrize("label_ids", ["dense", "components"])
@pytest.mark.parametrize("spread", [1, 2**40])
def test_voxels_that_nobody_has_labelled_stay_so(store, raw, labels, label_ids, spread):
    unknown = np.uint64(2**64 - 1)
    ids = labels.astype(np.uint64) % 7 * spread
    ids[2:5, 10:40, 20:90], ids[8:, 60:, :30] = unknown, unknown
    output = store(raw, ids, label_ids=label_ids)
    stored = arrays.open_volume(output).labels[:]
    table = zarr.open_array(str(output.with_suffix(".zarr") / "labels" / "original_ids"))[:]
    known = ids != unknown
    np.testing.assert_array_equal(stored == unknown, ~known)
    np.testing.assert_array_equal(np.unique(stored[known]), np.arange(len(table)))
    np.testing.assert_array_equal(table[stored[known]], ids[known])


def test_label_ids_that_are_kept_have_no_table(store, raw, labels):
    assert not (store(raw, labels).with_suffix(".zarr") / "labels" / "original_ids").exists()


# ------------------------------------------------------------------------------------------------ size


def test_a_teravoxel_makes_thousands_of_files():
    volume = {"sources": [{"raw": {"path": "a.npy", "format": "npy"}}], "voxel_size_nm": [10, 10, 10]}
    volumes = {"large": {**volume, "shard_shape": [512, 512, 512]}, "plain": volume}
    read = config.from_dict({"volumes": volumes, "datasets": {}, "models": {}, "segmentations": {}}, "c")
    section, _ = sections.from_json("ingest", Plan(read).ingest("large"))
    assert 7_000 < image.num_files((10_000,) * 3, (10, 10, 10), section.shard_shape) < 10_000
    section, _ = sections.from_json("ingest", Plan(read).ingest("plain"))
    assert image.num_files((10_000,) * 3, (10, 10, 10), section.shard_shape) > 100_000


def test_many_files_are_warned_of(store, raw, monkeypatch, caplog):
    monkeypatch.setattr(image, "MANY_FILES", 11)  # 3 x 2 x 2 and 3 x 1 x 1
    store(raw)
    assert "this volume makes 15 files; a larger shard_shape" in caplog.text


@pytest.mark.parametrize("bytes_at_once", [2**28, 1])
def test_shards_larger_than_memory_for_two_are_the_same(store, raw, labels, monkeypatch, bytes_at_once):
    monkeypatch.setattr(streaming, "SIDE_BY_SIDE_BYTES", bytes_at_once)
    monkeypatch.setattr(streaming, "PIECE_VOXELS", 1000)
    volume = arrays.open_volume(store(raw, labels, shard_shape=[12, 96, 160], threads=3))
    np.testing.assert_array_equal(volume.raw[:], raw)
    np.testing.assert_array_equal(volume.labels[:], labels)


# ------------------------------------------------------------------------------------------------ sections


@pytest.mark.parametrize(("depth", "kept_bytes"), [(4, 2**28), (44, 2**28), (44, 0)])
def test_every_section_is_decoded_once_to_write_it(ingested, tmp_path, monkeypatch, depth, kept_bytes):
    volume = np.random.default_rng(0).integers(0, 256, (50, 40, 70)).astype(np.uint8)
    for role in ("raw", "labels"):
        (tmp_path / role).mkdir()
        for z, section in enumerate(volume):
            imageio.imwrite(tmp_path / role / f"{z}.png", section)
    monkeypatch.setattr(source_array, "KEPT_BYTES", kept_bytes)
    decoded: Counter = Counter()

    def count(path: Path, is_grey: bool) -> np.ndarray:
        decoded[path.parent.name, int(path.stem)] += 1
        return decode(path, is_grey)

    decode = images.read_image
    monkeypatch.setattr(images, "read_image", count)
    monkeypatch.setattr(streaming, "BLOCK_VOXELS", 1)  # a layer of shards is nine blocks
    source = {role: {"path": str(tmp_path / role), "format": "images"} for role in ("raw", "labels")}
    output = ingested(source, shard_shape=[depth, 16, 32])
    opening = Counter({("raw", 0): 1, ("labels", 0): 1})
    looking_for_the_largest = Counter({("labels", z): 1 for z in range(50)})
    writing = Counter({(role, z): 1 for role in ("raw", "labels") for z in range(50)})
    assert decoded <= opening + looking_for_the_largest + writing
    assert set(decoded) == set(writing)
    np.testing.assert_array_equal(arrays.open_volume(output).raw[:], volume)


@pytest.mark.parametrize("format", ["tiff", "images"])
def test_white_is_zero_holds_for_raw_alone(ingested, tmp_path, raw, labels, format):
    source = {}
    for role, values in (("raw", 255 - raw), ("labels", labels.astype(np.uint16))):
        path = tmp_path / role
        path.mkdir()
        for z, section in enumerate(values if format == "images" else [values]):
            tifffile.imwrite(path / f"{z}.tif", section, photometric="miniswhite")
        source[role] = {"path": str(path if format == "images" else path / "0.tif"), "format": format}
    volume = arrays.open_volume(ingested(source))
    np.testing.assert_array_equal(volume.raw[:], raw)
    np.testing.assert_array_equal(volume.labels[:], labels)


def test_images_of_several_folders_in_the_order_of_their_paths(ingested, tmp_path, raw):
    for z in (9, 10, 1, 8, 2, 3, 4, 7, 5, 6, 0):
        (tmp_path / f"z{z}").mkdir()
        imageio.imwrite(tmp_path / f"z{z}" / "raw.png", raw[z])
    output = ingested({"raw": {"path": f"{tmp_path}/**/*.png", "format": "images"}})
    np.testing.assert_array_equal(arrays.open_volume(output).raw[:], raw)


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_packed_source_beyond_the_limit_is_refused(ingested, tmp_path, raw):
    np.save(tmp_path / "v.npy", raw)
    (tmp_path / "v.npy.gz").write_bytes(gzip.compress((tmp_path / "v.npy").read_bytes()))
    with pytest.raises(InputError, match=r"v\.npy\.gz: unpacked it exceeds 0\.0001 GB"):
        ingested(
            {"raw": {"path": str(tmp_path / "v.npy.gz"), "format": "npy"}}, permit=sections.Permit(max_unpacked_gb=1e-4)
        )
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".v.npy")]


def test_a_file_of_a_set_that_changed_is_refused(ingested, tmp_path, monkeypatch, raw):
    path = write_set(tmp_path / "set", raw[:5, :40, :50], ["a.ome.tif", "b.ome.tif"])
    source = {"raw": {"path": str(path), "format": "tiff"}}
    output = ingested(source)
    np.testing.assert_array_equal(arrays.open_volume(output).raw[:], raw[:5, :40, :50])
    assert list(manifest.content(tmp_path / "sources.json")["raw"]["refers_to"]) == ["b.ome.tif"]
    monkeypatch.setattr(download, "run", lambda *_, **__: None)
    other = tmp_path / "set" / "b.ome.tif"
    other.write_bytes(other.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"a\.ome\.tif takes voxels from \['b\.ome\.tif'\], which changed since"):
        ingested(source, zero="background")


def test_float_labels_are_refused(store, raw, labels):
    with pytest.raises(InputError, match="labels must be integers, found float64"):
        store(raw, labels.astype(float))


@pytest.mark.parametrize("label_ids", ["keep", "dense", "components"])
def test_negative_labels_are_refused(store, raw, labels, label_ids):
    with pytest.raises(InputError, match="labels must not be negative, found -1"):
        store(raw, np.where(labels == 7, -1, labels.astype(np.int32)), label_ids=label_ids)


def test_raw_and_labels_of_different_shape_are_refused(store, raw, labels):
    with pytest.raises(InputError, match=r"one shape: .*\[11, 70, 150\].*\[11, 70, 149\]"):
        store(raw, labels[:, :, 1:])


def test_a_mask_of_different_shape_or_of_floats_is_refused(store, raw):
    with pytest.raises(InputError, match=r"raw and mask must have one shape: .*\[11, 70, 150\].*\[11, 69, 150\]"):
        store(raw, mask=np.ones((11, 69, 150), np.uint8))
    with pytest.raises(InputError, match="mask must be boolean or integers, found float32"):
        store(raw, mask=np.ones(SHAPE, np.float32))


def test_two_dimensional_raw_is_refused(store, raw):
    with pytest.raises(InputError, match="expected an array of 3 axes z, y, x, found 2 axes"):
        store(raw[0])


def test_a_roi_outside_the_source_is_refused(store, raw):
    with pytest.raises(
        InputError, match=r"roi offset \[5, 0, 0\] shape \[7, 70, 9\] ends at \[12, 70, 9\].*\[11, 70, 150\]"
    ):
        store(raw, roi={"offset": [5, 0, 0], "shape": [7, 70, 9]})


def test_another_voxel_size_than_the_file_states_is_refused(store, raw):
    with pytest.raises(InputError, match=r"\[40.0, 4.0, 5.0\] in the configuration.*states \[40.0, 4.0, 4.0\]"):
        store(raw, attributes={"resolution": (40, 4, 4)})
    store(raw, attributes={"resolution": (40, 4, 5.00001)})


def test_a_file_that_changed_since_the_download_is_refused(store, raw, tmp_path):
    store(raw)
    write(tmp_path / "source.h5", raw + 1, None, {})
    section, plain = sections.from_json("ingest", json.dumps(SECTION))
    with pytest.raises(InputError, match=r"source\.h5 changed since the download.*forcerun download"):
        ingest.run(section, plain, source=tmp_path / "sources.json", output=tmp_path / "v.json", threads=1)


def test_a_refused_source_leaves_the_old_volume(store, raw):
    before = tree(store(raw).with_suffix(".zarr"))
    with pytest.raises(InputError):
        output = store(raw.astype(np.float32))
    output = store(raw)
    assert tree(output.with_suffix(".zarr")) == before


# ------------------------------------------------------------------------------------------------ killed and resumed

# Dies when its second block is recorded.
KILLED = """
import os
import signal
import sys
from tokenunify import cli
from tokenunify.store import blockwise
from tokenunify.data.ingest import streaming

record, calls = blockwise._record, []


def record_and_die(*arguments):
    record(*arguments)
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


blockwise._record = record_and_die
streaming.BLOCK_VOXELS = 4 * 48 * 96
sys.exit(cli.main(sys.argv[1:]))
"""


# Dies when it has come through that many of the places where it writes a file, before or in the middle of writing it.
KILLED_ANYWHERE = """
import os
import signal
import sys
from tokenunify import cli
from tokenunify.store import blockwise, manifest
from tokenunify.data.ingest import ingest
import numpy as np
import zarr.storage._local as local

left = int(sys.argv[1])


def counted(function, half=None):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            if half:
                half(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call


def half_a_shard(path, value, *_):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".0.partial").write_bytes(value.to_bytes()[: len(value) // 2])


local._put = counted(local._put, half_a_shard)
blockwise._record = counted(blockwise._record)
manifest.write = counted(manifest.write)
ingest._replace = counted(ingest._replace)
np.savez = counted(np.savez)
sys.exit(cli.main(sys.argv[2:]))
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(store, raw, labels, tmp_path, monkeypatch, caplog):
    expected = tree(store(raw, labels).with_suffix(".zarr"))
    output = tmp_path / "again" / "v.json"
    words = ["--config-json", json.dumps(SECTION), "--threads", "1"]
    words += ["--source", str(tmp_path / "sources.json"), "--output", str(output)]
    killed = subprocess.run([sys.executable, "-c", KILLED, "ingest", *words], stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list(output.parent.glob(".v.*.progress/*/*/ledger/*.jsonl"))
    assert not output.exists()
    assert not output.with_suffix(".zarr").exists()

    caplog.set_level("INFO")
    monkeypatch.setattr(streaming, "BLOCK_VOXELS", 4 * 48 * 96)
    section, plain = sections.from_json("ingest", json.dumps(SECTION))
    ingest.run(section, plain, source=tmp_path / "sources.json", output=output, threads=2)
    assert tree(output.with_suffix(".zarr")) == expected
    assert any(record.args and len(record.args) == 4 and record.args[3] < record.args[2] for record in caplog.records)


@pytest.mark.parametrize("label_ids", ["dense", "components"])
def test_killed_20_times_at_random(store, raw, labels, tmp_path, label_ids):
    expected = tree(store(raw, labels, intensity="clip", label_ids=label_ids).with_suffix(".zarr"))
    output, rng = tmp_path / "again" / "v.json", random.Random(0)
    settings = json.dumps({**SECTION, "intensity": "clip", "label_ids": label_ids})
    words = ["--config-json", settings, "--threads", "2"]
    words += ["--source", str(tmp_path / "sources.json"), "--output", str(output)]
    kills = 0
    while kills < 20:
        steps = str(rng.randrange(1, 12))
        done = subprocess.run([sys.executable, "-c", KILLED_ANYWHERE, steps, "ingest", *words], stderr=subprocess.PIPE)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        kills += done.returncode != 0
        if done.returncode == 0:
            assert tree(output.with_suffix(".zarr")) == expected
            shutil.rmtree(output.parent)
    section, plain = sections.from_json("ingest", settings)
    ingest.run(section, plain, source=tmp_path / "sources.json", output=output, threads=2)
    assert tree(output.with_suffix(".zarr")) == expected
    assert not list(output.parent.glob(".v.*.partial.zarr")) + list(output.parent.glob(".v.*.progress"))


def test_a_kill_after_the_store_is_placed_writes_nothing_twice(store, raw, labels, monkeypatch):
    class Killed(BaseException):
        pass

    write_manifest = manifest.write

    def die(path, *arguments):
        if Path(path).name == "v.json":
            raise Killed
        write_manifest(path, *arguments)

    monkeypatch.setattr(manifest, "write", die)
    with pytest.raises(Killed):
        store(raw, labels)
    monkeypatch.setattr(manifest, "write", write_manifest)
    monkeypatch.setattr(image, "write", lambda *_: pytest.fail("written again"))
    np.testing.assert_array_equal(arrays.open_volume(store()).raw[:], raw)


def test_stray_files_of_a_kill_do_not_stay(store, raw, labels, monkeypatch):
    replace = ingest._replace

    def with_stray(final, partial):
        (partial / "raw" / "0" / "c" / "0" / "0" / "0.1234.partial").write_bytes(b"half a shard")
        replace(final, partial)

    expected = tree(store(raw, labels).with_suffix(".zarr"))
    monkeypatch.setattr(ingest, "_replace", with_stray)
    assert tree(store(raw, labels).with_suffix(".zarr")) == expected


def test_threads_are_those_that_were_given(store, raw, monkeypatch):
    class Seen(Exception):
        pass

    def look(*_):
        raise Seen(dask.config.get("scheduler"), dask.config.get("num_workers"))

    monkeypatch.setattr(image, "write", look)
    with pytest.raises(Seen) as seen:
        store(raw, threads=3)
    assert seen.value.args == ("threads", 3)
