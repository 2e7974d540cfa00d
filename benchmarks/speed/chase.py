"""A chain of dependent reads as a Triton program. Importing this needs Triton."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["steps"])
def chase(places, end, steps):
    """Follow ``places`` for ``steps`` reads from place 0 and write where that leads to ``end``."""
    at = tl.load(end) * 0
    for _ in range(steps):
        at = tl.load(places + at)
    tl.store(end, at)
