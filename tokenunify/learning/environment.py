"""What torch's libraries read from the environment while they are loaded, and take from nowhere else."""

import os


def prepare_for_torch() -> None:
    """Set, before torch is first imported, what makes torch fast on CPUs that jobs share; the user's values win.

    GOMP_SPINCOUNT: threads that wait for each other spin for microseconds (2,000 turns), then sleep. GNU OpenMP's own
    default is milliseconds, and where jobs share cores all become many times slower: two processes of two threads each
    on two busy cores did 31 short operations (tanh of 400 x 400) a second by default, 270 with this value. Without
    effect once torch is loaded.

    THP_MEM_ALLOC_ENABLE: torch asks for huge pages for large tensors. Most of what a fresh tensor costs on a CPU is the
    zeroing of its many small pages.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
