"""Where a token lies in the picture, asked of the real processor and tower.

A small bright spot is painted into a picture; the token whose features change most must be the one
whose box holds the spot (or its neighbour: resizing smears a spot over a token's edge).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import prune2drive as p2d
from families_table import FAMILIES, FAMILY_IDS, IMAGE_SIZES
from prune2drive.families.base import near_square, tile_grid, tiles

SPOTS = [(0.15, 0.2), (0.8, 0.25), (0.3, 0.8), (0.85, 0.9)]


def spotted(size, spot):
    """A grey noise picture, and the same with a 3x3 white spot; the spot's centre in shares."""
    width, height = size
    pixels = np.random.default_rng(0).integers(100, 140, (height, width, 3), dtype=np.uint8)
    x, y = int(spot[0] * width), int(spot[1] * height)
    marked = pixels.copy()
    marked[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 255
    return Image.fromarray(pixels), Image.fromarray(marked), ((x + 0.5) / width, (y + 0.5) / height)


def features_and_view(case, model, picture):
    rig = p2d.Rig("one", (p2d.Camera("CAM", 0.0, 70.0, size=picture.size),))
    inputs = case.encode([case.image_text + " what"], [[picture]])
    with p2d.prune(model, "stride", 1.0, rig=rig) as pruned, torch.no_grad():
        model(**inputs)
        encoder = {k: v for k, v in inputs.items() if k in pruned.family.encoder_names()}
        flat, _ = pruned.family.flatten(pruned.family.encode(encoder).pooler_output)
    return flat, pruned.record.views[0]["CAM"]


@pytest.mark.parametrize("case", FAMILIES, ids=FAMILY_IDS)
def test_a_spot_changes_the_token_whose_box_holds_it(case):
    model = case.model()
    # CLIP's processor shows the model only the middle square, so there only squares are whole.
    sizes = [(24, 24), (48, 48)] if case.name == "llava" else IMAGE_SIZES
    misses = []
    for size in sizes:
        for spot in SPOTS:
            plain, marked, (x, y) = spotted(size, spot)
            before, view = features_and_view(case, model, plain)
            after, _ = features_and_view(case, model, marked)
            top = (after - before).norm(dim=-1)[view.index].argmax()
            x0, y0, x1, y1 = view.boxes[top].tolist()
            w, h = x1 - x0, y1 - y0
            if not (x0 - w <= x <= x1 + w and y0 - h <= y <= y1 + h):
                misses.append((size, spot, [round(v, 2) for v in (x0, y0, x1, y1)]))
    # A random tower mixes tokens; one stray maximum is noise, a wrong grid misses by the dozen.
    assert len(misses) <= 1, misses


@pytest.mark.parametrize("case", FAMILIES, ids=FAMILY_IDS)
def test_every_part_covers_its_picture(case):
    """The tiles of a picture together, and each thumbnail alone, cover it exactly once."""
    model = case.model()
    for size in IMAGE_SIZES:
        _, view = features_and_view(case, model, spotted(size, (0.5, 0.5))[0])
        area = ((view.boxes[:, 2] - view.boxes[:, 0]) * (view.boxes[:, 3] - view.boxes[:, 1])).sum()
        layers = 2 if len(view.part.unique()) > 1 else 1  # tiles and a thumbnail
        assert area.item() == pytest.approx(layers, abs=1e-4), size


def test_tile_grid_takes_the_factors_nearest_the_picture():
    assert tile_grid(12, (2688, 896)) == (2, 6)
    assert tile_grid(12, (1600, 900)) == (3, 4)
    assert tile_grid(6, (900, 1600)) == (3, 2)
    assert tile_grid(2, None) == (1, 2)
    assert near_square(729) == (27, 27)
    assert near_square(2 * 8, (1600, 800)) == (4, 4)


def test_tiles_run_row_by_row():
    cut = tiles(2, 3, (4, 4), start=16)
    assert [s.start for s in cut] == [16 + 16 * n for n in range(6)]
    assert cut[4].box == pytest.approx((1 / 3, 1 / 2, 2 / 3, 1))


@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("size", [(64, 32), (30, 60)])
def test_pictures_that_share_a_prompt_are_padded_to_a_square(size, spot):
    """LLaVA-OneVision: the grid then reaches beyond the picture."""
    case = next(case for case in FAMILIES if case.name == "llava_onevision")
    model = case.model()
    plain, marked, (x, y) = spotted(size, spot)

    def features(picture):
        inputs = case.encode([case.prompt(2)], [[picture, plain]])
        with p2d.prune(model, "stride", 1.0) as pruned, torch.no_grad():
            model(**inputs)
            encoder = {k: v for k, v in inputs.items() if k in pruned.family.encoder_names()}
            flat, _ = pruned.family.flatten(pruned.family.encode(encoder).pooler_output)
        return flat, pruned.record.views[0]["IMAGE_0"]

    (before, view), (after, _) = features(plain), features(marked)
    assert view.boxes.min() < 0
    assert view.boxes.max() > 1
    x0, y0, x1, y1 = view.boxes[(after - before).norm(dim=-1)[view.index].argmax()].tolist()
    assert x0 - 0.02 <= x <= x1 + 0.02
    assert y0 - 0.02 <= y <= y1 + 0.02
