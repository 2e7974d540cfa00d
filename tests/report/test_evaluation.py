"""The evaluation's page, terminal and markdown: the numbers are there, and what lacks is left out."""

import copy
import io
import json
import math
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from prune2drive import PruneError
from prune2drive.report import evaluation as ev
from prune2drive.report import evaluation_tables as tables
from prune2drive.world.questions import STAGES
from prune2drive.world.scene import WEATHERS

QUESTIONS, TOKENS = 3000, 1458
WHOLE, BLIND, GUESS = 0.952, 0.482, 0.391
# Points lost at 50, 25, 10 and 5 %.
LOST = {
    ("tfps", "before"): (0.003, 0.009, 0.022, 0.061),
    ("random", "before"): (0.006, 0.031, 0.082, 0.161),
    ("stratified", "before"): (0.004, 0.015, 0.043, 0.104),
    ("stride", "before"): (0.005, 0.020, 0.060, 0.127),
    ("tfps", "layer1"): (0.002, 0.006, 0.017, 0.048),
    ("random", "layer1"): (0.005, 0.026, 0.070, 0.143),
}
SHARES = (0.5, 0.25, 0.1, 0.05)


def estimate(value: float, n: int) -> dict:
    value = max(value, 0.0)
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + 0.9 * half), "n": n}


def setting(method, where, retention, value) -> dict:
    def parts(names):
        names = list(names)
        n = QUESTIONS // len(names)
        # Some names are easy, some hard, and the hard ones lose more.
        ease = [1.6 * i / (len(names) - 1) + 0.2 if len(names) > 1 else 1 for i in range(len(names))]
        return {x: estimate(1 - (1 - value) * e, n) for x, e in zip(names, ease, strict=True)}

    def paired(by):
        half = 0.004 + 0.1 * abs(by)
        return {"overall": {"value": by, "low": by - half, "high": by + half}}

    share = 1.0 if retention is None else retention
    out = {
        "name": method if retention is None else f"{method}@{retention:g}",
        "method": method,
        "where": where,
        "retention": retention,
        "tokens": 0 if method in ("blind", "guess") else share * TOKENS,
        "accuracy": {
            "overall": estimate(value, QUESTIONS),
            "type": parts(STAGES),
            "stage": parts(dict.fromkeys(STAGES.values())),
            "camera": parts(("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")),
            "weather": parts(WEATHERS),
        },
        "difference": {"unpruned": paired(value - WHOLE)},
        "large": None,
    }
    if where:
        random = WHOLE - LOST[("random", where)][SHARES.index(retention)]
        out["difference"]["random"] = paired(value - random)
        out["large"] = {"objects": 120, "lost": round(1.7 * (WHOLE - value), 3), "ratio": 0.8}
        out["shown"] = {"small": estimate(2 * (WHOLE - value), 1234), "big": estimate(0.0, 40)}
    return out


def summary(**changes) -> dict:
    settings = [setting("unpruned", None, None, WHOLE), setting("blind", None, None, BLIND)]
    settings.append(setting("guess", None, None, GUESS))
    for (method, where), lost in LOST.items():
        for share, points in zip(SHARES, lost, strict=True):
            settings.append(setting(method, where, share, WHOLE - points))
    made = {
        "benchmark": "world", "split": "test", "scenes": 200, "questions": QUESTIONS,
        "model": "org/model", "seed": 0, "settings": settings,
    }  # fmt: skip
    return {**json.loads(json.dumps(made)), **changes}


def without(what: dict, *names: str) -> dict:
    """A summary with the settings of some methods, or at some places, left out."""
    kept = [s for s in what["settings"] if s["method"] not in names and s["where"] not in names]
    return {**what, "settings": kept}


def shown(page: str) -> str:
    """The words of a page outside its style sheet, well-formed but for the line above ``<html>``."""
    body = page.partition("<body>")[2].partition("</body>")[0] if "<body>" in page else page
    root = ElementTree.fromstring(f"<body>{body}</body>")
    return " ".join(" ".join(root.itertext()).split())


def printed(what: dict, **options) -> str:
    out = io.StringIO()
    ev.print_evaluation(Console(file=out, **{"width": 80, **options}), what)
    return out.getvalue()


def test_the_page_says_it_in_a_sentence_and_in_numbers(tmp_path):
    path = ev.write_evaluation(summary(), tmp_path / "evaluation.html")
    text = shown(path.read_text(encoding="utf-8"))
    assert (
        "With 10% of the visual tokens, tfps answers 93.0% of 3,000 questions correctly; with all of them "
        "the model answers 95.2%. The paired difference is −2.2 points, 95% interval −2.8 to −1.6." in text
    )
    for part in (
        "Before the language model", "Inside the language model, at layer 1", "93.0 ± 0.9", "146 tokens",
        "−2.2 [−2.8 to −1.6]", "+6.0 [+5.0 to +7.0]", "unpruned 95.2 ± 0.8", "guess 39.1%",
        "blind (grey pictures) 48.2 ± 1.8", "unpruned 100% 1,458",
        "Accuracy by type of question", "Accuracy by stage", "Accuracy by camera", "Accuracy by weather",
        "CAM_FRONT_LEFT 1,000", "fog 600", "steering 272", "Large objects lost", "Of 120 large objects",
        "Things lost by size", "small 1,234 things", "tfps 10% 4.4 ± 1.1 0.0 ± 1.2",
        "Split test", "Scenes 200", "Questions 3,000", "Model org/model", "Seed 0",
    ):  # fmt: skip
        assert part in text, part


def test_the_page_needs_nothing_and_its_policy_says_so():
    page = ev.render(summary())
    assert "http" not in page.replace("http-equiv", "").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"<(script|link|iframe|img|a|form|object)\b|\sstyle=|\son\w+=|url\(|@import", page)
    assert "default-src 'none'; style-src 'sha256-" in page
    assert "unsafe" not in page


def test_names_are_escaped_everywhere():
    nasty = "</style><script>|`*'\"&\x00"
    made = summary(split=nasty, model=nasty, benchmark=nasty, facts={nasty: nasty})
    for one in made["settings"]:
        if one["method"] == "tfps":
            one["method"] = nasty
        one["accuracy"]["type"][nasty] = estimate(0.5, 3)
    page = ev.render(made)
    assert "<script" not in page
    assert shown(page).count("</style><script>|`*'\"&") >= 8
    ElementTree.fromstring(ev.chart_svg(made))
    rows = [line for line in ev.markdown_tables(made).splitlines() if "script" in line]
    assert rows
    assert all("&lt;/style&gt;&lt;script&gt;\\|\\`\\*'\"&amp;" in row for row in rows)
    assert "</style><script>|`*'" in printed(made, width=400).replace("\n", "")


def test_terminal_and_markdown_have_the_same_numbers_and_fit():
    what = summary()
    text, markdown = printed(what), ev.markdown_tables(what)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("93.0 ± 0.9", "146 tokens", "at layer 1", "10.4 (0.80×)", "48.2 ± 1.8"):
        assert part in text
        assert part in markdown
    assert re.search(r"steering +92\.1 +88\.5", text)
    assert "| steering | 272 | 92.1 | 88.5 |" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "Shaded" not in text + markdown
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ev.print_evaluation(Console(file=ascii_only, width=80), what)
    ascii_only.flush()
    assert b"93.0 +/- 0.9" in ascii_only.buffer.getvalue()


def test_charts_stand_alone_and_share_scale_and_looks():
    before, inside = (
        ElementTree.fromstring(ev.chart_svg(summary(), where)) for where in ("before", "layer1")
    )
    texts = [[n.text for n in svg.iter("{http://www.w3.org/2000/svg}text")] for svg in (before, inside)]
    for words in texts:
        assert {"75%", "100%", "unpruned 95.2%", "blind 48.2%"} <= set(words)
    assert {"tfps", "random", "stratified", "stride"} <= set(texts[0])
    assert {"tfps", "random"} <= set(texts[1])
    assert "stride" not in texts[1]
    assert before[2].get("fill") == "#ffffff"
    groups = [{g.get("class") for g in svg} & {f"s{i}" for i in range(6)} for svg in (before, inside)]
    assert groups == [{"s0", "s1", "s2", "s3"}, {"s0", "s1"}]
    with pytest.raises(PruneError, match="'layer2'; it has: 'before', 'layer1'"):
        ev.chart_svg(summary(), "layer2")


def test_a_near_bound_is_drawn_to_scale():
    what = summary()
    assert ev._y_range(what)[0] == pytest.approx(0.75)
    next(s for s in what["settings"] if s["method"] == "blind")["accuracy"]["overall"] = estimate(0.70, 3000)
    assert ev._y_range(what)[0] <= 0.7


def test_the_fragment_is_part_of_a_page():
    fragment = ev.evaluation_section(summary())
    assert "93.0 ± 0.9" in shown(fragment)
    assert "<style" not in fragment
    assert fragment.count("<svg") == 4  # each place of pruning: wide and narrow
    assert ".chart.small" in ev.EVALUATION_CSS


def thinned(level: int) -> dict:
    what = summary()
    if level == 0:
        return without(what, "layer1")
    if level == 1:
        return without(what, "unpruned", "blind", "guess", "random", "layer1")
    for one in what["settings"]:
        one.pop("large")
        one.pop("difference")
        one["accuracy"] = {"overall": {"value": one["accuracy"]["overall"]["value"]}}
        one.pop("tokens")
    if level == 3:
        what["settings"] = [s for s in what["settings"] if s["retention"] in (None, 0.25)]
    if level == 4:
        for one in what["settings"]:
            one["accuracy"] = {"overall": {"value": math.nan, "low": None}}
    return {"settings": what["settings"]} if level < 5 else {}


@pytest.mark.parametrize("level", range(6))
def test_missing_parts_are_left_out(level):
    what = thinned(level)
    page = ev.render(what)
    text = shown(page)
    markdown, terminal = ev.markdown_tables(what), printed(what)
    assert "nan" not in text.lower() and "None" not in text
    assert ("layer 1" in text) == (level in (2, 3, 4))
    assert ("Large objects" in text) == (level < 2) == ("Large objects" in terminal + markdown)
    assert ("by camera" in text) == (level < 2)
    if level in (2, 3):
        assert "tfps answers" in text
        assert ("25% of the visual tokens" in text) == (level == 3)
        assert "94.3" in terminal and "94.3" in markdown
    if level >= 4:
        assert "Nothing was evaluated with pruning." in text


def test_a_filtered_list_of_types_and_other_retentions():
    what = copy.deepcopy(summary())
    for one in what["settings"]:
        one["accuracy"]["type"] = {
            k: v for k, v in one["accuracy"]["type"].items() if k in ("count", "speed")
        }
        if one["retention"] == 0.1:
            one["retention"] = 0.12
    table = tables.part_table(what, "type")
    assert [row[0].text for row in table.rows] == ["count", "speed"]
    assert [c.small for c in table.head if c.text == "tfps"] == ["12%", "12%, layer 1"]
    assert [c.text for c in tables.accuracy_table(what).head] == ["Method", "50%", "25%", "12%", "5%"]


def test_tints_grow_with_what_is_lost_and_bold_excludes_zero():
    table = tables.part_table(summary(), "type")
    speed = next(row for row in table.rows if row[0].text == "speed")
    by_name = dict(zip((c.text for c in table.head), speed, strict=True))
    assert [by_name[n].shade for n in ("unpruned", "stride", "blind")] == [0, 3, 4]
    rows = [r for r in tables.every_setting(summary()).rows if r[0].text == "tfps"]
    assert [row[4].strong for row in rows] == [False, True, True, True] * 2


def test_large_objects_without_any_are_no_table():
    what = summary()
    for one in what["settings"]:
        one["large"] = {"objects": 0, "lost": None, "ratio": None}
    assert tables.large_table(what) is None
    what["settings"][4]["large"] = {"objects": 7, "lost": 0.25, "ratio": 1.0}
    assert "Of 7 large objects" in tables.large_table(what).note


def test_writing_is_atomic(tmp_path):
    with pytest.raises(PruneError, match="nowhere"):
        ev.write_evaluation(summary(), tmp_path / "nowhere" / "e.html")
    path = ev.write_evaluation(summary(), tmp_path / "e.html")
    assert path.read_text(encoding="utf-8") == ev.render(summary())
    assert [p.name for p in tmp_path.iterdir()] == ["e.html"]
