"""Batches of views with random features and signals, built by hand."""

import dataclasses

import torch

from prune2drive.tokens import Signals, View, VisualTokens


def view(name, n):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


def row(n, seed, dim=8, dtype=torch.float32):
    """Features and signals of one view: a dict of tensors whose first dimension is its tokens."""
    generator = torch.Generator().manual_seed(1000 * seed + n)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "features": draw(n, dim).to(dtype),
        "encoder": draw(n, dim + 3).to(dtype),
        "vision_keys": draw(n, dim + 2).to(dtype),
        "saliency": torch.rand(n, generator=generator),
    }


def stack(tensors):
    width = max(len(t) for t in tensors)
    out = tensors[0].new_zeros(len(tensors), width, *tensors[0].shape[1:])
    for number, tensor in enumerate(tensors):
        out[number, : len(tensor)] = tensor
    return out


def batch(rows, samples=None, text=None, text_mask=None):
    """Rows padded with zeros to one batch, as the engine does."""
    names = [f"CAM_{number}" for number in range(len(rows))]
    fields = {name: stack([r[name] for r in rows]) for name in rows[0]}
    features = fields.pop("features")
    if text is not None and text_mask is None:
        text_mask = torch.ones(text.shape[:2], dtype=torch.bool)
    views = [view(name, len(r["features"])) for name, r in zip(names, rows, strict=True)]
    signals = Signals(**fields, text=text, text_mask=text_mask)
    return VisualTokens(features, views, samples or [0] * len(rows), signals)


def wider(tokens, extra):
    """The same batch with more padding."""

    def pad(tensor):
        fill = tensor.new_zeros(len(tensor), extra, *tensor.shape[2:])
        return torch.cat([tensor, fill], 1)

    found = {n: getattr(tokens.signals, n) for n in ("encoder", "vision_keys", "saliency")}
    signals = dataclasses.replace(tokens.signals, **{n: pad(t) for n, t in found.items() if t is not None})
    return dataclasses.replace(tokens, features=pad(tokens.features), signals=signals)


def kept(selection, number):
    return selection.indices[number, : selection.counts[number]].tolist()


def merged(selection, number):
    """Token -> its new feature."""
    return dict(zip(kept(selection, number), selection.features[number], strict=False))
