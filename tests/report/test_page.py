"""The page: self-contained, escaped, arranged as on the car, written whole or not at all."""

import os
import re
from html.parser import HTMLParser

import pytest

from prune2drive import PruneError
from prune2drive.report.page import Panel, Report, Timing, arrange, render, write_page
from prune2drive.rig import NUSCENES

JPEG = b"\xff\xd8\xff\xd9"
SIX = [Panel(c.name, JPEG, 729, 73, c.yaw_deg) for c in NUSCENES.cameras]
VOID = {"meta", "img", "path", "rect", "br"}


class Checker(HTMLParser):
    """Collects tags and attributes, and checks that tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack, self.seen, self.text = [], [], []
        self.feed(page)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def report(**changes) -> Report:
    values = {
        "title": "A title",
        "question": "What is ahead?",
        "answer": "A bus.",
        "panels": SIX,
        "times": [Timing("Time to first token", 412.3, 1893.2), Timing("Choosing", 3.12)],
        "facts": {"Model": "org/name"},
    }
    return Report(**{**values, **changes})


def test_numbers_and_words_are_on_the_page():
    text = " ".join(Checker(render(report(unpruned_answer="Two buses."))).text)
    for part in ("A title", "What is ahead?", "A bus.", "Two buses.", "73 of 729 kept (10%)", "4,374", "438"):
        assert part in text
    for part in ("412", "1,893", "4.6× faster", "3.1", "org/name", "CAM_BACK_RIGHT"):
        assert part in text


def test_all_text_is_escaped():
    nasty = "</style><script>alert('&\"')</script>"
    panels = [Panel(nasty, JPEG, 4, 2, 0.0)]
    times = [Timing(nasty, 1.0, 2.0)]
    page = render(
        report(
            title=nasty, question=nasty, answer=nasty, unpruned_answer=nasty, panels=panels, times=times,
            facts={nasty: nasty}, notes=[nasty],
        )
    )  # fmt: skip
    assert "<script" not in page
    checker = Checker(page)
    assert "script" not in {tag for tag, _ in checker.seen}
    assert "".join(checker.text).count(nasty) >= 9


def test_nothing_outside_the_page_is_used_and_the_policy_says_so():
    page = render(report())
    assert "http" not in re.sub(r"http-equiv", "", page)
    policy = None
    for tag, attrs in Checker(page).seen:
        assert tag not in {"script", "link", "iframe", "a", "form", "object"}
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        if "src" in attrs:
            assert attrs["src"].startswith("data:image/jpeg;base64,")
        if attrs.get("http-equiv") == "Content-Security-Policy":
            policy = attrs["content"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_six_cameras_stand_as_on_the_car():
    front, back = arrange(SIX)
    assert [p.name for p in front] == ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"]
    assert [p.name for p in back] == ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]
    page = render(report())
    order = [page.index(f"<b>{p.name}</b>") for p in front + back]
    assert order == sorted(order)
    assert order[2] < page.index('class="ego"') < order[3]


@pytest.mark.parametrize(
    ("yaws", "front", "back"),
    [
        ([0], [0], []),
        ([45, -45], [45, -45], []),
        ([-90, 0, 90], [0], [90, -90]),
        ([350, 10, 190, 170], [10, 350], [170, 190]),
        ([180, -179, 89.9], [89.9], [180, -179]),
    ],
)
def test_other_rigs_are_arranged_by_yaw(yaws, front, back):
    rows = arrange([Panel(str(y), JPEG, 4, 1, y) for y in yaws])
    assert [[p.yaw_deg for p in row] for row in rows] == [front, back]


@pytest.mark.parametrize("yaws", [[None, 0.0], [0.0] * 5, [float("nan")]])
def test_rigs_that_have_no_such_place_flow(yaws):
    panels = [Panel(f"c{i}", JPEG, 4, 1, yaw) for i, yaw in enumerate(yaws)]
    assert arrange(panels) is None
    page = render(report(panels=panels))
    Checker(page)
    assert 'class="ego"' not in page


def test_characters_that_html_or_utf8_do_not_allow(tmp_path):
    page = write_page(report(answer="a\x00b\x1b[31m\ud800", question="two\nlines"), tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    assert "a\ufffdb\ufffd[31m?" in text
    assert "two\nlines" in text


def test_odd_numbers_do_not_break_it():
    Checker(
        render(report(panels=[Panel("c", JPEG, 0, 0, 0.0)], times=[Timing("x", 0.0, 0.0), Timing("y", None)]))
    )
    Checker(render(report(panels=[], times=[], facts={}, answer="")))


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = write_page(report(), tmp_path / "r.html")
    assert path.read_text(encoding="utf-8") == render(report())
    assert os.stat(path).st_mode & 0o044

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PruneError, match="No space left"):
        write_page(report(title="other"), path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert "A title" in path.read_text(encoding="utf-8")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PruneError, match="nowhere"):
        write_page(report(), tmp_path / "nowhere" / "r.html")
