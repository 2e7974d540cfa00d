"""Batches of visual tokens made by hand, with signals, for tests of methods inside the language model."""

import torch

from prune2drive.tokens import Signals, View, VisualTokens


def view(n, name="a"):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


def padded(rows):
    width = max(len(row) for row in rows)
    out = torch.zeros(len(rows), width, *rows[0].shape[1:], dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def batch(features, samples=None, text=None, norm=None, **per_token):
    """Rows of different length, padded with zeros as the engine does.

    ``text`` the instruction of each sample; ``text_keys`` and ``per_token`` lists in the same way.
    """
    samples = list(range(len(features))) if samples is None else samples
    given = {name: padded(rows) for name, rows in per_token.items()}
    if text is not None:
        given["text"] = padded(text)
        lengths = torch.tensor([len(row) for row in text])
        given["text_mask"] = torch.arange(given["text"].shape[1]) < lengths[:, None]
    views = [view(len(row), f"view{place}") for place, row in enumerate(features)]
    return VisualTokens(padded(features), views, samples, Signals(**given, norm=norm))


def picks(selection, row=0):
    kept = selection.indices[row]
    k = selection.counts[row]
    assert selection.indices.dtype == torch.int64
    assert (kept[k:] == -1).all()
    assert len(set(kept[:k].tolist())) == k
    return kept[:k].tolist()
