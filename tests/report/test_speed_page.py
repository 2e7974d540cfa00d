"""The page of the speed suite: figures are there, charts are true, and what lacks is said, not guessed."""

import copy
import math
import re
from itertools import pairwise

import pytest
from speed_suites import suite, time
from svg_helpers import SVG, assert_apart_and_inside, drawn

from prune2drive.profiling.suite import check_suite
from prune2drive.report import speed, speed_charts, speed_rows, speed_tables
from prune2drive.report.chart import Point, Series
from prune2drive.report.speed_charts import Bar, Mark, bars_svg, ratio_svg

SECTIONS = ("kernel", "prefill", "steps", "break_even", "rivals", "memory", "preprocess")
NASTY = "</style><script>|`*'\"&"


@pytest.fixture(scope="module")
def whole():
    return suite()


def charts(page: str) -> list:
    return [drawn(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def without(found: dict, section: str) -> dict:
    return found | {"cells": {k: v for k, v in found["cells"].items() if not k.startswith(section + "/")}}


def test_the_made_up_suite_is_one(whole):
    check_suite(whole, "made up")


def test_page_is_self_contained_and_says_what_was_measured(whole):
    page = speed.speed_page(whole)
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for words in (
        "NVIDIA Imagined X100 80GB",
        "driver 999.1",
        "PyTorch 2.11.0",
        "Triton 3.6.0",
        "2000-01-01",
    ):
        assert words in page
    assert "CUDA out of memory" in page and "only with --compile" in page
    assert "Not measured in this run." not in page


def test_every_chart_can_be_read(whole):
    found = charts(speed.speed_page(whole))
    assert len(found) > 20
    for chart in found:
        assert_apart_and_inside(chart)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_lacks_is_named(whole, section):
    page = speed.speed_page(without(whole, section))
    assert page.count("Not measured in this run.") == (2 if section == "prefill" else 1)


def test_an_empty_suite_makes_a_page():
    page = speed.speed_page({"hardware": {"cpu": "Imagined CPU", "cores": 2}})
    assert "2 cores of Imagined CPU" in page
    assert page.count("Not measured in this run.") == 8


@pytest.mark.parametrize("change", ["null", "absent"])
def test_any_field_may_lack(whole, change):
    """Each field of each row in turn, on a suite with one row a section so that it stays fast."""
    first = {}
    for key, row in whole["cells"].items():
        first.setdefault(key.partition("/")[0], (key, row))
    cells = dict(first.values())
    for key, row in cells.items():
        for field in row:
            changed = {k: v for k, v in row.items() if k != field}
            changed |= {field: None} if change == "null" else {}
            speed.speed_page(whole | {"cells": cells | {key: changed}})


def test_top_fields_may_lack(whole):
    for field in whole:
        speed.speed_page({k: v for k, v in whole.items() if k != field})
        speed.speed_page(whole | {field: None})


def test_text_from_the_file_is_text(whole):
    bad = copy.deepcopy(whole)
    bad["hardware"]["gpu"] = bad["failures"][0]["reason"] = bad["predictions"][0]["why"] = NASTY
    for row in bad["cells"].values():
        for field in ("shape", "method", "title", "note"):
            if field in row:
                row[field] = NASTY
    page = speed.speed_page(bad)
    assert "<script>" not in page
    for chart in charts(page):
        assert chart.tag == f"{SVG}svg"


def test_headline_by_hand(whole):
    row = whole["cells"]["prefill/drivemm-b1-r0.1-captured"]
    said = speed_tables.headline(whole)
    assert f"prefill {row['prefill_ratio']:.1f} times" in said
    assert f"time to first token {row['ttft_ratio']:.1f} times as fast" in said
    assert f"reaches {100 * row['share_of_limit']:.0f}% of" in said


def test_the_row_of_the_headline_is_captured_and_of_the_first_shape(whole):
    row = speed_rows.main_row(whole)
    assert (row["shape"], row["batch"], row["mode"]) == ("drivemm", 1, "captured")
    eager = {k: v for k, v in whole["cells"].items() if not k.endswith("captured")}
    assert speed_rows.main_row(whole | {"cells": eager})["mode"] == "eager"
    assert speed_rows.main_row({}) is None


def test_parts_of_the_first_token_sum_to_it():
    row = {"vision_ms": time(40), "projector_ms": time(2), "select_ms": None, "prefill_ms": time(50)}
    assert speed._parts(row | {"ttft_ms": time(100)}) == [(0, 40), (1, 2), (3, 50), (4, 8)]
    assert speed._parts(row | {"ttft_ms": time(90)}) == [(0, 40), (1, 2), (3, 50)]


def test_bars_are_as_long_as_their_values():
    found = drawn(
        bars_svg([Bar("a", [(0, 30.0), (1, 10.0)]), Bar("b", [(0, 20.0)])], title="t", legend=("x", "y"))
    )
    bars = [node for node in found.iter(f"{SVG}rect") if node.get("height") == "13"]
    a, b, c = ((float(bar.get("x")), float(bar.get("width"))) for bar in bars)
    assert a[0] == c[0] and b[0] == pytest.approx(a[0] + a[1], abs=0.11)
    assert a[1] / b[1] == pytest.approx(3, rel=0.01) and a[1] / c[1] == pytest.approx(1.5, rel=0.01)
    assert {"40.0 ms", "20.0 ms"} <= {node.text for node in found.iter(f"{SVG}text")}


def test_bars_on_a_logarithmic_axis():
    found = drawn(bars_svg([Bar(str(v), [(0, v)]) for v in (0.1, 1.0, 10.0)], title="t", log=True))
    long = [float(node.get("width")) for node in found.iter(f"{SVG}rect")]
    assert long[2] - long[1] == pytest.approx(long[1] - long[0], abs=0.2)
    assert long[0] > 5


def test_the_mark_stands_at_its_value():
    bars = [Bar("half", [(0, 0.5)]), Bar("all", [(0, 1.0)])]
    found = drawn(bars_svg(bars, title="t", words=speed_rows.share, mark=Mark("half", 0.5), width=760))
    (line,) = (node for node in found.iter(f"{SVG}path") if node.get("stroke-dasharray") == "6 4")
    half = next(found.iter(f"{SVG}rect"))
    at = float(line.get("d")[1:].split()[0])
    assert at == pytest.approx(float(half.get("x")) + float(half.get("width")), abs=0.11)


def test_ratios_stand_at_their_logarithms():
    points = [Point(1, 1), Point(0.1, 10), Point(0.01, 100)]
    found = drawn(ratio_svg([Series("line", points)], title="t"))
    places = [
        tuple(map(float, re.findall(r"-?[\d.]+", node.get("transform"))))
        for node in found.iter(f"{SVG}path")
        if node.get("class") == "halo"
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert x0 < x1 and y0 > y1  # nothing pruned on the left, faster above


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0042, "4.2 µs"), (0.0851, "85 µs"), (0.0997, "0.10 ms"), (3.214, "3.21 ms"), (99.96, "100 ms"),
     (999.6, "1.00 s"), (24600, "24.6 s"), (0, "0 ms")],
)  # fmt: skip
def test_milliseconds(value, words):
    assert speed_charts.milliseconds(value) == words


def test_where_pruning_does_not_pay_by_hand(whole):
    said = speed_tables.break_even_words(whole)
    assert said.count("LLaVA-OneVision 0.5B, 2 cameras, eager (at 50%, 75%, 90%, 95%)") == 1
    assert "DriveMM, 2 cameras, eager (at 90%, 95%)" in said and "6 cameras" not in said
    table = speed_tables.break_even_table(whole)
    row = next(row for row in table.rows if row[0].text.startswith("LLaVA"))
    assert row[1].text == "0.31 ms to 0.40 ms"
    assert row[2].text == "26.1%"  # 0.15 / 0.575
    assert [cell.small for cell in row[3:]] == ["does not pay"] * 4 + [""] * 2
    only = {"cells": {k: v for k, v in whole["cells"].items() if k.startswith("break_even/drivemm-b1-6")}}
    assert (
        speed_tables.break_even_words(only) == "Pruning pays in every case measured, up to 95% of the tokens."
    )


def test_break_even_without_an_edge(whole):
    row = whole["cells"]["break_even/drivemm-b1-6cam-eager"] | {"break_even_retention": None}
    for pays, word in ((True, "above 50%"), (False, "never")):
        cells = {"break_even/x": row | {"pays_at": {"0.5": pays, "0.1": pays}}}
        assert speed_tables.break_even_table({"cells": cells}).rows[0][2].text == word
    cells = {"break_even/x": row | {"break_even_retention": 0.0}}
    assert speed_tables.break_even_table({"cells": cells}).rows[0][2].text == "never"


def test_what_ran_out_of_memory_is_said(whole):
    key = "prefill/drivemm-b1-r0.1-eager"
    changed = {"cells": {key: whole["cells"][key] | {"lost": {"1": "CUDA out of memory"}}}}
    assert "Retention 1 did not run: CUDA out of memory." in speed_tables.prefill_tables(changed)[0].note


def test_predictions_of_steps_stand_beside_them(whole):
    told = {row[0].text: row[1].text for row in speed_tables.steps_table(whole).rows}
    assert told["Tower as a graph"] == "at least 1.1 times" and told["Pinned upload"] == "–"


def test_the_limit_is_bold_from_four_fifths_on(whole):
    cells = whole["cells"]
    key = "prefill/drivemm-b1-r0.1-eager"
    for value, strong in ((0.8, True), (0.79, False)):
        changed = whole | {"cells": {key: cells[key] | {"share_of_limit": value}}}
        assert speed_tables.prefill_tables(changed)[0].rows[1][-1].strong is strong


def test_memory_that_did_not_fit_is_said(whole):
    rows = speed_tables.memory_table(whole).rows
    (row,) = (row for row in rows if row[1].text == "16" and row[0].small == "unpruned")
    assert row[1].small == "out of memory" and row[2].text == "–"
    (row,) = (row for row in rows if row[1].text == "64 fit")
    assert (row[0].text, row[0].small) == ("DriveMM", "10% kept")
    assert row[1].small == "64 ran, 72 did not fit"


def test_predictions_keep_what_was_missed(whole):
    verdicts = [row[3].text for row in speed_tables.predictions_table(whole).rows]
    assert verdicts == ["met", "missed", "missed", "not measured"]


def test_the_picture_is_on_white_and_of_the_first_shape(whole):
    found = drawn(speed.picture(whole))
    assert_apart_and_inside(found)
    assert next(found.iter(f"{SVG}rect")).get("fill") == "#ffffff"
    assert found.find(f"{SVG}title").text == "Time to first token: DriveMM, 6 cameras"
    assert speed.picture(without(whole, "prefill")) is None


def test_written_atomically(tmp_path, whole):
    assert speed.write_speed(whole, tmp_path / "page.html").read_text() == speed.speed_page(whole)


def test_ticks_hold_every_value():
    for high in (0.3, 1.0, 7.7, 99.0, 1234.5):
        linear = speed_charts._ticks([high], False)
        assert linear[0] == 0 and linear[-1] >= high and len(linear) <= 8
        marks = speed_charts._ticks([high / 50, high], True)
        assert marks[0] <= high / 50 and marks[-1] >= high
        assert all(math.isclose(b, 10 * a) for a, b in pairwise(marks))
