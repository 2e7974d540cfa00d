"""The record: what it says after one stage, after two, and as JSON."""

import json

import pytest
import torch

from prune2drive.engine.record import Record, ViewRecord
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
