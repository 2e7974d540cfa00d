"""Benchmarks: what pruning costs in right answers, against controls, with intervals."""
