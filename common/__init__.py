"""What the stage scripts share: the flow, its solvers, the network, the data and the files between the stages."""

__version__ = "0.1.0"
