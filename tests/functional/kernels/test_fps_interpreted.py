"""The GPU programs of `fps`, run by Triton's interpreter on the CPU.

Triton looks at TRITON_INTERPRET when it is first imported, which may long have happened here: so the tests of
`interpreted_fps` run in a process of their own.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

OPTIONS = ("-q", "--tb=short", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:xdist")

pytest.importorskip("triton", reason="Triton is not installed")


def test_the_interpreted_programs():
    version = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
    if version < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton before 3.7 cannot read the scalars of NumPy 2.4")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    tests = Path(__file__).with_name("interpreted_fps.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, str(tests)],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 80
    assert "skipped" not in done.stdout.splitlines()[-1]
