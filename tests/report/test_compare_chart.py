"""The trade-off chart: marks at their numbers, the front as it is, names apart, nothing that is not there."""

import math
import re

import pytest
from compare_summaries import METHODS, VISUAL, comparison
from svg_helpers import SVG, assert_apart_and_inside, boxes, classed, drawn, outline

from prune2drive.report import compare
from prune2drive.report.chart import COLOURS, MARKERS
from prune2drive.report.compare_chart import marks_of, tradeoff_svg
from prune2drive.report.compare_tables import bounds_of, pruned_of

NASTY = "</svg><script>\"&'\x00"


def alone(summary: dict, *names: str) -> dict:
    """A summary with these contenders and the bounds."""
    kept = [c for c in summary["contenders"] if c["retention"] is None or c["name"] in names]
    return {**summary, "contenders": kept}


def texts(root) -> dict[str, tuple[float, float]]:
    return {node.text: (float(node.get("x")), float(node.get("y"))) for node in root.iter(f"{SVG}text")}


def scales(root, visual: float = VISUAL):
    """Tokens and accuracies to pixels, from the words at the axes alone."""
    found = [(float(t.get("x")), float(t.get("y")), t) for t in root.iter(f"{SVG}text")]
    shares = [(x, y, t) for x, y, t in found if re.fullmatch(r"[\d.]+%", t.text)]
    across = sorted(
        (x, float(t.text[:-1]) / 100 * visual) for x, _, t in shares if t.get("text-anchor") == "middle"
    )
    up = sorted((y - 4.5, float(t.text[:-1]) / 100) for _, y, t in shares if t.get("text-anchor") == "end")
    (x0, t0), (x1, t1), (y0, a0), (y1, a1) = across[0], across[-1], up[0], up[-1]
    return (
        lambda tokens: x0 + (x1 - x0) * math.log(tokens / t0) / math.log(t1 / t0),
        lambda share: y0 + (y1 - y0) * (share - a0) / (a1 - a0),
    )


def places(root) -> dict[str, tuple[float, float]]:
    """Where each contender's marker stands, by the name that it says."""
    out = {}
    for mark in classed(root, "g", "contender"):
        x, y = re.findall(r"-?[\d.]+", mark.get("transform"))
        out[re.split(r" \(|, ", mark.find(f"{SVG}title").text)[0]] = (float(x), float(y))
    return out


def overall(one: dict) -> dict:
    return one["accuracy"]["overall"]


def test_marks_stand_at_their_tokens_and_accuracy():
    names = ("tfps@avg0.25", "divprune@avg0.1", "fastv@avg0.05", "sparsevlm@kept0.1")
    summary = alone(comparison(), *names)
    root = drawn(tradeoff_svg(summary))
    to_x, to_y = scales(root)
    found = places(root)
    assert set(found) == set(names)
    for one in pruned_of(summary):
        x, y = found[one["name"]]
        assert x == pytest.approx(to_x(one["layer_averaged"]), abs=0.2)
        assert y == pytest.approx(to_y(overall(one)["value"]), abs=0.2)


@pytest.mark.parametrize("width", [360, 1140])
def test_every_contender_is_there_and_none_hides_another(width):
    summary = comparison()
    root = drawn(tradeoff_svg(summary, width=width, height=560))
    to_x, to_y = scales(root)
    found = places(root)
    assert set(found) == {c["name"] for c in pruned_of(summary)}
    for one in pruned_of(summary):
        x, y = found[one["name"]]
        assert abs(x - to_x(one["layer_averaged"])) < max(0.04 * width, 24)
        assert y == pytest.approx(to_y(overall(one)["value"]), abs=0.2)
        assert 0 < x < width and 0 < y < 560
        if one["pareto"]:
            assert x == pytest.approx(to_x(one["layer_averaged"]), abs=0.2)
    spots = list(found.values())
    hidden = sum(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) < 9 for i, a in enumerate(spots) for b in spots[i + 1 :]
    )
    assert hidden <= (0 if width > 1000 else 6)


def test_whiskers_are_the_intervals():
    summary = alone(comparison(), "tfps@avg0.1")
    root = drawn(tradeoff_svg(summary))
    _, to_y = scales(root)
    (whisker,) = classed(root, "path", "whisker")
    _, y = map(float, re.findall(r"-?[\d.]+", whisker.get("transform")))
    up, down = map(float, re.findall(r"M-2.5 (-?[\d.]+)h5m-2.5 0V(-?[\d.]+)", whisker.get("d"))[0])
    found = overall(pruned_of(summary)[0])
    assert y + up == pytest.approx(to_y(found["high"]), abs=0.3)
    assert y + down == pytest.approx(to_y(found["low"]), abs=0.3)


def test_marks_say_their_numbers_and_differ_by_group():
    root = drawn(tradeoff_svg(comparison()))
    said = [t.text for t in root.iter(f"{SVG}title")]
    assert (
        "tfps@avg0.1 (T-FPS), before the language model: 86.4 tokens per layer, 93.0% (91.8% to 94.1%), "
        "on the front" in said
    )
    looks = {}
    for group in root.iter(f"{SVG}g"):
        for mark in group.findall(f"{SVG}g[@class='contender']"):
            name = re.split(r"@", mark.find(f"{SVG}title").text)[0]
            looks[name] = (group.get("color"), mark.find(f"{SVG}path").get("d"))
    assert looks["tfps"] == looks["divprune"] == (COLOURS[0], MARKERS[0])
    assert looks["fastv"] == (COLOURS[1], MARKERS[1])
    assert looks["tfps+fastv"] == (COLOURS[2], MARKERS[2])
    assert looks["random"] == looks["random-layer"] == (COLOURS[5], MARKERS[3])
    words = texts(root)
    assert {"before the language model", "inside the language model", "before and inside", "control"} <= set(
        words
    )


def test_the_front_goes_in_steps_through_its_points():
    summary = comparison()
    root = drawn(tradeoff_svg(summary))
    to_x, to_y = scales(root)
    front = sorted((c for c in pruned_of(summary) if c["pareto"]), key=lambda c: c["layer_averaged"])
    assert len(front) >= 3
    (path,) = classed(root, "path", "front")
    corners = outline(path)
    wanted = [(to_x(c["layer_averaged"]), to_y(overall(c)["value"])) for c in front]
    steps = [wanted[0]]
    for x, y in wanted[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    for (x, y), (a, b) in zip(corners[:-1], steps, strict=True):
        assert (x, y) == (pytest.approx(a, abs=0.2), pytest.approx(b, abs=0.2))
    assert corners[-1][1] == corners[-2][1] and corners[-1][0] > corners[-2][0]
    assert {c["name"] for c in front} <= set(texts(root))
    # On a phone the axis says the budget.
    assert {c["method"] for c in front} <= set(texts(drawn(tradeoff_svg(summary, width=370))))


@pytest.mark.parametrize(("width", "height"), [(1140, 560), (1000, 560), (370, 470)])
def test_words_are_apart_and_inside(width, height):
    assert_apart_and_inside(drawn(tradeoff_svg(comparison(), width=width, height=height)))
    crowded = comparison()
    for one in crowded["contenders"]:
        one["pareto"] = True  # more names than there is room for
    assert_apart_and_inside(drawn(tradeoff_svg(crowded, width=width, height=height)))


def test_names_cover_no_marks():
    root = drawn(tradeoff_svg(comparison()))
    named = [b for b, t in zip(boxes(root), root.iter(f"{SVG}text"), strict=True) if t.get("class")]
    assert len(named) >= 6
    for left, top, right, bottom in named:
        for x, y in places(root).values():
            assert not (left < x < right and top < y < bottom)


def test_bounds_are_lines_and_unpruned_has_a_band():
    summary = comparison()
    root = drawn(tradeoff_svg(summary))
    _, to_y = scales(root)
    lines = {p.find(f"{SVG}title").text: outline(p)[0][1] for p in classed(root, "path", "bound")}
    whole = overall(bounds_of(summary)["unpruned"])
    assert lines["unpruned: 95.2%"] == pytest.approx(to_y(whole["value"]), abs=0.2)
    (band,) = classed(root, "rect", "band")
    top, high = float(band.get("y")), float(band.get("height"))
    assert top == pytest.approx(to_y(whole["high"]), abs=0.2)
    assert top + high == pytest.approx(to_y(whole["low"]), abs=0.3)
    # Far below everything: under a break, the higher one first.
    assert to_y(0.6) < lines["blind: 48.2%"] < lines["guess: 39.1%"]
    assert "l5-5l5 5" in tradeoff_svg(summary)
    words = texts(root)
    assert {"unpruned 95.2%", "blind 48.2%", "guess 39.1%"} <= set(words)


def test_bounds_near_the_contenders_stand_on_the_axis():
    summary = comparison()
    next(c for c in summary["contenders"] if c["name"] == "blind")["accuracy"]["overall"]["value"] = 0.64
    root = drawn(tradeoff_svg(summary))
    _, to_y = scales(root)
    lines = {p.find(f"{SVG}title").text: outline(p)[0][1] for p in classed(root, "path", "bound")}
    assert lines["blind: 64.0%"] == pytest.approx(to_y(0.64), abs=0.2)


def test_what_lacks_is_not_drawn():
    summary = comparison()
    by_name = {c["name"]: c for c in summary["contenders"]}
    by_name["tfps@avg0.1"]["accuracy"]["overall"] |= {"low": None, "high": None}
    by_name["fastv@avg0.1"]["layer_averaged"] = None
    by_name["divprune@avg0.1"]["accuracy"] = {}
    by_name["unpruned"]["accuracy"]["overall"] |= {"low": None, "high": None}
    root = drawn(tradeoff_svg(summary))
    found = places(root)
    assert "tfps@avg0.1" in found and not {"fastv@avg0.1", "divprune@avg0.1"} & set(found)
    assert len(classed(root, "path", "whisker")) == len(found) - 1
    assert classed(root, "rect", "band") == []
    assert "tfps@avg0.1 (T-FPS), before the language model: 86.4 tokens per layer, 93.0%, on the front" in [
        t.text for t in root.iter(f"{SVG}title")
    ]


@pytest.mark.parametrize("changes", [{"contenders": []}, {"contenders": None}, {"visual": None}])
def test_little_or_nothing_to_draw(changes):
    summary = {**comparison(), **changes}
    root = drawn(tradeoff_svg(summary))
    assert len(classed(root, "g", "contender")) == len(marks_of(summary))
    drawn(tradeoff_svg({}))
    one = alone(comparison(METHODS[:2]), "tfps@avg0.1")
    assert len(places(drawn(tradeoff_svg(one)))) == 1
    bare = {**one, "contenders": pruned_of(one)}
    assert len(places(drawn(tradeoff_svg(bare)))) == 1


def test_names_are_escaped():
    summary = comparison()
    for one in summary["contenders"]:
        if one["pareto"] and one["retention"]:
            one["name"] = one["method"] = one["title"] = NASTY
    root = drawn(tradeoff_svg(summary))
    assert root.find(f".//{SVG}script") is None
    assert "</svg><script>\"&'\ufffd" in texts(root)
    drawn(tradeoff_svg(summary, width=370, background='"><script>'))


def test_the_file_of_its_own_is_on_white():
    root = drawn(compare.chart(comparison(), width=900, height=500))
    assert root.get("viewBox") == "0 0 900 500"
    assert root.find(f"{SVG}rect").get("fill") == "#ffffff"
    assert root[0].tag == f"{SVG}title" and "11 methods" in root[1].text
