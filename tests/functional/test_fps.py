"""Farthest point sampling against a brute-force float64 oracle."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils._python_dispatch import TorchDispatchMode

from prune2drive.errors import PruneError
from prune2drive.functional import distances, fps, products, released_count
from prune2drive.functional.checks import METRICS

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# --- the oracle: numpy, float64, plain loops, no shared code


def oracle_distances(x, metric):
    x = np.asarray(x, dtype=np.float64)
    n = len(x)
    d = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            if metric in ("cosine", "nearest"):
                a, b = np.linalg.norm(x[i]), np.linalg.norm(x[j])
                cos = 0.0 if a == 0 or b == 0 else float(x[i] @ x[j]) / (a * b)
                d[i, j] = 1.0 - cos
            elif metric == "l2":
                d[i, j] = np.sqrt(((x[i] - x[j]) ** 2).sum())
            else:
                d[i, j] = np.abs(x[i] - x[j]).sum()
    return d


def first_scores(x, d, start, metric):
    """The score whose argmax is the first pick."""
    x = np.asarray(x, dtype=np.float64)
    if start == "isolated":
        return np.array(
            [min([d[i, j] for j in range(len(x)) if j != i], default=np.inf) for i in range(len(x))]
        )
    if metric in ("cosine", "nearest"):
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        unit = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)
        return unit @ unit.mean(0)
    mean = x.mean(0)
    return -(np.linalg.norm(x - mean, axis=1) if metric == "l2" else np.abs(x - mean).sum(1))


def oracle(x, k, start="isolated", metric="cosine"):
    """The exact picks, ties (to 1e-9) to the lowest index."""
    d = oracle_distances(x, metric)

    def best(score, allowed):
        top = max(score[i] for i in allowed)
        return next(i for i in allowed if score[i] == top or score[i] >= top - 1e-9)

    everyone = list(range(len(d)))
    picks = [start if isinstance(start, int) else best(first_scores(x, d, start, metric), everyone)]
    while len(picks) < k:
        near = np.array([min(d[i, p] for p in picks) for i in everyone])
        picks.append(best(-near if metric == "nearest" else near, [i for i in everyone if i not in picks]))
    return picks


def assert_greedy(picks, x, metric, start, tolerance):
    """Walk along ``picks``: each must be the best choice at its step, up to ``tolerance``."""
    d = oracle_distances(x, metric)
    assert len(set(picks)) == len(picks)
    if isinstance(start, str) and start != "random":
        score = first_scores(x, d, start, metric)
        assert score[picks[0]] >= score.max() - tolerance
    near = d[picks[0]].copy()
    for step, pick in enumerate(picks[1:], 1):
        left = [i for i in range(len(d)) if i not in picks[:step]]
        if metric == "nearest":
            assert near[pick] <= near[left].min() + tolerance
        else:
            assert near[pick] >= near[left].max() - tolerance
        near = np.minimum(near, d[pick])


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["matrix", "rows"])
def path(request, monkeypatch):
    """Both ways to measure: a distance matrix, and rows on demand."""
    if request.param == "rows":
        monkeypatch.setattr(distances, "MATRIX_BYTES", 1)
    monkeypatch.setattr(products, "GRAM_BLOCK", 5)  # so that small inputs span several blocks
    return request.param


# --- exact picks


integers = hnp.arrays(
    np.int64,
    st.tuples(st.integers(1, 12), st.integers(1, 4)),
    elements=st.integers(-3, 3),
)


@settings(max_examples=150, deadline=None)
@given(x=integers, data=st.data())
@pytest.mark.parametrize("metric", ["l2", "l1"])
def test_integer_features_give_exactly_the_oracles_picks(metric, x, data):
    """Integer distances are exact in float32, so even every tie must fall as in the oracle."""
    k = data.draw(st.integers(1, len(x)))
    start = data.draw(st.sampled_from(["isolated", len(x) - 1]))
    want = oracle(x, k, start, metric)
    assert fps(torch.from_numpy(x).float(), k, start=start, metric=metric).tolist() == want
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "MATRIX_BYTES", 1)
        assert fps(torch.from_numpy(x).float(), k, start=start, metric=metric).tolist() == want


@settings(max_examples=150, deadline=None)
@given(x=integers, data=st.data())
@pytest.mark.parametrize("metric", ["cosine", "nearest"])
def test_cosine_picks_of_small_integers(metric, x, data):
    """Angles between small integer vectors are equal or well apart; copies and zero vectors abound."""
    k = data.draw(st.integers(1, len(x)))
    picks = fps(torch.from_numpy(x).float(), k, metric=metric).tolist()
    assert_greedy(picks, x, metric, "isolated", 2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "nearest"])
@pytest.mark.parametrize("start", ["isolated", "center", 7])
def test_random_features_every_metric_start_and_dtype(path, metric, start, dtype):
    x = randn(2, 3, 23, 16, dtype=dtype) + 0.5
    picks = fps(x, 14, start=start, metric=metric)
    assert picks.shape == (2, 3, 14)
    assert picks.dtype == torch.int64
    for a in range(2):
        for b in range(3):
            view = x[a, b].double().numpy()
            assert picks[a, b].tolist() == oracle(view, 14, start, metric)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_realistic_size_with_the_real_blocks(metric):
    """More tokens than one block of the product, anisotropic features: every step greedy to rounding."""
    x = randn(2, 300, 64) + 3.0
    picks = fps(x, 60, metric=metric)
    for view in range(2):
        assert_greedy(picks[view].tolist(), x[view].numpy(), metric, "isolated", 1e-5)


def test_one_hot_ties_go_to_the_lowest_index(path):
    """All distances equal: the order is 0, 1, 2, … with every metric that seeks the farthest."""
    x = torch.eye(40)
    for metric in ("cosine", "l2", "l1", "nearest"):
        assert fps(x, 40, metric=metric).tolist() == list(range(40))


@pytest.mark.parametrize("width", [3, 31, 64, 257, 1000])
def test_argmax_returns_the_first_maximum(width):
    """The tie rule rests on this promise of torch's documentation."""
    score = torch.zeros(5, width)
    score[:, width // 2 :] = 1
    assert score.argmax(-1).tolist() == [width // 2] * 5
    assert torch.full((5, width), -torch.inf).argmax(-1).tolist() == [0] * 5


# --- properties


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), metric=st.sampled_from(METRICS))
def test_orders_are_nested_prefixes(seed, n, metric):
    x = randn(2, n, 6, seed=seed)
    full = fps(x, n, metric=metric)
    assert full.sort(-1).values.tolist() == [list(range(n))] * 2
    for k in {1, 2, n // 2 + 1, n - 1}:
        assert torch.equal(fps(x, k, metric=metric), full[:, :k])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), metric=st.sampled_from(METRICS))
def test_permuting_tokens_permutes_picks(seed, n, metric):
    x = randn(n, 6, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))
    # Two tokens are always mutual neighbours, and others may be: a start token is given to break that tie.
    picks = fps(x, n, metric=metric, start=int(order[0]))
    moved = fps(x[order], n, metric=metric, start=0)
    assert torch.equal(order[moved], picks)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_copies_are_never_picked_twice_and_come_last_in_index_order(path, metric, dtype):
    base = randn(3, 33, dtype=dtype)
    x = base.repeat(4, 1)
    picks = fps(x, 12, metric=metric).tolist()
    assert sorted(picks) == list(range(12))
    if metric != "nearest":
        assert {p % 3 for p in picks[:3]} == {0, 1, 2}
        assert picks[3:] == sorted(picks[3:])  # exact ties at distance 0


def test_scaled_copies_tie_under_cosine():
    x = torch.cat([randn(4, 50), randn(4, 50) * 7.3, randn(4, 50) * 0.11])
    picks = fps(x, 12).tolist()
    assert {p % 4 for p in picks[:4]} == {0, 1, 2, 3}
    assert picks[4:] == sorted(picks[4:])


def test_all_tokens_equal():
    assert fps(torch.ones(6, 4), 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_zero_vectors_are_at_cosine_distance_one_from_everything(path):
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [0.0, 0.0], [-1.0, 0.0]])
    # The nearest neighbours of 1, 3 and 4 are all at 1, so 1 starts; then 0; then 3 before 4, both at 1.
    assert fps(x, 5).tolist() == [1, 0, 3, 4, 2] == oracle(x.numpy(), 5)


def test_one_token_and_one_pick(path):
    for start in ("isolated", "center", "random", 0):
        for metric in METRICS:
            assert fps(torch.ones(1, 3), 1, start=start, metric=metric).tolist() == [0]
    assert fps(torch.empty(0, 5, 3), 2).shape == (0, 2)


def test_extreme_lengths_are_measured():
    """Squares of these lengths leave float32; directions are still told apart."""
    x = randn(10, 8).double()
    want = fps(x, 10)
    for scale in (1e-30, 1e30, 1e-200, 1e200):
        assert torch.equal(fps(x * scale, 10), want)
    assert torch.equal(fps(x.float() * 2.0**100, 10, metric="l2"), fps(x.float(), 10, metric="l2"))
    mixed = x * torch.logspace(-150, 150, 10, dtype=torch.float64)[:, None]
    assert torch.equal(fps(mixed, 10), want)


# --- starts


def test_random_start_is_reproducible_and_spreads():
    x = randn(400, 20, 4)
    first = fps(x, 2, start="random", generator=torch.Generator().manual_seed(3))
    again = fps(x, 2, start="random", generator=torch.Generator().manual_seed(3))
    other = fps(x, 2, start="random", generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(first[:, 0].tolist()) == set(range(20))


def test_random_start_is_always_a_candidate():
    mask = torch.zeros(200, 10, dtype=torch.bool)
    mask[:, 3:6] = True
    picks = fps(randn(200, 10, 4), 3, start="random", mask=mask)
    assert picks.sort(-1).values.tolist() == [[3, 4, 5]] * 200


def test_start_indices_per_row():
    x = randn(2, 3, 9, 5)
    start = torch.tensor([[0, 1, 2], [8, 7, 6]])
    picks = fps(x, 4, start=start)
    assert torch.equal(picks[..., 0], start)
    assert torch.equal(fps(x, 4, start=torch.tensor(5)), fps(x, 4, start=5))
    for a in range(2):
        for b in range(3):
            assert picks[a, b].tolist() == oracle(x[a, b].numpy(), 4, int(start[a, b]))


# --- masks, k per row, batches


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", ["isolated", "center"])
def test_masked_tokens_do_not_exist(path, metric, start):
    """Masked tokens hold NaN, Inf or lures: the picks are those of the view without them."""
    x = randn(3, 20, 6)
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.6
    dirty = x.clone()
    dirty[0][~mask[0]] = torch.nan
    dirty[1][~mask[1]] = torch.inf
    dirty[2][~mask[2]] = -1e4
    k = int(mask.sum(-1).min())
    picks = fps(dirty, k, mask=mask, metric=metric, start=start)
    for view in range(3):
        alone = fps(x[view][mask[view]], k, metric=metric, start=start)
        assert picks[view].tolist() == mask[view].nonzero()[:, 0][alone].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_a_view_alone_equals_the_view_in_a_padded_batch(metric):
    """Lengths across several blocks of the product. BLAS may round other shapes otherwise, so a difference
    is accepted only where the float64 oracle sees a tie."""
    lengths = [300, 129, 40]
    views = [randn(n, 48, seed=n) + 1.0 for n in lengths]
    batch = torch.zeros(3, 300, 48)
    for row, view in enumerate(views):
        batch[row, : len(view)] = view
    mask = torch.arange(300) < torch.tensor(lengths)[:, None]
    together = fps(batch, 30, mask=mask, metric=metric)
    for row, view in enumerate(views):
        alone = fps(view, 30, metric=metric).tolist()
        if together[row].tolist() != alone:
            assert_greedy(together[row].tolist(), view.numpy(), metric, "isolated", 1e-5)
            assert_greedy(alone, view.numpy(), metric, "isolated", 1e-5)


def test_k_per_row_in_every_form():
    x = randn(2, 3, 12, 5)
    full = fps(x, 12)
    ks = [[1, 12, 5], [3, 4, 6]]
    got = fps(x, torch.tensor(ks))
    assert got.shape == (2, 3, 12)
    for a in range(2):
        for b in range(3):
            assert got[a, b].tolist() == full[a, b, : ks[a][b]].tolist() + [-1] * (12 - ks[a][b])
    assert torch.equal(fps(x, ks), got)
    assert torch.equal(fps(x, [2, 3, 4]), fps(x, torch.tensor([[2, 3, 4]] * 2)))
    assert torch.equal(fps(x[0, 0], torch.tensor(4)), full[0, 0, :4])


def test_a_row_with_fewer_candidates_may_ask_for_fewer():
    mask = torch.tensor([[True] * 8, [False, True, True] + [False] * 5])
    got = fps(randn(2, 8, 4), [6, 2], mask=mask)
    assert sorted(got[1].tolist()) == [-1, -1, -1, -1, 1, 2]
    assert (got[0] >= 0).all()


def test_views_done_in_turn_equal_views_done_together(monkeypatch):
    x, ks, start = randn(7, 20, 6), [3, 9, 1, 20, 5, 5, 5], torch.arange(7)
    mask = torch.ones(7, 20, dtype=torch.bool)
    mask[4, :10] = False
    start[4] = 15
    want = fps(x, ks, start=start, mask=mask)
    monkeypatch.setattr(distances, "MATRIX_BYTES", 2 * 4 * 20 * 20)
    assert torch.equal(fps(x, ks, start=start, mask=mask), want)


# --- precision


def test_tf32_bf16_and_autocast_do_not_reach_the_distances():
    """Processors without bf16 products ignore the setting; elsewhere the raw product below does differ."""
    x = randn(2, 300, 2048) + 2.0
    want, gram, row = fps(x, 100), products.gram(x), products.dots(x[:, :64], x)
    released = fps(x, 100, compat="released")
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert torch.equal(products.gram(x), gram)
        assert torch.equal(products.dots(x[:, :64], x), row)
        assert torch.equal(fps(x, 100), want)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(products.gram(x), gram)
        assert torch.equal(products.dots(x[:, :64], x), row)
        assert torch.equal(fps(x, 100), want)
        assert torch.equal(fps(x, 100, compat="released"), released)


def test_threads_do_not_disturb_each_other():
    x = randn(2, 150, 64)
    want, wrong = fps(x, 40), []

    def work():
        for _ in range(5):
            if not torch.equal(fps(x, 40), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_features_that_need_gradients_are_only_read():
    x = randn(3, 10, 4).requires_grad_()
    before = x.detach().clone()
    for dtype in (torch.float32, torch.float64):
        fps(x.to(dtype), 5)
    assert torch.equal(x.detach(), before)


# --- synchronisation and compilation


class Syncs(TorchDispatchMode):
    """Counts operators that make the host wait for the device."""

    blocking = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []
        self.all = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.all += 1
        if any(name in str(func) for name in self.blocking):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("metric", METRICS)
def test_no_synchronisation_between_picks(path, metric):
    x, mask = randn(2, 12, 6), torch.ones(2, 12, dtype=torch.bool)
    with Syncs() as free:
        fps(x, 10, metric=metric, mask=mask, check=False)
    assert free.seen == []
    assert free.all > 20  # the mode did see the loop
    counts = []
    for k in (2, 11):
        with Syncs() as checked:
            fps(x[:1], k, metric=metric, mask=mask[:1])
        counts.append(len(checked.seen))
    assert counts[0] == counts[1] <= 4  # one tolist() of at most three answers, whatever k


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", ["isolated", "center", "random", 3])
def test_runs_on_tensors_without_values(path, metric, start):
    """On the meta device any question about a value raises."""
    x = torch.empty(2, 12, 6, device="meta")
    mask = torch.empty(2, 12, dtype=torch.bool, device="meta")
    assert fps(x, 5, metric=metric, start=start, mask=mask, check=False).shape == (2, 5)
    with pytest.raises((RuntimeError, NotImplementedError)):
        fps(x, 5, metric=metric, start=start, mask=mask, check=True)


@pytest.mark.parametrize(
    ("backend", "metric", "start"),
    [
        ("eager", "cosine", "isolated"),
        ("eager", "l1", "center"),
        ("aot_eager", "cosine", "isolated"),
        ("aot_eager", "l2", 3),
        ("aot_eager", "nearest", "isolated"),
    ],
)
def test_compiles_as_one_graph(backend, metric, start):
    torch._dynamo.reset()
    x = randn(2, 140, 8)
    mask = torch.arange(140) < torch.tensor([140, 131])[:, None]

    def choose(features, mask):
        return fps(features, 6, metric=metric, start=start, mask=mask)

    compiled = torch.compile(choose, fullgraph=True, backend=backend)
    assert torch.equal(compiled(x, mask), choose(x, mask))


def test_inductor_keeps_the_tie_rule():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: fps(x, 5), fullgraph=True)
    x = torch.eye(40)
    try:
        got = compiled(x)
    except Exception as error:  # no C++ compiler here
        if "compiler" not in str(error).lower():
            raise
        pytest.skip("inductor finds no C++ compiler")
    assert got.tolist() == [0, 1, 2, 3, 4]
    y = randn(40, 40)
    assert torch.equal(compiled(y), fps(y, 5))


# --- the released code's rule


def released_rule(states, count):
    """The published sampler, from its description: one view, everything in the dtype of ``states``."""
    unit = torch.nn.functional.normalize(states, p=2, dim=1)
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    chosen, taken = [], torch.zeros(len(states), dtype=torch.bool)
    for _ in range(count):
        if not chosen:
            score = distance.min(dim=1).values
        else:
            score = distance[chosen].min(dim=0).values
        score = score.clone()
        score[taken] = -torch.inf
        top = score.max()
        pick = next(i for i in range(len(states)) if score[i] == top)
        chosen.append(pick)
        taken[pick] = True
    return chosen


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lean", [0.0, 1.0, 5.0])
def test_released_rule_is_reproduced(dtype, lean):
    """Anisotropic features (``lean``) make half precision tie at most steps."""
    x = (randn(2, 150, 64) + lean).to(dtype)
    got = fps(x, 40, compat="released")
    for view in range(2):
        assert got[view].tolist() == released_rule(x[view], 40)


def test_half_precision_ties_change_the_released_choice():
    """The reason for float32: the same numbers, measured in fp16, give another selection."""
    x = (randn(150, 64) + 5.0).half()
    ours, theirs = set(fps(x, 40).tolist()), set(fps(x, 40, compat="released").tolist())
    assert len(ours & theirs) < 38


def test_released_rule_with_masks():
    x = randn(2, 30, 8)
    mask = torch.arange(30) < torch.tensor([30, 21])[:, None]
    got = fps(x, 10, mask=mask, compat="released")
    assert got[1].tolist() == released_rule(x[1, :21], 10)


def test_released_count_truncates():
    assert released_count(729, 0.095) == 69
    assert released_count(729, 0.1) == 72
    assert released_count(256, 0.1) == 25


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x: (x.long(), 2), r"float tensor.*torch.int64"),
        (lambda x: (x[0, 0, 0], 2), r"at least two dimensions.*\(5,\)"),
        (lambda x: ([[1.0]], 1), "float tensor.*list"),
        (lambda x: (x, 0), r"row \(0, 0\): k must be at least 1, got 0"),
        (lambda x: (x, 80), r"row \(0, 0\): asked for 80 of 8 tokens.*\(2, 3, 8, 5\)"),
        (lambda x: (x[0, 0], 9), r"fps: asked for 9 of 8 tokens"),
        (lambda x: (x, [[1, 2, 3], [4, 5, 9]]), r"row \(1, 2\): asked for 9 of 8"),
        (lambda x: (x, [1, 2]), r"k of shape \(2,\) does not broadcast to \(2, 3\)"),
        (lambda x: (x, 2.0), "k must hold integers"),
        (lambda x: (x, True), "k must hold integers"),
        (lambda x: (x, torch.tensor([1.0])), "k must hold integers"),
        (lambda x: (x, "many"), "k must be an int.*'many'"),
    ],
)
def test_bad_features_and_k(arguments, message):
    with pytest.raises(PruneError, match=message):
        fps(*arguments(torch.randn(2, 3, 8, 5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cosin"}, "unknown metric 'cosin'. Did you mean 'cosine'"),
        ({"start": "isolate"}, "unknown start 'isolate'. Did you mean 'isolated'"),
        ({"compat": "release"}, "unknown compat 'release'. Did you mean 'released'"),
        ({"compat": "released", "metric": "l2"}, "fixes metric='cosine'"),
        ({"compat": "released", "start": 0}, "fixes metric='cosine' and start='isolated'"),
        ({"start": 8}, r"start=8 is out of range for 8 tokens"),
        ({"start": -1}, r"start=-1 is out of range"),
        ({"start": 1.5}, "start must be a name"),
        ({"start": True}, "start must be a name"),
        ({"start": torch.tensor([0.0])}, "start must hold integers"),
        ({"start": torch.tensor([1, 2])}, r"start of shape \(2,\) does not broadcast to \(2, 3\)"),
        ({"start": torch.tensor([[0, 0, 0], [0, 9, 0]])}, r"row \(1, 1\): start=9 is out of range for 8"),
        ({"mask": torch.ones(2, 3, 7, dtype=torch.bool)}, r"mask of shape \(2, 3, 7\) does not broadcast"),
        ({"mask": torch.ones(2, 3, 8)}, "mask must be bool"),
        ({"start": 3, "mask": torch.arange(8) != 3}, r"row \(0, 0\): start=3 is masked"),
        ({"mask": torch.arange(8) < 1}, r"row \(0, 0\): asked for 2 of 1 unmasked tokens"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(PruneError, match=message):
        fps(torch.randn(2, 3, 8, 5), 2, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("metric", METRICS)
def test_the_first_bad_value_is_located(path, metric, value):
    x = randn(2, 3, 8, 5)
    x[1, 0, 6, 2] = value
    x[1, 2, 0, 0] = value
    with pytest.raises(PruneError, match=rf"row \(1, 0\): features hold {value} at token 6, channel 2\."):
        fps(x, 3, metric=metric)
    if metric == "cosine":
        with pytest.raises(PruneError, match=r"token 6, channel 2"):
            fps(x, 3, compat="released")


def test_the_row_named_is_right_when_views_are_done_in_turn(monkeypatch):
    monkeypatch.setattr(distances, "MATRIX_BYTES", 4 * 8 * 8)
    x = randn(2, 3, 8, 5)
    x[1, 1, 2, 3] = torch.nan
    with pytest.raises(PruneError, match=r"row \(1, 1\): features hold nan at token 2, channel 3"):
        fps(x, 3)
