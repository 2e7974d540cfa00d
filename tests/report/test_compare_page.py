"""The comparison's page: everyone in every table, costs where measured, pictures once, text escaped."""

import base64
import hashlib
import html
import io
import re
from xml.etree import ElementTree

import pytest
from compare_summaries import METHODS, comparison, contender, picks
from PIL import Image

from prune2drive import PruneError
from prune2drive.report import compare
from prune2drive.report import compare_tables as tables

NASTY = "</style><script>alert(1)</script>|`*'\"&"


def shown(page: str) -> str:
    """The words of a page, which is well-formed but for the line above ``<html>``."""
    body = page.partition("<body>")[2].partition("</body>")[0]
    return " ".join(" ".join(ElementTree.fromstring(f"<body>{body}</body>").itertext()).split())


def rows(table: tables.Table) -> dict[str, list[tables.Cell]]:
    return {row[0].text: row for row in table.rows if len(row) > 1}


def column(table: tables.Table, name: str) -> int:
    return [cell.text for cell in table.head].index(name)


@pytest.fixture(scope="module")
def summary() -> dict:
    return comparison()


@pytest.fixture(scope="module")
def page(summary) -> str:
    return compare.render(summary, picks(summary))


def test_the_page_is_written_whole_and_holds_what_was_asked(tmp_path, summary):
    path = tmp_path / "compare.html"
    assert compare.write(path, summary, picks(summary)) is None
    text = shown(path.read_text(encoding="utf-8"))
    for part in (
        "Methods at equal budgets: world", "11 methods at 6 budgets, 1,700 questions each about 100 scenes",
        "best at 5%: tfps", "random 79.1%", "10% of the visual tokens per layer, on average",
        "25% of the visual tokens kept where the method chooses", "Accuracy by type of question, %",
        "Not possible", "sparsevlm-v2 keeps at least 12.5%", "A processor, 8 cores, 8 threads, 64 GiB",
        "python 3.12.3, torch 2.9.0", "Layers of the language model 8", "What should we do ?",
    ):  # fmt: skip
        assert part in text, part
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(PruneError, match="cannot write"):
        compare.write(tmp_path / "no" / "compare.html", summary, None)


def test_nothing_is_fetched_and_no_script_runs(page):
    assert "<script" not in page and "http-equiv" in page and "img-src data:" in page
    css = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"sha256-{digest}" in page and "style=" not in page
    links = set(re.findall(r'(?:src|href)="([^"]{5})', page))
    assert links == {"data:", "#view"}


def test_contenders_stand_by_budget_and_accuracy(summary):
    table = tables.overall_table(summary)
    assert set(rows(table)) == {c["name"] for c in summary["contenders"]}
    heads = [row[0].text for row in table.rows if len(row) == 1]
    assert heads == [
        "Bounds",
        *(f"{s}% of the visual tokens per layer, on average" for s in (25, 10, 5)),
        *(f"{s}% of the visual tokens kept where the method chooses" for s in (25, 10, 5)),
    ]
    names = [row[0].text for row in table.rows]
    ten = names[names.index(heads[2]) + 1 : names.index(heads[3])]
    lost = {m[0]: m[4][1] for m in METHODS}
    assert [name.removesuffix("@avg0.1") for name in ten] == sorted(lost, key=lambda name: lost[name])


def test_figures_of_a_contender(summary):
    table = tables.overall_table(summary)
    row = rows(table)["tfps@avg0.1"]
    texts = {
        head.text: (cell.text, cell.small, cell.strong) for head, cell in zip(table.head, row, strict=True)
    }
    assert texts == {
        "Contender": ("tfps@avg0.1", "T-FPS", True),
        "Chooses": ("before", "", False),
        "Tokens per layer": ("86.4", "", False),
        "Accuracy, %": ("93.0", "91.8 to 94.1", False),
        "Against unpruned": ("−2.2", "−3.0 to −1.4", True),
        "Against random": ("+6.0", "+5.2 to +6.8", True),
        "Against T-FPS": ("–", "", False),
        "FLOPs": ("0.15×", "", False),
        "Choosing, ms": ("4.4", "", False),
        "Prefill, ms": ("72.0", "0.16×", False),
        "KV cache, MiB": ("0.9", "", False),
        "Memory, MiB": ("7.5", "", False),
    }
    assert rows(table)["fastv@avg0.1"][1].small == "reads the question"
    close = rows(table)["sparsevlm@avg0.1"][column(table, "Against random")]
    assert (close.text, close.strong) == ("−0.3", False)
    assert rows(table)["random@avg0.1"][column(table, "Against random")].text == "–"
    assert rows(table)["blind"][column(table, "Tokens per layer")].text == "–"


def test_costs_that_were_not_measured(summary):
    some = comparison()
    next(c for c in some["contenders"] if c["name"] == "tfps@avg0.1")["costs"] = None
    for one in some["contenders"]:
        if one["costs"]:
            one["costs"]["memory_bytes"] = None
    table = tables.overall_table(some)
    assert "Memory, MiB" not in [c.text for c in table.head]
    assert [c.text for c in rows(table)["tfps@avg0.1"][7:]] == ["–"] * 4
    none = {**some, "contenders": [{**c, "costs": None} for c in some["contenders"]]}
    table = tables.overall_table(none)
    assert len(table.head) == 7 and "Costs" not in table.note
    assert "Prefill" not in shown(compare.render(none))


def test_types_mark_the_best_of_a_budget_and_sure_differences(summary):
    table = tables.type_table(summary)
    assert set(rows(table)) == {c["name"] for c in summary["contenders"]}
    for at, head in list(enumerate(table.head))[1:]:
        assert head.small == "154 asked"
        for retention in (0.25, 0.1, 0.05):
            group = [
                c for c in summary["contenders"] if (c["budget"], c["retention"]) == ("average", retention)
            ]
            best = max(c["accuracy"]["type"][head.text]["value"] for c in group)
            for one in group:
                cell, value = rows(table)[one["name"]][at], one["accuracy"]["type"][head.text]["value"]
                assert cell.text == f"{100 * value:.1f}" and cell.strong == (value == best)
                found = one["difference"].get("random", {}).get("type", {}).get(head.text)
                wanted = (
                    "" if found is None else "▲" if found["low"] > 0 else "▼" if found["high"] < 0 else ""
                )
                assert cell.small == wanted
    assert not any(cell.strong for cell in rows(table)["unpruned"][1:])


def test_intervals_that_lack():
    made = comparison()
    for one in made["contenders"]:
        one["accuracy"]["overall"] |= {"low": None, "high": None}
        for part in one["difference"].values():
            part["overall"] |= {"low": None, "high": None}
            part["type"] = {}
    row = rows(tables.overall_table(made))["tfps@avg0.1"]
    assert [(c.text, c.small, c.strong) for c in row[3:6]] == [
        ("93.0", "", False), ("−2.2", "", False), ("+6.0", "", False),
    ]  # fmt: skip
    text = shown(compare.render(made))
    assert "95% interval 9" not in text and "▲ " not in text.partition("Bold: the best")[0]


def test_each_picture_is_embedded_once_and_is_the_scene(page):
    found = re.findall(r'<image id="view(\d)"[^>]*base64,([^"]+)"', page)
    assert [int(i) for i, _ in found] == list(range(6))
    assert page.count("base64,") == 6
    for _, data in found:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (picture.format, picture.size) == ("JPEG", (144, 144))
    first = page.partition('<div class="six">')[2].partition("</div>")[0]
    assert re.findall(r"<b>(\w+)</b>", first) == [
        "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT",
    ]  # fmt: skip
    assert len(page.encode()) < 1_000_000


def test_every_contender_has_its_row_with_what_it_kept(summary, page):
    kept = picks(summary)
    found = {}
    for section in re.findall(r'<section class="picks">.*?</section>', page):
        name = html.unescape(re.findall(r"<h3>([^ ]*) ", section)[0])
        found[name] = re.findall(r'aria-label="(\w+): (\d+) of 144 kept">(.*?)</svg>', section)
    assert set(found) == {"everything", *kept["contenders"]}
    for camera, count, drawn in found["everything"]:
        assert count == "144" and "dark" not in drawn, camera
    for name, cameras in kept["contenders"].items():
        for camera, count, drawn in found[name]:
            cells = [int(y) * 12 + int(x) for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", drawn)]
            assert cells == cameras[camera] and int(count) == len(cells)


def test_the_fewest_tokens_on_average_are_unfolded(page):
    folds = re.findall(r'<details class="card kept"( open="")?><summary>(\d+)% of[^<]*<', page)
    assert [share for opened, share in folds if opened] == ["5"]
    assert [share for _, share in folds] == ["25", "10", "5", "25", "10", "5"]


def test_the_same_choice_under_other_positions_is_drawn_once():
    made = comparison(METHODS[:2], kept_budget=False)
    again = contender(*METHODS[1][:4], "average", 0.1, 86.4, 0.92, name="tfps@avg0.1/reindex")
    made["contenders"].append(again)
    kept = picks(made)
    kept["contenders"]["tfps@avg0.1/reindex"] = kept["contenders"]["tfps@avg0.1"]
    page = compare.render(made, kept)
    assert "<h3>tfps@avg0.1, tfps@avg0.1/reindex " in page
    assert page.count('<section class="picks">') == 1 + 6


@pytest.mark.parametrize(
    "kept", [None, {}, {"sample": "test/0", "contenders": {}}, {"sample": "test/0", "contenders": {"x": {}}}]
)
def test_without_kept_tokens_there_are_no_pictures(summary, kept):
    page = compare.render(summary, kept)
    assert "<image" not in page and "What is kept" not in page
    assert "tfps@avg0.1" in shown(page)


def test_a_contender_without_picks_or_cameras(summary):
    some = {"sample": "test/0", "contenders": {"tfps@avg0.05": {}, "fastv@avg0.1": {"CAM_BACK": [3]}}}
    page = compare.render(summary, some)
    assert page.count('<section class="picks">') == 3
    assert 'aria-label="CAM_BACK: 1 of 144 kept"' in page


@pytest.mark.parametrize(
    ("sample", "indices", "said"),
    [
        ("test/0", [144], "CAM_FRONT: kept tokens reach from 144 to 144, but a picture has 144"),
        ("test/0", [-1, 3], "reach from -1 to 3"),
        ("somewhere", [3], "no scene of the world benchmark"),
        ("tset/0", [3], "no split 'tset'"),
    ],
)
def test_tokens_or_scenes_that_cannot_be(summary, sample, indices, said):
    kept = {"sample": sample, "contenders": {"tfps@avg0.1": {"CAM_FRONT": indices}}}
    with pytest.raises(PruneError, match=said):
        compare.render(summary, kept)


def test_everything_is_escaped():
    made = comparison(
        METHODS[:3], benchmark=NASTY, model=NASTY, hardware={"cpu": NASTY}, versions={NASTY: NASTY}
    )
    for one in made["contenders"]:
        one["name"] += NASTY
        one["title"] = one["stage"] = NASTY
        types = one["accuracy"]["type"]
        types[NASTY] = next(iter(types.values()))
        if one["retention"]:
            one["method"] += NASTY
    made["impossible"] = [{"name": NASTY, "reason": NASTY}]
    kept = {**picks(made), "question": NASTY}
    page = compare.render(made, kept)
    assert "<script" not in page
    assert shown(page).count(NASTY) > 20


def test_a_bare_summary_makes_a_page():
    assert "Nothing was compared." in shown(compare.render({}))
    made = comparison(METHODS[:2])
    bare = [{k: c[k] for k in ("name", "method", "budget", "retention")} for c in made["contenders"]]
    text = shown(compare.render({"contenders": bare}, picks(made)))
    assert "tfps@avg0.1" in text and "2 methods" not in text.partition("Every contender")[2]
    made["hardware"] = made["versions"] = made["impossible"] = None
    assert "Not possible" not in shown(compare.render(made))
