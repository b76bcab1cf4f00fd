"""NRRD, MRC and NIfTI: a header, and behind it the voxels of one array."""

import contextlib
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Literal

import mrcfile
import nibabel
import nrrd
import numpy as np

from tokenunify.data.formats import compressed
from tokenunify.data.formats.axes import ordered
from tokenunify.data.formats.npy import Flat
from tokenunify.data.formats.source_array import NM, ArrayLike, Opening, SourceArray, product
from tokenunify.errors import InputError

NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
SPATIAL = ("domain", "space", "???", "none")
"""Kinds of NRRD axes that are z, y or x."""
IMOD_STAMP = b"IMOD"
"""1146047817, little-endian."""
MRC_HEADER_BYTES = 1024


def open_nrrd(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """A NRRD file with its data, raw or packed with gzip; axes are x, y, z unless `labels` or directions differ."""
    with open(path, "rb") as file, _bad_headers():
        header = nrrd.read_header(file)
        if (to_skip := int(header.get("line skip", header.get("lineskip", 0)))) < 0:
            raise ValueError(f"its header tells to skip {to_skip} lines")
        for line in range(to_skip):
            if not file.readline():
                raise ValueError(f"its header tells to skip {to_skip} lines, it has {line}")
        start = file.tell()
    if "data file" in header or "datafile" in header:
        raise InputError(f"{path}: the voxels are in another file; save both as one .nrrd file")
    code = next((code for code, names in NRRD_TYPES.items() if header["type"] in names), None)
    if code is None:
        raise InputError(f"{path}: expected NRRD voxels of a number type, found {header['type']!r}; convert the file")
    if code[1] > "1" and "endian" not in header:
        raise InputError(f"{path}: its header does not tell the order of bytes; add endian: little or big")
    dtype = np.dtype((">" if header.get("endian") == "big" else "<") + code)
    shape = tuple(map(int, header["sizes"]))
    num_bytes = prod(shape) * dtype.itemsize
    skip, encoding = int(header.get("byte skip", header.get("byteskip", 0))), header["encoding"]
    if skip < -1 or (skip == -1 and encoding != "raw"):
        raise ValueError(f"its header tells to skip {skip} bytes of encoding {encoding}")
    if encoding == "raw":
        place, offset = Path(path), os.path.getsize(path) - num_bytes if skip == -1 else start + skip
    elif encoding in ("gzip", "gz"):
        place, offset = compressed.stream_of(Path(path), start, skip + num_bytes, opening), skip
    else:
        raise InputError(
            f"{path}: expected NRRD encoding raw or gzip, found {encoding!r}; save it again as one of them"
        )
    names, lengths, units_nm = _nrrd_axes(path, header, len(shape))
    data, places = ordered(path, Flat(place, dtype, shape, offset, "F"), names)
    return SourceArray(path, data, product([lengths[axis] for axis in places], [units_nm[axis] for axis in places]))


def _nrrd_axes(path: str, header: dict, num_axes: int) -> tuple[list[str], list, list]:
    """The names of the axes, fastest first; a voxel's length along each, and its unit in nm, None where not stated."""
    directions, lengths = None, list(header.get("spacings", [None] * num_axes))
    if "space directions" in header:  # for each axis its steps in space; NaN where it has none
        directions = np.asarray(header["space directions"], float).reshape(num_axes, -1)
        lengths = [float(np.linalg.norm(row)) for row in directions]
    names = [str(label).lower() for label in header.get("labels", [])]
    if not {"x", "y", "z"}.issubset(names):
        kinds = header.get("kinds", ["domain"] * num_axes)
        spatial, letters = [str(kind).lower() in SPATIAL for kind in kinds], "xyz" + "t" * num_axes
        if directions is not None and directions[moves := np.isfinite(directions).all(axis=1)].shape == (3, 3):
            along = np.abs(directions[moves]).argmax(axis=1)  # the axis of space that each goes along names it
            if sorted(along) != [0, 1, 2]:
                raise InputError(
                    f"{path}: expected NRRD axes along x, y and z, found space directions {directions.tolist()}; give "
                    "the axes `labels`, or save the volume with axes along those of space"
                )
            spatial, letters = moves.tolist(), "".join("xyz"[axis] for axis in along)
        unused = iter(letters)
        names = [next(unused) if is_spatial else "c" for is_spatial in spatial]
    units = list(header.get("units", [None] * len(names)))
    if "space units" in header:
        given = iter(header["space units"])
        units = [next(given, None) if name in "xyz" else None for name in names]
    return names, lengths, [NM.get(str(unit)) for unit in units]


def open_mrc(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """An MRC file; axes and voxel size as the header says. Bytes are signed, unless IMOD wrote them unsigned."""
    with mrcfile.open(path, header_only=True) as file:
        header, size = file.header, file.voxel_size
    dtype = mrcfile.utils.data_dtype_from_header(header)
    if dtype == np.int8:  # IMOD's flags, in bytes 153 to 160 of the header, are even for unsigned bytes
        stamp, flags = (header.extra2.tobytes()[start : start + 4] for start in (40, 44))
        order: Literal["little", "big"] = "big" if stamp == IMOD_STAMP[::-1] else "little"
        if stamp in (IMOD_STAMP, IMOD_STAMP[::-1]) and not int.from_bytes(flags, order) & 1:
            dtype = np.dtype(np.uint8)
    shape = mrcfile.utils.data_shape_from_header(header)
    if (extended := int(header.nsymbt)) < 0:
        raise ValueError(f"its header tells of an extended header of {extended} bytes")
    axes = [int(header[f"map{axis}"]) for axis in "src"]
    names = ["xyz"[axis - 1] for axis in axes] if sorted(axes) == [1, 2, 3] else ["z", "y", "x"]
    names = [*["c"] * (len(shape) - 3), *names][-len(shape) :]
    data, _ = ordered(path, Flat(path, dtype, shape, MRC_HEADER_BYTES + extended), names)
    return SourceArray(path, data, product([NM["angstrom"]] * 3, [size[axis] for axis in "zyx"]))


def open_nifti(path: str, dataset: str | None, opening: Opening) -> SourceArray:
    """A NIfTI-1 or -2 file (.nii); its axes are x, y, z, and values are scaled as the header says."""
    with open(path, "rb") as file, _bad_headers():
        second = 540 in (int.from_bytes(start := file.read(4), "little"), int.from_bytes(start, "big"))
        file.seek(0)
        header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header).from_fileobj(file)
        slope, intercept = header.get_slope_inter()
    if not bytes(header["magic"]).startswith(b"n+"):
        raise InputError(f"{path}: the voxels are in another file; save both as one .nii file")
    shape = header.get_data_shape()
    array: ArrayLike = Flat(path, header.get_data_dtype(), shape, int(header.get_data_offset()), "F")
    if (slope, intercept) not in ((None, None), (1, 0)):
        array = _Scaled(array, slope, intercept)
    data, places = ordered(path, array, ["x", "y", "z", *"tcuvw"][: len(shape)])
    unit = NM.get(header.get_xyzt_units()[0])
    return SourceArray(path, data, product([unit] * 3, [header.get_zooms()[axis] for axis in places]))


class _Scaled:
    """Values of an array times `slope` plus `intercept`."""

    def __init__(self, array: ArrayLike, slope: float, intercept: float):
        self.array, self.slope, self.intercept = array, slope, intercept
        self.shape, self.dtype = array.shape, np.dtype(np.float64)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[index] * self.slope + self.intercept


@contextlib.contextmanager
def _bad_headers() -> Iterator[None]:
    """Turn what the libraries raise on a bad header into ValueError."""
    try:
        yield
    except (nrrd.NRRDError, nibabel.spatialimages.HeaderDataError) as error:
        raise ValueError(str(error)) from error
