"""Networks and their training: the only place that imports torch."""

import os

# Large tensors in huge pages: most of what a fresh tensor costs on a CPU is the zeroing of its many small pages.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
