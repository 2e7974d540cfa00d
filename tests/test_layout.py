"""Layouts: every token belongs to exactly one camera, and to the one whose picture it shows."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune2drive.errors import PruneError
from prune2drive.layout import THUMBNAIL, Mosaic, PerCamera, load_layout
from prune2drive.rig import NUSCENES, Camera, Rig
from prune2drive.tokens import WHOLE, ImageTokens, Segment

GRID = [
    ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"],
    ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"],
]


def tiled(cols, rows, side, start=0, thumbnail=True):
    """InternVL's layout: tiles row by row, ``side`` x ``side`` tokens each, then a thumbnail."""
    per_tile = side * side
    cut = []
    for tile in range(cols * rows):
        y, x = divmod(tile, cols)
        box = (x / cols, y / rows, (x + 1) / cols, (y + 1) / rows)
        cut.append(Segment(tile * per_tile, (side, side), box))
    if thumbnail:
        cut.append(Segment(len(cut) * per_tile, (side, side), WHOLE, thumbnail=True))
    return ImageTokens(start, len(cut) * per_tile, tuple(cut))


def plain(start, rows=2, cols=3):
    return ImageTokens(start, rows * cols, (Segment(0, (rows, cols)),))


def row_of(count, length=6):
    return [plain(at * length) for at in range(count)]


def names(views):
    return [view.name for view in views]


def tokens_of(views):
    return {view.name: view.index.tolist() for view in views}


# One image per camera ---------------------------------------------------------------------------


def test_rig_order():
    views = PerCamera().assign(row_of(6), NUSCENES, 0)
    assert names(views) == list(NUSCENES.names)
    for at, view in enumerate(views):
        assert view.index.tolist() == list(range(6 * at, 6 * at + 6))
        assert view.index.dtype == view.part.dtype == view.frame.dtype == torch.int64
        assert view.boxes.dtype == torch.float32
        assert view.boxes.shape == (6, 4)
        assert not view.part.any()
        assert not view.frame.any()


def test_without_rig_and_names_every_image_is_a_view():
    assert names(PerCamera().assign(row_of(3), None, 0)) == ["IMAGE_0", "IMAGE_1", "IMAGE_2"]
    with pytest.raises(PruneError, match="frames=2"):
        PerCamera(frames=2).assign(row_of(4), None, 0)


def test_no_images_no_views():
    assert PerCamera().assign([], NUSCENES, 0) == []
    assert Mosaic.internvl_drivelm().assign([], NUSCENES, 0) == []


@given(st.permutations(NUSCENES.names))
@settings(max_examples=20, deadline=None)
def test_permuted_cameras_permute_views(order):
    views = PerCamera(order).assign(row_of(6), NUSCENES, 0)
    assert names(views) == list(order)
    found = tokens_of(views)
    for at, name in enumerate(order):
        assert found[name] == list(range(6 * at, 6 * at + 6))


def test_frames_in_both_orders():
    by_camera = PerCamera(["A", "B"], frames=3).assign(row_of(6, 6), None, 0)
    by_frame = PerCamera(["A", "B"], frames=3, order="frame").assign(row_of(6, 6), None, 0)
    assert names(by_camera) == names(by_frame) == ["A", "B"]
    assert by_camera[1].index.tolist() == list(range(18, 36))
    assert by_frame[1].index.tolist() == [*range(6, 12), *range(18, 24), *range(30, 36)]
    for view in (*by_camera, *by_frame):
        assert view.frame.tolist() == view.part.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_tiles_and_thumbnail_of_an_image_belong_to_its_camera():
    one, two = tiled(2, 1, 2), tiled(2, 1, 2, start=12)
    views = PerCamera(["A"], frames=2).assign([one, two], None, 0)
    assert views[0].index.tolist() == list(range(24))
    assert views[0].part.tolist() == [part for part in range(6) for _ in range(4)]
    assert views[0].frame.tolist() == [0] * 12 + [1] * 12


def test_interleaved_segments_come_out_in_sequence_order():
    # Two tiles stitched into one picture: their rows alternate, a newline ends each row.
    image = ImageTokens(
        10, 10, (Segment(0, (2, 2), (0, 0, 0.5, 1), stride=5), Segment(2, (2, 2), (0.5, 0, 1, 1), stride=5))
    )
    (view,) = PerCamera(["A"]).assign([image], None, 0)
    assert view.index.tolist() == [10, 11, 12, 13, 15, 16, 17, 18]
    assert view.part.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert view.boxes[2].tolist() == pytest.approx([0.5, 0, 0.75, 0.5])


def test_names_per_sample():
    layout = PerCamera([["A", "B"], ["B"]])
    assert names(layout.assign(row_of(2), None, 0)) == ["A", "B"]
    assert names(layout.assign(row_of(1), None, 1)) == ["B"]
    with pytest.raises(
        PruneError, match="sample 1: 2 images, cameras= names 1 camera x 1 frame; named are B"
    ):
        layout.assign(row_of(2), None, 1)
    with pytest.raises(PruneError, match="sample 2: cameras= lists camera names for 2 samples only"):
        layout.assign(row_of(1), None, 2)


def test_unknown_names_are_left_to_the_allocator():
    assert names(PerCamera(["CAM_FORNT"]).assign(row_of(1), NUSCENES, 0)) == ["CAM_FORNT"]


def test_count_mismatch():
    with pytest.raises(PruneError) as error:
        PerCamera().assign(row_of(5), NUSCENES, 0)
    assert str(error.value) == (
        "sample 0: 5 images, rig 'nuscenes' has 6 cameras x 1 frame; name the cameras you pass: cameras=[...]"
    )
    with pytest.raises(PruneError, match=r"sample 3: 7 images.*6 cameras x 2 frames"):
        PerCamera(frames=2).image_sizes(7, NUSCENES, 3)


def test_image_without_tokens():
    with pytest.raises(PruneError, match=r"sample 4: image 1 \(B\) has no visual tokens"):
        PerCamera(["A", "B"]).assign([plain(0), ImageTokens(6, 0, ())], None, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cameras": ["A", "B", "A"]}, "names A twice.*frames="),
        ({"cameras": [["A"], ["B", "B"]]}, "names B twice"),
        ({"cameras": "CAM_FRONT"}, r"cameras=\['CAM_FRONT'\]"),
        ({"cameras": ["A", ["B"]]}, "mixes names and lists"),
        ({"frames": 0}, "frames 0"),
        ({"order": "frames"}, "Did you mean 'frame'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(PruneError, match=words):
        PerCamera(**options)


def test_image_sizes():
    rig = Rig("van", (Camera("wide", 0, 120, (1920, 1080)), Camera("tele", 0, 30)))
    assert PerCamera().image_sizes(2, rig, 0) == [(1920, 1080), (1600, 900)]
    assert PerCamera(["tele", "other"], frames=2).image_sizes(4, rig, 0) == [(1600, 900)] * 2 + [None] * 2
    sizes = PerCamera(frames=2, order="frame").image_sizes(4, rig, 0)
    assert sizes == [(1920, 1080), (1600, 900)] * 2
    assert PerCamera().image_sizes(2, None, 0) == [None, None]
    assert Mosaic.internvl_drivelm().image_sizes(2, NUSCENES, 0) == [(2688, 896)] * 2
    assert Mosaic.grid(GRID).image_sizes(1, None, 0) == [None]


# One stitched picture ---------------------------------------------------------------------------


def camera_at(x, y):
    """The camera of a point of the 3x2 mosaic, in exact arithmetic: ties to the left and upper cell."""
    col, row = int(x * 3), int(y * 2)
    col -= col > 0 and x * 3 == col
    row -= row > 0 and y * 2 == row
    return GRID[row][col]


def brute_force(cols, rows, side, thumbnail=True):
    """Token -> camera for a tiled mosaic, token by token, in fractions."""
    found = {name: [] for row in GRID for name in row}
    token = 0
    for tile_y in range(rows):
        for tile_x in range(cols):
            for y in range(side):
                for x in range(side):
                    centre_x = (tile_x + Fraction(2 * x + 1, 2 * side)) / cols
                    centre_y = (tile_y + Fraction(2 * y + 1, 2 * side)) / rows
                    found[camera_at(centre_x, centre_y)].append(token)
                    token += 1
    for y in range(side * thumbnail):
        for x in range(side):
            found[camera_at(Fraction(2 * x + 1, 2 * side), Fraction(2 * y + 1, 2 * side))].append(token)
            token += 1
    return found


@pytest.mark.parametrize(
    ("cols", "rows", "side"),
    [
        (6, 2, 16),
        (5, 2, 16),  # a raw 4800x1800 mosaic: tiles straddle cameras
        (3, 1, 16),  # at most 6 tiles: each holds a front and a back camera
        (1, 1, 27),  # odd grid: the middle row lies exactly between the cameras
        (4, 3, 9),
        (2, 1, 3),
    ],
)
def test_mosaic_agrees_with_brute_force(cols, rows, side):
    for mosaic in (Mosaic.grid(GRID), Mosaic.drivelmm_o1()):
        views = mosaic.assign([tiled(cols, rows, side)], NUSCENES, 0)
        assert tokens_of(views) == brute_force(cols, rows, side)
        assert names(views) == [name for row in GRID for name in row]


def test_internvl_drivelm_camera_is_two_tiles_side_by_side():
    views = Mosaic.internvl_drivelm(thumbnail="own").assign([tiled(6, 2, 16)], NUSCENES, 0)
    assert names(views) == [*(name for row in GRID for name in row), THUMBNAIL]
    for at, view in enumerate(views[:6]):
        row, col = divmod(at, 3)
        first = 256 * (6 * row + 2 * col)
        assert view.index.tolist() == list(range(first, first + 512))
        assert view.part.tolist() == [0] * 256 + [1] * 256
        # In its own picture the camera fills everything, left tile left.
        low, high = view.boxes[:, :2].amin(0), view.boxes[:, 2:].amax(0)
        torch.testing.assert_close(torch.cat([low, high]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        assert view.boxes[:256, 2].max().item() == pytest.approx(0.5)
        assert view.boxes[256:, 0].min().item() == pytest.approx(0.5)
    assert views[6].index.tolist() == list(range(3072, 3328))
    assert views[6].boxes[-1].tolist() == pytest.approx([15 / 16, 15 / 16, 1, 1])


def test_thumbnail_tokens_are_shared_out_by_default():
    views = Mosaic.internvl_drivelm().assign([tiled(6, 2, 16)], NUSCENES, 0)
    assert [len(view) for view in views] == [512 + 8 * wide for wide in (5, 6, 5)] * 2
    assert views[0].part.unique().tolist() == [0, 1, 2]


def test_own_thumbnail_only_where_there_is_one():
    mosaic = Mosaic.grid(GRID, thumbnail="own")
    assert THUMBNAIL not in names(mosaic.assign([tiled(3, 2, 4, thumbnail=False)], None, 0))


def test_boxes_are_cut_at_the_border_of_the_camera():
    mosaic = Mosaic.grid([["L", "R"]], (200, 100))
    left, right = mosaic.assign([plain(0, 1, 5)], None, 0)
    # Five tokens over two cameras: the middle one is centred on the border and goes left.
    assert left.index.tolist() == [0, 1, 2]
    assert left.boxes[2].tolist() == pytest.approx([0.8, 0, 1, 1])
    assert right.index.tolist() == [3, 4]
    assert right.boxes[0].tolist() == pytest.approx([0.2, 0, 0.6, 1])


def test_margin_tokens_go_to_the_nearest_cell_in_pixels():
    cells = {"SIDE": (0, 0, 0.4, 0.4), "BELOW": (0.6, 0.8, 1, 1)}
    # The centre (0.7, 0.3) is 0.3 right of SIDE and 0.5 above BELOW, in shares. In a picture ten
    # times as wide as high, BELOW is nearer.
    image = ImageTokens(0, 5, (Segment(0, (1, 1), (0.6, 0.2, 0.8, 0.4)), *_anchors(cells)))
    assert 0 in tokens_of(Mosaic(cells).assign([image], None, 0))["SIDE"]
    assert 0 in tokens_of(Mosaic(cells, (1000, 100)).assign([image], None, 0))["BELOW"]


def _anchors(cells):
    return [Segment(at + 1, (1, 1), box) for at, box in enumerate(cells.values())]


def test_several_mosaics_are_frames():
    mosaic = Mosaic.grid([["L", "R"]])
    left, right = mosaic.assign([plain(0, 2, 4), plain(8, 2, 4)], None, 0)
    assert left.index.tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert right.frame.tolist() == right.part.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_empty_cell():
    with pytest.raises(
        PruneError, match=r"sample 2: no token centre falls into the cell of CAM_FRONT,.*tiles"
    ):
        Mosaic.grid(GRID).assign([plain(0, 2, 2)], NUSCENES, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mosaic({}), "needs cells"),
        (lambda: Mosaic({"A": (0, 0, 0.6, 1), "B": (0.5, 0, 1, 1)}), "A and B overlap"),
        (lambda: Mosaic({"A": (0, 0, 1600, 900)}), "A.*not pixels"),
        (lambda: Mosaic({"A": (0, 0, 1)}), "A"),
        (lambda: Mosaic({THUMBNAIL: WHOLE}, thumbnail="own"), "rename"),
        (lambda: Mosaic({"A": WHOLE}, thumbnail="owned"), "Did you mean 'own'"),
        (lambda: Mosaic({"A": WHOLE}, (1600, 0)), r"mosaic: size \(1600, 0\)"),
        (lambda: Mosaic.grid([["A", "B"], ["A"]]), "names A twice"),
        (lambda: Mosaic.grid(["A", "B"]), "one list per row"),
    ],
)
def test_bad_mosaics(make, words):
    with pytest.raises(PruneError, match=words):
        make()


# Anything ---------------------------------------------------------------------------------------


@st.composite
def prompts(draw):
    """Images of random tilings, with row ends, separators between them and optional thumbnails."""
    images, start = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(1, 3))):
        cols, rows = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        high, wide = draw(st.integers(2, 6)), draw(st.integers(3, 6))
        newline, gap = draw(st.booleans()), draw(st.integers(0, 2))
        boxes = [
            (x / cols, y / rows, (x + 1) / cols, (y + 1) / rows) for y in range(rows) for x in range(cols)
        ]
        at, cut = 0, []
        for number in range(len(boxes) + draw(st.booleans())):
            box = boxes[number] if number < len(boxes) else WHOLE
            cut.append(Segment(at, (high, wide), box, wide + newline, thumbnail=number >= len(boxes)))
            at += high * (wide + newline) + gap
        images.append(ImageTokens(start, at, tuple(cut)))
        start += at + draw(st.integers(0, 2))
    return images


@given(prompts(), st.sampled_from(["per-camera", "frames", "assign", "own"]))
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_exactly_one_view(images, kind):
    layout = {
        "per-camera": PerCamera(),
        "frames": PerCamera(["A"], frames=len(images)),
        "assign": Mosaic.grid(GRID),
        "own": Mosaic.grid([["A", "B"], ["C"]], (640, 360), thumbnail="own"),
    }[kind]
    views = layout.assign(images, None, 0)
    covered = [image.start + segment.offsets() for image in images for segment in image.segments]
    together = torch.cat([view.index for view in views])
    assert sorted(together.tolist()) == sorted(torch.cat(covered).tolist())
    for view in views:
        assert (view.index.diff() > 0).all()
        assert len(view) == len(view.boxes) == len(view.part) == len(view.frame)
        assert view.part.unique().tolist() == list(range(int(view.part.max()) + 1))
        assert view.boxes.min() >= 0
        assert view.boxes.max() <= 1
        assert (view.boxes[:, :2] <= view.boxes[:, 2:]).all()


# By name ----------------------------------------------------------------------------------------


def test_load_layout():
    assert load_layout(None) == load_layout("per-camera") == PerCamera()
    assert load_layout(None, ["A"]) == PerCamera(["A"])
    assert load_layout(PerCamera(frames=2), ["A"]) == PerCamera(["A"], frames=2)
    assert load_layout("internvl-drivelm") == Mosaic.internvl_drivelm()
    assert load_layout("drivelmm-o1").size == (4800, 1800)
    mosaic = Mosaic.grid(GRID)
    assert load_layout(mosaic) is mosaic
    assert hash(mosaic) == hash(Mosaic.grid(GRID))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("internvl-drivlm",), "Did you mean 'internvl-drivelm'"),
        ((3,), "layout 3"),
        (("internvl-drivelm", ["A"]), "names its cameras itself"),
        ((PerCamera(["A"]), ["B"]), "names its cameras itself"),
    ],
)
def test_load_layout_errors(arguments, words):
    with pytest.raises(PruneError, match=words):
        load_layout(*arguments)
