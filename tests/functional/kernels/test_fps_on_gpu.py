"""The GPU programs of `fps` on a real GPU: the picks, their exactness, and a recorded graph."""

import pytest
import torch

from prune2drive.functional import fps, kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BOUND = 1e-5
"""Two tokens whose cosine distances differ by more are told apart by float32 products in any order."""


@pytest.fixture(autouse=True)
def programs():
    reason = kernels.kernel_reason("cuda")
    if torch.cuda.is_available() and reason is not None:
        pytest.skip(reason)


def features(*shape, dtype, lean=0.0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return (x + lean).to("cuda", dtype)


def assert_greedy(order, x):
    """Each pick of a view is the farthest, by float64 and up to `BOUND`."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    distance = 1 - unit @ unit.mT
    alone = distance.clone().fill_diagonal_(torch.inf).amin(-1)
    assert alone[order[0]] >= alone.max() - BOUND
    near = distance[order[0]].clone()
    assert len(set(order.tolist())) == len(order)
    for step in range(1, len(order)):
        left = near.clone()
        left[order[:step]] = -torch.inf
        assert near[order[step]] >= left.max() - BOUND
        near = torch.minimum(near, distance[order[step]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 729, 1024), (2, 256, 2560), (1, 50, 37), (1, 2100, 64)])
@pytest.mark.parametrize("lean", [0.0, 1.0])
def test_half_precision_picks_are_exact_to_rounding(dtype, shape, lean):
    x = features(*shape, dtype=dtype, lean=lean)
    order = fps(x, shape[1] // 10, backend="triton")
    for view in range(shape[0]):
        assert_greedy(order[view], x[view])


@pytest.mark.parametrize("metric", ["cosine", "l2", "nearest"])
@pytest.mark.parametrize("start", ["isolated", "center", 3])
def test_float32_picks_are_those_of_the_plain_version(metric, start):
    x = features(4, 300, 64, dtype=torch.float32)
    mask = torch.arange(300, device="cuda") < torch.tensor([300, 211, 40, 120], device="cuda")[:, None]
    dirty = x.masked_fill(~mask[..., None], torch.nan)
    options = {"metric": metric, "start": start, "mask": mask}
    got = fps(dirty, [80, 60, 40, 10], backend="triton", **options)
    assert torch.equal(got, fps(dirty, [80, 60, 40, 10], backend="torch", **options))


@pytest.mark.parametrize("gram", kernels.GRAM_LAUNCHES)
def test_every_layout_multiplies_exactly_and_symmetrically(gram):
    x = features(3, 300, 4096, dtype=torch.bfloat16, lean=1.0)
    exact = x.double() @ x.double().mT
    distance = torch.empty(3, 300, kernels.row_length(300), device="cuda")
    dots, squares = kernels.launch._products(x, distance, gram)
    dots = dots[:, :, :300]
    assert torch.equal(dots, dots.mT)
    assert torch.equal(squares, dots.diagonal(dim1=1, dim2=2))
    assert ((dots - exact).abs() / exact.diagonal(dim1=1, dim2=2).amax()).max() < BOUND


@pytest.mark.parametrize("warps", kernels.PICK_WARPS)
def test_every_number_of_warps_picks_the_same(warps):
    x, counts = features(3, 729, 64, dtype=torch.bfloat16), torch.tensor([90, 1, 40], device="cuda")
    got, _ = kernels.order(x, counts, None, None, "cosine", 90, kernels.Launch(pick_warps=warps))
    assert torch.equal(got, kernels.order(x, counts, None, None, "cosine", 90)[0])


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("ks", [20, [20, 7, 13]])
def test_a_recorded_graph_picks_from_new_features(backend, ks):
    static = features(3, 200, 64, dtype=torch.bfloat16)
    fps(static, ks, backend=backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        order = fps(static, ks, backend=backend)
    for seed in range(3):
        static.copy_(features(3, 200, 64, dtype=torch.bfloat16, lean=float(seed)))
        graph.replay()
        assert torch.equal(order, fps(static, ks, backend=backend))
