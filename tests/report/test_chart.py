"""The chart: well-formed, numbers where they belong, names apart and escaped."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from prune2drive.report.chart import (
    COLOURS,
    DARK_COLOURS,
    DASHES,
    Point,
    Reference,
    Series,
    apart,
    escape,
    line_chart,
    percent,
    tick_step,
)

SVG = "{http://www.w3.org/2000/svg}"
TICKS = (1.0, 0.5, 0.25, 0.1, 0.05)


def series(name="tfps", values=(0.94, 0.93, 0.91, 0.85), half=0.01) -> Series:
    points = [Point(x, y, y - half, y + half) for x, y in zip(TICKS[1:], values, strict=True)]
    return Series(name, points[::-1])


def chart(lines, **changes) -> ElementTree.Element:
    values = {
        "x_label": "Tokens kept", "y_label": "Correct", "x_ticks": TICKS, "y_range": (0.7, 1.0),
        "references": [Reference("unpruned", 0.95)], "start": Point(1.0, 0.95, 0.94, 0.96),
    }  # fmt: skip
    text = line_chart(lines, **{**values, **changes})
    return ElementTree.fromstring(text)


def words(root) -> list[str]:
    return [node.text for node in root.iter(f"{SVG}text")]


def marks(root, look=0) -> list[tuple[float, float]]:
    group = root.find(f"{SVG}g[@class='s{look}']")
    found = [p.get("transform") for p in group.iter(f"{SVG}path") if p.get("class") == "halo"]
    return [tuple(map(float, re.findall(r"-?[\d.]+", where))) for where in found]


def test_axes_run_from_all_tokens_to_few_on_a_log_scale():
    root = chart([series()])
    assert [w for w in words(root) if w in ("100%", "50%", "25%", "10%", "5%")][-5:] == [
        "100%", "50%", "25%", "10%", "5%",
    ]  # fmt: skip
    assert {"70%", "85%", "95%", "Tokens kept", "Correct", "tfps", "unpruned 95.0%"} <= set(words(root))
    places = marks(root)
    (half, quarter, tenth, twentieth) = (x for x, _ in places)
    assert quarter - half == pytest.approx(twentieth - tenth, abs=0.2)  # both halve the tokens
    assert half < quarter < tenth
    heights = [y for _, y in places]
    assert heights == sorted(heights)  # less accurate is further down
    assert heights[3] - heights[2] == pytest.approx(3 * (heights[2] - heights[1]), abs=0.4)


def test_points_say_their_numbers():
    said = [t.text for t in chart([series()]).iter(f"{SVG}title")]
    assert "tfps, 10% kept: 91.0% (90.0% to 92.0%)" in said
    assert "100% kept: 95.0% (94.0% to 96.0%)" in said


def test_series_differ_by_more_than_colour_and_stand_side_by_side():
    root = chart([series(name) for name in "abcdef"])
    drawn = [root.find(f"{SVG}g[@class='s{i}']") for i in range(6)]
    assert {g.get("color") for g in drawn} == set(COLOURS)
    assert len({next(p for p in g if p.get("class") == "halo").get("d") for g in drawn}) == 6
    assert len({g[0].get("stroke-dasharray", "") for g in drawn}) == 6 == len(set(DASHES))
    at_half = [marks(root, i)[0][0] for i in range(6)]
    assert all(b - a >= 6.5 for a, b in pairwise(at_half))  # wider than a whisker


def test_a_look_can_be_given_and_looks_repeat():
    root = chart([Series("a", [Point(0.1, 0.9)], look=3), Series("b", [Point(0.1, 0.8)], look=7)])
    assert len(marks(root, 3)) == len(marks(root, 1)) == 1
    assert root.find(f"{SVG}g[@class='s0']") is None


def contrast(colour: str, ground: str) -> float:
    def light(text):
        parts = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(colour), light(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_seen_on_their_ground():
    assert min(contrast(c, "#ffffff") for c in COLOURS) >= 3
    assert min(contrast(c, "#161a20") for c in DARK_COLOURS) >= 3
    assert len(COLOURS) == len(DARK_COLOURS) == len(DASHES)


def test_bounds_below_the_range_stand_under_a_break():
    bounds = [Reference("guess", 0.31), Reference("blind", 0.42), Reference("unpruned", 0.95)]
    root = chart([series()], references=bounds)
    y = {node.text: float(node.get("y")) for node in root.iter(f"{SVG}text")}
    assert y["unpruned 95.0%"] < y["70%"] < y["blind 42.0%"] < y["guess 31.0%"] < y["50%"]
    assert "l5-5l5 5" in ElementTree.tostring(root, "unicode")
    within = chart([series()], references=bounds[2:])
    assert "l5-5l5 5" not in ElementTree.tostring(within, "unicode")


def test_names_of_lines_that_end_together_do_not_touch():
    root = chart([series(name, (0.9, 0.9, 0.9, 0.71)) for name in ("one", "two", "three", "four")])
    y = sorted(
        float(n.get("y")) for n in root.iter(f"{SVG}text") if n.text in ("one", "two", "three", "four")
    )
    assert all(b - a >= 15.9 for a, b in pairwise(y))


@pytest.mark.parametrize("wanted", [[10, 10, 10], [0, 50, 99, 99, 99], [99], [], [-20, 40], [50] * 12])
def test_apart(wanted):
    found = apart(wanted, 0, 100)
    assert len(found) == len(wanted)
    assert all(b - a >= 16 - 1e-9 for a, b in pairwise(found))
    if 16 * (len(wanted) - 1) <= 100:
        assert all(0 <= y <= 100 for y in found)
    assert apart([5, 40, 80], 0, 100) == [5, 40, 80]


@pytest.mark.parametrize("width", [320, 620, 1100])
def test_everything_stays_in_the_picture(width):
    lines = [series("a method with a very long name"), series("b", (1.2, 0.5, 0.0, -1.0))]
    root = chart(lines, width=width, height=300)
    for look in (0, 1):
        assert all(0 < x < width and 0 < y < 300 for x, y in marks(root, look))
    for node in root.iter(f"{SVG}text"):
        x, long = float(node.get("x")), 7 * len(node.text)
        left = {"end": x - long, "middle": x - long / 2}.get(node.get("text-anchor"), x)
        assert left > -8 and left + long < width + 8, node.text
    assert "a method with a ver…" in words(root)


def test_text_is_escaped_and_always_xml():
    nasty = "</svg><script>\"&'\x00\ud800\uffff"
    root = chart(
        [Series(nasty, [Point(0.1, 0.9)])],
        x_label=nasty, y_label=nasty, title=nasty, description=nasty, background='"><script>',
    )  # fmt: skip
    assert root.find(f".//{SVG}script") is None
    assert root.find(f"{SVG}title").text.startswith("</svg><script>\"&'\ufffd")
    assert root.find(f"{SVG}rect").get("fill") == '"><script>'
    assert escape("a\nb") == "a\nb"


def test_little_or_nothing_to_draw():
    assert marks(chart([Series("a", [Point(0.1, 0.9)])], x_ticks=(0.1,), start=None)) != []
    chart([], references=(), start=None)
    chart([Series("a", [])], x_ticks=(), start=None)
    chart([series()], y_range=(0.5, 0.5))


def test_title_and_description_are_for_readers_who_do_not_see_it():
    root = chart([series()], title="A title", description="What it shows")
    assert (root[0].text, root[1].text) == ("A title", "What it shows")
    assert root.get("role") == "img"
    assert root.find(f"{SVG}rect") is None


def test_percentages_and_steps():
    assert [percent(x) for x in (1, 0.5, 0.1, 0.025, 0.0)] == ["100%", "50%", "10%", "2.5%", "0%"]
    assert percent(0.93, 1) == "93.0%"
    assert [tick_step(*r) for r in ((0, 1), (0.75, 1), (0.9, 1), (0.93, 0.96))] == [0.2, 0.05, 0.02, 0.005]
