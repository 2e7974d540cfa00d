"""What README and docs say of the comparison is what the committed results say."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import comparison  # noqa: E402
import positions  # noqa: E402
from prune2drive.report.compare import chart  # noqa: E402
from prune2drive.report.compare_text import markdown_tables  # noqa: E402


@pytest.fixture(scope="module")
def summary():
    return json.loads(comparison.RESULT.read_text())


def test_tables_are_those_of_the_results(summary):
    assert comparison.block("comparison", comparison.readme(summary)) in (ROOT / "README.md").read_text()
    docs = (ROOT / "docs" / "comparison.md").read_text()
    assert comparison.block("tables", markdown_tables(summary)) in docs
    assert comparison.block("positions", positions.table(json.loads(positions.RESULT.read_text()))) in docs


def test_the_chart_is_that_of_the_results(summary):
    assert comparison.PICTURE.read_text() == chart(summary)


def test_figures_in_a_row_by_hand(summary):
    row = next(row for row in summary["contenders"] if row["name"] == "tfps@avg0.1")
    overall = row["accuracy"]["overall"]
    half = max(overall["high"] - overall["value"], overall["value"] - overall["low"])
    line = next(
        line for line in comparison.readme(summary).splitlines() if line.startswith("| T-FPS | before")
    )
    assert f"| {100 * overall['value']:.1f} ± {100 * half:.1f} |" in line
    assert f"| {100 * row['costs']['flops_ratio']:.1f}% |" in line


def test_a_file_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="no markers"):
        comparison.put(page, "tables", "text")
