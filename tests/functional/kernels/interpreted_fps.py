"""`fps` with ``backend="triton"`` in Triton's interpreter. `test_fps_interpreted` runs it in a process."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prune2drive.errors import PruneError
from prune2drive.functional import distances, fps, kernels, products
from prune2drive.functional import fps as fps_function
from prune2drive.functional.kernels import launch

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
METRICS = ["cosine", "l2", "nearest"]
BOUND = 4e-6
"""Distances (squared for l2, of vectors of length about 1) are right to this in float32, so two tokens whose
distances differ by more are told apart; between closer ones either may be picked."""

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(x, k, **options):
    """Picks of the programs and of the plain version."""
    generators = {}
    out = []
    for backend in ("triton", "torch"):
        if "generator" in options:
            generators = {"generator": torch.Generator().manual_seed(options["generator"])}
        out.append(fps(x, k, backend=backend, **{**options, **generators}))
    return out


# --- an oracle in numpy, float64, no shared code


def exact_distances(x, metric):
    x = np.asarray(x, dtype=np.float64)
    if metric == "l2":
        return ((x[:, None] - x[None]) ** 2).sum(-1)
    lengths = np.sqrt((x**2).sum(-1))
    unit = np.divide(x, lengths[:, None], out=np.zeros_like(x), where=lengths[:, None] > 0)
    out = 1 - unit @ unit.T
    np.fill_diagonal(out, 0.0)
    return out


def assert_exact(order, x, metric, mask=None, first=None):
    """Every pick is the best to `BOUND`, isolated start included, and -1s only end the row."""
    d = exact_distances(x, metric)
    there = np.ones(len(d), bool) if mask is None else np.asarray(mask)
    order = list(order)
    picked = [pick for pick in order if pick >= 0]
    assert order == picked + [-1] * (len(order) - len(picked))
    assert len(set(picked)) == len(picked)
    assert there[picked].all()
    if first is None:
        others = np.where(there[None] & ~np.eye(len(d), dtype=bool), d, np.inf).min(1)
        assert others[picked[0]] >= others[there].max() - BOUND
    else:
        assert picked[0] == first
    near, left = np.full(len(d), np.inf), there.copy()
    for previous, pick in itertools.pairwise(picked):
        left[previous] = False
        near = np.minimum(near, d[previous])
        if metric == "nearest":
            assert near[pick] <= near[left].min() + BOUND
        else:
            assert near[pick] >= near[left].max() - BOUND


# --- picks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("metric", "start"),
    [("cosine", start) for start in ("isolated", "center", "random", 3)]
    + [("l2", "isolated"), ("l2", "center"), ("nearest", "isolated"), ("nearest", 3)],
)
def test_picks_are_those_of_the_plain_version(dtype, metric, start):
    """Masked NaN, ragged counts, several views, more than one tile, lengths that divide nothing."""
    for views, n, channels in ((3, 37, 50), (2, 80, 64)):
        x = (randn(views, n, channels, seed=n) + 0.5).to(dtype)
        mask = torch.rand(views, n, generator=torch.Generator().manual_seed(n)) < 0.8
        mask[:, 3] = True
        dirty = x.masked_fill(~mask[..., None], torch.nan)
        ks = [n // 4 - 3 * view for view in range(views)]
        got, want = both(dirty, ks, metric=metric, start=start, mask=mask, generator=7)
        assert torch.equal(got, want)
        assert got.shape == (views, ks[0])
        assert (got >= 0).sum(-1).tolist() == ks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_picks_are_exact_to_rounding(dtype, metric):
    x = (torch.nn.functional.normalize(randn(4, 40, 24), dim=-1)).to(dtype)
    mask = torch.arange(40) < torch.tensor([40, 33, 2, 17])[:, None]
    order = fps(x, [40, 20, 1, 17], metric=metric, mask=mask, backend="triton")
    for view in range(4):
        assert_exact(order[view].tolist(), x[view].double().numpy(), metric, mask[view].numpy())
    order = fps(x, 12, metric=metric, start=5, backend="triton")
    for view in range(4):
        assert_exact(order[view].tolist(), x[view].double().numpy(), metric, first=5)


def test_integers_fall_exactly_as_they_should():
    """Squared distances of small integers are exact, so every tie is: to the lowest index."""
    for seed in range(6):
        x = torch.randint(-3, 4, (2, 25, 3), generator=torch.Generator().manual_seed(seed)).float()
        got = fps(x.bfloat16(), 25, metric="l2", start=seed, backend="triton")
        for view in range(2):
            d = exact_distances(x[view].numpy(), "l2")
            picks, near = [seed], d[seed].copy()
            while len(picks) < 25:
                near[picks] = -1
                picks.append(int(near.argmax()))  # numpy takes the first of equals
                near = np.minimum(near, d[picks[-1]])
            assert got[view].tolist() == picks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", METRICS)
def test_copies_clusters_and_zero_vectors(dtype, metric):
    copies = randn(3, 33).to(dtype).repeat(4, 1)
    order = fps(copies, 12, metric=metric, backend="triton").tolist()
    assert sorted(order) == list(range(12))
    if metric != "nearest":
        assert {pick % 3 for pick in order[:3]} == {0, 1, 2}
        assert order[3:] == sorted(order[3:])
    clusters = (randn(5, 1, 48) + 0.01 * randn(5, 30, 48, seed=1)).reshape(150, 48).to(dtype)
    assert torch.equal(*both(clusters, 15, metric=metric))
    with_zeros = randn(2, 60, 16).to(dtype)
    with_zeros[:, ::7] = 0
    assert torch.equal(*both(with_zeros, 20, metric=metric))
    assert fps(torch.zeros(9, 4, dtype=dtype), 9, metric=metric, backend="triton").tolist() == list(range(9))
    one_hot = torch.eye(40, dtype=dtype)
    assert fps(one_hot, 20, metric=metric, backend="triton").tolist() == list(range(20))


@pytest.mark.parametrize(
    ("n", "channels"), [(1, 1), (1, 70), (2, 3), (64, 64), (127, 63), (128, 65), (129, 8)]
)
def test_every_length_and_every_count(n, channels):
    x = randn(1, n, channels).bfloat16()
    whole = fps(x, n, backend="triton")
    assert torch.equal(whole, fps(x, n, backend="torch"))
    assert torch.equal(whole.sort(-1).values, torch.arange(n)[None])
    for k in {1, (n + 1) // 2}:
        assert torch.equal(fps(x, k, backend="triton"), whole[:, :k])


def test_long_views(monkeypatch):
    """Past 1024 tokens, where a row takes several warps on a GPU; and more rows at once than usual."""
    monkeypatch.setattr(launch, "ELEMENTS_PER_THREAD", 128)
    x = randn(1, 1026, 8).half()
    mask = torch.rand(1, 1026, generator=torch.Generator().manual_seed(1)) < 0.9
    mask[0, 7] = True
    assert torch.equal(*both(x, 12, mask=mask, start=7))


def test_many_views_and_views_done_in_turn(monkeypatch):
    x = randn(5, 6, 9, 6).half()
    ks = torch.randint(1, 10, (5, 6), generator=torch.Generator().manual_seed(0))
    got, want = both(x, ks)
    assert torch.equal(got, want)
    monkeypatch.setattr(distances, "MATRIX_BYTES", 4 * 4 * 9 * kernels.row_length(9))
    assert torch.equal(fps(x, ks, backend="triton"), want)


def test_strides():
    base = randn(2, 40, 3, 24).bfloat16()
    assert torch.equal(*both(base[:, :, 1], 10))
    assert torch.equal(*both(base[:, 1::2, 1, 4:], 10))
    assert torch.equal(*both(base[:, :, 0].mT.contiguous().mT, 10))
    assert torch.equal(*both(base[:1, :, 1].expand(3, 40, 24), 10))


# --- the product


def symmetric(x, gram):
    memory = torch.full((len(x), x.shape[1], kernels.row_length(x.shape[1])), torch.nan)
    dots, squares = launch._products(x, memory, gram)
    return dots[:, :, : x.shape[1]], squares


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gram", kernels.GRAM_LAUNCHES[:2])
def test_the_product_is_exact_to_rounding_and_symmetric(dtype, gram):
    """Several tiles, several chunks, and channels that no step divides."""
    x = randn(2, 140, 1100).to(dtype)
    dots, squares = symmetric(x, gram)
    exact = x.double() @ x.double().mT
    assert torch.equal(dots, dots.mT)
    assert torch.equal(squares, dots.diagonal(dim1=1, dim2=2))
    assert (dots - exact).abs().max() < 1100 * 2**-24 * 40  # squared lengths are some 1100, terms some 1


def test_every_layout_gives_the_same_picks():
    x = randn(3, 70, 64).bfloat16()
    counts = torch.tensor([20, 5, 11])
    want = fps(x, counts, backend="torch")
    for gram in kernels.GRAM_LAUNCHES:
        got, _ = kernels.order(x, counts, None, None, "cosine", 20, kernels.Launch(gram))
        assert torch.equal(got, want)


# --- values


@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_values_are_named_as_by_the_plain_version(dtype):
    x = randn(2, 3, 8, 5).to(dtype)
    x[1, 0, 6, 2] = torch.inf
    with pytest.raises(PruneError, match=r"row \(1, 0\): features hold inf at token 6, channel 2\."):
        fps(x, 3, backend="triton")
    y = randn(2, 3, 8, 5).to(dtype)
    with pytest.raises(PruneError, match=r"row \(1, 1\): start=9 is out of range for 8"):
        fps(y, 3, start=torch.tensor([[0, 0, 0], [0, 9, 0]]), backend="triton")
    with pytest.raises(PruneError, match=r"row \(0, 0\): start=3 is masked"):
        fps(y, 2, start=3, mask=torch.arange(8) != 3, backend="triton")
    with pytest.raises(PruneError, match=r"row \(0, 0\): asked for 2 of 1 unmasked tokens"):
        fps(y, 2, mask=torch.arange(8) < 1, backend="triton")


@pytest.mark.parametrize("start", ["isolated", "center", "random"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_lengths_beyond_float32_are_rescaled(metric, start):
    x = randn(2, 12, 8)
    for scale in (2.0**-100, 2.0**100):
        options = {"metric": metric, "start": start, "generator": 5}
        far = (x * scale).bfloat16()
        assert torch.equal(*both(far, 12, **options))
        near = x.bfloat16()
        assert torch.equal(both(far, 12, **options)[0], both(near, 12, **options)[1])


def test_unchecked_nonsense_stays_inside():
    """Without a check nothing is promised of the picks but that they are places or -1."""
    x = randn(2, 8, 5).bfloat16()
    x[0] = torch.nan
    order = fps(x, 8, start=torch.tensor([99, -5]), check=False, backend="triton")
    assert order.min() >= 0
    assert order.max() < 8
    mask = torch.zeros(2, 8, dtype=torch.bool)
    order = fps(x, 8, mask=mask, check=False, backend="triton")
    assert order.min() >= 0
    assert order.max() < 8


# --- where it runs


def test_auto_on_cpu_is_the_plain_version(monkeypatch):
    assert kernels.kernel_reason("cpu") is None
    monkeypatch.setattr(kernels, "run", lambda *arguments: pytest.fail("the programs ran"))
    fps(randn(8, 4), 3)
    with pytest.raises(pytest.fail.Exception):
        fps(randn(8, 4), 3, backend="triton")


def test_refusals_say_why(monkeypatch):
    x = randn(8, 4)
    for options, why in (
        ({"metric": "l1"}, "metric='l1' is no inner product"),
        ({"compat": "released"}, "compat='released'"),
    ):
        with pytest.raises(PruneError, match=rf"backend='triton' cannot run: {why}"):
            fps(x, 3, backend="triton", **options)
    with pytest.raises(PruneError, match=r"torch\.float64 features"):
        fps(x.double(), 3, backend="triton")
    with pytest.raises(PruneError, match=r"8200 tokens in a view are more than 8192"):
        fps(torch.ones(8200, 1), 3, backend="triton")
    assert "no CUDA GPU" in kernels.kernel_reason("cuda")
    assert "not meta" in kernels.kernel_reason("meta")


def test_a_failed_launch_is_an_error_if_asked_for(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(launch, "order", broken)
    with pytest.raises(PruneError, match=r"failed on cpu: RuntimeError: no compiler\. Use backend='torch'"):
        fps(randn(8, 4), 3, backend="triton")


# --- the operator


class Asked(TorchDispatchMode):
    """Names of all operators, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_one_question_after_everything_is_queued(monkeypatch):
    x, mask = randn(3, 20, 6).bfloat16(), torch.ones(3, 20, dtype=torch.bool)
    with Asked() as unchecked:
        fps(x, 10, mask=mask, check=False, backend="triton")
    names = unchecked.names
    assert sum("fps_order" in name for name in names) == 1
    assert not [name for name in names if "_local_scalar" in name or "_to_copy" in name]
    with Asked() as checked:
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(
            torch.Tensor, "tolist", lambda self: checked.names.append("asked") or tolist(self)
        )
        fps(x, 10, mask=mask, backend="triton")
    names = checked.names
    assert names.count("asked") == 1
    assert names.index("asked") > max(at for at, name in enumerate(names) if "fps_order" in name)
    assert not any("_local_scalar" in name for name in names)


ARGUMENTS = [
    lambda: (randn(2, 20, 8).bfloat16(), torch.tensor([4, 5]), None, None, "cosine", 5),
    lambda: (randn(2, 20, 8), torch.tensor([4, 5]), torch.tensor([1, 2]), None, "l2", 5),
    lambda: (randn(2, 20, 8).half(), torch.tensor([4, 5]), None, torch.ones(2, 20) > 0, "nearest", 5),
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_operator_is_well_formed(arguments):
    torch.library.opcheck(kernels.fps_order, arguments())


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_shapes_without_values(arguments):
    real = arguments()
    meta = [each.to("meta") if isinstance(each, torch.Tensor) else each for each in real]
    for have, want in zip(kernels.fps_order(*meta), kernels.fps_order(*real), strict=True):
        assert have.device.type == "meta"
        assert have.shape == want.shape
        assert have.dtype == want.dtype
        assert have.stride() == want.stride()


@pytest.mark.parametrize(
    ("metric", "start"), [("cosine", "isolated"), ("cosine", "center"), ("l2", 3), ("nearest", "isolated")]
)
def test_compiles_as_one_graph(metric, start):
    torch._dynamo.reset()
    x = randn(2, 70, 8).bfloat16()
    mask = torch.arange(70) < torch.tensor([70, 61])[:, None]

    def choose(features, mask):
        return fps_function(
            features, [6, 4], metric=metric, start=start, mask=mask, check=False, backend="triton"
        )

    compiled = torch.compile(choose, fullgraph=True, backend="aot_eager")
    want = fps(x, [6, 4], metric=metric, start=start, mask=mask, backend="torch")
    assert torch.equal(compiled(x, mask), want)
    assert torch.equal(compiled(x, mask), choose(x, mask))


def test_process_settings_do_not_matter():
    x = randn(1, 140, 256) + 2.0
    want = products.gram(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        order = fps(x, 30, backend="triton")
        assert torch.equal(symmetric(x, kernels.GRAM_LAUNCHES[0])[0], want)
    assert torch.equal(order, fps(x, 30, backend="torch"))
