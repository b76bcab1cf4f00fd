"""Networks and their training: the only place that imports torch."""

import os

# Large tensors in huge pages: most of what a fresh tensor costs on a CPU is the zeroing of its many small pages.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Threads that wait for each other spin for microseconds, then sleep: by default they spin for milliseconds, and where
# jobs share cores all become ten times slower. OpenMP reads this when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
