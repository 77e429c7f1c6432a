"""What the stage scripts share: the flow, its solvers, the network, the data and the files between the stages."""

import ctypes
import os
import sys

__version__ = "0.1.0"

# A training step on a CPU allocates and frees more than a gigabyte. glibc gives freed memory back to the kernel, which
# has to clear every page before the next tensor gets it. Here a process keeps what it once had, so that its memory
# stays at its peak; benchmarks/allocation.py measures what that is worth. GLIBC_TUNABLES in the environment overrules.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)  # no tensor has a mapping of its own, which would end with it
        mallopt(M_TRIM_THRESHOLD, -1)  # and the heap never shrinks
