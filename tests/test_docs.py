"""Every Python example of the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

import prune2drive as p2d
from families_table import FAMILIES, picture
from prune2drive.rig import load_rig

ROOT = Path(__file__).parent.parent
CASE = next(case for case in FAMILIES if case.name == "llava")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block, monkeypatch, tmp_path):
    """Names on the hub stand for a tiny model; a folder, such as the reference model's, for itself."""
    model = CASE.model()
    stand_ins = {"AutoModelForImageTextToText": lambda: model, "AutoProcessor": CASE.processor}
    for name, make in stand_ins.items():
        kind = getattr(transformers, name)

        def load(source, *more, real=kind.from_pretrained, make=make, **options):
            return real(source, *more, **options) if Path(source).is_dir() else make()

        monkeypatch.setattr(kind, "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in load_rig("nuscenes").names:
        picture(0, 0, 0).save(tmp_path / f"{name}.jpg")
    space = {
        "p2d": p2d,
        "torch": torch,
        "model": model,
        "processor": CASE.processor(),
        "inputs": CASE.inputs([6]),
        "features": torch.randn(6, 36, 16),
    }
    exec(compile(block, "example", "exec", dont_inherit=True), space)


def test_every_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
