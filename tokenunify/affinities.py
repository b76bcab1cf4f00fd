"""Affinities from labels: channel c at voxel v tells whether v and v + offsets[c] are in the same neuron."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.kernels import ids

IGNORE = 2**64 - 1
"""CREMI's label for voxels without ground truth."""


def from_labels(
    labels: np.ndarray, offsets: Sequence[Coordinate], zero: Literal["background", "unlabelled"] = "background"
) -> tuple[np.ndarray, np.ndarray]:
    """Target affinities of integer labels (z, y, x), and where they are known.

    affinities (c, z, y, x), float32: 1 where labels[v] == labels[v + offsets[c]] > 0, else 0.
    mask (c, z, y, x), bool: False where v + offsets[c] is outside the array or either label is CREMI's 2^64-1; with
    zero="unlabelled" also where either label is 0, with zero="background" such pairs are known to be 0. Raises
    InputError for labels that are not integers, or negative.
    """
    _check(labels)
    known = labels != IGNORE if zero == "background" else (labels != IGNORE) & (labels != 0)
    inside = (labels != IGNORE) & (labels != 0)
    affinities = np.zeros((len(offsets), *labels.shape), np.float32)
    mask = np.zeros(affinities.shape, bool)
    for channel, offset in enumerate(offsets):
        here, there = pairs(offset, labels.shape)
        affinities[channel][here] = (labels[here] == labels[there]) & inside[here]
        mask[channel][here] = known[here] & known[there]
    return affinities, mask


def outside_unknown(labels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Labels (z, y, x) with CREMI's 2^64-1 where the mask is 0; as they are without a mask."""
    return labels if mask is None else np.where(mask, labels, np.uint64(IGNORE))


def _check(labels: np.ndarray) -> None:
    ids.check_ids("labels", labels)
    if labels.ndim != 3:
        raise InputError(f"labels must be (z, y, x), found the shape {list(labels.shape)}; add the axes that lack")


def pairs(offset: Coordinate, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Index of the voxels whose partner is inside the array, and index of the partners."""
    here = tuple(slice(max(0, -o), max(0, n - max(0, o))) for o, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, o), max(0, n + min(0, o))) for o, n in zip(offset, shape, strict=True))
    return here, there


def erode_labels(labels: np.ndarray, axes: tuple[int, ...] = (1, 2)) -> np.ndarray:
    """Labels (z, y, x) with 0 wherever a voxel's window, 3x3 in its section, holds two different neurons.

    `axes` are those along which the window extends. It is reflected at the array's faces; 0 and CREMI's 2^64-1 are no
    neurons and stay as they are. Raises InputError for labels that are not integers, or negative.
    """
    _check(labels)
    neuron = (labels != 0) & (labels != IGNORE)
    top = np.iinfo(labels.dtype).max
    highest, lowest = np.where(neuron, labels, 0), np.where(neuron, top - labels, 0)
    for axis in axes:
        highest, lowest = _window_maximum(highest, axis), _window_maximum(lowest, axis)
    lowest = top - lowest
    return np.where(neuron & (lowest != highest), 0, labels).astype(labels.dtype)


def _window_maximum(values: np.ndarray, axis: int) -> np.ndarray:
    padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    padded = np.moveaxis(np.pad(values, padding, mode="reflect"), axis, 0)
    return np.moveaxis(np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:]), 0, axis)


def targets(
    labels: np.ndarray, offsets: Sequence[Coordinate], zero: Literal["background", "unlabelled"], *, erode: bool | str
) -> tuple[np.ndarray, np.ndarray]:
    """Training targets as from `from_labels`; borders made by erosion are background, whatever 0 means.

    `erode`: False, True (in each section) or "3d" (across sections too).
    """
    affinities, mask = from_labels(labels, offsets, zero)
    if erode:
        affinities, _ = from_labels(erode_labels(labels, (0, 1, 2) if erode == "3d" else (1, 2)), offsets)
    return affinities, mask
