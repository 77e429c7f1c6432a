"""How a process treats the memory that it has freed, and how it knows that there is too little."""

import ctypes
import os
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next tensor; elsewhere, and under GLIBC_TUNABLES, does nothing.

    A training step on a CPU allocates and frees more than a gigabyte. glibc gives freed memory back to the kernel,
    which clears every page before the next tensor gets it. After this call the process keeps its peak of memory
    instead (`benchmarks/allocation.py` measures what that is worth).
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)  # no tensor gets a mapping of its own, which would be returned when it is freed
        mallopt(M_TRIM_THRESHOLD, -1)  # the heap never shrinks


def is_lack_of_memory(error: Exception) -> bool:
    """Whether Python or PyTorch, which has a class of its own only for accelerators' memory, found too little."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
