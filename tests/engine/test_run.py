"""Where tokens are on their way through the stack, counted by plain loops over columns and places."""

import itertools
import math
import random

import pytest
import torch

from prune2drive.engine.choose import check_shape
from prune2drive.engine.layers import fitting_counts, write_rows
from prune2drive.engine.run import Run, add_sizes, instruction, mark_visual, places
from prune2drive.errors import PruneError
from prune2drive.families.base import Prompt
from prune2drive.selectors.base import Selector
from prune2drive.tokens import Selection, View, VisualTokens


def view(name, n):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


# Two views in sample 0, none in sample 1, one in sample 2: the columns of their tokens in prompts of ten.
VIEWS = [[view("A", 3), view("B", 2)], [], [view("A", 3)]]
ROWS = [0, 0, 2]
COLUMNS = torch.tensor([[1, 2, 3], [5, 6, -1], [0, 4, 9]])
LENGTH = 10


def run_of(repeat=1, view_columns=COLUMNS):
    rows = 3 * repeat
    columns = torch.arange(LENGTH).expand(rows, LENGTH)
    valid = torch.ones(rows, LENGTH, dtype=torch.bool)
    return Run(LENGTH, columns, valid, False, view_columns, view_columns, [3, 2, 3])


# -- counts -------------------------------------------------------------------------------------------------


def test_counts_that_fit_stay():
    assert fitting_counts([3, 2, 5], [3, 4, 5], [0, 0, 1]) == [3, 2, 5]
    assert fitting_counts([], [], []) == []


def test_counts_move_to_views_of_the_same_sample_that_have_room():
    assert fitting_counts([4, 2, 2], [1, 9, 9], [0, 0, 0]) == [1, 4, 3]
    assert fitting_counts([4, 2, 2], [1, 9, 9], [0, 1, 0]) == [1, 2, 5]
    assert fitting_counts([4, 2], [0, 6], [0, 0]) == [0, 6]
    assert fitting_counts([3, 1, 1], [0, 2, 9], [5, 5, 5]) == [0, 2, 3]


def test_no_small_case_loses_a_token_moves_one_needlessly_or_leaves_its_sample():
    generator = random.Random(0)
    for _ in range(500):
        samples = sorted(generator.randint(0, 2) for _ in range(generator.randint(1, 6)))
        lengths = [generator.randint(0, 6) for _ in samples]
        asked = [generator.randint(0, 6) for _ in samples]
        got = fitting_counts(asked, lengths, samples)
        assert all(0 <= k <= n for k, n in zip(got, lengths, strict=True))
        for sample in set(samples):
            of = [v for v, s in enumerate(samples) if s == sample]
            room = sum(lengths[v] for v in of)
            assert sum(got[v] for v in of) == min(sum(asked[v] for v in of), room)
            # Only what an emptied view cannot give goes elsewhere, and evenly.
            assert all(got[v] >= min(asked[v], lengths[v]) for v in of)
            extra = [got[v] - asked[v] for v in of if got[v] < lengths[v]]
            assert not extra or max(extra) - min(extra) <= 1


# -- merged rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [1, 3])
def test_merged_rows_are_written_where_their_columns_are_now(repeat):
    generator = torch.Generator().manual_seed(0)
    # What is left of each prompt: row 0 lost columns 0 and 3, row 2 columns 5 and 6; row 1 is text.
    left = [[1, 2, 4, 5, 6, 7, 8, 9], list(range(2, 10)), [0, 1, 2, 3, 4, 7, 8, 9]]
    columns = torch.tensor(left)
    hidden = torch.randn(3, 8, 4, generator=generator).repeat_interleave(repeat, 0)
    spots = torch.tensor([[2, 1], [6, -1], [9, 0]])
    features = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    sample = torch.tensor(ROWS)[:, None]
    got = write_rows(hidden, features, spots, places(columns, LENGTH), sample, repeat)
    wanted = hidden.clone()
    for v, row in enumerate(ROWS):
        for slot, column in enumerate(spots[v].tolist()):
            if column >= 0:
                for copy in range(repeat):
                    wanted[row * repeat + copy, left[row].index(column)] = features[v, slot].float()
    assert got.equal(wanted)
    assert got.dtype == hidden.dtype
    assert not got.equal(hidden)


def test_written_rows_take_no_gradient_and_the_others_keep_theirs():
    hidden = torch.zeros(3, LENGTH, 2, requires_grad=True)
    where = torch.arange(LENGTH).expand(3, LENGTH)
    sample = torch.tensor(ROWS)[:, None]
    spots = torch.tensor([[2], [6], [9]])
    write_rows(hidden, torch.ones(3, 1, 2), spots, where, sample, 1).sum().backward()
    written = {(0, 2), (0, 6), (2, 9)}
    for row, column in itertools.product(range(3), range(LENGTH)):
        assert hidden.grad[row, column].tolist() == [float((row, column) not in written)] * 2


# -- weights and positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [1, 2])
def test_sizes_become_logarithms_at_their_columns(repeat):
    run = run_of(repeat)
    assert not run.shortened
    sizes = torch.tensor([[1.0, 4.0, 2.5], [3.0, 1.0, 7.0], [1.0, 1.0, 2.0]])
    add_sizes(run, VIEWS, COLUMNS, sizes, repeat)
    wanted = torch.zeros(3, LENGTH)
    wanted[0, 2], wanted[0, 3], wanted[0, 5], wanted[2, 9] = (math.log(x) for x in (4, 2.5, 3, 2))
    assert run.log_sizes.dtype == torch.float32
    assert torch.allclose(run.log_sizes, wanted.repeat_interleave(repeat, 0))
    assert run.shortened
    # A second stage: of the tokens still there, in an order of its own; the first's stay where it adds none.
    add_sizes(run, VIEWS, torch.tensor([[3, 1], [6, -1], [9, -1]]), torch.full((3, 2), 2.0), repeat)
    wanted[0, 3] += math.log(2)
    wanted[0, 1] = wanted[0, 6] = math.log(2)
    wanted[2, 9] += math.log(2)
    assert torch.allclose(run.log_sizes, wanted.repeat_interleave(repeat, 0))


def test_nothing_weighs_less_than_one_token_and_half_precision_is_enough():
    run = run_of()
    sizes = torch.tensor([[0.0, 0.5, -1.0], [1.0, 2.0, 2.0], [1.0, 3.0, 1.0]], dtype=torch.bfloat16)
    add_sizes(run, VIEWS, COLUMNS, sizes, 1)
    wanted = torch.zeros(3, LENGTH)
    wanted[0, 6], wanted[2, 4] = math.log(2), math.log(3)
    assert torch.allclose(run.log_sizes, wanted)


@pytest.mark.parametrize("repeat", [1, 2])
def test_distance_is_undone_for_the_tokens_of_samples_that_lost_some(repeat):
    run = run_of(repeat)
    mark_visual(run, VIEWS, torch.tensor([False, False, True]), repeat)
    wanted = torch.zeros(3, LENGTH, dtype=torch.bool)
    wanted[2, [0, 4, 9]] = True
    assert run.visual.equal(wanted.repeat_interleave(repeat, 0))
    assert run.shortened
    # Later sample 0 loses tokens too: of those still there.
    run.view_columns = torch.tensor([[1, 3], [6, -1], [4, 9]])
    mark_visual(run, VIEWS, torch.tensor([True, False, False]), repeat)
    wanted[0, [1, 3, 6]] = True
    assert run.visual.equal(wanted.repeat_interleave(repeat, 0))


# -- the instruction ----------------------------------------------------------------------------------------


def prompt(rows):
    """Rows written as letters: v a placeholder, m one that the mask hides, t text, . padding."""
    width = max(map(len, rows))
    letters = [row.ljust(width, ".") for row in rows]
    mask = torch.tensor([[c in "vt" for c in row] for row in letters])
    visual = torch.tensor([[c in "vm" for c in row] for row in letters])
    return Prompt(torch.zeros(mask.shape, dtype=torch.long), mask, visual, [], {})


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ("tvvtvvttt", [6, 7, 8]),
        ("..tvvtt", [5, 6]),
        ("tvvtt..", [3, 4]),
        ("vvvt", [3]),
        ("tttvv", [0, 1, 2]),  # nothing follows the pictures: all text
        ("..ttvv", [2, 3]),
        ("ttt", [0, 1, 2]),
        ("ttt..", [0, 1, 2]),
        ("vv", []),
        ("tvvtmmtt", [6, 7]),
    ],
)
def test_the_instruction_is_the_text_behind_the_last_picture(row, columns):
    (got,) = instruction(prompt([row]))
    assert got.tolist() == columns


def test_every_row_has_an_instruction_of_its_own():
    assert [c.tolist() for c in instruction(prompt(["..vvt", "vvttt", "ttt.."]))] == [
        [4],
        [2, 3, 4],
        [0, 1, 2],
    ]


# -- what a method may return -------------------------------------------------------------------------------


class PerView(Selector):
    name = "per-view"

    def select(self, tokens, counts):
        raise NotImplementedError


class Splits(PerView):
    name = "splits"
    allocates = True


TOKENS = VisualTokens(torch.zeros(3, 4, 2), [view("A", 4), view("B", 2), view("A", 3)], [0, 0, 2])
ASKED = [2, 1, 2]


def returned(counts, width=None):
    return Selection(torch.zeros(len(counts), max(counts) if width is None else width).long(), counts)


@pytest.mark.parametrize("method", [PerView(), Splits()], ids=lambda m: m.name)
def test_what_was_asked_passes(method):
    check_shape(method, returned(ASKED), ASKED, TOKENS)
    check_shape(method, returned(tuple(ASKED)), ASKED, TOKENS)


@pytest.mark.parametrize("counts", [[1, 2, 2], [3, 0, 2], [2, 1, 2]])
def test_a_method_that_splits_a_total_may_move_tokens_within_a_sample(counts):
    check_shape(Splits(), returned(counts), ASKED, TOKENS)
    if counts != ASKED:
        with pytest.raises(PruneError, match=r"PerView returned .*asked for \[2, 1, 2\]"):
            check_shape(PerView(), returned(counts), ASKED, TOKENS)


@pytest.mark.parametrize(
    "counts",
    [
        [2, 0, 3],  # moved between samples
        [1, 1, 2],  # too few
        [2, 2, 2],  # too many
        [0, 3, 2],  # more than the second view has
        [4, -1, 2],
        [3, 2],  # a view is missing
        [2, 1, 2, 0],
    ],
)
def test_a_method_that_splits_a_total_must_keep_to_it(counts):
    with pytest.raises(PruneError, match=r"Splits returned .*asked for \[2, 1, 2\].*of 3 views"):
        check_shape(Splits(), returned(counts), ASKED, TOKENS)


@pytest.mark.parametrize("method", [PerView(), Splits()], ids=lambda m: m.name)
@pytest.mark.parametrize("width", [1, 3])
def test_indices_must_be_as_wide_as_the_largest_count(method, width):
    with pytest.raises(PruneError, match=rf"returned \(3, {width}\) indices"):
        check_shape(method, returned(ASKED, width), ASKED, TOKENS)


def test_of_pooled_rows_a_total_is_all_there_is_to_ask():
    check_shape(Splits(), returned([3, 2]), [3, 2])
    with pytest.raises(PruneError, match=r"counts \[2, 3\].*asked for \[3, 2\]"):
        check_shape(Splits(), returned([2, 3]), [3, 2])
