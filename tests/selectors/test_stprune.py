"""ST-Prune, as this library reads it, against loops in float64; the ring; time."""

import math
from dataclasses import replace

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import distances
from prune2drive.rig import NUSCENES, Rig
from prune2drive.selectors.stprune import STPrune
from prune2drive.selectors.tfps import TFPS
from prune2drive.tokens import Segment, View, VisualTokens

DIM = 10


def view(name, n, frames=1):
    """n tokens in all: a strip of n / frames squares, seen in each of some frames."""
    each = n // max(1, frames)
    boxes = Segment(0, (1, each)).boxes() if each else torch.zeros(0, 4)
    frame = torch.arange(frames).repeat_interleave(each)
    return View(name, torch.arange(n), boxes.repeat(frames, 1), frame.clone(), frame)


def batch(rows, views, samples=None, rig=NUSCENES):
    padded = torch.zeros(len(rows), max(map(len, rows)), DIM, dtype=rows[0].dtype)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return VisualTokens(padded, views, samples or [0] * len(rows), rig=rig)


def random(lengths, seed, dtype=torch.float32, shift=0.3):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, DIM, generator=generator) + shift).to(dtype) for n in lengths]


def kept(selection, row):
    return selection.indices[row, : selection.counts[row]].tolist()


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(row):
    row = row.double().tolist()
    return [[x / math.sqrt(dot(p, p)) for x in p] for p in row]


def spread_out(x, candidates, k, weight, penalty):
    chosen = []
    for _ in range(k):
        scores = {}
        for i in candidates:
            if i not in chosen:
                others = chosen or [j for j in candidates if j != i]
                near = min((1 - dot(x[i], x[j]) for j in others), default=0.0)
                scores[i] = weight[i] * near - penalty[i]
        chosen.append(max(scores, key=scores.get))
    return chosen


def described(rows, views, counts, time=0.6, ring=0.8, recency=0.5):
    """All views of one sample: first through time, then around the ring."""
    xs, left = [unit(row) for row in rows], []
    for x, v, k in zip(xs, views, counts, strict=True):
        frames, n = int(v.frame.max()) + 1, len(x)
        if frames == 1:
            left.append(list(range(n)))
            continue
        each = n // frames
        volatile = []
        for place in range(each):
            track = [x[place + f * each] for f in range(frames)]
            mean = [sum(p[c] for p in track) / frames for c in range(DIM)]
            volatile.append(
                sum(sum((a - b) ** 2 for a, b in zip(p, mean, strict=True)) for p in track) / frames
            )
        low, high = min(volatile), max(volatile)
        weight = []
        for i in range(n):
            motion = (volatile[i % each] - low) / (high - low)
            recent = (i // each) / (frames - 1)
            weight.append(1 - time + time * ((1 - recency) * motion + recency * recent))
        middle = min(n, max(k, math.floor(math.sqrt(n * k) + 0.5)))
        left.append(spread_out(x, range(n), middle, weight, [0.0] * n))
    names = [v.name for v in views]
    out = []
    for x, own, name, k in zip(xs, left, names, counts, strict=True):
        near = [names.index(other) for other in NUSCENES.neighbours(name) if other in names]
        penalty = [0.0] * len(x)
        for i in own:
            cosines = [dot(x[i], xs[b][j]) for b in near for j in left[b]]
            penalty[i] = ring * max([0.0, *cosines])
        out.append(spread_out(x, sorted(own), k, [1.0] * len(x), penalty))
    return out


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_picks_are_the_described_ones(seed, frames):
    names = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT"]
    lengths, counts = [24, 12, 18, 30], [6, 1, 18, 9]
    rows = random(lengths, 10 * seed + frames)
    views = [view(name, n, frames) for name, n in zip(names, lengths, strict=True)]
    for method, options in [
        (STPrune(), {}),
        (STPrune(0.9, 0.3, 0.2), {"time": 0.9, "ring": 0.3, "recency": 0.2}),
    ]:
        selection = method.select(batch(rows, views), counts)
        want = described(rows, views, counts, **options)
        assert [kept(selection, row) for row in range(4)] == want
        assert selection.indices.shape == (4, 18)
        assert selection.indices.dtype == torch.int64
        assert (selection.indices[1, 1:] == -1).all()


def test_views_of_one_and_of_several_frames_in_one_sample():
    rows = random([24, 20], 5)
    views = [view("CAM_FRONT", 24, 3), view("CAM_FRONT_RIGHT", 20)]
    selection = STPrune().select(batch(rows, views), [4, 5])
    assert [kept(selection, row) for row in range(2)] == described(rows, views, [4, 5])


def test_what_a_neighbour_shows_leaves_what_another_camera_shows_stays():
    front, left, back = random([12, 12, 12], 1, shift=0.0)
    left[3] = front[7]
    names = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK"]
    near = STPrune(lambda_ring=100.0).select(
        batch([front, left, back], [view(n, 12) for n in names]), [11, 11, 11]
    )
    assert 7 not in kept(near, 0)
    assert 3 not in kept(near, 1)
    # The back camera is no neighbour of either: it chooses as if it were alone.
    assert kept(near, 2) == TFPS().select(batch([back], [view("CAM_BACK", 12)]), [11]).indices[0].tolist()


def test_without_penalty_and_without_time_it_is_farthest_point_sampling():
    rows = random([20, 16], 2)
    tokens = batch(rows, [view("CAM_FRONT", 20), view("CAM_FRONT_LEFT", 16)])
    want = TFPS().select(tokens, [6, 9]).indices
    assert torch.equal(STPrune(lambda_ring=0).select(tokens, [6, 9]).indices, want)
    other = replace(tokens, samples=[0, 1])
    assert torch.equal(STPrune().select(other, [6, 9]).indices, want)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_batch_of_two_samples_equals_two_batches_of_one(monkeypatch, frames):
    names = ["CAM_FRONT", "CAM_BACK_RIGHT", "CAM_FRONT_RIGHT"]
    first, second = random([20, 12, 8], 3), random([16, 30, 8], 4)
    counts = [4, 5, 6]
    views = [[view(n, len(x), frames) for n, x in zip(names, rows, strict=True)] for rows in (first, second)]
    tokens = batch(first + second, views[0] + views[1], [0, 0, 0, 1, 1, 1])
    together = STPrune().select(tokens, counts * 2)
    for sample, rows in enumerate((first, second)):
        alone = STPrune().select(batch(rows, views[sample]), counts)
        for row in range(3):
            assert kept(together, 3 * sample + row) == kept(alone, row)
            # Neither does the order of the views matter.
        turned = STPrune().select(batch(rows[::-1], views[sample][::-1]), counts[::-1])
        assert [kept(turned, row) for row in (2, 1, 0)] == [kept(alone, row) for row in range(3)]
    monkeypatch.setattr(distances, "MATRIX_BYTES", 1)
    assert torch.equal(STPrune().select(tokens, counts * 2).indices, together.indices)


def test_padding_is_never_picked_and_empty_views_are_left_alone():
    rows = random([20, 4, 0, 10], 6)
    names = ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT"]
    views = [view("CAM_FRONT", 20, 2), view("CAM_FRONT_LEFT", 4, 2), view(names[2], 0), view(names[3], 10)]
    selection = STPrune().select(batch(rows, views), [3, 4, 0, 10])
    assert sorted(kept(selection, 1)) == [0, 1, 2, 3]
    assert sorted(kept(selection, 3)) == list(range(10))
    assert (selection.indices[2] == -1).all()


def test_recent_frames_win_where_little_moves():
    for seed in range(5):
        still, moved = random([12, 12], seed, shift=0.0)
        tokens = batch([torch.cat([still, still + 0.02 * moved])], [view("CAM_FRONT", 24, 2)])
        late = [i for i in kept(STPrune(lambda_time=0.9, recency=1.0).select(tokens, [6]), 0) if i >= 12]
        # The temporal stage leaves 12 tokens for 12 places: all recent, but for its start.
        assert len(late) >= 5


def test_a_place_is_a_rectangle_not_a_number():
    x, y = random([6, 6], 9)
    straight = batch([torch.cat([x, y])], [view("CAM_FRONT", 12, 2)])
    want = kept(STPrune().select(straight, [4]), 0)
    # The second frame lists its places from right to left.
    order = torch.tensor([0, 1, 2, 3, 4, 5, 11, 10, 9, 8, 7, 6])
    turned = batch([torch.cat([x, y])[order]], [view("CAM_FRONT", 12, 2).subset(order)])
    assert [int(order[i]) for i in kept(STPrune().select(turned, [4]), 0)] == want


def test_frames_of_other_sizes_share_no_place():
    (x,) = random([9], 10)
    frame = torch.tensor([0] * 4 + [1] * 5)
    boxes = torch.cat([Segment(0, (1, 4)).boxes(), Segment(0, (1, 5)).boxes()])
    odd = View("CAM_FRONT", torch.arange(9), boxes, frame, frame)
    got = kept(STPrune().select(batch([x], [odd]), [3]), 0)
    assert len(set(got)) == 3


def test_a_thumbnail_of_the_same_rectangle_is_a_place_of_its_own():
    (x,) = random([12], 11)
    twice = Segment(0, (1, 3)).boxes().repeat(4, 1)
    frame = torch.tensor([0] * 6 + [1] * 6)
    own = View("CAM_FRONT", torch.arange(12), twice, frame.clone(), frame)
    (plain,) = [view("CAM_FRONT", 12, 2)]
    got = STPrune().select(batch([x], [own]), [4])
    assert torch.equal(got.indices, STPrune().select(batch([x], [plain]), [4]).indices)


def test_ties_go_to_the_lowest_index():
    tokens = batch([torch.eye(DIM)[:6]], [view("CAM_FRONT", 6)])
    assert kept(STPrune().select(tokens, [6]), 0) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    rows = random([20, 16], 12, dtype)
    views = [view("CAM_FRONT", 20, 2), view("CAM_FRONT_LEFT", 16, 2)]
    selection = STPrune().select(batch(rows, views), [6, 5])
    assert [kept(selection, row) for row in range(2)] == described(rows, views, [6, 5])


def test_names_the_rig_knows_and_does_not():
    rows = random([8, 8], 13)
    views = [view("CAM_FRONT", 8), view("THUMBNAIL", 8)]
    assert STPrune().select(batch(rows, views), [3, 3]).indices.shape == (2, 3)
    with pytest.raises(PruneError, match=r"pass rig=\.\.\."):
        STPrune().select(batch(rows, views, rig=None), [3, 3])
    with pytest.raises(PruneError, match="CAM_FRNT is not a camera of rig nuscenes"):
        STPrune().select(batch(rows, [view("CAM_FRNT", 8), views[1]]), [3, 3])
    # A rig of one camera: no neighbour but itself.
    alone = batch(rows[:1], views[:1], rig=Rig.from_names(["CAM_FRONT"]))
    want = TFPS().select(alone, [8]).indices
    assert torch.equal(STPrune().select(alone, [8]).indices, want)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lambda_time": 1.5}, "lambda_time 1.5 is out of range; pass a number from 0 to 1"),
        ({"lambda_ring": -0.1}, "lambda_ring -0.1 is out of range; pass a number from 0$"),
        ({"lambda_ring": float("inf")}, "lambda_ring inf"),
        ({"recency": "late"}, "recency 'late'"),
        ({"recency": True}, "recency True"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(PruneError, match=message):
        STPrune(**fields)


def test_is_a_view_method_without_signals():
    assert STPrune() == STPrune(0.6, 0.8, 0.5)
    assert (STPrune.name, STPrune.scope, STPrune.needs, STPrune.nested) == (
        "st-prune",
        "view",
        frozenset(),
        False,
    )
    tokens = batch(random([5, 3], 0), [view("CAM_FRONT", 5), view("CAM_BACK", 3)])
    with pytest.raises(PruneError, match="row 1: asked for 4 of 3"):
        STPrune().select(tokens, [1, 4])
