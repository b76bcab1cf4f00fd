"""The heap of the C library: what `freed_memory.give_back` asks of it, and that it still needs to be asked."""

import ctypes
import platform
import subprocess
import sys

import pytest

from tokenunify.store import freed_memory

is_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

HELD_AFTER_FREE = """
import ctypes, os, sys
from tokenunify.store import freed_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "kept small":
    assert freed_memory.give_back()
c.free(c.malloc(20 << 20))  # from now on, glibc takes arrays of up to this size from the heap
before, blocks = held(), []
for _ in range(20):
    blocks.append(c.malloc(8 << 20))
    c.memset(blocks[-1], 1, 8 << 20)
small = c.malloc(100_000)  # it lies above them
for block in blocks:
    c.free(block)
print(held() - before)
"""


@is_glibc
def test_glibc_accepts_both_settings():
    assert freed_memory.give_back()


@is_glibc
def test_the_memory_of_freed_arrays_is_given_back_only_where_asked_for():
    """Where the first number is small too, glibc has changed and `give_back` may go."""
    usual, small = (
        int(subprocess.run([sys.executable, "-c", HELD_AFTER_FREE, how], capture_output=True, check=True).stdout)
        for how in ("usual", "kept small")
    )
    assert usual > 150
    assert small < 10


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not freed_memory.give_back()
