"""Cameras from prompt to record: rigs, frames, mosaics and rates through a whole call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import prune2drive as p2d
from families_table import FAMILIES
from prune2drive.allocators import Total
from prune2drive.layout import Mosaic, PerCamera

CASES = {case.name: case for case in FAMILIES}
NUSCENES = [
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
]


def run(case, inputs, **options):
    model = case.model()
    with p2d.prune(model, **options) as pruned, torch.no_grad():
        model(**inputs)
    return pruned.record


def kept(record, sample=0):
    return {name: (cell.before, cell.kept) for name, cell in record.samples[sample].items()}


def test_rates_per_camera_with_a_star():
    case = CASES["llava"]
    rates = {"CAM_FRONT": 0.5, "CAM_BACK": 0.1, "*": 0.25}
    record = run(case, case.inputs([6]), rig="nuscenes", retention=rates)
    assert kept(record) == {
        "CAM_FRONT": (36, 18),
        "CAM_FRONT_LEFT": (36, 9),
        "CAM_FRONT_RIGHT": (36, 9),
        "CAM_BACK": (36, 4),
        "CAM_BACK_LEFT": (36, 9),
        "CAM_BACK_RIGHT": (36, 9),
    }


def test_cameras_may_come_in_any_order_and_number():
    case = CASES["llava"]
    names = [["CAM_BACK", "CAM_FRONT"], ["CAM_FRONT_LEFT", "CAM_BACK", "CAM_FRONT"]]
    rates = {"CAM_FRONT": 0.5, "*": 0.25}
    record = run(case, case.inputs([2, 3]), rig="nuscenes", cameras=names, retention=rates)
    assert kept(record, 0) == {"CAM_BACK": (36, 9), "CAM_FRONT": (36, 18)}
    assert kept(record, 1) == {"CAM_FRONT_LEFT": (36, 9), "CAM_BACK": (36, 9), "CAM_FRONT": (36, 18)}


def test_missing_and_extra_cameras_are_named():
    case = CASES["llava"]
    with pytest.raises(p2d.PruneError, match=r"5 images.*6 cameras.*cameras="):
        run(case, case.inputs([5]), rig="nuscenes", retention=0.1)
    extra = [*NUSCENES[:2], "CAM_TELE"]
    with pytest.raises(p2d.PruneError, match=r"CAM_TELE is not a camera of rig nuscenes"):
        run(case, case.inputs([3]), rig="nuscenes", cameras=extra, retention=0.1)
    record = run(
        case, case.inputs([3]), rig="nuscenes", cameras=extra, retention={"CAM_FRONT": 0.5, "*": 0.1}
    )
    assert kept(record)["CAM_TELE"] == (36, 4)
    with pytest.raises(p2d.PruneError, match=r"CAM_BACK_LEFT"):
        run(case, case.inputs([6]), rig="nuscenes", retention=dict.fromkeys(NUSCENES[:4], 0.1))


def test_an_exact_total_is_met():
    case = CASES["internvl"]
    record = run(case, case.inputs([6, 3]), retention=Total(50))
    for sample in range(2):
        assert sum(k for _, k in kept(record, sample).values()) == 50


def test_frames_of_a_camera_are_one_view():
    case = CASES["llava"]
    by_camera = PerCamera(["CAM_FRONT", "CAM_BACK"], frames=3)
    by_frame = PerCamera(["CAM_FRONT", "CAM_BACK"], frames=3, order="frame")
    inputs = case.inputs([6])
    first = run(case, inputs, rig="nuscenes", layout=by_camera, retention=0.25)
    second = run(case, inputs, rig="nuscenes", layout=by_frame, retention=0.25)
    assert kept(first) == kept(second) == {"CAM_FRONT": (108, 27), "CAM_BACK": (108, 27)}
    assert first.views[0]["CAM_BACK"].index.tolist() == list(range(108, 216))
    assert second.views[0]["CAM_BACK"].index[:37].tolist() == [*range(36, 72), 108]


def test_a_stitched_picture_is_cut_by_camera():
    """Two tiles across, one down, and a thumbnail: each tile holds more than one camera."""
    case = CASES["internvl"]
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (32, 96, 3), dtype=np.uint8))
    inputs = case.encode([case.image_text + " what"], [[picture]])
    rows = [
        ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"],
        ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"],
    ]
    record = run(case, inputs, rig="nuscenes", layout=Mosaic.grid(rows, (96, 32)), retention=0.5)
    views = record.views[0]
    assert set(views) == set(NUSCENES)
    everything = torch.cat([view.index for view in views.values()]).sort().values
    placeholders = inputs["input_ids"] == case.image_token_id(case.model())
    assert everything.tolist() == list(range(int(placeholders.sum())))
    for name, cell in record.samples[0].items():
        assert cell.kept == (cell.before + 1) // 2, name
    # The thumbnail's tokens are shared out by place: its middle row is a tie and goes up.
    assert len(views["CAM_FRONT"]) > len(views["CAM_BACK"])


@pytest.mark.parametrize("method", ["tfps", "random", "stratified", "stride", "tfps-layer", "tfps-released"])
def test_every_method_meets_the_same_budget(method):
    case = CASES["llava_next"]
    record = run(case, case.inputs([3, 2]), method=method, retention=0.2)
    for sample in record.samples:
        for name, cell in sample.items():
            half_up = (200_000 * cell.before + 500_000) // 1_000_000
            assert cell.kept == (int(cell.before * 0.2) if method == "tfps-released" else half_up), name
            assert cell.indices == sorted(set(cell.indices))
            assert cell.indices[0] >= 0 and cell.indices[-1] < cell.before
            assert len(cell.indices) == cell.kept
