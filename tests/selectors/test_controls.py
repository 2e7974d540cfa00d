"""Random, stratified and stride: exact, deterministic, blind to features and to the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune2drive.errors import PruneError
from prune2drive.layout import Mosaic, PerCamera
from prune2drive.selectors import Random, Selector, Stratified, Stride
from prune2drive.selectors.stratified import _picks
from prune2drive.tokens import WHOLE, ImageTokens, Segment, VisualTokens

CONTROLS = [Random(), Random(7), Stride(), Stride(0.0), Stride(0.999999), Stratified(), Stratified(3)]
by_control = pytest.mark.parametrize("control", CONTROLS, ids=str)


def grid_view(name, rows, cols):
    (view,) = PerCamera([name]).assign([ImageTokens(0, rows * cols, (Segment(0, (rows, cols)),))], None, 0)
    return view


def batch(*views, samples=None):
    width = max(len(view) for view in views)
    return VisualTokens(torch.zeros(len(views), width, 2), views, samples or [0] * len(views))


def picks(control, view, k):
    return control.select(batch(view), [k]).indices[0].tolist()


@by_control
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_exact_distinct_and_in_range(control, data):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4))
    views = [grid_view(f"V{at}", rows, cols) for at, (rows, cols) in enumerate(sizes)]
    counts = [data.draw(st.integers(1, len(view))) for view in views]
    chosen = control.select(batch(*views), counts)
    assert isinstance(control, Selector)
    assert chosen.indices.shape == (len(views), max(counts))
    assert chosen.indices.dtype == torch.int64
    assert chosen.counts == counts
    assert chosen.features is None
    for row, view, k in zip(chosen.indices.tolist(), views, counts, strict=True):
        assert len(set(row[:k])) == k
        assert set(row[:k]) <= set(range(len(view)))
        assert row[k:] == [-1] * (max(counts) - k)


@by_control
def test_neither_place_nor_sample_in_the_batch_matters(control):
    front, back = grid_view("FRONT", 9, 16), grid_view("BACK", 6, 6)
    alone = picks(control, front, 20)
    for views, samples, at in [((back, front), [0, 0], 1), ((front, back, front), [0, 0, 1], 2)]:
        counts = [20 if view is front else 5 for view in views]
        together = control.select(batch(*views, samples=samples), counts)
        assert together.indices[at].tolist() == alone
    assert picks(control, front, 20) == alone


@by_control
def test_keep_all(control):
    assert sorted(picks(control, grid_view("A", 5, 7), 35)) == list(range(35))


def test_random_is_nested_and_differs_by_seed_and_camera():
    front, back = grid_view("FRONT", 20, 20), grid_view("BACK", 20, 20)
    assert picks(Random(), front, 40)[:13] == picks(Random(), front, 13)
    draws = [picks(Random(), front, 40), picks(Random(), back, 40)]
    draws += [picks(Random(seed), front, 40) for seed in (1, 2**32, 2**40)]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_stride_by_hand():
    view = grid_view("A", 2, 5)
    assert picks(Stride(), view, 5) == [1, 3, 5, 7, 9]
    assert picks(Stride(0), view, 5) == [0, 2, 4, 6, 8]
    assert picks(Stride(), view, 4) == [1, 3, 6, 8]
    assert picks(Stride(0), view, 3) == [0, 3, 6]


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True), st.data())
@settings(max_examples=50, deadline=None)
def test_stride_is_even(n, offset, data):
    k = data.draw(st.integers(1, n))
    chosen = np.array(picks(Stride(offset), grid_view("A", 1, n), k))
    assert 0 <= chosen[0] <= chosen[-1] < n
    assert set(np.diff(chosen)) <= {n // k, n // k + 1}


def test_stratified_takes_one_token_of_each_block():
    chosen = picks(Stratified(), grid_view("A", 16, 16), 16)
    blocks = {(token // 16 // 4, token % 16 // 4) for token in chosen}
    assert len(blocks) == 16
    # ... near its middle.
    assert all(token // 16 % 4 in (1, 2) and token % 16 % 4 in (1, 2) for token in chosen)
    drawn = {tuple(picks(Stratified(seed), grid_view("A", 16, 16), 16)) for seed in range(5)}
    assert len(drawn) == 5
    for draw in drawn:
        assert len({(token // 16 // 4, token % 16 // 4) for token in draw}) == 16


def test_stratified_cuts_the_longer_side_first():
    wide, high = grid_view("A", 3, 9), grid_view("A", 9, 3)
    assert picks(Stratified(), wide, 3) == [10, 13, 16]
    assert picks(Stratified(), high, 3) == [4, 13, 22]


def test_stratified_shares_out_over_tiles_and_thumbnail():
    tiles = (Segment(0, (8, 8), (0, 0, 0.5, 1)), Segment(64, (8, 8), (0.5, 0, 1, 1)))
    image = ImageTokens(0, 144, (*tiles, Segment(128, (4, 4), WHOLE, thumbnail=True)))
    (view,) = PerCamera(["A"]).assign([image], None, 0)
    chosen = torch.tensor(picks(Stratified(), view, 18))
    assert view.part[chosen].bincount().tolist() == [8, 8, 2]
    # Fewer than parts: the largest remainders.
    assert view.part[torch.tensor(picks(Stratified(), view, 2))].tolist() == [0, 1]


def test_stratified_covers_better_than_stride_and_random_everywhere():
    # A 5x2 cut of a 3x2 mosaic: borders of cameras run through tiles.
    cut = [
        Segment(256 * (5 * y + x), (16, 16), (x / 5, y / 2, (x + 1) / 5, (y + 1) / 2))
        for y in range(2)
        for x in range(5)
    ]
    views = Mosaic.drivelmm_o1().assign([ImageTokens(0, 2560, tuple(cut))], None, 0)
    for view in views:
        centres = (view.boxes[:, :2] + view.boxes[:, 2:]) / 2 * torch.tensor([16.0, 9.0])

        def worst_gap(control, view=view, centres=centres):
            chosen = torch.tensor(picks(control, view, 40))
            return torch.cdist(centres, centres[chosen]).amin(1).max()

        assert worst_gap(Stratified()) < min(worst_gap(Random()), worst_gap(Stride()))


def test_stratified_costs_nothing_the_second_time():
    view = grid_view("A", 24, 24)
    Stratified().select(batch(view), [58])
    before = _picks.cache_info()
    Stratified().select(batch(grid_view("B", 24, 24)), [58])
    after = _picks.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Random(-1), "random: seed -1"),
        (lambda: Stratified(-1), "stratified: seed -1"),
        (lambda: Stride(1), "stride: offset 1"),
    ],
)
def test_bad_hyper_parameters(make, words):
    with pytest.raises(PruneError, match=words):
        make()
