"""CDPruner against determinants and loops in float64."""

import dataclasses
import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import distances
from prune2drive.selectors.cdpruner import CDPruner
from prune2drive.tokens import Signal, Signals, View, VisualTokens

DIM = 48


def view(n, name):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


def batch(rows, texts, samples=None):
    """Padded rows and texts; padding of the text is not zero, as nobody promises that."""
    width, words = max(map(len, rows)), max(map(len, texts))
    padded = torch.zeros(len(rows), width, DIM, dtype=rows[0].dtype)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    text = torch.full((len(texts), words, DIM), 7.0, dtype=rows[0].dtype)
    mask = torch.zeros(len(texts), words, dtype=torch.bool)
    for at, row in enumerate(texts):
        text[at, : len(row)] = row
        mask[at, : len(row)] = True
    views = [view(len(row), f"V{at}") for at, row in enumerate(rows)]
    return VisualTokens(padded, views, samples or [0] * len(rows), Signals(text=text, text_mask=mask))


def random(lengths, seed, dtype=torch.float32, shift=0.5):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, DIM, generator=generator) + shift).to(dtype) for n in lengths]


def kept(selection, row):
    return selection.indices[row, : selection.counts[row]].tolist()


def cos(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def published(x, text, k, negate=True, theta=None):
    x, text = x.double().tolist(), text.double().tolist()
    relevance = [sum(cos(v, t) for t in text) / len(text) for v in x]
    if negate:
        relevance = [-r for r in relevance]
    low, high = min(relevance), max(relevance)
    relevance = [(r - low + 1e-6) / (high - low) for r in relevance]
    if theta is not None:
        relevance = [math.exp(theta / (2 * (1 - theta)) * r) for r in relevance]
    kernel = torch.tensor(
        [
            [ri * cos(a, b) * rj for rj, b in zip(relevance, x, strict=True)]
            for ri, a in zip(relevance, x, strict=True)
        ],
        dtype=torch.float64,
    )
    # Exactly, so that equal relevance ties and the first wins.
    kernel.diagonal().copy_(torch.tensor(relevance, dtype=torch.float64) ** 2)
    chosen = []
    for _ in range(k):
        value = {}
        for i in range(len(x)):
            if i not in chosen:
                block = torch.tensor([*chosen, i])
                value[i] = torch.linalg.slogdet(kernel[block][:, block]).logabsdet.item()
        chosen.append(max(value, key=value.get))
    return chosen


@pytest.mark.parametrize("negate", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_picks_are_the_published_ones(seed, negate):
    (x,), (text,) = random([14 + 6 * seed], seed), random([5], seed + 90, shift=0.2)
    for k in (1, 8, len(x)):
        got = CDPruner(negate=negate).select(batch([x], [text]), [k])
        assert kept(got, 0) == published(x, text, k, negate)


@pytest.mark.parametrize("theta", [0.0, 0.4, 0.9])
def test_theta_gives_the_instruction_its_say(theta):
    (x,), (text,) = random([20], 2), random([5], 92, shift=0.2)
    got = kept(CDPruner(theta=theta).select(batch([x], [text]), [9]), 0)
    assert got == published(x, text, 9, theta=theta)


def test_theta_at_its_end_is_relevance_alone():
    (x,), (text,) = random([20], 5), random([4], 95)
    got = kept(CDPruner(theta=0.98, negate=False).select(batch([x], [text]), [20]), 0)
    words = text / text.norm(dim=-1, keepdim=True)
    relevance = (x / x.norm(dim=-1, keepdim=True) @ words.T).mean(-1)
    assert sorted(got) == list(range(20))
    assert got[0] == int(relevance.argmax())


def test_unequal_rows_equal_single_rows_and_texts_belong_to_samples():
    rows, texts = random([20, 3, 0, 11], 1), random([6, 2], 91)
    samples, counts = [0, 0, 0, 1], [5, 3, 0, 11]
    selection = CDPruner().select(batch(rows, texts, samples), counts)
    assert selection.indices.shape == (4, 11)
    assert selection.indices.dtype == torch.int64
    for at, k in enumerate(counts):
        assert (selection.indices[at, k:] == -1).all()
        if k:
            alone = CDPruner().select(batch([rows[at]], [texts[samples[at]]]), [k])
            assert kept(selection, at) == kept(alone, 0) == published(rows[at], texts[samples[at]], k)


def test_blocks_of_rows_change_nothing(monkeypatch):
    tokens = batch(random([20, 9, 15], 3), random([4], 93))
    want = CDPruner().select(tokens, [5, 9, 2]).indices
    monkeypatch.setattr(distances, "MATRIX_BYTES", 1)
    assert torch.equal(CDPruner().select(tokens, [5, 9, 2]).indices, want)


def test_more_picks_than_dimensions():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(40, DIM)
    x[:, :8] = torch.randn(40, 8, generator=generator)
    (text,) = random([3], 1)
    order = kept(CDPruner().select(batch([x], [text]), [40]), 0)
    assert sorted(order) == list(range(40))
    assert order[:8] == published(x, text, 8)


def test_ties_go_to_the_lowest_index():
    x = torch.eye(DIM)[:6]
    tokens = batch([x], [torch.ones(1, DIM)])
    assert kept(CDPruner().select(tokens, [6]), 0) == [0, 1, 2, 3, 4, 5]


def test_a_prompt_without_words_is_plain_diversity():
    (x,) = random([20], 4)
    tokens = batch([x], [torch.ones(2, DIM)])
    tokens = dataclasses.replace(
        tokens, signals=Signals(text=tokens.signals.text, text_mask=torch.zeros(1, 2, dtype=torch.bool))
    )
    got = kept(CDPruner().select(tokens, [7]), 0)
    assert got == published(x, torch.ones(2, DIM), 7, theta=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    (x,), (text,) = random([18], 6, dtype), random([4], 96, dtype)
    assert kept(CDPruner().select(batch([x], [text]), [8]), 0) == published(x, text, 8)


def test_fields_and_bad_input():
    assert CDPruner() == CDPruner(negate=True, theta=None, scope="view")
    assert CDPruner.name == "cdpruner"
    assert CDPruner.needs == {Signal.TEXT}
    for fields, message in [
        ({"negate": 1}, "negate 1 is not True or False"),
        ({"theta": 1.0}, r"theta 1.0 is not in \[0, 0.98\]; pass None"),
        ({"theta": float("nan")}, "theta nan"),
        ({"theta": True}, "theta True"),
        ({"scope": "image"}, "scope 'image' is unknown; use 'view' or 'sample'"),
    ]:
        with pytest.raises(PruneError, match=message):
            CDPruner(**fields)
    tokens = batch(random([5, 3], 0), random([2], 1))
    with pytest.raises(PruneError, match="row 1: asked for 4 of 3"):
        CDPruner().select(tokens, [1, 4])
    with pytest.raises(PruneError, match=r"signals.text is missing"):
        CDPruner().select(VisualTokens(tokens.features, tokens.views, tokens.samples), [1, 1])
