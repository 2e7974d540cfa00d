"""The quick attention against the fused kernel in float32, outputs and gradients, on its three patterns."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from prune2drive.world import attention
from prune2drive.world.attention import QUICK, attend, register

BLOCK = attention._BLOCK
TOWER, DECODER = SimpleNamespace(is_causal=False), SimpleNamespace(is_causal=True)


def tensors(heads, groups, queries, keys, count=2, width=16):
    """Query, key, value and a gradient of the output; rounded to bfloat16, so only the products differ."""
    gen = torch.Generator().manual_seed(heads * 1000 + queries)
    shapes = (heads, queries), (groups, keys), (groups, keys), (heads, queries)
    drawn = [1.5 * torch.randn(count, h, n, width, generator=gen) for h, n in shapes]
    return [x.bfloat16().float() for x in drawn]


def error(found, expected):
    return float((found.float() - expected).norm() / expected.norm().clamp(min=1e-3))


def agree(module, heads, groups, queries, keys, mask, **more):
    """Compare with the fused kernel under ``mask`` (None: everything is seen)."""
    q, k, v, gradient = tensors(heads, groups, queries, keys)
    results = []
    for quick in (True, False):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        if quick:
            out, weights = attend(module, *inputs, None, dropout=0.0, scaling=None, **more)
            assert weights is None and out.dtype == torch.bfloat16 and out.is_contiguous()
            out = out.transpose(1, 2)
        else:
            out = scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
        out.backward(gradient.to(out.dtype))
        results.append([out.detach(), *(x.grad for x in inputs)])
    assert results[0][0].shape == q.shape
    for name, found, expected in zip(("out", "query", "key", "value"), *results, strict=True):
        assert torch.isfinite(found).all(), name
        assert error(found, expected) < 0.015, name


def test_pictures_see_themselves():
    agree(TOWER, 4, 4, 144, 144, None)
    agree(SimpleNamespace(), 2, 2, 7, 7, None)  # a module that does not say is not causal


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 57])
def test_prompts_are_causal(groups, length):
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    agree(DECODER, 4, groups, length, length, mask)


def questions_mask(before, questions, each):
    """Each token sees the prompt, and its own question up to itself."""
    mask = torch.zeros(questions * each, before + questions * each, dtype=torch.bool)
    mask[:, :before] = True
    for n in range(questions * each):
        mask[n, before + n - n % each : before + n + 1] = True
    return mask


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("before", "questions", "each"), [(BLOCK + 9, 5, 11), (3, 1, 4), (40, 7, 1)])
def test_questions_see_the_prompt_and_themselves(groups, before, questions, each):
    mask = questions_mask(before, questions, each)
    agree(DECODER, 4, groups, questions * each, before + questions * each, mask, question_length=each)


def test_nothing_leaks_between_questions():
    """Not within a tolerance: what a question does not see changes no bit of its output."""
    before, questions, each = 20, 4, 6
    q, k, v, _ = tensors(4, 2, questions * each, before + questions * each)
    plain = attend(DECODER, q, k, v, None, question_length=each)[0]
    start = before + 2 * each
    k[:, :, start + 3 : start + each] += 5  # the last tokens of the third question
    v[:, :, start + 3 : start + each] -= 5
    changed = attend(DECODER, q, k, v, None, question_length=each)[0]
    same = (plain == changed).all(0).all(-1).all(-1)
    assert same.tolist() == [not 2 * each + 3 <= n < 3 * each for n in range(questions * each)]


def test_no_token_of_a_prompt_sees_those_after_it():
    length = BLOCK + 30
    q, k, v, _ = tensors(4, 2, length, length)
    plain = attend(DECODER, q, k, v, None)[0]
    for at in (length - 5, BLOCK):
        k[:, :, at:] += 5
        v[:, :, at:] -= 5
        changed = attend(DECODER, q, k, v, None)[0]
        assert torch.equal(plain[:, :at], changed[:, :at])
        assert not torch.isclose(plain[:, at:], changed[:, at:]).all(-1).any()


def test_it_is_known_to_transformers():
    assert register() == QUICK == register()
    assert AttentionInterface()[QUICK] is attend
