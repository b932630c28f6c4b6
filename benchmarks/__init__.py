"""Comparisons with other tools, and how figures grow with the corpus: `python -m benchmarks.peers`, `python -m benchmarks.scaling`."""
