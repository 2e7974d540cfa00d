"""Visual tokens with random attention signals, built by hand as the engine would."""

import torch

from prune2drive.tokens import Signals, View, VisualTokens

PER_TOKEN = ("features", "input", "attention", "own_attention", "last_attention", "rope")


def view(n, name="*"):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


def row(seed, n, texts, heads=6, width=10):
    """Random tensors of one row of ``n`` visual tokens, whose sample has ``texts`` instruction tokens."""
    g = torch.Generator().manual_seed(seed)

    def probabilities(*shape):
        return torch.rand(*shape, generator=g) ** 3 / n

    return {
        "features": torch.randn(n, width, generator=g),
        "input": torch.randn(n, width, generator=g),
        "attention": probabilities(n, heads, texts),
        "own_attention": probabilities(n, heads, texts),
        "last_attention": probabilities(n, heads),
        # As logits of rotary positions: most positive, some not.
        "rope": 4 + 3 * torch.randn(n, texts, generator=g),
    }


def text(seed, texts, width=10):
    """Instruction states entering layer 0."""
    return torch.randn(texts, width, generator=torch.Generator().manual_seed(1000 + seed))


def batch(rows, texts, samples=None, dtype=torch.float32, extra=0, extra_text=0, memory=None):
    """Pad rows to one batch; ``extra`` widens every row and ``extra_text`` every text beyond that."""
    samples = list(range(len(rows))) if samples is None else samples
    n = max(len(r["features"]) for r in rows) + extra
    t = max(len(x) for x in texts) + extra_text

    def padded(name):
        first = rows[0][name]
        shape = [len(rows), n, *first.shape[1:]]
        over_text = name in ("attention", "own_attention", "rope")
        if over_text:
            shape[-1] = t
        out = torch.zeros(shape, dtype=dtype if name in ("features", "input") else torch.float32)
        for place, r in zip(out, rows, strict=True):
            if over_text:
                place[: len(r[name]), ..., : r[name].shape[-1]] = r[name]
            else:
                place[: len(r[name])] = r[name]
        return out

    tensors = {name: padded(name) for name in PER_TOKEN}
    words = torch.zeros(len(texts), t, texts[0].shape[1], dtype=dtype)
    mask = torch.zeros(len(texts), t, dtype=torch.bool)
    for place, x in enumerate(texts):
        words[place, : len(x)], mask[place, : len(x)] = x, True
    signals = Signals(
        **{name: tensors[name] for name in PER_TOKEN[1:]},
        text=words,
        text_input=words,
        text_mask=mask,
        memory={} if memory is None else memory,
    )
    return VisualTokens(tensors["features"], [view(len(r["features"])) for r in rows], samples, signals)


def unequal(seed=0):
    """Three samples of different numbers of visual and text tokens."""
    sizes = ((24, 7), (13, 5), (31, 9))
    rows = [row(seed + i, n, t) for i, (n, t) in enumerate(sizes)]
    return rows, [text(seed + i, t) for i, (_, t) in enumerate(sizes)]


def kept(selection, v=0):
    count = selection.counts[v]
    assert (selection.indices[v, count:] == -1).all()
    return selection.indices[v, :count].tolist()


def best(scores, k):
    """The k highest, ties to the lowest index: the rule in plain Python."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def check_contract(method):
    """What every method must do whatever its rule."""
    rows, texts = unequal()
    lengths = [len(r["features"]) for r in rows]
    for counts in ([1, 1, 1], [9, 4, 20], [5, 0, 31], lengths):
        together = method.select(batch(rows, texts), counts)
        wide = method.select(batch(rows, texts, extra=5, extra_text=3), counts)
        again = method.select(batch(rows, texts), counts)
        assert together.indices.dtype == torch.int64
        assert together.indices.shape == (3, max(counts))
        assert list(together.counts) == counts
        assert torch.equal(again.indices, together.indices)
        assert torch.equal(wide.indices, together.indices)
        for v, (count, n) in enumerate(zip(counts, lengths, strict=True)):
            mine = kept(together, v)
            assert len(set(mine)) == count and all(0 <= i < n for i in mine)
            if count:
                alone = method.select(batch([rows[v]], [texts[v]]), [count])
                assert kept(alone) == mine
                if together.features is not None:
                    assert torch.allclose(alone.features[0], together.features[v, :count], atol=1e-5)
        if together.features is not None:
            assert together.features.shape == (3, max(counts), 10)
            assert torch.allclose(wide.features, together.features, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        half = method.select(batch(rows, texts, dtype=dtype), [9, 4, 20])
        assert [len(set(kept(half, v))) for v in range(3)] == [9, 4, 20]
        assert half.features is None or half.features.dtype == dtype
