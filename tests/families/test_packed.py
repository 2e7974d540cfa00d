"""Packed attention against one call per piece, and in a tower against the tower's own way."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from families_table import BY_NAME, picture
from prune2drive.families import packed as packed_module
from prune2drive.families.packed import packed, packed_attention, pieces_by_length


def one_by_one(query, key, value, edges, scaling):
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, a:b].double(), key[:, :, a:b].double(), value[:, :, a:b].double(), scale=scaling
        )
        for a, b in pairwise(edges)
        if b > a
    ]
    return torch.cat(parts, 2).transpose(1, 2)


@pytest.mark.parametrize(
    "edges",
    [[0, 4, 8, 12], [0, 4, 6, 10, 12, 16], [0, 1, 2, 9], [0, 7], [0, 3, 3, 6]],
    ids=["equal", "two lengths", "three lengths", "one piece", "an empty piece"],
)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_every_piece_sees_itself_alone(edges, scaling):
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 3, edges[-1], 8, generator=generator) for _ in range(3))
    out, weights = packed_attention(
        torch.nn.Module(), query, key, value, None, scaling, cu_seq_lens_q=torch.tensor(edges)
    )
    assert weights is None
    assert out.shape == (1, edges[-1], 3, 8)
    expected = one_by_one(query, key, value, edges, scaling)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_without_edges_all_see_all():
    query = torch.randn(1, 2, 5, 4)
    out, _ = packed_attention(torch.nn.Module(), query, query, query, None)
    expected = one_by_one(query, query, query, [0, 5], None)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_pieces_are_grouped_by_length():
    assert pieces_by_length([0, 4, 6, 10, 10, 12]) == {4: [0, 6], 2: [4, 10]}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_tower_gives_the_same_features_with_fewer_calls(name, monkeypatch):
    case = BY_NAME[name]
    model, pictures = case.model("sdpa"), [picture(0, 0, 3)] * 3
    inputs = case.encode([case.prompt(len(pictures))], [pictures])
    calls = []
    own = F.scaled_dot_product_attention
    counting = lambda *args, **kwargs: calls.append(args[0].shape) or own(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    encode = lambda: model.model.get_image_features(  # noqa: E731
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    )
    with torch.no_grad():
        expected, before = encode(), len(calls)
        calls.clear()
        with packed(model.model.visual.config):
            out = encode()
    assert 0 < len(calls) < before
    for got, want in zip(out.pooler_output, expected.pooler_output, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert model.model.visual.config._attn_implementation == "sdpa"


def test_other_kernels_are_left_alone():
    model = BY_NAME["qwen2_5_vl"].model("eager")
    config = model.model.visual.config
    with packed(config):
        assert config._attn_implementation == "eager"
    config._attn_implementation = "sdpa"

    def fail():
        with packed(config):
            assert config._attn_implementation == packed_module.NAME
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert config._attn_implementation == "sdpa"
