"""Damage on disk that would be read as other values: it is noticed, and named with what mends it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from tests.stages.conftest import Workspace
from tests.stages.test_segmentation import noisy
from tokenunify.data.download import download
from tokenunify.data.ingest import ingest
from tokenunify.errors import InputError
from tokenunify.segmentation import agglomerate, lut, rag
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

SHAPE = (11, 70, 150)
SECTION = {
    **{"version": 1, "voxel_size_nm": [40, 4, 5], "roi": {"offset": [1, 2, 3], "shape": [9, 66, 140]}},
    **{"zero": "unlabelled"},
    **{"chunk_shape": [3, 16, 32], "shard_shape": [3, 32, 64]},
}


def ingested(folder: Path) -> Path:
    """A volume of raw, labels and mask, all of one type: raw's is noise, those of the others are constant in shards."""
    raw = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    labels = (np.arange(SHAPE[2]) // 70 + 1).astype(np.uint8) * np.ones(SHAPE, np.uint8)
    folder.mkdir()
    with h5py.File(folder / "source.h5", "w") as file:
        file["raw"], file["labels"], file["mask"] = raw, labels, labels > 1
    source = {role: {"path": str(folder / "source.h5"), "format": "hdf5", "dataset": role} for role in ROLES}
    section, plain = sections.from_json("download", json.dumps({"version": 1, "sources": [source]}))
    download.run(section, plain, downloads=folder / "downloads", output=folder / "sources.json")
    section, plain = sections.from_json("ingest", json.dumps(SECTION))
    ingest.run(section, plain, source=folder / "sources.json", output=folder / "volumes" / "v.json", threads=2)
    return folder / "volumes" / "v.json"


ROLES = ("raw", "labels", "mask")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return ingested(tmp_path_factory.mktemp("made") / "v")


@pytest.fixture
def volume(made, tmp_path) -> Path:
    shutil.copytree(made.parent, tmp_path / "volumes")
    return tmp_path / "volumes" / "v.json"


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, labels) -> Workspace:
    """Fragments, the graph in two parts, and the lut."""
    space = Workspace(tmp_path_factory.mktemp("segmented") / "w", parts=2)
    predicted = space.affinities(space.volume("test", labels), noisy(labels))
    space.agglomerate(space.rag(predicted, space.fragments(predicted)), method="waterz")
    return space


@pytest.fixture
def space(segmented, tmp_path) -> Workspace:
    shutil.copytree(segmented.folder, tmp_path / "w")
    return replace(segmented, folder=tmp_path / "w")


@pytest.fixture
def fragments(space) -> Path:
    return space.folder / "fragments" / "prepared.json"


@pytest.fixture
def graph(space) -> Path:
    return space.folder / "rag" / "part0of2.json"


def shards_of(store: Path) -> list[Path]:
    return sorted(path for path in (store / "c").rglob("*") if path.is_file())


def swap(one: Path, other: Path) -> None:
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


def replaced(path: Path, make) -> None:
    path.unlink()
    make(path)


def flip(path: Path, bit: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    path.write_bytes(damaged)


DAMAGES = {
    "swapped": lambda files: swap(files[0], files[2]),
    "another's": lambda files: shutil.copy(files[2], files[0]),
    "a link to another": lambda files: replaced(files[0], lambda path: path.symlink_to(files[2])),
    "a link to nothing": lambda files: replaced(files[0], lambda path: path.symlink_to("nothing")),
    "truncated": lambda files: files[0].write_bytes(files[0].read_bytes()[:-7]),
    "a few bytes": lambda files: files[0].write_bytes(b"abc"),
    "empty": lambda files: files[0].write_bytes(b""),
    "gone": lambda files: files[0].unlink(),
    "a folder": lambda files: replaced(files[0], Path.mkdir),
    "a pipe": lambda files: replaced(files[0], os.mkfifo),
    "a flipped bit": lambda files: flip(files[0], 1000),
    "a flipped bit of the index": lambda files: flip(files[0], -50),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_shard_of_a_volume_is_named(volume, role, damage):
    damage(shards_of(volume.with_suffix(".zarr") / role / "0"))
    with pytest.raises(InputError, match=rf"{role}/0 .*c/0/0/0|{role}/0 is damaged") as error:
        getattr(arrays.open_volume(volume), role)[:]
    assert f"delete {volume} and {volume.with_suffix('.zarr')} and run snakemake again" in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_shard_of_a_stage_is_named(fragments, damage):
    damage(shards_of(arrays.prepared_store(fragments)))
    with pytest.raises(InputError, match=rf"fragments\.zarr .*; delete {fragments.parent} and run snakemake again"):
        arrays.open_prepared(fragments)[:]


def test_a_shard_of_another_store_is_named(workspace, labels, tmp_path):
    """The stores have one shape, type and grid."""
    stores = []
    for seed in (1, 2):
        space = workspace.copy(tmp_path / str(seed))
        space.volume("test", labels)
        stores.append(space.fragments(space.affinities(space.folder / "data/volumes/test.json", noisy(labels, seed))))
    one, other = map(arrays.prepared_store, stores)
    shutil.copy(shards_of(one)[2], shards_of(other)[2])
    with pytest.raises(InputError, match=r"c/0/1/0 is not the shard that was written there"):
        arrays.open_prepared(stores[1])[0, 30, 0]
    shutil.rmtree(other)
    shutil.copytree(one, other)
    with pytest.raises(InputError, match=r"is not the shard that was written there"):
        arrays.open_prepared(stores[1])[:]


@pytest.mark.parametrize("index", [np.s_[0, 30, 0], np.s_[:8], np.s_[:2, 20:30], np.s_[0], np.s_[..., :21, -1]])
def test_what_a_box_does_not_touch_is_not_looked_at(fragments, index):
    whole = arrays.open_prepared(fragments)[:]
    files = shards_of(arrays.prepared_store(fragments))
    shutil.copy(files[-1], files[-2])
    np.testing.assert_array_equal(arrays.open_prepared(fragments)[index], whole[index])
    for touching in (np.s_[-1:, -1:], np.s_[9, ..., 0], np.s_[-1, 39, 0], np.s_[...]):
        with pytest.raises(InputError, match="is not the shard that was written there"):
            arrays.open_prepared(fragments)[touching]


def test_stores_of_earlier_versions_are_read(volume, fragments):
    """Their ledgers and manifests have no marks, their manifests no checksums."""
    expected = arrays.open_volume(volume).raw[:]
    text = json.loads(volume.read_text())
    del text["run"]["shards"], text[manifest.CHECKSUM]
    volume.write_text(json.dumps(text))
    np.testing.assert_array_equal(arrays.open_volume(volume).raw[:], expected)
    expected = arrays.open_prepared(fragments)[:]
    for ledger in fragments.parent.rglob("*.jsonl"):
        entries = [json.loads(line) for line in ledger.read_text().splitlines()]
        ledger.write_text("".join(json.dumps({**entry, "shards": None}) + "\n" for entry in entries))
    np.testing.assert_array_equal(arrays.open_prepared(fragments)[:], expected)


def test_a_swapped_shard_is_made_again_by_a_part_that_goes_on(space, fragments):
    files = shards_of(arrays.prepared_store(fragments))
    expected = [file.read_bytes() for file in files]
    swap(files[2], files[7])
    space.fragments(space.folder / "predict" / "prepared.json")
    assert [file.read_bytes() for file in files] == expected
    assert manifest.read(fragments.with_name("part0of2.json"))["run"]["blocks_computed_now"] == 2


# ------------------------------------------------------------------------------------------------ metadata

SHARDING = ("codecs", 0, "configuration")
CHANGES = {
    "fewer rows": (("shape",), [9, 32, 140]),
    "one column less": (("shape",), [9, 66, 139]),
    "two axes": (("shape",), [9, 66]),
    "signed": (("data_type",), "int8"),
    "wider": (("data_type",), "uint16"),
    "other shards": (("chunk_grid", "configuration", "chunk_shape"), [3, 64, 64]),
    "other chunks": ((*SHARDING, "chunk_shape"), [3, 32, 32]),
    "other names": (("chunk_key_encoding", "configuration", "separator"), "."),
    "another fill value": (("fill_value",), 7),
    "the index elsewhere": ((*SHARDING, "index_location"), "start"),
    "no checksums": ((*SHARDING, "codecs"), [{"name": "bytes"}, {"name": "zstd"}]),
    "axes turned": (("dimension_names",), ["x", "y", "z"]),
    "another voxel size": (("attributes", "voxel_size_nm"), [4, 4, 5]),
    "another place": (("attributes", "offset_nm"), [0, 0, 0]),
    "a group": (("node_type",), "group"),
    "another version": (("zarr_format",), 2),
    "no shape": (("shape",), None),
    "a huge shape": (("shape",), [10**30, 1, 1]),
}


@pytest.mark.parametrize(("path", "value"), CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("role", ["raw", "mask"])
def test_metadata_that_are_not_those_of_the_manifest_are_named(volume, role, path, value):
    file = volume.with_suffix(".zarr") / role / "0" / "zarr.json"
    text = json.loads(file.read_text())
    inner = text
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(text))
    with pytest.raises(InputError, match=rf"{role}/0 is not a readable zarr array .*; delete {volume} and"):
        arrays.open_volume(volume)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[" * 9999, b'{"shape": [' + b"1" * 5000 + b"]}", b"{}", b"[1]"])
def test_metadata_that_cannot_be_read_are_named(volume, text):
    (volume.with_suffix(".zarr") / "labels" / "0" / "zarr.json").write_bytes(text)
    with pytest.raises(InputError, match=r"labels/0 is not a readable zarr array .*; delete"):
        arrays.open_volume(volume)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_pipe_in_place_of_metadata_is_named(volume, make):
    replaced(volume.with_suffix(".zarr") / "raw" / "0" / "zarr.json", make)
    with pytest.raises(InputError, match=r"raw/0 is not a readable zarr array .*a folder or device .*; delete"):
        arrays.open_volume(volume)


def test_metadata_of_a_prepared_store_that_were_changed_are_named(fragments):
    """Also when it is to be filled."""
    file = arrays.prepared_store(fragments) / "zarr.json"
    text = json.loads(file.read_text())
    text["shape"] = [10, 44, 60]
    file.write_text(json.dumps(text))
    for open_store in (arrays.open_prepared, arrays.open_writable):
        with pytest.raises(InputError, match=rf"its shape is .10, 44, 60., expected .10, 40, 60.*{fragments.parent}"):
            open_store(fragments)


def test_a_flipped_bit_of_metadata_or_manifest_changes_no_voxel(volume):
    file, random = volume.with_suffix(".zarr") / "raw" / "0" / "zarr.json", np.random.default_rng(0)
    expected = arrays.open_volume(volume).raw[:]
    for damaged in (file, volume):
        whole = damaged.read_bytes()
        for bit in random.integers(0, 8 * len(whole), 60).tolist():
            flip(damaged, bit)
            try:
                opened = arrays.open_volume(volume)
                assert (opened.voxel_size_nm, opened.zero) == ((40, 4, 5), "unlabelled")
                np.testing.assert_array_equal(opened.raw[:], expected)
            except InputError as error:
                assert str(volume) in str(error)
            damaged.write_bytes(whole)


# ------------------------------------------------------------------------------------------------ tables


def merged(part: Path, number: int) -> Path:
    return part.parent / manifest.content(part)["store"] / "merged" / f"part{number}of2.npz"


TABLES = {
    "another part's": lambda one, other: shutil.copy(other, one),
    "truncated": lambda one, _: one.write_bytes(one.read_bytes()[:-40]),
    "empty": lambda one, _: one.write_bytes(b""),
    "gone": lambda one, _: one.unlink(),
    "a folder": lambda one, _: replaced(one, Path.mkdir),
    "a pipe": lambda one, _: replaced(one, os.mkfifo),
    "text": lambda one, _: one.write_text("text"),
    "an array": lambda one, _: np.save(one.open("wb"), np.arange(3)),
    "other tables": lambda one, _: np.savez(one, nodes=np.arange(3)),
}


@pytest.mark.parametrize("damage", TABLES.values(), ids=TABLES.keys())
def test_a_damaged_part_of_a_graph_is_named_and_made_again(space, fragments, graph, damage):
    path = merged(graph, 1)
    whole = path.read_bytes()
    damage(path, merged(graph, 0))
    with pytest.raises(
        InputError, match=rf"{path.name} is (damaged|missing).*; delete {graph} and the manifests beside"
    ):
        rag.load(graph)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    space.rag(space.folder / "predict" / "prepared.json", fragments)
    assert path.read_bytes() == whole


def test_flipped_bits_of_a_table_change_no_number(graph):
    """Also those of the tables' headers: a shorter table would be read without its checksum."""
    path, random = merged(graph, 0), np.random.default_rng(0)
    whole, expected = path.read_bytes(), arrays.read_npz(merged(graph, 0), "")
    headers = [8 * (whole.index(b"'shape': (", start) + 10) for start in (0, len(whole) // 3)]
    for bit in [*headers, *(headers[0] + k for k in range(1, 24)), *random.integers(0, 8 * len(whole), 200).tolist()]:
        flip(path, bit)
        try:
            read = arrays.read_npz(path, "")
        except InputError:
            continue
        finally:
            path.write_bytes(whole)
        for name, table in expected.items():
            np.testing.assert_array_equal(read[name], table)


@pytest.mark.parametrize("make", ["flipped", "folder", "pipe", "gone", "foreign"])
def test_a_damaged_lut_is_named(space, make):
    path = space.folder / "segmentation" / lut.NAME
    {
        "flipped": lambda: flip(path, 1500),
        "folder": lambda: replaced(path, Path.mkdir),
        "pipe": lambda: replaced(path, os.mkfifo),
        "gone": path.unlink,
        "foreign": lambda: np.save(path, np.arange(8)),
    }[make]()
    with pytest.raises(InputError, match=r"lut\.npy is (damaged|missing).*make it again with `snakemake"):
        lut.read(path.with_name("agglomerate.json"))


def test_a_tuned_value_or_a_score_that_was_changed_is_named(tmp_path):
    tuned = tmp_path / "tune.json"
    manifest.write(tuned, {"value": 0.3, "curve": [], "volumes": []})
    tuned.write_text(tuned.read_text().replace("0.3", "0.7"))
    candidates = sections.Agglomerate(segmentation={"method": "multicut", "beta": {"tune": [0.3, 0.7]}}).segmentation
    with pytest.raises(InputError, match=r"tune\.json is not a manifest.*it is damaged: its checksum .* `snakemake"):
        agglomerate.chosen(candidates, [tuned])


# ------------------------------------------------------------------------------------------------ equal bytes


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_runs_give_the_same_bytes_names_of_images_included(made, space, tmp_path):
    again = ingested(tmp_path / "again")
    assert tree(made.with_suffix(".zarr")) == tree(again.with_suffix(".zarr"))
    one, other = (manifest.read(path)["run"]["shards"] for path in (made, again))
    assert one == other
    shutil.copytree(space.folder, tmp_path / "other")
    images = []
    for run in (space, replace(space, folder=tmp_path / "other")):
        files = run.folder / "fragments" / "prepared.json", run.folder / "segmentation" / "agglomerate.json"
        image = arrays.prepared_store(run.relabel(*files)).parent
        (ome,) = zarr.open_group(str(image), mode="r").attrs["ome"]["multiscales"]
        assert ome["name"] == "segmentation"
        images.append(tree(image))
    assert images[0] == images[1]
