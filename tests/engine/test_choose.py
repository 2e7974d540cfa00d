"""From flat features to the rows that stay: structure, merging, distrust of what comes in and goes out."""

from types import SimpleNamespace

import pytest
import torch

from prune2drive.engine.choose import assign_views, check_finite, cut_features, padded, select
from prune2drive.errors import PruneError
from prune2drive.layout import PerCamera
from prune2drive.selectors.base import Selector
from prune2drive.tokens import ImageTokens, Segment, Selection, VisualTokens

# Sample 0: rows of two tokens, each ended by a newline token, and a picture of 1x3; sample 1: none;
# sample 2: a separator before 2x2 tokens. Flat rows: 0-5 and 6-8, then 9-13.
IMAGES = [
    [ImageTokens(0, 6, (Segment(0, (2, 2), stride=3),)), ImageTokens(6, 3, (Segment(0, (1, 3)),))],
    [],
    [ImageTokens(0, 5, (Segment(1, (2, 2)),))],
]
VIEWS = assign_views(IMAGES, PerCamera(), None)
FLAT = torch.arange(100.0, 114.0)[:, None] * torch.tensor([1.0, 10.0])


class Fixed(Selector):
    """Returns what it was given, and remembers what it saw."""

    name = "fixed"

    def __init__(self, picks, counts=None, features=None):
        width = max(map(len, picks))
        self.indices = torch.tensor([row + [-1] * (width - len(row)) for row in picks])
        self.counts, self.features = counts or [len(row) for row in picks], features

    def select(self, tokens, counts):
        self.seen = tokens
        return Selection(self.indices, self.counts, self.features)


def test_a_selector_sees_each_view_padded_and_without_structure():
    selector = Fixed([[0], [0], [0]])
    cut_features(FLAT, IMAGES, VIEWS, [1, 1, 1], selector)
    rows = selector.seen.features[..., 0].tolist()
    assert rows == [[100, 101, 103, 104], [106, 107, 108, 0], [110, 111, 112, 113]]
    assert list(selector.seen.samples) == [0, 0, 2]
    assert selector.seen.mask.tolist() == [[True] * 4, [True] * 3 + [False], [True] * 4]


def test_structure_always_stays_and_rows_ascend():
    cut = cut_features(FLAT, IMAGES, VIEWS, [2, 1, 3], Fixed([[3, 0], [2], [3, 1, 0]]))
    assert cut.kept.tolist() == [0, 2, 4, 5, 8, 9, 10, 11, 13]
    assert cut.per_row == [5, 0, 4]
    assert cut.counts == [2, 1, 3]
    assert cut.features is FLAT
    assert cut.select_ms() >= 0


def test_merged_features_stand_where_their_tokens_stood():
    merged = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [9.0, 9.0]], [[7.0, 8.0], [9.0, 9.0]]])
    cut = cut_features(FLAT, IMAGES, VIEWS, [2, 1, 1], Fixed([[3, 0], [2], [1]], features=merged.double()))
    want = FLAT.clone()
    want[4], want[0], want[8], want[11] = merged[0, 0], merged[0, 1], merged[1, 0], merged[2, 0]
    assert cut.features.equal(want)
    assert cut.features.dtype == FLAT.dtype
    assert FLAT[4].tolist() == [104, 1040]
    assert cut.kept.tolist() == [0, 2, 4, 5, 8, 9, 11]


def test_gradients_reach_merged_and_kept_rows():
    flat = FLAT.clone().requires_grad_()
    cut = cut_features(flat, IMAGES, VIEWS, [1, 1, 1], Fixed([[0], [0], [0]]))
    cut.features[cut.kept].sum().backward()
    assert flat.grad[:, 0].tolist() == [1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "selector",
    [
        Fixed([[0, 1], [0], [0]]),
        Fixed([[0], [0]]),
        Fixed([[0], [0], [0]], counts=[1, 1, 2]),
        Fixed([[0, 1], [0, 1], [0, 1]], counts=[1, 1, 1]),
    ],
)
def test_a_selector_that_returns_other_counts_is_refused(selector):
    with pytest.raises(PruneError, match=r"Fixed returned .* asked for \[1, 1, 1\]"):
        cut_features(FLAT, IMAGES, VIEWS, [1, 1, 1], selector)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_values_are_named_by_camera_token_and_channel(value):
    flat = FLAT.clone()
    flat[11, 1] = value
    with pytest.raises(PruneError, match=rf"IMAGE_0 \(sample 2\): feature of token 1, channel 1 is {value}"):
        cut_features(flat, IMAGES, VIEWS, [1, 1, 1], Fixed([[0], [0], [0]]))


def test_bad_values_in_structure_are_nobodys_business():
    flat = FLAT.clone()
    flat[2] = torch.nan
    cut_features(flat, IMAGES, VIEWS, [1, 1, 1], Fixed([[0], [0], [0]]))


def test_finite_features_pass():
    check_finite(torch.zeros(1, 2, 3), VisualTokens(torch.zeros(1, 2, 3), [SimpleNamespace(name="x")], [0]))


def test_methods_see_no_gradients():
    class Watch(Fixed):
        def select(self, tokens, counts):
            assert not tokens.features.requires_grad
            assert not torch.is_grad_enabled()
            return super().select(tokens, counts)

    features = torch.zeros(1, 2, 3, requires_grad=True)
    select(Watch([[0]]), VisualTokens(features, VIEWS[0][:1], [0]), [1])


def test_padded():
    assert padded([torch.tensor([4, 5]), torch.tensor([6])]).tolist() == [[4, 5], [6, -1]]
