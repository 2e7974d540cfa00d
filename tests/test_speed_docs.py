"""What README and docs say of speed is what the committed results say, and the script writes it from any."""

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "report")]

import speed_suites  # noqa: E402

import speed_page  # noqa: E402


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A copy of what the script writes to."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/speed.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(speed_page, "ROOT", tmp_path)
    monkeypatch.setattr(speed_page, "RESULTS", results)
    return tmp_path


def test_committed_text_and_pages_are_those_of_the_results():
    assert speed_page.stale(speed_page.committed()) == []


def test_committed_results_are_measured():
    for suite in speed_page.committed().values():
        assert "Imagined" not in json.dumps(suite)


def test_without_results_it_says_so(elsewhere):
    assert speed_page.main([]) == 0
    text = (elsewhere / "README.md").read_text()
    assert "GPU figures have not been measured yet" in text and "gpu_suite.py" in text
    assert speed_page.main(["--check"]) == 0


def test_the_cpu_alone_is_no_word_about_a_gpu(elsewhere):
    kept = elsewhere / "suite.json"
    kept.write_text(json.dumps(speed_suites.suite(gpu=False)))
    assert speed_page.main([str(kept)]) == 0
    text = " ".join((elsewhere / "README.md").read_text().split())
    assert "No GPU result is committed yet" in text and "16 cores of Imagined CPU" in text
    assert (elsewhere / "benchmarks" / "results" / "speed_cpu.html").exists()


def test_a_gpu_result_by_hand(elsewhere):
    suite = speed_suites.suite()
    kept = elsewhere / "suite.json"
    kept.write_text(json.dumps(suite))
    assert speed_page.main([str(kept)]) == 0 and speed_page.main(["--check"]) == 0
    assert (elsewhere / "benchmarks" / "results" / "speed_x100.json").exists()
    text = (elsewhere / "README.md").read_text()
    row = suite["cells"]["prefill/drivemm-b1-r0.1-captured"]
    (line,) = (line for line in text.splitlines() if line.startswith("| DriveMM, 6 cameras, captured |"))
    full = suite["cells"]["prefill/drivemm-b1-r1-captured"]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    before, after = full["prefill_ms"]["median"], row["prefill_ms"]["median"]
    assert cells[1] == f"{before:.0f} ms to {after:.1f} ms, **{row['prefill_ratio']:.2f}x**"
    assert cells[2].endswith(f", **{row['ttft_ratio']:.2f}x**")
    assert cells[4] == f"{full['kv_bytes'] / 2**20:.1f} MiB to {row['kv_bytes'] / 2**20:.1f} MiB"
    assert cells[6] == f"{100 * row['share_of_limit']:.0f}%"
    assert "](docs/images/speed-x100.svg)" in text and (elsewhere / "docs/images/speed-x100.svg").exists()
    assert "NVIDIA Imagined X100 80GB" in text and "No GPU result" not in text
    assert "LLaVA-OneVision 0.5B, 2 cameras" in (elsewhere / "docs" / "speed.md").read_text()


def test_the_gpu_comes_first_and_both_are_told(elsewhere):
    for gpu in (False, True):
        kept = elsewhere / "suite.json"
        kept.write_text(json.dumps(speed_suites.suite(gpu)))
        speed_page.main([str(kept)])
    assert list(speed_page.committed(speed_page.RESULTS)) == ["x100", "cpu"]
    text = (elsewhere / "README.md").read_text()
    assert text.index("X100") < text.index("Imagined CPU")


@pytest.mark.parametrize(
    "name", ["README.md", "docs/speed.md", "benchmarks/results/speed_cpu.html", "docs/images/speed-cpu.svg"]
)
def test_a_change_by_hand_is_found(elsewhere, capsys, name):
    kept = elsewhere / "suite.json"
    kept.write_text(json.dumps(speed_suites.suite(gpu=False)))
    speed_page.main([str(kept)])
    page = elsewhere / name
    page.write_text(page.read_text().replace("Imagined CPU", "a better CPU").replace("DriveMM", "Drive"))
    assert speed_page.main(["--check"]) == 1
    assert name in capsys.readouterr().out


def test_lines_of_the_page_are_short():
    lines = (ROOT / "docs" / "speed.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 110 and not line.startswith("|")] == []


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
    ],
)
def test_names_of_files(gpu, name):
    assert speed_page.slug({"hardware": {"gpu": gpu}}) == name
    assert speed_page.slug({"hardware": {"cpu": "any"}}) == "cpu"
