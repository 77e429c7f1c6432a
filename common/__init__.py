"""What the stage scripts share: the flow, its solvers, the network, the data and the files between the stages."""

import os

__version__ = "0.1.0"

# Large tensors in pages of 2 MB instead of 4 kB: a training step on a CPU spends less time looking up addresses
# (benchmarks/training_rate.py; 0 turns it off). torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
