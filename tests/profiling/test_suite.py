"""The speed result's file: what is one, and what is refused with the place named."""

import json

import pytest

from prune2drive.errors import PruneError
from prune2drive.profiling.suite import SCHEMA, WHAT, load_suite

TIME = {"median": 2.0, "lowest": 1.0, "highest": 3.0, "runs": 3}
CELL = "steps/0-stock"


def result(**changes):
    row = {"shape": "tiny", "id": "stock", "title": "as it comes", "ttft_ms": TIME, "gain": None}
    base = {
        "what": WHAT, "schema": SCHEMA, "date": "2026-01-01", "hardware": {}, "versions": {}, "settings": {},
        "ceilings": {}, "predictions": [], "skipped": [], "failures": [],
        "cells": {CELL: {**row, "parts_ms": {"upload": TIME, "vision": None}}},
    }  # fmt: skip
    return {**base, **changes}


def written(tmp_path, data):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(data))
    return path


def test_reads_what_is_whole(tmp_path):
    assert load_suite(written(tmp_path, result()))["cells"][CELL]["ttft_ms"] == TIME


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "no result of the speed suite"),
        ({"what": "a profile"}, "no result of the speed suite"),
        (result(schema=SCHEMA + 1), f"schema {SCHEMA + 1}"),
        ({k: v for k, v in result().items() if k != "ceilings"}, "lacks ceilings"),
        (result(cells=[]), "cells is a list"),
        (result(cells={"step/0-stock": {}}), "Did you mean 'steps'"),
        (result(cells={"steps/": {}}), "no known section"),
        (result(cells={CELL: 3}), "is a int, not a row"),
        (result(cells={CELL: {"shape": "tiny"}}), "lacks id, title"),
        (result(cells={CELL: {**result()["cells"][CELL], "ttft_ms": 2.0}}), "ttft_ms is no time"),
        (result(cells={CELL: {**result()["cells"][CELL], "ttft_ms": {"median": -1}}}), "ttft_ms is no time"),
        (result(cells={CELL: {**result()["cells"][CELL], "parts_ms": {"upload": 1}}}), "parts_ms is no time"),
    ],
)
def test_refuses(tmp_path, data, message):
    with pytest.raises(PruneError, match=message):
        load_suite(written(tmp_path, data))


def test_limits_are_plain_numbers(tmp_path):
    numbers = {"floor_ms": {"gram": 0.02, "total": 0.05}, "reach_ms": 0.3}
    data = result(cells={CELL: {**result()["cells"][CELL], **numbers}})
    assert load_suite(written(tmp_path, data))["cells"][CELL]["reach_ms"] == 0.3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PruneError, match="nowhere"):
        load_suite(tmp_path / "nowhere.json")
