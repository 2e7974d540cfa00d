"""Sections of the speed suite; `gpu_suite.py` runs them."""
