"""Pairs of ids to consecutive rows, in compiled loops: a hash table with linear probing (Knuth, vol. 3, 6.4).

`slots` (a power of two,) hold rows, FREE where there is none; `keys` (rows, 2), uint64, are the rows' pairs. At most
half of the slots may be taken.
"""

from typing import NamedTuple

import numpy as np

from tokenunify.kernels.compiled import inner, loop

FREE = -1


class Table(NamedTuple):
    """Pairs, and numbers that belong to them."""

    slots: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    """(rows, numbers of each), uint64."""
    size: np.ndarray
    """One number: how many rows are used."""


@loop
def table(width):
    """An empty table for so many numbers of each pair."""
    return Table(free(64), np.empty((64, 2), np.uint64), np.zeros((64, width), np.uint64), np.zeros(1, np.int64))


@loop
def with_room(table, more):
    """The table, or a longer one, in which so many more pairs find room."""
    size = table.size[0]
    if size + more <= len(table.keys):
        return table
    length = max(2 * size, size + more)
    keys, values = np.empty((length, 2), np.uint64), np.zeros((length, table.values.shape[1]), np.uint64)
    keys[:size], values[:size] = table.keys[:size], table.values[:size]
    slots = free(length)
    for row in range(size):
        slots[find(slots, keys, keys[row, 0], keys[row, 1])] = row
    return Table(slots, keys, values, table.size)


@inner
def row(table, u, v):
    """The row of a pair, a new one with zeros if it has none."""
    slot = find(table.slots, table.keys, u, v)
    if table.slots[slot] == FREE:
        new = table.size[0]
        table.slots[slot] = new
        table.keys[new, 0], table.keys[new, 1] = u, v
        table.size[0] += 1
    return table.slots[slot]


@inner
def count(table, guess, u, v, level):
    """Count an affinity of a pair in its number, sum and highest level; returns its row, which `guess` may be."""
    found = guess
    if found >= table.size[0] or table.keys[found, 0] != u or table.keys[found, 1] != v:
        found = row(table, u, v)
    values = table.values[found]
    values[0] += np.uint64(1)
    values[1] += np.uint64(level)
    values[2] = max(values[2], np.uint64(level))
    return found


@loop
def used(table):
    """Keys and values of the rows that are used."""
    return table.keys[: table.size[0]], table.values[: table.size[0]]


@loop
def free(num_pairs):
    """Slots for so many pairs."""
    return np.full(capacity(num_pairs), FREE, np.int64)


@inner
def capacity(num_pairs):
    """How many slots so many pairs need."""
    slots = 16
    while slots < 2 * num_pairs:
        slots *= 2
    return slots


@inner
def home(u, v, mask):
    """The slot where the search for a pair begins."""
    mixed = (np.uint64(u) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(v)) * np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((mixed >> np.uint64(32)) & np.uint64(mask))


@inner
def find(slots, keys, u, v):
    """The slot of a pair, or the free one that it may take."""
    mask = len(slots) - 1
    slot = home(u, v, mask)
    while slots[slot] != FREE and (keys[slots[slot], 0] != u or keys[slots[slot], 1] != v):
        slot = (slot + 1) & mask
    return slot
