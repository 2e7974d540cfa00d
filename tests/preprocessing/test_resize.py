"""Resizing by products of matrices is PIL's resizing, bit for bit, and its sums stay exact."""

import numpy as np
import pytest
import torch
from PIL import Image

from prune2drive.preprocessing.resize import HALF, Resize, levels, make_pass

CPU = torch.device("cpu")
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(height, width, rng):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", FILTERS)
def test_random_sizes_both_up_and_down(mode):
    rng = np.random.default_rng(7)
    for _ in range(60):
        old_height, old_width, height, width = (int(x) for x in rng.integers(1, 150, 4))
        frames = [noise(old_height, old_width, rng) for _ in range(2)]
        frames[1] = np.where(frames[1] > 127, np.uint8(255), np.uint8(0))
        want = [np.asarray(Image.fromarray(f).resize((width, height), FILTERS[mode])) for f in frames]
        got = Resize(mode, CPU)(levels(torch.from_numpy(np.stack(frames))), height, width)
        assert torch.equal(got, levels(torch.from_numpy(np.stack(want)))), (
            old_height,
            old_width,
            height,
            width,
        )


def test_a_size_that_is_right_already():
    pictures = torch.rand(1, 3, 5, 7)
    assert Resize("bicubic", CPU)(pictures, 5, 7) is pictures


def test_autocast_does_not_reach_the_products():
    frames = levels(torch.from_numpy(noise(40, 60, np.random.default_rng(0)))[None])
    want = Resize("bicubic", CPU)(frames, 21, 33)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Resize("bicubic", CPU)(frames, 21, 33), want)


@pytest.mark.parametrize("mode", FILTERS)
def test_sums_stay_where_float32_and_tf32_are_exact(mode):
    rng = np.random.default_rng(3)
    pairs = [
        (1600, 384),
        (900, 384),
        (1600, 28),
        (900, 1344),
        (4000, 24),
        (2000, 9),
        (1, 2000),
        (3, 2),
        (1601, 1600),
    ]
    for old, new in [*pairs, *rng.integers(9, 2000, (40, 2)).tolist()]:
        made = make_pass(old, new, mode)
        assert torch.equal(made.weights, made.weights.round())
        assert made.weights.abs().max() <= HALF
        # Every order of adding up stays below the sum of magnitudes.
        assert 255 * made.weights.double().abs().sum(1).max() < 2**24
        seen = torch.from_numpy(rng.integers(200, 256, (64, made.weights.shape[1]))).float()
        exact = seen.double() @ made.weights.double()
        assert torch.equal((seen @ made.weights).double(), exact), (old, new)
        assert made.seen.min() >= 0 and made.seen.max() < old
