"""Replaying a recorded order is choosing anew, for every count."""

import pytest
import torch

from families_table import BY_NAME
from prune2drive import prune
from prune2drive.functional import fps
from prune2drive.search.replay import Recorder, Replay
from prune2drive.selectors import TFPS, Random
from prune2drive.tokens import View, VisualTokens

CAMERAS = ["CAM_FRONT", "CAM_LEFT", "CAM_BACK"]
METHODS = {
    "tfps": TFPS(),
    "tfps l2 center": TFPS(metric="l2", start="center"),
    "tfps random": TFPS(start="random", seed=3),
    "tfps released": TFPS(compat="released"),
    "random": Random(),
    "random 7": Random(seed=7),
}


def batch(lengths, seed, copies=False):
    """Samples of three views each; ``copies``: with many equal tokens."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.zeros(len(lengths), max(lengths), 8)
    views = []
    for row, n in enumerate(lengths):
        features[row, :n] = torch.randn(n, 8, generator=generator)
        if copies:
            features[row, 1:n:2] = features[row, 0].clone()
        zeros = torch.zeros(n, dtype=torch.long)
        views.append(View(CAMERAS[row % 3], torch.arange(n), torch.zeros(n, 4), zeros, zeros))
    return VisualTokens(features, views, [row // 3 for row in range(len(lengths))])


def recorded(method, tokens):
    recorder = Recorder(method)
    recorder.select(tokens, tokens.lengths)
    return recorder.order


def picks(selection):
    assert selection.indices.dtype == torch.int64
    return [row[:k].tolist() for row, k in zip(selection.indices, selection.counts, strict=True)]


LENGTHS = {
    "alike": [20] * 6,
    "views differ": [20, 3, 11] * 2,
    "samples differ": [20, 20, 20, 1, 9, 14],
    "one": [13, 13, 13],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_chooses_what_the_method_chooses(method, lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    for seed in range(4):
        tokens = batch(lengths, seed)
        replay = Replay(method.rounding)
        replay.order = recorded(method, tokens)
        for _ in range(4):
            counts = [int(torch.randint(1, n + 1, (), generator=generator)) for n in lengths]
            mine, live = replay.select(tokens, counts), method.select(tokens, counts)
            assert list(mine.counts) == counts
            assert picks(mine) == picks(live)
            assert torch.equal(mine.indices, live.indices)  # -1 behind the picks as well
        assert picks(replay.select(tokens, lengths)) == picks(method.select(tokens, lengths))


def test_equal_tokens_are_chosen_alike():
    tokens = batch([16, 9, 16], 0, copies=True)
    replay = Replay()
    replay.order = recorded(TFPS(), tokens)
    for counts in ([1, 1, 1], [9, 2, 3], [12, 9, 16]):
        assert picks(replay.select(tokens, counts)) == picks(TFPS().select(tokens, counts))


def test_an_order_is_that_of_farthest_points():
    tokens = batch([20, 7, 12], 5)
    order = recorded(TFPS(), tokens)
    replay = Replay()
    replay.order = order
    for row, n in enumerate(tokens.lengths):
        assert sorted(order[row, :n].tolist()) == list(range(n))
        assert (order[row, n:] == -1).all()
        for k in (1, 3, n):
            counts = [1, 1, 1]
            counts[row] = k
            alone = fps(tokens.features[row, :n], k, start="isolated")
            assert picks(replay.select(tokens, counts))[row] == alone.tolist()


def test_orders_kept_as_small_integers_of_several_calls_serve():
    tokens = batch([20] * 6, 1)
    rows = [slice(3), slice(3, 6)]
    parts = [VisualTokens(tokens.features[row], tokens.views[row], [0] * 3) for row in rows]
    replay = Replay()
    replay.order = torch.cat([recorded(TFPS(), part).to(torch.int32) for part in parts])
    counts = [5, 1, 20, 7, 7, 2]
    assert picks(replay.select(tokens, counts)) == picks(TFPS().select(tokens, counts))


@pytest.mark.parametrize("name", ["llava", "llava_onevision"])
def test_a_pruned_model_keeps_the_same(name):
    case = BY_NAME[name]
    model, inputs = case.model("sdpa"), case.inputs([3, 3])
    rates = {"CAM_FRONT": 0.5, "CAM_LEFT": 0.07, "CAM_BACK": 0.3}

    def kept(method, retention):
        with torch.no_grad(), prune(model, method, retention, rig=CAMERAS) as pruned:
            logits = model(**inputs).logits
        return logits, [{k: cell.indices for k, cell in row.items()} for row in pruned.record.samples]

    recorder = Recorder(TFPS())
    kept(recorder, 1.0)
    replay = Replay()
    replay.order = recorder.order
    (logits, mine), (theirs, live) = kept(replay, rates), kept(TFPS(), rates)
    assert mine == live
    assert torch.equal(logits, theirs)
