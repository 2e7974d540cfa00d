"""The record: what it says after one stage, after two, and as JSON."""

import json

import pytest
import torch

from prune2drive.engine.record import Record, ViewRecord
from prune2drive.errors import PruneError
from prune2drive.tokens import View


def view(name, n):
    none = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), none, none)


VIEWS = [[view("CAM_FRONT", 6), view("CAM_BACK", 4)], [], [view("CAM_FRONT", 5)]]


@pytest.fixture
def record():
    """Two cameras in sample 0, none in sample 1, one in sample 2; two stages."""
    made = Record("A() + B()", VIEWS, (30, 22), 2, lambda: 7.5)
    made.add_stage([3, 2, 4], torch.tensor([[5, 0, 2, -1], [3, 1, -1, -1], [4, 3, 0, 1]]), lambda: 1.25)
    made.add_stage([2, 1, 2], torch.tensor([[5, 2], [1, -1], [4, 0]]), lambda: 0.5)
    return made


def test_samples_are_what_the_last_stage_left_in_ascending_order(record):
    assert record.samples == [
        {"CAM_FRONT": ViewRecord(6, 2, [2, 5]), "CAM_BACK": ViewRecord(4, 1, [1])},
        {},
        {"CAM_FRONT": ViewRecord(5, 2, [0, 4])},
    ]


def test_every_stage_can_be_asked(record):
    first = record.stage(0)
    assert first[0]["CAM_FRONT"] == (6, 3, [0, 2, 5])
    assert first[0]["CAM_BACK"] == (4, 2, [1, 3])
    assert first[2]["CAM_FRONT"] == (5, 4, [0, 1, 3, 4])
    assert record.stage(1) == record.stage(-1) == record.samples


def test_a_stage_added_after_reading_is_seen():
    made = Record("A()", VIEWS[:1], (9, 9), 0, lambda: 0.0)
    assert made.samples == [{}]
    made.add_stage([1, 1], torch.tensor([[3], [2]]), lambda: 1.0)
    assert made.samples[0]["CAM_BACK"].indices == [2]
    made.add_stage([1, 1], torch.tensor([[4], [0]]), lambda: 1.0)
    assert made.samples[0]["CAM_BACK"].indices == [0]


def test_tokens_and_times(record):
    assert record.tokens == (15, 5)
    assert record.encode_ms == 7.5
    assert record.select_ms == 1.75


def test_views_by_name(record):
    assert [list(sample) for sample in record.views] == [["CAM_FRONT", "CAM_BACK"], [], ["CAM_FRONT"]]
    assert record.views[0]["CAM_BACK"] is VIEWS[0][1]


def test_json_round_trip(record):
    data = json.loads(record.to_json(indent=1))
    assert data == record.to_dict()
    assert data["sequence"] == {"before": 30, "after": 22}
    assert data["structure_tokens"] == 2
    assert data["method"] == "A() + B()"
    assert data["samples"][0]["CAM_FRONT"] == {"before": 6, "kept": 2, "indices": [2, 5]}
    assert data["samples"][1] == {}
    assert (data["encode_ms"], data["select_ms"]) == (7.5, 1.75)


def test_text(record):
    lines = str(record).splitlines()
    assert lines[0] == "A() + B(): prompt 30 -> 22 tokens"
    assert lines[1] == "sample 0"
    assert lines[2].split() == ["CAM_FRONT", "6", "->", "2", "33.3%"]
    assert lines[3].split() == ["CAM_BACK", "4", "->", "1", "25.0%"]
    assert lines[2].index("->") == lines[3].index("->")
    assert lines[-2].strip() == "cameras together 15 -> 5 (33.3%)"
    assert lines[-1].strip() == "encode 7.5 ms, choose 1.8 ms"
    alone = Record("A()", VIEWS[:1], (9, 9), 0, lambda: 0.0)
    alone.add_stage([1, 1], torch.tensor([[3], [2]]), lambda: 1.0)
    assert "sample" not in str(alone)
    assert "0 -> 0" in str(Record("A()", [[]], (3, 3), 0, lambda: 0.0))


def staged(layers, depth=8):
    """The fixture's two stages, at layers of a model that shows how many it has."""
    made = Record("A() + B()", VIEWS, (30, 22), 2, lambda: 7.5, depth)
    kept = [
        ([3, 2, 4], torch.tensor([[5, 0, 2, -1], [3, 1, -1, -1], [4, 3, 0, 1]])),
        ([2, 1, 2], torch.tensor([[5, 2], [1, -1], [4, 0]])),
    ]
    for layer, (counts, indices) in zip(layers, kept, strict=False):
        made.add_stage(counts, indices, lambda: 1.0, layer)
    return made


@pytest.mark.parametrize(
    ("layers", "seen"),
    [
        ([], [[10] * 8, [0] * 8, [5] * 8]),
        ([0], [[5] * 8, [0] * 8, [4] * 8]),
        ([3], [[10] * 3 + [5] * 5, [0] * 8, [5] * 3 + [4] * 5]),
        ([0, 2], [[5] * 2 + [3] * 6, [0] * 8, [4] * 2 + [2] * 6]),
        ([1, 7], [[10] + [5] * 6 + [3], [0] * 8, [5] + [4] * 6 + [2]]),
    ],
)
def test_what_each_layer_sees(layers, seen):
    made = staged(layers)
    assert made.layers == layers
    assert made.layer_tokens == seen
    assert made.layer_averaged == [sum(row) / 8 for row in seen]
    assert made.to_dict()["layer_averaged"] == made.layer_averaged
    assert json.loads(made.to_json())["layer_averaged"] == made.layer_averaged


def test_a_model_that_does_not_show_its_layers_has_no_average(record):
    assert record.layers == [0, 0] and record.depth is None
    assert record.to_dict()["layer_averaged"] is None
    assert "a layer sees" not in str(record)
    for ask in (lambda: record.layer_tokens, lambda: record.layer_averaged):
        with pytest.raises(PruneError, match=r"A\(\) \+ B\(\): this model does not show the layers"):
            ask()


def test_the_text_tells_the_average_only_where_layers_differ():
    assert "a layer sees" not in str(staged([0]))
    # Samples of (2 x 5 + 6 x 3) / 8 = 3.5, 0 and (2 x 4 + 6 x 2) / 8 = 2.5 tokens, of 10, 0 and 5.
    assert "  a layer sees 2.0 of 5 on average (40.0%)" in str(staged([0, 2])).splitlines()
