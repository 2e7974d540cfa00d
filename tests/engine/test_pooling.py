"""Rows of views become rows of samples and what was chosen goes back, against plain loops."""

import pytest
import torch

from prune2drive.engine.choose import select
from prune2drive.engine.pooling import ALL, pool, take_apart
from prune2drive.errors import PruneError
from prune2drive.selectors.base import Selector
from prune2drive.tokens import Selection, Signals, View, VisualTokens

# Length of each view and the sample it belongs to; samples that are not named have no view.
BATCHES = {
    "one view": ([3], [0]),
    "even": ([4, 4, 4, 4], [0, 0, 1, 1]),
    "ragged": ([3, 1, 5, 2], [0, 0, 0, 1]),
    "samples without views": ([3, 2, 4], [1, 1, 4]),
    "an emptied view": ([3, 0, 2, 0, 4], [0, 0, 0, 2, 2]),
    "an emptied sample": ([0, 0, 2, 1], [0, 0, 1, 1]),
    "one sample of many views": ([2, 3, 1, 0, 2, 2], [0] * 6),
}
batches = pytest.mark.parametrize("name", BATCHES)
SHAPES = {"saliency": (), "attention": (2, 3), "last_attention": (2,), "own_attention": (2, 3), "rope": (3,)}


def view(name, n, generator):
    boxes = torch.rand(n, 4, generator=generator)
    part, frame = torch.randint(0, 5, (2, n), generator=generator)
    return View(name, torch.randperm(n, generator=generator), boxes, part, frame)


def make(lengths, samples, seed=0):
    """A batch with every signal there is; rows beyond a view's end are zero."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)

    def draw(*shape):
        out = torch.randn(len(lengths), width, *shape, generator=generator)
        for number, n in enumerate(lengths):
            out[number, n:] = 0
        return out

    per_token = {name: draw(*SHAPES.get(name, (4,))) for name in Signals.PER_TOKEN}
    text = torch.randn(max(samples) + 1, 3, 6, generator=generator)
    signals = Signals(**per_token, text=text, text_mask=torch.ones(text.shape[:2]) > 0, memory={"a": 1})
    views = [view(f"CAM_{number}", n, generator) for number, n in enumerate(lengths)]
    return VisualTokens(draw(6), views, samples, signals)


def groups(samples):
    return [[v for v, s in enumerate(samples) if s == sample] for sample in sorted(set(samples))]


def laid_out(tensor, lengths, group, width):
    """The rows of some views one after the other, by hand, zeros behind."""
    rows = [tensor[v, i] for v in group for i in range(lengths[v])]
    return torch.stack(rows + [torch.zeros_like(tensor[0, 0])] * (width - len(rows)))


@batches
def test_a_row_holds_all_views_of_a_sample_in_order(name):
    lengths, samples = BATCHES[name]
    tokens = make(lengths, samples)
    asked = [max(n - 1, 0) for n in lengths]
    pooled, totals, where = pool(tokens, asked)
    wanted = groups(samples)
    width = max(sum(lengths[v] for v in group) for group in wanted)
    assert pooled.features.shape == (len(wanted), width, 6)
    assert list(pooled.samples) == sorted(set(samples))
    assert pooled.lengths == [sum(lengths[v] for v in group) for group in wanted]
    assert totals == [sum(asked[v] for v in group) for group in wanted]
    assert where.views == len(lengths)
    for row, group in enumerate(wanted):
        assert pooled.features[row].equal(laid_out(tokens.features, lengths, group, width))
        for field in Signals.PER_TOKEN:
            given, got = getattr(tokens.signals, field), getattr(pooled.signals, field)
            assert got[row].equal(laid_out(given, lengths, group, width)), field
        joined = pooled.views[row]
        assert joined.name == ALL
        for field in ("index", "boxes", "part", "frame"):
            assert getattr(joined, field).tolist() == [
                value for v in group for value in getattr(tokens.views[v], field).tolist()
            ]


def test_signals_of_samples_pass_and_absent_ones_stay_absent():
    tokens = make(*BATCHES["samples without views"])
    pooled, _, _ = pool(tokens, [1, 1, 1])
    # Indexed by the sample's number in the call, which pooled rows still tell.
    assert pooled.signals.text is tokens.signals.text
    assert pooled.signals.text_mask is tokens.signals.text_mask
    assert pooled.signals.memory is tokens.signals.memory
    bare = VisualTokens(tokens.features, tokens.views, tokens.samples)
    signals = pool(bare, [1, 1, 1])[0].signals
    assert all(getattr(signals, name) is None for name in Signals.PER_TOKEN)


def chosen_of(totals, lengths, seed, sizes=True):
    """Random picks of pooled rows, with features and sizes that tell the picks apart."""
    generator = torch.Generator().manual_seed(seed)
    width = max(totals)
    indices = torch.full((len(totals), width), -1)
    for row, (k, n) in enumerate(zip(totals, lengths, strict=True)):
        indices[row, :k] = torch.randperm(n, generator=generator)[:k]
    features = torch.randn(len(totals), width, 2, generator=generator)
    weights = 1 + torch.rand(len(totals), width, generator=generator)
    return Selection(indices, totals, features, weights) if sizes else Selection(indices, totals)


@batches
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("merged", [True, False])
def test_picks_go_back_to_their_views_with_what_belongs_to_them(name, share, merged):
    lengths, samples = BATCHES[name]
    tokens = make(lengths, samples)
    pooled, _, where = pool(tokens, lengths)
    totals = [min(n, max(int(share * n), 1)) for n in pooled.lengths]
    chosen = chosen_of(totals, pooled.lengths, 7, merged)
    got = take_apart(chosen, where)

    wanted = {v: [] for v in range(len(lengths))}
    for row, group in enumerate(groups(samples)):
        places = [(v, i) for v in group for i in range(lengths[v])]
        for slot in range(totals[row]):
            v, i = places[int(chosen.indices[row, slot])]
            wanted[v].append((i, row, slot))
    assert list(got.counts) == [len(wanted[v]) for v in wanted]
    assert got.indices.shape == (len(lengths), max(got.counts))
    assert got.indices.dtype == torch.int64
    assert (got.features is not None) == (got.sizes is not None) == merged
    for v, picks in wanted.items():
        rest = got.indices.shape[1] - len(picks)
        # In the order in which they were picked.
        assert got.indices[v].tolist() == [i for i, _, _ in picks] + [-1] * rest
        if merged:
            for slot, (_, row, at) in enumerate(picks):
                assert got.features[v, slot].equal(chosen.features[row, at])
                assert got.sizes[v, slot] == chosen.sizes[row, at]
            assert (got.sizes[v, len(picks) :] == 1).all()


@batches
def test_keeping_all_is_the_way_back(name):
    lengths, samples = BATCHES[name]
    tokens = make(lengths, samples)
    pooled, totals, where = pool(tokens, lengths)
    indices = torch.full((len(totals), max(totals)), -1)
    for row, n in enumerate(totals):
        indices[row, :n] = torch.arange(n)
    back = take_apart(Selection(indices, totals, pooled.features), where)
    assert list(back.counts) == lengths
    assert back.features.equal(tokens.features)


class Pooled(Selector):
    """Keeps the tokens of largest first channel of all views together."""

    name = "pooled"
    scope = "sample"
    extra = 0

    def select(self, tokens, counts):
        self.seen, self.asked = tokens, list(counts)
        order = tokens.features[..., 0].masked_fill(
            torch.zeros(tokens.features.shape[:2], dtype=torch.bool) if tokens.mask is None else ~tokens.mask,
            -torch.inf,
        )
        order = order.argsort(-1, descending=True)
        picks = order[:, : max(counts) + self.extra].clone()
        for row, k in enumerate(counts):
            picks[row, k:] = -1
        return Selection(picks, [k + self.extra for k in counts])


@batches
def test_a_method_of_scope_sample_ranks_a_samples_tokens_together(name):
    lengths, samples = BATCHES[name]
    tokens = make(lengths, samples, seed=3)
    asked = [(n + 1) // 2 for n in lengths]
    method = Pooled()
    got = select(method, tokens, asked)
    assert [len(v) for v in method.seen.views] == [sum(lengths[v] for v in g) for g in groups(samples)]
    for group in groups(samples):
        total = sum(asked[v] for v in group)
        scored = [(float(tokens.features[v, i, 0]), v, i) for v in group for i in range(lengths[v])]
        best = {(v, i) for _, v, i in sorted(scored, reverse=True)[:total]}
        found = {(v, int(i)) for v in group for i in got.indices[v, : got.counts[v]]}
        assert found == best


def test_a_pooled_method_that_returns_another_total_is_refused():
    method = Pooled()
    method.extra = 1
    with pytest.raises(PruneError, match=r"Pooled returned .* counts \[4\].*asked for \[3\]"):
        select(method, make([3, 2], [0, 0]), [2, 1])
