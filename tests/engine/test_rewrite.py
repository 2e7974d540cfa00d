"""Shortening a prompt: every gather against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune2drive.engine.rewrite import (
    Shortening,
    compress,
    cut_positions,
    cut_prompt,
    is_right_padded,
    new_lengths,
    remap_logits_to_keep,
    shorten,
)
from prune2drive.errors import PruneError
from prune2drive.tokens import PositionPolicy

KEEP, REINDEX = PositionPolicy.KEEP, PositionPolicy.REINDEX


@st.composite
def batches(draw):
    """Bool rows of equal length, with at least one True somewhere."""
    length = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=4))
    rows[0][draw(st.integers(0, length - 1))] = True
    return rows


def columns_of(row):
    return [column for column, live in enumerate(row) if live]


@settings(max_examples=80, deadline=None)
@given(rows=batches(), right=st.booleans(), spare=st.integers(0, 2))
def test_shorten_keeps_live_columns_in_order_on_the_unpadded_side(rows, right, spare):
    length = min(max(len(columns_of(row)) for row in rows) + spare, len(rows[0]))
    short = shorten(torch.tensor(rows), length, right)
    tokens = torch.arange(100, 100 + len(rows[0])).expand(len(rows), -1)
    gathered = short.gather(tokens, -1).tolist()
    for row, valid, got in zip(rows, short.valid.tolist(), gathered, strict=True):
        live = columns_of(row)
        pads = length - len(live)
        words = [100 + column for column in live]
        assert valid == (
            [True] * len(live) + [False] * pads if right else [False] * pads + [True] * len(live)
        )
        assert got == (words + [-1] * pads if right else [-1] * pads + words)


@pytest.mark.parametrize(
    ("mask", "right"),
    [
        ([[1, 1, 1]], False),
        ([[1, 1, 0]], True),
        ([[0, 1, 1]], False),
        ([[1, 1, 1], [1, 0, 0]], True),
        ([[1, 1, 1], [0, 0, 1]], False),
        ([[0, 1, 0]], False),
        ([[1, 1, 0], [0, 1, 1]], False),
    ],
)
def test_padding_side(mask, right):
    assert is_right_padded(torch.tensor(mask).bool()) is right


def renumbered(axes, valid):
    """Each row by itself: the numbers in use, on any axis, become consecutive from the smallest."""
    out = [[list(row) for row in axis] for axis in axes]
    for row, flags in enumerate(valid):
        used = sorted({axis[row][place] for axis in axes for place, flag in enumerate(flags) if flag})
        for axis in out:
            for place, flag in enumerate(flags):
                axis[row][place] = used[0] + used.index(axis[row][place]) if flag else None
    return out


@st.composite
def numbered(draw, axes):
    valid = draw(batches())
    row = st.lists(st.integers(0, 30), min_size=len(valid[0]), max_size=len(valid[0]))
    grid = st.lists(row, min_size=len(valid), max_size=len(valid))
    return draw(st.lists(grid, min_size=axes, max_size=axes)), valid


def assert_same_where_valid(got, want):
    for got_row, want_row in zip(got, want, strict=True):
        assert [g for g, w in zip(got_row, want_row, strict=True) if w is not None] == [
            w for w in want_row if w is not None
        ]


@settings(max_examples=100, deadline=None)
@given(case=numbered(3))
def test_compress_closes_gaps_over_all_axes_together(case):
    positions, valid = case
    got = compress(torch.tensor(positions), torch.tensor(valid)).tolist()
    for got_axis, want_axis in zip(got, renumbered(positions, valid), strict=True):
        assert_same_where_valid(got_axis, want_axis)


@settings(max_examples=50, deadline=None)
@given(case=numbered(1))
def test_compress_of_one_axis(case):
    positions, valid = case
    got = compress(torch.tensor(positions[0]), torch.tensor(valid)).tolist()
    assert_same_where_valid(got, renumbered(positions, valid)[0])


def test_compress_starts_where_the_row_started():
    """PaliGemma counts from 1, and left padding holds numbers that count for nothing."""
    positions, valid = torch.tensor([[0, 0, 1, 2, 7, 9]]), torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    assert compress(positions, valid)[0, 2:].tolist() == [1, 2, 3, 4]


SHORT = shorten(torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 1, 1]]).bool(), 3, False)


def test_cut_positions_with_one_axis():
    full = torch.tensor([[0, 3, 4, 5, 9], [0, 0, 1, 4, 6]])
    assert cut_positions(full, SHORT, KEEP).tolist() == [[3, 5, 9], [0, 4, 6]]
    assert cut_positions(full, SHORT, REINDEX).tolist() == [[3, 4, 5], [0, 4, 5]]


def test_cut_positions_with_three_axes_counts_the_text_row_anew():
    time = torch.tensor([[0, 3, 3, 3, 9], [0, 0, 1, 4, 6]])
    height = time + torch.tensor([0, 2, 0, 1, 0])
    full = torch.stack([torch.arange(5).expand(2, 5), time, height, time])
    keep = cut_positions(full, SHORT, KEEP).tolist()
    text = [[0, 1, 2], [0, 0, 1]]
    assert keep == [text, [[3, 3, 9], [0, 4, 6]], [[5, 4, 9], [0, 5, 6]], [[3, 3, 9], [0, 4, 6]]]
    # In use in row 0: 3, 4, 5, 9; in row 1: 4, 5, 6.
    reindex = cut_positions(full, SHORT, REINDEX).tolist()
    assert reindex == [text, [[3, 3, 6], [0, 4, 6]], [[5, 4, 6], [0, 5, 6]], [[3, 3, 6], [0, 4, 6]]]


def test_cut_prompt_takes_along_what_runs_with_the_tokens():
    ids = torch.arange(10).reshape(2, 5)
    kwargs = {"input_ids": ids, "labels": ids + 50, "token_type_ids": ids + 1, "use_cache": True}
    out = cut_prompt(kwargs, SHORT, pad=99)
    assert out["input_ids"].tolist() == [[1, 3, 4], [99, 8, 9]]
    assert out["labels"].tolist() == [[51, 53, 54], [-100, 58, 59]]
    assert out["token_type_ids"].tolist() == [[2, 4, 5], [0, 9, 10]]
    assert out["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert out["attention_mask"].dtype == torch.long
    assert out["use_cache"] is True
    assert kwargs["input_ids"] is ids
    masked = cut_prompt({"input_ids": ids, "attention_mask": torch.ones(2, 5, dtype=torch.int32)}, SHORT, 0)
    assert masked["attention_mask"].dtype == torch.int32


def test_logits_to_keep_follow_their_columns():
    assert remap_logits_to_keep(torch.tensor([7, 2]), full([[0, 2, 5, 7]]), 8).tolist() == [3, 1]
    same = full([[0, 2, 5, 7], [1, 2, 6, 7]])
    assert remap_logits_to_keep(torch.tensor([2, 7]), same, 8).tolist() == [1, 3]


def full(columns):
    """A shortening without padding."""
    columns = torch.tensor(columns)
    return Shortening(columns, torch.ones_like(columns, dtype=torch.bool))


def test_a_dropped_column_in_padding_is_gone():
    padded = Shortening(torch.tensor([[1, 2, 5]]), torch.tensor([[False, True, True]]))
    with pytest.raises(PruneError, match="logits_to_keep"):
        remap_logits_to_keep(torch.tensor([1]), padded, 8)


@pytest.mark.parametrize(
    ("wanted", "columns"),
    [([2, 4], [[0, 2, 5, 7]]), ([2], [[0, 2, 5], [2, 3, 5]]), ([5], [[0, 5], [0, 6]])],
)
def test_logits_to_keep_that_are_gone_or_apart(wanted, columns):
    with pytest.raises(PruneError, match=r"logits_to_keep=.*ask for the last ones with an integer"):
        remap_logits_to_keep(torch.tensor(wanted), full(columns), 8)


def test_new_lengths():
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    visual = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    assert new_lengths(mask, visual, [2, 0]) == [4, 4]
