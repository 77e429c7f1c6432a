"""Measurements, searches and the pages of their results, each run as `python -m benchmarks.NAME`."""
