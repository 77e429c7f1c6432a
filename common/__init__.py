"""What the stage scripts share: the flow, its solvers, the network, the data and the files between the stages."""

import ctypes
import os
import sys

__version__ = "0.1.0"

# A training step on a CPU allocates and frees more than a gigabyte. Two settings keep the kernel out of that, and both
# must come before the first tensor; benchmarks/allocation.py measures what they are worth.

# Large tensors in pages of 2 MB instead of 4 kB. THP_MEM_ALLOC_ENABLE=0 turns it off.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# glibc gives freed memory back to the kernel, which has to clear every page before the next tensor gets it. With the
# largest thresholds it keeps the memory. Whoever sets GLIBC_TUNABLES decides for themselves.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD) if mallopt else ():
        mallopt(parameter, 2**31 - 1)
