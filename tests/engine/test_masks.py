"""Attention masks of shortened layers against brute force: who sees whom in the full sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune2drive.engine.masks import decode_mask, prefill_mask
from prune2drive.errors import PruneError

LOW = torch.finfo(torch.float32).min
COLUMNS = torch.tensor([[0, 2, 3, 6], [1, 4, 5, 6]])
VALID = torch.tensor([[True, True, True, True], [False, True, True, True]])
ALL = torch.ones_like(VALID)


def odd_mask(rows=2, length=7):
    """A mask that no rule explains, so that only a gather can reproduce it."""
    return torch.rand(rows, 1, length, length, generator=torch.Generator().manual_seed(1)) > 0.4


def brute(mask, columns, valid):
    """Entry by entry: what the full mask says; padding is hidden, and itself sees everything."""
    rows, n = columns.shape
    out = torch.zeros(rows, 1, n, n, dtype=torch.bool)
    for r in range(rows):
        for q in range(n):
            for k in range(n):
                seen = bool(mask[r % len(mask), 0, columns[r, q], columns[r, k]]) and bool(valid[r, k])
                out[r, 0, q, k] = seen or not valid[r, q]
    return out


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_bool_mask_is_gathered(rows, ragged):
    mask = odd_mask(rows)
    got = prefill_mask(mask, COLUMNS, VALID, ragged, "sdpa")
    assert got.equal(brute(mask, COLUMNS, VALID))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float_mask_is_gathered_with_its_values(dtype):
    allowed = odd_mask()
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    mask[0, 0, 3, 2] = -1.5  # an additive bias stays what it is
    got = prefill_mask(mask, COLUMNS, VALID, True, "sdpa")
    assert got.dtype == dtype
    assert got[0, 0, 2, 1] == -1.5
    allowed[0, 0, 3, 2] = True
    assert (got > -2).equal(brute(allowed, COLUMNS, VALID))
    assert (got[1, 0, 0] == 0).all()
    assert got[1, 0, 2, 0] == torch.finfo(dtype).min


def test_without_a_mask_attention_stays_causal():
    assert prefill_mask(None, COLUMNS, ALL, False, "sdpa") is None
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    got = prefill_mask(None, COLUMNS, VALID, True, "sdpa")
    assert got.equal(brute(causal, COLUMNS, VALID))


def test_a_flash_mask_becomes_the_valid_tokens():
    mask = torch.ones(2, 7, dtype=torch.int64)
    got = prefill_mask(mask, COLUMNS, VALID, True, "sdpa")
    assert got.dtype == torch.int64
    assert got.equal(VALID.long())


def test_masks_that_cannot_be_cut():
    for call in (
        lambda: prefill_mask(object(), COLUMNS, VALID, True, "sdpa"),
        lambda: step(object(), COLUMNS, VALID, prompt=7, cached=4, total=5, query=1),
    ):
        with pytest.raises(PruneError, match="attn_implementation='sdpa'"):
            call()


# --- decode


def step(mask, columns, valid, ragged=False, window=None, float_dtype=None, **lengths):
    attention = "eager" if float_dtype else "sdpa"
    return decode_mask(
        mask, columns, valid, ragged, window=window, attention=attention, dtype=torch.float32, **lengths
    )


def seen_by(columns, valid, prompt, cached, total, query, window):
    """``[row][query][key]`` over the keys a cache still holds: (places in the full sequence) by hand."""
    out = []
    for kept, real in zip(columns.tolist(), valid.tolist(), strict=True):
        entries = list(zip(kept, real, strict=True))
        entries += [(prompt + n, True) for n in range(total - len(kept))]
        keys = entries[len(entries) - cached - query :]
        rows = []
        for at, _ in entries[len(entries) - query :]:
            rows.append([real and key <= at and (window is None or at - key < window) for key, real in keys])
        out.append(rows)
    return out


@st.composite
def steps(draw):
    """A decode step: what is kept of a prompt, tokens made so far, tokens asked for, entries forgotten."""
    prompt = draw(st.integers(2, 9))
    n = draw(st.integers(1, prompt))
    rows = draw(st.integers(1, 3))
    picks = st.lists(st.integers(0, prompt - 1), min_size=n, max_size=n, unique=True).map(sorted)
    columns = torch.tensor([draw(picks) for _ in range(rows)])
    valid = torch.ones(rows, n, dtype=torch.bool)
    if ragged := draw(st.booleans()):
        valid[-1, : draw(st.integers(0, n - 1))] = False
    query, before = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    forgotten = draw(st.integers(0, n + before - 1))
    lengths = {
        "prompt": prompt,
        "cached": n + before - forgotten,
        "total": n + before + query,
        "query": query,
    }
    return columns, valid, ragged, lengths, draw(st.none() | st.integers(1, 10))


@settings(max_examples=200, deadline=None)
@given(case=steps(), masked=st.booleans(), floats=st.booleans())
def test_decode_against_brute_force(case, masked, floats):
    columns, valid, ragged, lengths, window = case
    want = torch.tensor(seen_by(columns, valid, window=window, **lengths))[:, None]
    given_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if masked else None
    got = step(given_mask, columns, valid, ragged, window, torch.float32 if floats else None, **lengths)
    if got is None:
        assert not masked
        assert want.all()
        return
    if floats:
        assert got.dtype == torch.float32
        assert set(got.unique().tolist()) <= {0.0, LOW}
        got = got == 0
    assert got.equal(want)


def test_a_plain_step_needs_no_mask():
    lengths = {"prompt": 7, "cached": 5, "total": 6, "query": 1}
    assert step(None, COLUMNS, ALL, **lengths) is None
    assert step(None, COLUMNS, ALL, window=9, **lengths) is None  # 7 + 2 tokens: all within the window
    assert step(None, COLUMNS, ALL, window=8, **lengths) is not None
    assert step(None, COLUMNS, ALL, **{**lengths, "total": 7, "query": 2}) is not None
    assert step(None, COLUMNS, VALID, ragged=True, **lengths) is not None
    assert step(torch.ones(2, 1, 1, 9).bool(), COLUMNS, ALL, **lengths) is not None


def test_a_window_counts_places_of_the_full_sequence():
    """Column 3 is four places before the second new token (8), though only two entries lie in between."""
    got = step(None, COLUMNS[:1], ALL[:1], window=5, prompt=7, cached=5, total=6, query=1)
    assert got[0, 0, 0].tolist() == [False, False, False, True, True, True]
    got = step(None, COLUMNS[:1], ALL[:1], window=6, prompt=7, cached=5, total=6, query=1)
    assert got[0, 0, 0].tolist() == [False, False, True, True, True, True]


def test_a_sliding_cache_that_forgot_its_oldest_entries():
    got = step(None, COLUMNS[:1], ALL[:1], window=6, prompt=7, cached=3, total=6, query=1)
    assert got[0, 0, 0].tolist() == [True, True, True, True]


@settings(max_examples=50, deadline=None)
@given(case=steps())
def test_a_flash_step_holds_the_kept_prompt_and_the_generated_columns(case):
    columns, valid, ragged, lengths, _ = case
    rows, n = columns.shape
    generated = lengths["total"] - n
    mask = torch.ones(rows, lengths["prompt"] + generated, dtype=torch.long)
    mask[:, : lengths["prompt"]] = 7  # the full prompt's part is not read
    mask[0, -1] = 0
    got = step(mask, columns, valid, ragged, **lengths)
    for row in range(rows):
        entries = [int(flag) for flag in valid[row]] + mask[row, lengths["prompt"] :].tolist()
        assert got[row].tolist() == entries[-(lengths["cached"] + lengths["query"]) :]


def test_flash_attention_is_given_padding_only():
    assert prefill_mask(None, COLUMNS, ALL, False, "flash_attention_2") is None
    assert prefill_mask(None, COLUMNS, VALID, True, "flash_attention_2").equal(VALID)
    lengths = {"prompt": 7, "cached": 5, "total": 7, "query": 2}
    flash = {"attention": "flash_attention_2", "dtype": torch.bfloat16, "window": None}
    assert decode_mask(None, COLUMNS, ALL, False, **lengths, **flash) is None
    got = decode_mask(None, COLUMNS, VALID, True, **lengths, **flash)
    assert got.equal(torch.cat([VALID, torch.ones(2, 3, dtype=torch.bool)], 1))
