"""Which version of `fps` runs where, and what happens when the GPU programs cannot."""

import sys

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import fps as fps_function
from prune2drive.functional import kernels
from prune2drive.functional.kernels import available, kernel_reason, launch, plan

fps_module = sys.modules["prune2drive.functional.fps"]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(available, "_failed", {})
    return monkeypatch


# --- reasons


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compat": "released"}, "compat='released' is measured as published"),
        ({"metric": "l1"}, "metric='l1' is no inner product"),
        ({"dtype": torch.float64}, "torch.float64 features"),
        ({"tokens": 8193}, "8193 tokens in a view are more than 8192"),
    ],
)
def test_calls_that_the_programs_do_not_serve(options, reason):
    assert reason in kernel_reason("cuda", **options)


def test_machines_that_have_no_use_for_them(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in kernel_reason("cpu")
    assert "not mps" in kernel_reason(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_reason("cuda") == "torch finds no CUDA GPU"


def test_old_gpus_do_not_serve(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert "8.0 or newer" in kernel_reason("cuda")


def test_without_triton_the_reason_names_it(gpu):
    gpu.setitem(sys.modules, "triton", None)
    gpu.delitem(sys.modules, "prune2drive.functional.kernels.programs", raising=False)
    gpu.delattr(kernels, "programs", raising=False)
    reason = kernel_reason("cuda")
    assert reason.startswith("Triton cannot be used: ModuleNotFoundError")


def test_a_failure_is_remembered_per_device(gpu):
    pytest.importorskip("triton")
    assert kernel_reason("cuda:0") is None
    available.give_up(torch.device("cuda", 0), RuntimeError("no C compiler"))
    assert kernel_reason("cuda:0") == "the programs failed on cuda:0: RuntimeError: no C compiler"
    assert kernel_reason("cuda") == kernel_reason("cuda:0")
    assert kernel_reason("cuda:1") is None


# --- the choice


def test_unknown_backends_are_refused():
    with pytest.raises(PruneError, match=r"unknown backend 'tritn'\. Did you mean 'triton'"):
        fps_function(randn(8, 4), 3, backend="tritn")


def test_asked_for_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        PruneError, match=r"backend='triton' cannot run: on CPU .* Use backend='auto' or 'torch'"
    ):
        fps_function(randn(8, 4), 3, backend="triton")


def test_auto_and_torch_are_the_plain_version_here():
    x = randn(2, 20, 6)
    want = fps_function(x, 9, backend="torch")
    assert torch.equal(fps_function(x, 9), want)
    assert torch.equal(fps_function(x, 9, backend="auto"), want)


def test_auto_goes_on_without_programs_that_fail(monkeypatch):
    def fail(*arguments):
        raise kernels.Failed("the programs failed on cuda: no C compiler")

    monkeypatch.setattr(fps_module, "_takes_programs", lambda backend, call: True)
    monkeypatch.setattr(kernels, "run", fail)
    x = randn(2, 20, 6)
    with pytest.warns(RuntimeWarning, match=r"no C compiler\. From now on the plain version is used"):
        got = fps_function(x, [9, 4])
    assert torch.equal(got, fps_function(x, [9, 4], backend="torch"))
    monkeypatch.setattr(fps_module, "capturing", lambda device: True)
    with pytest.raises(PruneError, match=r"no C compiler\. Use backend='torch'"):
        fps_function(x, [9, 4])


def test_running_out_of_memory_is_not_a_failure_of_the_programs(monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(launch, "order", full)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.run(randn(1, 8, 4), torch.tensor([3]), None, None, "cosine", 3)
    assert available._failed == {}


# --- the layout


def test_layouts():
    six = plan(6, 729)
    assert (six.gram, six.pick_warps) == (launch.LARGE, 1)
    assert plan(6, 729, large=False).gram == launch.SMALL
    assert plan(6, 256).gram == launch.SMALL  # 18 large tiles would leave most of the GPU idle
    assert [plan(1, n).pick_warps for n in (1, 1024, 1025, 4096, 4097, 8192)] == [1, 1, 4, 4, 16, 16]


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 729, 8192])
def test_rows_are_aligned_and_blocks_hold_them(tokens):
    row, block = kernels.row_length(tokens), launch._power_of_two(tokens)
    assert row % 32 == 0
    assert tokens <= row <= block
    assert block & (block - 1) == 0
    rows, warps = launch.measure_layout(block)
    assert rows & (rows - 1) == 0
    assert rows * block == 32 * warps * launch.ELEMENTS_PER_THREAD


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("tokens", [1, 64, 65, 729])
def test_tiles_of_the_lower_triangle_are_counted(tile, tokens):
    side = (tokens + tile - 1) // tile
    assert launch._triangle(tokens, tile) == sum(1 for row in range(side) for _ in range(row + 1))


def test_the_operator_knows_its_shapes_without_triton():
    order, squares = kernels.fps_order(
        torch.empty(3, 20, 8, device="meta", dtype=torch.bfloat16),
        torch.empty(3, dtype=torch.int64, device="meta"), None, None, "cosine", 7,
    )  # fmt: skip
    assert (order.shape, order.dtype) == ((3, 7), torch.int64)
    assert (squares.shape, squares.dtype) == ((3, 20), torch.float32)
