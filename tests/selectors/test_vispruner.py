"""VisPruner against its published rule, written out in loops."""

import math

import pytest

from prune2drive.errors import PruneError
from prune2drive.selectors.vispruner import VisPruner
from signal_batch import batch, kept, row


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def published(one, k, ratio):
    x, scores = one["encoder"].double(), one["saliency"].tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    important, residual = order[: int(k * ratio)], order[int(k * ratio) :]
    wanted = k - len(important)
    while len(residual) > wanted:
        a, b = residual[::2], residual[1::2]
        drop = min(8, len(residual) - wanted)
        likeness = {i: max((cosine(x[i], x[j]) for j in b), default=0.0) for i in a}
        most_alike_first = sorted(a, key=lambda i: -likeness[i])
        residual = most_alike_first[drop:] + b
        if not wanted:
            break
    return important, residual[:wanted]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "k"), [(40, 12), (37, 5), (40, 31), (25, 1), (24, 2), (12, 12)])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.0, 1.0])
def test_equals_the_published_rule(seed, n, k, ratio):
    one = row(n, seed)
    important, diverse = published(one, k, ratio)
    selection = VisPruner(important=ratio).select(batch([one]), [k])
    assert kept(selection, 0) == important + diverse


def test_views_of_one_shape_go_together_and_others_apart():
    views = [row(30, 1), row(20, 2), row(30, 3), row(30, 4)]
    counts = [8, 8, 8, 9]
    selection = VisPruner().select(batch(views), counts)
    for number, (one, k) in enumerate(zip(views, counts, strict=True)):
        important, diverse = published(one, k, 0.5)
        assert kept(selection, number) == [*important, *diverse]


def test_a_copy_leaves_before_what_is_unlike():
    one = row(20, 5)
    order = one["saliency"].sort(descending=True).indices
    one["encoder"][order[10]] = one["encoder"][order[11]]
    picks = kept(VisPruner(important=0.5).select(batch([one]), [19]), 0)
    assert order[10].item() not in picks or order[11].item() not in picks


def test_an_order_once_changed_is_not_restored():
    """Three steps, each of which deals A and B from what the last one left, not by attention."""
    one = row(60, 8)
    _, diverse = published(one, 40, 0.0)
    picks = kept(VisPruner(important=0.0).select(batch([one]), [40]), 0)
    assert picks == diverse
    assert picks != sorted(picks, key=lambda i: -one["saliency"][i].item())


def test_of_equally_similar_tokens_the_last_leave_first():
    one = {name: tensor[:1].expand(12, *tensor.shape[1:]) for name, tensor in row(12, 0).items()}
    # A is 0, 2, ..., 10: its last two leave, the others are turned round, and B follows.
    picks = kept(VisPruner(important=0.0).select(batch([one]), [10]), 0)
    assert picks == [6, 4, 2, 0, 1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("value", [-0.1, 1.1, "half", True])
def test_bad_share(value):
    with pytest.raises(PruneError, match=r"vispruner: important=.* give a number in \[0, 1\]"):
        VisPruner(important=value)
