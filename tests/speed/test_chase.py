"""The chain of dependent reads, under Triton's interpreter, in a process that begins with it switched on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAM = """
import torch
from speed.ceilings import ring
from speed.chase import chase
places, end = ring(97, torch.device("cpu")), torch.zeros(1, dtype=torch.int32)
for steps in (0, 1, 5, 97, 100):
    end.zero_()
    chase[(1,)](places, end, steps)
    at = 0
    for _ in range(steps):
        at = int(places[at])
    assert int(end) == at, (steps, int(end), at)
print("same")
"""


def test_follows_the_chain():
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(BENCHMARKS),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "same"
