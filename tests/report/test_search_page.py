"""The search's page and terminal: what was found is there, the verdict is honest, and the charts are true."""

import copy
import io
import json
import math
import random
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console
from svg_helpers import SVG, assert_apart_and_inside, classed, drawn, marks, outline

from prune2drive import PruneError
from prune2drive.report import search
from prune2drive.report import search_charts as charts
from prune2drive.report.search_tables import front_table
from prune2drive.rig import NUSCENES

CAMERAS = list(NUSCENES.names)
TOKENS = 144
# How much of the reward hangs on each camera.
WORTH = dict(zip(CAMERAS, (0.5, 0.16, 0.12, 0.1, 0.07, 0.05), strict=True))
NASTY = "</style><script>|`*'\"&"


def interval(value: float, half: float) -> dict:
    return {"value": value, "low": value - half, "high": value + half}


def trial(number: int, rates: dict, rng: random.Random, mode: str = "budget", **changes) -> dict:
    counts = {name: max(1, round(TOKENS * rate)) for name, rate in rates.items()}
    reward = 0.9 - sum(WORTH[name] * math.exp(-14 * rate) for name, rate in rates.items())
    reward += rng.gauss(0, 0.004)
    value = {"budget": reward, "penalty": reward - 0.05 * sum(rates.values()), "front": None}[mode]
    return {
        "number": number, "state": "complete", "value": value, "reward": reward, "rates": rates,
        "counts": counts, "kept": sum(counts.values()), "samples": 500, "seconds": 8.125,
        "parts": {"exact": reward, "likelihood": reward - 1.2, "probability": reward - 0.05},
        "start": None, "worker": f"worker-{number % 2}", **changes,
    }  # fmt: skip


def result(mode: str = "budget", count: int = 60, **changes) -> dict:
    """A search of ``count`` trials: the first uniform, one failed, every third of the others stopped."""
    rng = random.Random(7)
    trials = [trial(0, dict.fromkeys(CAMERAS, 0.1), rng, mode, start="uniform")]
    for number in range(1, count):
        near = number / count  # later trials lean to where the reward is
        free = {c: rng.uniform(0.01, 0.3) * (1 - near) + near * 0.6 * WORTH[c] ** 0.5 for c in CAMERAS}
        scale = 0.6 / sum(free.values()) if mode == "budget" else rng.uniform(0.2, 2.2)
        trials.append(trial(number, {c: min(1.0, r * scale) for c, r in free.items()}, rng, mode))
        if number % 3 == 2:
            trials[-1] |= {"state": "pruned", "samples": 100}
    if count > 7:
        empty = {"value": None, "reward": None, "kept": None, "seconds": None}
        trials[7] |= {"state": "failed", "rates": {}, "counts": {}, "parts": {}, "samples": 0, **empty}
    done = [t for t in trials if t["state"] == "complete"]
    front = []
    for one in sorted(done, key=lambda t: (t["kept"], -t["reward"])):
        if not front or one["reward"] > front[-1]["reward"]:
            front.append(one)
    made = {
        "format": 1,
        "about": {
            "name": "six cameras", "model": "reference", "weights": "0123456789abcdef" * 4,
            "dtype": "bfloat16", "method": "tfps", "cameras": CAMERAS,
            "tokens": dict.fromkeys(CAMERAS, TOKENS),
            "data": {"source": "world", "split": "calibration", "samples": 500, "questions": 8350},
            "mode": mode, "budget": {"share": 0.1, "tokens": 86} if mode == "budget" else None,
            "penalty": 0.05, "parts": {"likelihood": 1.0}, "sampler": "tpe", "pruner": "wilcoxon",
            "trials": count, "seed": 0, "version": "0.1.0",
        },
        "trials": trials,
        "best": None if mode == "front" else max(done, key=lambda t: t["value"])["number"],
        "front": [t["number"] for t in front] if mode == "front" else [],
        "importance": {c: w / sum(WORTH.values()) for c, w in WORTH.items()},
        "held_out": None if mode == "front" else {
            "data": {"source": "world", "split": "validation", "samples": 200, "questions": 3300},
            "searched": {"exact": interval(0.861, 0.02), "likelihood": interval(-0.412, 0.031)},
            "uniform": {"exact": interval(0.852, 0.02), "likelihood": interval(-0.431, 0.033)},
            "gain": {"exact": interval(0.009, 0.0125), "likelihood": interval(0.019, 0.008)},
        },
        "preset": None,
    }  # fmt: skip
    return {**json.loads(json.dumps(made)), **changes}


def with_gain(**gains) -> dict:
    made = result()
    made["held_out"]["gain"] = gains
    return made


def shown(page: str) -> str:
    """The words of a page outside its style sheet; its body is well-formed."""
    body = page.partition("<body>")[2].partition("</body>")[0]
    return " ".join(" ".join(ElementTree.fromstring(f"<body>{body}</body>").itertext()).split())


def printed(what: dict, width: int = 80) -> str:
    out = io.StringIO()
    search.print_search(Console(file=out, width=width), what)
    return out.getvalue()


def test_the_page_has_every_camera_its_rate_and_the_facts(tmp_path):
    made = result()
    best = made["trials"][made["best"]]
    text = shown(search.write_search(made, tmp_path / "s.html").read_text(encoding="utf-8"))
    assert len({round(rate, 3) for rate in best["rates"].values()}) == 6
    for name in CAMERAS:
        row = f"{name} 144 14 (9.7%) {100 * best['rates'][name]:.1f}% {best['counts'][name]} ("
        assert row in text, row
    for part in (
        "Retention search: six cameras", f"{best['kept']} of 864", f"{best['value']:.3f} uniform start",
        "Model reference", "Weights 0123456789abcdef…", "Selector tfps", "Sampler tpe", "world calibration",
        "500 samples, 8,350 questions", "likelihood of the right answers, keeping 86 tokens (10% of all)",
        "60 trials: 39 complete, 20 stopped early, 1 failed", "1 failed trial is not drawn", "Workers 2",
        "Importance", "50.0%", "likelihood searched for −0.412 [−0.443 to −0.381]",
        "Time of all trials 8 min",
        "+0.0190 [+0.0110 to +0.0270]", "world validation, 200 samples, 3,300 questions",
    ):  # fmt: skip
        assert part in text, part
    assert "Quality against tokens kept" not in text  # all have as many


def test_what_stopping_saved_counts_no_failed_trials():
    made = result()
    # 20 of 59 trials looked at 100 of 500 samples.
    assert f"{100 * 20 * 0.8 / 59:.1f}%" in shown(search.render(made))
    made["trials"][0]["samples"] = None
    assert "Model calls saved" not in shown(search.render(made))


def test_other_modes_have_other_objectives_and_the_chart_of_quality():
    penalty, front = (shown(search.render(result(mode))) for mode in ("penalty", "front"))
    assert "highest M = R − 0.05 × sum of the cameras' rates, where R = mean likelihood" in penalty
    assert "with the fewest tokens" in front
    assert "Quality against tokens kept" in penalty and "Quality against tokens kept" in front
    made = result("front")
    made["about"]["parts"] = {"exact": 0.5, "likelihood": 0.25, "probability": 0}
    assert search.formula(made).startswith(
        "highest R = 0.5 × mean exact answers + 0.25 × mean likelihood of the right answers, with"
    )


def test_a_front_lists_its_points_with_their_rates():
    made = result("front")
    table = front_table(made)
    assert [row[0].text for row in table.rows] == [str(n) for n in made["front"]]
    text = shown(search.render(made))
    assert len(made["front"]) > 5
    for number in made["front"]:
        one = made["trials"][number]
        rates = " ".join(f"{100 * one['rates'][c]:.1f}%" for c in CAMERAS)
        assert rates in text
        assert f"{one['kept']} ({100 * one['kept'] / 864:.1f}%)" in text
    assert f"The front has {len(made['front'])} points" in text
    assert 'class="fan"' not in search.render(made)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.001, 0.03, "searched rates are better than uniform ones in likelihood"),
        (-0.03, -0.001, "searched rates are worse than uniform ones in likelihood"),
        (-0.01, 0.03, "no difference between searched and uniform rates beyond the interval was shown"),
        (0.0, 0.03, "no difference between searched and uniform rates beyond the interval was shown"),
        (None, None, "no interval, so that nothing can be said"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, says):
    made = with_gain(likelihood={"value": 0.01, "low": low, "high": high})
    for text in (search.verdict(made), shown(search.render(made)), " ".join(printed(made).split())):
        assert says in text
    assert search.verdict(made).startswith("On 200 held-out samples, ")
    assert ("better" in search.verdict(made)) == (low == 0.001)


def test_the_verdict_tells_a_gain_in_one_score_from_a_loss_of_answers():
    said = search.verdict(with_gain(likelihood=interval(0.02, 0.01), exact=interval(-0.02, 0.01)))
    better, worse = said.split("; ")
    assert "better" in better and "likelihood" in better and "exact" not in better
    assert "worse" in worse and "exact" in worse
    unsearched = with_gain(likelihood=interval(0.02, 0.01), probability=interval(-0.02, 0.01))
    assert "probability" not in search.verdict(unsearched)  # neither searched for nor a count of answers


def test_the_verdict_without_a_comparison():
    assert "is not known" in search.verdict(result(held_out=None))
    assert "No trial was better than the uniform start" in search.verdict(result(best=0))
    assert "No trial was completed" in search.verdict(result(best=None, trials=[], held_out=None))
    assert "none of them was compared" in search.verdict(result("front"))


def test_hostile_names_are_escaped_everywhere():
    made = json.loads(json.dumps(result()).replace("CAM_FRONT_LEFT", "<script>x</script>"))
    about = made["about"]
    for key in ("name", "model", "weights", "dtype", "method", "sampler", "pruner", "version", "seed"):
        about[key] = NASTY
    about["data"] = {"source": NASTY, "split": NASTY}
    about["parts"] = {NASTY: 2.0}
    made["trials"][1] |= {"start": NASTY, "worker": NASTY}
    for column in ("searched", "uniform", "gain"):
        made["held_out"][column][NASTY] = interval(0.1, 0.01)
    page = search.render(made)
    assert "<script" not in page
    assert shown(page).count(NASTY) >= 14
    assert shown(page).count("<script>x</script>") >= 3
    assert f"2 × mean {NASTY}" in search.formula(made)
    assert NASTY in printed(made, 300)
    assert "<script" not in search.render({**made, "front": [1, 4], "best": None})


def test_the_page_needs_nothing_and_its_policy_says_so():
    for mode in ("budget", "penalty", "front"):
        page = search.render(result(mode))
        assert "http" not in page.replace("http-equiv", "").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(
            r"<(script|link|iframe|img|a|form|object)\b|\sstyle=|\son\w+=|url\(|@import", page
        )
        assert "default-src 'none'; style-src 'sha256-" in page


@pytest.mark.parametrize("mode", ["budget", "penalty", "front"])
def test_the_best_so_far_only_grows_and_ends_at_the_best(mode):
    made = result(mode)
    root = drawn(charts.history_svg(made))
    (line,) = classed(root, "path", "best")
    xs, ys = zip(*outline(line), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)  # up is less
    assert len(set(ys)) > 3
    values = [v for t in made["trials"] if (v := charts.objective(made, t)) is not None]
    done = marks(root, "complete")
    assert min(y for _, y in done) == pytest.approx(ys[-1], abs=0.11)
    assert charts.running_best(made)[-1][1] <= max(values)
    if mode != "front":
        assert charts.running_best(made)[-1] == (made["best"], made["trials"][made["best"]]["value"])


def test_history_has_one_mark_per_trial_which_says_its_numbers():
    made = result()
    root = drawn(charts.history_svg(made))
    assert (len(marks(root, "complete")), len(marks(root, "pruned"))) == (39, 20)
    said = [g[0].text for g in (*classed(root, "g", "complete"), *classed(root, "g", "pruned"))]
    first = made["trials"][0]
    assert f"trial 0: Reward R {first['value']:.3f}, 84 tokens, uniform start" in said
    assert any(text.startswith("trial 2: ") and text.endswith("stopped after 100 samples") for text in said)
    (start,) = classed(root, "path", "start")
    at = {
        g[0].text: y
        for g, (_, y) in zip(classed(root, "g", "complete"), marks(root, "complete"), strict=True)
    }
    level = next(y for text, y in at.items() if text.startswith("trial 0:"))
    assert outline(start)[0][1] == pytest.approx(level, abs=0.11)


def test_a_hopeless_trial_does_not_flatten_the_history():
    made = result()
    spread = [y for _, y in marks(drawn(charts.history_svg(made)), "complete")]
    made["trials"][3]["value"] = -50.0
    root = drawn(charts.history_svg(made))
    heights = [y for _, y in marks(root, "complete")]
    assert len(heights) == len(spread)
    assert len({round(y) for y in heights}) > 12
    assert "below the axis" in "".join(root.itertext())
    assert "trial 3: Reward R −50.000, " in ElementTree.tostring(root, "unicode")


def test_quality_marks_the_front_and_what_was_found():
    made = result("front")
    root = drawn(charts.quality_svg(made))
    assert len(marks(root, "front")) == len(made["front"])
    assert len(marks(root, "front")) + len(marks(root, "complete")) + len(marks(root, "uniform")) == 39
    (line,) = classed(root, "path", "front")
    xs, ys = zip(*outline(line), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    # No other complete trial is above the line at as few tokens.
    for x, y in marks(root, "complete"):
        assert min([v for u, v in marks(root, "front") if u <= x + 0.1], default=math.inf) <= y + 0.1
    one = result("penalty")
    found = one["trials"][one["best"]]
    (ring,) = classed(drawn(charts.quality_svg(one)), "g", "found")
    assert f"trial {one['best']}: " in ring[0].text and f"{found['kept']} tokens" in ring[0].text
    computed = [t["number"] for t in charts.front_of(one)]
    assert computed == [t["number"] for t in charts.front_of({**one, "front": computed})]
    assert computed == made["front"]  # the same trials, though no front was saved


def test_importance_is_ranked_and_to_scale():
    shares = {"low": 0.1, "high": 0.6, "middle": 0.3}
    root = drawn(charts.importance_svg(shares, width=350))
    bars = list(root.iter(f"{SVG}rect"))
    assert [bar[0].text for bar in bars] == ["high: 60.0%", "middle: 30.0%", "low: 10.0%"]
    wide = [float(bar.get("width")) for bar in bars]
    assert wide[0] / wide[2] == pytest.approx(6, rel=0.02)
    assert_apart_and_inside(root)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.43, -0.41, [-0.43, -0.425, -0.42, -0.415, -0.41]),
        (3, 47, [0, 10, 20, 30, 40, 50]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)
    for same in (0.0, -0.7, 86.0):
        found = charts.ticks(same, same)
        assert len(found) > 1 and found[0] <= same <= found[-1]


def broken(how: int) -> dict:
    made = copy.deepcopy(result("penalty"))
    if how == 0:
        made |= {"held_out": None, "importance": None, "preset": None}
    elif how == 1:
        for one in made["trials"]:
            one |= {"value": None, "reward": None, "kept": None, "state": "failed", "seconds": None}
        made |= {"best": None, "held_out": None}
    elif how == 2:
        made["trials"], made["best"] = made["trials"][:1], 0
    elif how == 3:
        made |= {"trials": [], "best": None, "importance": {}, "held_out": None}
    elif how == 4:
        made["trials"] = [{"number": i, "state": "complete"} for i in range(3)]
    elif how == 5:
        made["held_out"]["gain"]["exact"] = {"value": math.nan, "low": None, "high": None}
        made["about"] |= {"data": None, "budget": None, "tokens": {}, "penalty": None}
    else:
        made = {}
    return made


@pytest.mark.parametrize("how", range(7))
def test_what_lacks_is_left_out(how):
    made = broken(how)
    text = shown(search.render(made)) + printed(made)
    assert "nan" not in text.lower() and "None" not in text
    assert ("Scores on held-out data" in text) == (how in (2, 4, 5))
    assert ("Importance of each" in text) == (how in (1, 2, 4, 5))
    for draw in (charts.history_svg, charts.quality_svg):
        drawn(draw(made))


def test_the_terminal_has_the_same_numbers_and_fits():
    made = result()
    best = made["trials"][made["best"]]
    text = printed(made)
    assert max(map(len, text.splitlines())) <= 80
    for name in CAMERAS:
        numbers = rf"{name} +144 +14 +{100 * best['rates'][name]:.1f}% +{best['counts'][name]} "
        assert re.search(numbers, text), numbers
    assert "60 trials: 39 complete, 20 stopped early, 1 failed." in text
    front = printed(result("front"))
    assert max(map(len, front.splitlines())) <= 80
    for number in result("front")["front"]:
        assert re.search(rf"^ +{number} ", front, re.M)
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    search.print_search(Console(file=ascii_only, width=80), made)
    ascii_only.flush()
    assert b"-0.0035" in ascii_only.buffer.getvalue()


@pytest.mark.parametrize("width", [350, 540, 960])
@pytest.mark.parametrize("mode", ["budget", "penalty", "front"])
def test_charts_keep_their_words_apart_and_their_marks_inside(mode, width):
    made = result(mode)
    for draw in (charts.history_svg, charts.quality_svg):
        root = drawn(draw(made, width=width, height=340))
        assert_apart_and_inside(root)
        for name in ("complete", "pruned", "front", "uniform"):
            assert all(0 < x < width and 30 < y < 300 for x, y in marks(root, name))


def test_writing_is_atomic(tmp_path):
    with pytest.raises(PruneError, match="nowhere"):
        search.write_search(result(), tmp_path / "nowhere" / "s.html")
    path = search.write_search(result(), tmp_path / "s.html")
    assert path.read_text(encoding="utf-8") == search.render(result())
    assert [p.name for p in tmp_path.iterdir()] == ["s.html"]
