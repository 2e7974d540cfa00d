"""The demo on a model of the reference model's make: whatever is asked for is what the page tells about."""

import re

import pytest

from prune2drive.cli import main
from prune2drive.commands import demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_untrained):
    return save_untrained(tmp_path_factory.mktemp("models") / "untrained")


def shown(folder, tmp_path, capsys, *more):
    """What the terminal and the page say."""
    page = tmp_path / "demo.html"
    options = ["--model", folder, "--scenes", "1", "--repeat", "1", "--report", page, *more]
    assert main([str(word) for word in ("demo", *options)]) == 0
    return " ".join(capsys.readouterr().out.split()), page.read_text(encoding="utf-8")


def test_rates_per_camera(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "CHART", (0.1,))
    out, page = shown(folder, tmp_path, capsys, "--retention", "CAM_FRONT=0.25,*=0.05")
    # 36 of the front camera's 144 and 7 of each other's; the sentence is about these, not the chart's 10%.
    (said,) = re.findall(r"\d+ questions about scenes the model has not seen: .*? the same\.", out)
    assert "with 71 visual tokens" in said and f'<p class="lead words">{said}</p>' in page
    assert "Model</dt><dd>untrained</dd>" in page and "1 scenes of the calibration split" in page
    assert "Questions about these pictures" in page and 'class="chart"' in page


def test_a_method_inside_the_model_meets_random_at_its_layer(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "CHART", (0.1,))
    out, page = shown(folder, tmp_path, capsys, "--method", "tfps-layer", "--positions", "reindex")
    assert "with 84 visual tokens" in out
    assert "Inside the language model, at layer 1" in page and "Before the language model" not in page
    assert re.search(r">random<", page) and re.search(r">tfps-layer<", page)
    assert "reindex" in page


def test_everything_may_be_kept(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "CHART", (0.1,))
    out, _ = shown(folder, tmp_path, capsys, "--retention", "1.0", "--method", "random")
    assert "with 864 visual tokens" in out and "100.0% of the answers are the same" in out


def test_the_answers_of_the_chart_are_those_of_the_sentence(folder, monkeypatch):
    """The rate that is asked for is one of the chart's rows, not answered twice."""
    from prune2drive import prune
    from prune2drive.benchmarks.answering import Answerer
    from prune2drive.benchmarks.world import samples
    from prune2drive.loading import load_model
    from prune2drive.rig import NUSCENES

    monkeypatch.setattr(demo, "CHART", (0.1,))
    model, processor = load_model(folder, dtype="float32", device="cpu")
    setting = {"method": "tfps", "retention": 0.05, "positions": "keep"}
    table = demo._Table(Answerer(model, processor), setting, prune(model, rig=NUSCENES, **setting), 0)
    (sample,) = samples("calibration", 1)
    table.fill([sample])
    assert [s.name for s in table.settings] == [
        *("unpruned", "blind", "tfps@0.1", "tfps@0.05", "random@0.1", "random@0.05")
    ]
    few = [a["given"] for a in table.rows["tfps@0.05", sample.name]["answers"]]
    full = [a["given"] for a in table.rows["unpruned", sample.name]["answers"]]
    assert table.asked == [(sample, few, full)]
    right = [q.answer for q in sample.questions]
    said = table.said((864, 42))
    for given in (few, full):
        assert f"{sum(a == b for a, b in zip(given, right, strict=True)) / len(right):.1%}" in said
    alone = table.answerer.answer(table.answerer.encode([sample]), table.pruned)
    assert alone == [few]
