"""Whatever states the order of axes, by path and by address: voxels and voxel sizes as z, y, x, or a refusal."""

import json
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from tests.unit.test_tensorstore import CHUNK, n5
from tokenunify.data.formats.axes import ATTRIBUTES, Stated, agreed
from tokenunify.data.formats.readers import open_array
from tokenunify.data.formats.tensorstore import open_chunked
from tokenunify.errors import InputError

SHAPE = (5, 7, 11)
SIZE = {"z": 40, "y": 8, "x": 4}
ORDERS = ["".join(order) for order in permutations("zyx")]


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)


def turn(volume: np.ndarray, order: str) -> np.ndarray:
    """The volume with axes of these names; c and t have one entry."""
    turned = volume.transpose(["zyx".index(axis) for axis in order if axis in "zyx"])
    return np.expand_dims(turned, [place for place, axis in enumerate(order) if axis in "ct"])


def sizes(order: str) -> list[int]:
    return [SIZE[axis] for axis in order if axis in "zyx"]


def v3(folder: Path, values: np.ndarray, names: list, attributes: dict) -> None:
    zarr.create_array(str(folder), data=values, dimension_names=names, attributes=attributes)


def v2(folder: Path, values: np.ndarray, attributes: dict) -> None:
    zarr.create_array(str(folder), data=values, zarr_format=2, attributes=attributes)


def dimension_names(folder, values, order):
    v3(folder, values, list(order), {"resolution": sizes(order)})


def xarray_2(folder, values, order):
    v2(folder, values, {"_ARRAY_DIMENSIONS": list(order.upper()), "voxel_size_nm": sizes(order)})


def funlib(folder, values, order):
    names = [name if name in "zyx" else f"{name}^" for name in order]
    v2(folder, values, {"axis_names": names, "voxel_size": sizes(order), "units": ["nm"] * 3, "offset": [0] * 3})


def cosem(folder, values, order):
    scale = [SIZE.get(axis, 1) / 1000 for axis in order]
    transform = {"axes": list(order), "units": ["um"] * len(order), "scale": scale, "translate": [0] * len(order)}
    v2(folder, values, {"transform": transform})


def vigra(folder, values, order):
    v2(
        folder,
        values,
        {"axistags": json.dumps({"axes": [{"key": axis} for axis in order]}), "resolution": sizes(order)},
    )


def ome(folder, values, order):
    group = zarr.open_group(str(folder))
    group.create_array("s0", data=values)
    axes = [{"name": axis, "unit": "nanometer"} for axis in order]
    scale = {"type": "scale", "scale": [SIZE.get(axis, 1) for axis in order]}
    group.attrs["ome"] = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": [scale]}]}]
    }


def ome_06(folder, values, order):
    ome(folder, values, order)
    group = zarr.open_group(str(folder))
    image = group.attrs["ome"]["multiscales"][0]
    image["coordinateSystems"] = [{"name": "physical", "axes": image.pop("axes")}]
    group.attrs["ome"] = {"version": "0.6", "multiscales": [image]}


WRITERS = [ome_06, dimension_names, xarray_2, funlib, cosem, vigra, ome]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("order", [*ORDERS, "cxyz", "zyxc", "tcyzx"])
def test_zarr(tmp_path, volume, write, order):
    write(tmp_path / "v", np.ascontiguousarray(turn(volume, order)), order)
    for array in (open_array(tmp_path / "v", "zarr"), open_chunked((tmp_path / "v").as_uri(), "zarr")):
        np.testing.assert_array_equal(array[:], volume)
        np.testing.assert_array_equal(array[1:3, 4:, 6], volume[1:3, 4:, 6])
        assert array.voxel_size_nm == pytest.approx((40, 8, 4))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by", ["axes", "axis_names", "_ARRAY_DIMENSIONS", "transform", "transform F"])
def test_n5(tmp_path, order, by):
    """Its lists run backwards; those that xarray and COSEM write do not, unless they say so."""
    volume = np.random.default_rng(0).integers(0, 60_000, SHAPE).astype(np.uint16)
    file_order, numpy_order = list(order[::-1]), list(order)
    if by.startswith("transform"):
        names = file_order if by.endswith("F") else numpy_order
        stated = {"axes": names, "units": ["nm"] * 3, "scale": sizes(names), "order": by[10:] or "C"}
        attributes = {"transform": stated}
    else:
        attributes = {by: numpy_order if by.startswith("_") else file_order}
        attributes["pixelResolution"] = {"unit": "nm", "dimensions": sizes(file_order)}
    path = n5(tmp_path / "v.n5", np.ascontiguousarray(turn(volume, order)), **attributes)
    assert CHUNK
    array = open_chunked(path, "n5", "em/s0")
    np.testing.assert_array_equal(array[:], volume)
    assert array.voxel_size_nm == (40, 8, 4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by", ["scales", "labels", "axis_names", "_ARRAY_DIMENSIONS", "bytes", "text"])
def test_hdf5(tmp_path, volume, order, by):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        item = file.create_dataset("raw", data=turn(volume, order))
        item.attrs["resolution"] = sizes(order)
        for place, axis in enumerate(order):
            if by == "scales":
                file[axis] = np.arange(item.shape[place])
                file[axis].make_scale(axis)
                item.dims[place].attach_scale(file[axis])
            elif by == "labels":
                item.dims[place].label = axis.upper()
        if by.startswith(("axis", "_")):
            item.attrs[by] = list(order)
        elif by in ("bytes", "text"):
            item.attrs["axes"] = np.array(list(order), "S1") if by == "bytes" else order
    array = open_array(tmp_path / "v.h5", "hdf5", "raw")
    np.testing.assert_array_equal(array[:], volume)
    assert array.voxel_size_nm == (40, 8, 4)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dim_0", "dim_1", "dim_2"], None),
        ([None, None, None], None),
        (["", "", "x"], "zyx"),
        (["dim_0", "y", "x"], "zyx"),
        (["x", "y", "dim_2"], "xyz"),
        (["Depth", "HEIGHT", "width"], "zyx"),
        (["column", "row", "slice"], "xyz"),
        (["channel", "X", "Y", "Z"], "cxyz"),
        (["time", "c^", "z", "y", "x"], "tczyx"),
    ],
)
def test_names(names, expected):
    found = agreed("v", [Stated("dimension_names", names)], len(names))
    assert found == (None if expected is None else list(expected))


def test_names_that_are_unknown_leave_the_order_as_it_is(tmp_path, volume):
    v3(tmp_path / "v", volume, ["dim_0", "dim_1", "dim_2"], {"resolution": [40, 8, 4]})
    array = open_array(tmp_path / "v", "zarr")
    np.testing.assert_array_equal(array[:], volume)
    assert array.voxel_size_nm == (40, 8, 4)


@pytest.mark.parametrize("order", ["cxyz", "xyzt"])
def test_an_axis_of_several_entries_is_refused_by_its_name(tmp_path, volume, order):
    axis = order.strip("xyz")
    v3(tmp_path / "v", turn(volume, order).repeat(2, order.index(axis)), list(order), {})
    for read in (lambda: open_array(tmp_path / "v", "zarr"), lambda: open_chunked((tmp_path / "v").as_uri(), "zarr")):
        with pytest.raises(InputError, match=f"but {axis} has 2 entries"):
            read()


def test_time_is_no_depth(tmp_path, volume):
    v3(tmp_path / "v", volume, ["t", "y", "x"], {})
    with pytest.raises(InputError, match=r"/v has axes \['t', 'y', 'x'\].* but t has 5 entries"):
        open_array(tmp_path / "v", "zarr")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"axis_names": ["x", "y", "z"]},
            r"dimension_names says .* \['z', 'y', 'x'\], axis_names that .*'x', 'y', 'z'",
        ),
        ({"transform": {"axes": ["z", "x", "y"]}}, r"transform that they are \['z', 'x', 'y'\]; correct the one"),
        ({"_ARRAY_DIMENSIONS": ["y", "x"]}, r"_ARRAY_DIMENSIONS names 2 axes, \['y', 'x'\], of an array of 3"),
    ],
)
def test_statements_that_differ_are_refused(tmp_path, volume, attributes, message):
    v3(tmp_path / "v", volume, list("zyx"), attributes)
    with pytest.raises(InputError, match=message):
        open_array(tmp_path / "v", "zarr")


def test_an_image_and_its_array_that_differ_are_refused(tmp_path, volume):
    ome(tmp_path / "v", volume, "zyx")
    zarr.open_group(str(tmp_path / "v")).create_array("s0", data=volume, dimension_names=list("xyz"), overwrite=True)
    for dataset in (None, "s0"):
        with pytest.raises(InputError, match=r"the axes of its multiscales says that the axes are .* dimension_names"):
            open_array(tmp_path / "v", "zarr", dataset)


@pytest.mark.parametrize("key", ATTRIBUTES)
@pytest.mark.parametrize("value", [3, None, {"axes": 4}, [[1, 2]], "{", {}, [], True])
def test_attributes_of_another_meaning_are_no_statement(tmp_path, volume, key, value):
    v2(tmp_path / "v", volume, {key: value})
    np.testing.assert_array_equal(open_array(tmp_path / "v", "zarr")[:], volume)
