"""T-FPS as a selector: batches of views, counts per view, the released rule, field checks."""

import dataclasses

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import fps
from prune2drive.selectors.tfps import TFPS
from prune2drive.tokens import View, VisualTokens

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")


def view(name, n):
    return View(
        name,
        torch.arange(n),
        torch.zeros(n, 4),
        torch.zeros(n, dtype=torch.long),
        torch.zeros(n, dtype=torch.long),
    )


def batch(features, names, samples):
    """Views of different lengths, padded with zeros as the engine does."""
    width = max(len(f) for f in features)
    padded = torch.zeros(len(features), width, features[0].shape[-1], dtype=features[0].dtype)
    for row, f in enumerate(features):
        padded[row, : len(f)] = f
    return VisualTokens(padded, [view(n, len(f)) for n, f in zip(names, features, strict=True)], samples)


def features(lengths, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 16, generator=generator).to(dtype) for n in lengths]


def kept(selection, row):
    return selection.indices[row, : selection.counts[row]].tolist()


def test_each_view_gets_its_count_in_pick_order():
    views = features([20, 20, 20])
    selection = TFPS().select(batch(views, CAMERAS, [0, 0, 0]), [5, 1, 20])
    assert selection.indices.dtype == torch.int64
    assert selection.indices.shape == (3, 20)
    assert list(selection.counts) == [5, 1, 20]
    for row, k in enumerate([5, 1, 20]):
        assert kept(selection, row) == fps(views[row], k).tolist()
        assert (selection.indices[row, k:] == -1).all()


def test_padding_is_never_picked():
    views = features([20, 3, 11])
    selection = TFPS().select(batch(views, CAMERAS, [0, 0, 0]), [4, 3, 11])
    assert sorted(kept(selection, 1)) == [0, 1, 2]
    assert sorted(kept(selection, 2)) == list(range(11))


@pytest.mark.parametrize("method", [TFPS(), TFPS(start="random", seed=7), TFPS(start="center", metric="l2")])
def test_a_batch_of_two_samples_equals_two_batches_of_one(method):
    first, second = features([20, 12, 9], seed=1), features([15, 30, 9], seed=2)
    counts = [4, 5, 6]
    together = method.select(batch(first + second, CAMERAS * 2, [0, 0, 0, 1, 1, 1]), counts * 2)
    for sample, views in enumerate((first, second)):
        alone = method.select(batch(views, CAMERAS, [0, 0, 0]), counts)
        for row in range(3):
            assert kept(together, 3 * sample + row) == kept(alone, row)


def test_random_start_depends_on_seed_and_camera_not_on_place():
    views = features([40, 40, 40])
    starts = TFPS(start="random", seed=1).select(batch(views, CAMERAS, [0] * 3), [3] * 3).indices[:, 0]
    swapped = TFPS(start="random", seed=1).select(batch(views[::-1], CAMERAS[::-1], [0] * 3), [3] * 3)
    assert swapped.indices[:, 0].tolist() == starts.tolist()[::-1]
    assert len(set(starts.tolist())) > 1
    many = {
        TFPS(start="random", seed=s).select(batch(views, CAMERAS, [0] * 3), [1] * 3).indices[0, 0].item()
        for s in range(60)
    }
    assert len(many) > 20


def test_random_start_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    TFPS(start="random").select(batch(features([9]), ["CAM_FRONT"], [0]), [2])
    assert torch.equal(torch.rand(3), want)


def test_metric_and_start_reach_the_sampler():
    views = features([25])
    for metric in ("cosine", "l2", "l1", "nearest"):
        for start in ("isolated", "center", 6):
            got = TFPS(metric=metric, start=start).select(batch(views, ["a"], [0]), [8])
            assert kept(got, 0) == fps(views[0], 8, metric=metric, start=start).tolist()


def test_released_rule_uses_own_dtype_and_truncates():
    views = [f + 5 for f in features([150], dtype=torch.float16)]
    released = TFPS(compat="released")
    got = kept(released.select(batch(views, ["a"], [0]), [40]), 0)
    assert got == fps(views[0], 40, compat="released").tolist()
    assert got != kept(TFPS().select(batch(views, ["a"], [0]), [40]), 0)
    assert released.rounding == "truncate"
    assert TFPS().rounding == "half-up"


def test_is_a_frozen_value():
    assert TFPS(seed=3) == TFPS(seed=3) != TFPS(seed=4)
    assert dataclasses.replace(TFPS(), metric="l2").metric == "l2"
    assert [f.name for f in dataclasses.fields(TFPS)] == ["metric", "start", "compat", "seed"]
    assert TFPS.name == "tfps"
    with pytest.raises(dataclasses.FrozenInstanceError):
        TFPS().seed = 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "cos"}, "unknown metric 'cos'"),
        ({"start": "centre"}, "unknown start 'centre'. Did you mean 'center'"),
        ({"start": -1}, "token index from 0, got -1"),
        ({"start": 0.5}, "token index from 0, got 0.5"),
        ({"compat": "relased"}, "unknown compat 'relased'. Did you mean 'released'"),
        ({"compat": "released", "metric": "l1"}, "fixes metric='cosine'"),
        ({"compat": "released", "start": "random"}, "fixes metric='cosine' and start='isolated'"),
        ({"seed": "x"}, "seed must be an int"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(PruneError, match=message):
        TFPS(**fields)


def test_bad_counts():
    tokens = batch(features([20, 3]), CAMERAS[:2], [0, 0])
    with pytest.raises(PruneError, match="got 1 counts for 2 views"):
        TFPS().select(tokens, [4])
    with pytest.raises(PruneError, match=r"row \(1,\): asked for 4 of 3 unmasked tokens"):
        TFPS().select(tokens, [4, 4])
    with pytest.raises(PruneError, match=r"row \(0,\): k must be at least 1"):
        TFPS().select(tokens, [0, 1])
