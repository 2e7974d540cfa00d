"""The GPU programs of `fps` compile for GPUs that are not here, as they are launched there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SHARED = {90: 227 * 1024, 80: 99 * 1024}
"""Shared memory that one program may use: on an H100; on the smallest GPUs of compute capability 8."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("Triton brings its assembler for Linux only")
    root = Path(__file__).parents[3]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "always",
    }
    script = Path(__file__).with_name("compile_fps.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "FP_FUSION" not in done.stderr  # the launch says itself whether to contract
    return [json.loads(line) for line in done.stdout.splitlines()]


def named(compiled, name, **want):
    found = [each for each in compiled if each["name"] == name]
    found = [each for each in found if all(each[key] == value for key, value in want.items())]
    assert found
    return found


def test_every_case_compiles_all_its_programs(compiled):
    cases = {(each["case"], each["capability"]) for each in compiled}
    assert len(cases) == 10
    for case, capability in cases:
        names = [e["name"] for e in compiled if (e["case"], e["capability"]) == (case, capability)]
        assert names == (["measure", "picks"] if case == "float32" else ["gram", "measure", "picks"])


def test_nothing_spills_and_everything_fits(compiled):
    for each in compiled:
        assert each["shared"] <= SHARED[each["capability"]]
        if each["registers"] and each["case"] != "odd":  # unaligned rows are read number by number
            assert each["registers"][0] <= 255
            assert each["registers"][1] == 0, each


def test_products_run_on_tensor_cores_from_asynchronous_copies(compiled):
    for each in named(compiled, "gram", capability=90):
        assert each["wgmma"] > 0
    for each in named(compiled, "gram", capability=80):
        assert each["mma"] > 0
    for each in named(compiled, "gram", case="six cameras"):
        assert each["async_copies"] > 0
    six = named(compiled, "gram", case="six cameras", capability=90)[0]
    assert (six["programs"], six["warps"]) == (126, 8)  # one wave of 132 SMs


def test_picks_reduce_in_one_instruction_and_read_vectors(compiled):
    for each in named(compiled, "picks"):
        assert each["redux"] >= (2 if each["case"] in ("masked", "odd") else 4)  # largest, then lowest place
        assert each["vector_loads"] > 0
        assert each["waits"] in (None, 0), each  # else a pick takes that many latencies more
    assert named(compiled, "picks", case="six cameras", capability=90)[0]["warps"] == 1
    assert named(compiled, "picks", case="longest", capability=90)[0]["warps"] == 4


def test_distances_are_not_contracted(compiled):
    """An fma would round otherwise than the plain version."""
    for each in named(compiled, "measure"):
        assert each["fma"] == 0
    for each in named(compiled, "measure", case="six cameras"):
        assert each["vector_loads"] > 0
