"""The drawn street: the same every time, and one world seen by six cameras."""

import numpy as np
import pytest

from prune2drive.demo_pictures import draw_frame
from prune2drive.rig import NUSCENES, Camera, Rig


@pytest.fixture(scope="module")
def frame():
    return draw_frame(0)


def orange(picture) -> float:
    """Share of pixels of the bus's colour."""
    r, g, b = np.asarray(picture, dtype=int).transpose(2, 0, 1)
    return float(((r > 190) & (g > 90) & (g < 160) & (b < 80)).mean())


def test_six_pictures_of_the_cameras_sizes(frame):
    assert tuple(frame) == NUSCENES.names
    assert {(p.mode, p.size) for p in frame.values()} == {("RGB", (1600, 900))}
    assert len({p.tobytes() for p in frame.values()}) == 6


def test_same_seed_same_pixels(frame):
    small = Rig("small", (Camera("CAM_FRONT", 0.0, 70.0, (320, 180)),))
    assert draw_frame(3, small)["CAM_FRONT"].tobytes() == draw_frame(3, small)["CAM_FRONT"].tobytes()
    assert draw_frame(3, small)["CAM_FRONT"].tobytes() != draw_frame(4, small)["CAM_FRONT"].tobytes()


def test_the_bus_is_large_in_the_back_left_picture_only(frame):
    shares = {name: orange(picture) for name, picture in frame.items()}
    assert shares["CAM_BACK_LEFT"] > 0.15
    assert max(share for name, share in shares.items() if name != "CAM_BACK_LEFT") < 0.08


def test_sky_above_the_horizon_and_road_below(frame):
    for name, picture in frame.items():
        pixels = np.asarray(picture, dtype=int)
        road = pixels[-60:, 700:900].reshape(-1, 3)
        assert np.abs(road.max(1) - road.min(1)).mean() < 60, name  # grey, apart from a lane mark
    front = np.asarray(frame["CAM_FRONT"], dtype=int)
    assert (front[60, 800, 2] - front[60, 800, 0]) > 15  # blue, between the houses
