"""The documentation of methods: complete, up to date, and true."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import prune2drive as p2d
from families_table import BY_NAME
from legacy_standins import make_fork_inputs, make_remote_inputs
from methods_table import RIG, MethodCase
from prune2drive import describe as telling
from prune2drive.describe import describe
from prune2drive.engine import choose, layers
from prune2drive.layer_pruners import base as pruner_base
from prune2drive.schedules import Schedule
from prune2drive.selectors import base as selector_base
from prune2drive.tokens import Signal
from tiny_models import LAYERS

ROOT = Path(__file__).parent.parent


def _load():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = _load()
cases = pytest.mark.parametrize("case", build.cases(), ids=str)


def test_docs_are_up_to_date():
    assert build.stale() == [], "run: python docs/build.py"


def test_check_finds_what_is_out_of_date(tmp_path, monkeypatch, capsys):
    for name in ("ROOT", "PAGES"):
        monkeypatch.setattr(build, name, tmp_path)
    text = build.INDEX.read_text()
    (tmp_path / "methods.md").write_text(text.replace("| [tfps] | before", "| [tfps] | after"))
    monkeypatch.setattr(build, "INDEX", tmp_path / "methods.md")
    assert build.main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "tfps.md is out of date" in out
    assert "methods.md is out of date" in out
    monkeypatch.setattr(build, "PAGES", tmp_path / "methods")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "gone.md").write_text("a method that is gone")
    assert "tells of no method" in build.stale()[-1]
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


@cases
def test_docstring_has_all_parts(case):
    found = describe(case.name)
    assert found.summary.endswith(".")
    assert len(found.summary) < 110
    assert found.idea
    assert found.source
    assert found.formula
    assert found.needs
    assert found.costs
    assert found.decisions
    fields = [parameter.name for parameter in found.parameters]
    parts = telling.read(inspect.getdoc(type(case.build())))
    assert list(telling.arguments(parts.sections.get("Args", ""))) == fields
    assert not re.search(r"\b(TODO|FIXME)\b", str(found))


def test_every_signal_has_a_meaning():
    assert set(telling.meanings()) == set(Signal)


@pytest.mark.parametrize("package", ["selectors", "layer_pruners", "schedules"])
def test_packages_export_every_method(package):
    module = getattr(p2d, package)
    kinds = {type(case.build()) for case in build.cases()}
    for case in build.cases():
        if isinstance(case.build(), Schedule):
            kinds |= {type(stage) for stage in case.stages(LAYERS)}
    here = {kind.__name__ for kind in kinds if kind.__module__.startswith(f"prune2drive.{package}.")}
    assert here <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@cases
def test_what_is_said_of_merging_is_so(case, monkeypatch):
    """A stage that says it merges hands rows back, at some budget; one that does not, never."""
    model, inputs = BY_NAME["llava"].model(), BY_NAME["llava"].inputs([6])
    seen = []
    own = choose.select

    def select(method, *args, **kwargs):
        chosen = own(method, *args, **kwargs)
        seen.append((method, chosen))
        return chosen

    monkeypatch.setattr(choose, "select", select)
    monkeypatch.setattr(layers, "select", select)
    stages = case.stages(LAYERS)
    asked = 0.5 if len(stages) == 1 else [0.5, 0.4, 0.3][: len(stages)]
    with torch.no_grad(), p2d.prune(model, case.build(), asked, rig=RIG, cameras=[RIG]):
        model(**inputs)
    assert len(seen) == len(stages)
    for method, chosen in seen:
        assert method.merges == (chosen.features is not None)
        assert method.merges == (chosen.sizes is not None) and (method.merges or not method.proportional)


@cases
@pytest.mark.parametrize("name", build.REMOTE)
def test_models_with_code_of_their_own_take_what_the_table_says(case, name):
    """The table is of words; here the method is tried."""
    model = build.REMOTE[name]()
    inputs = make_fork_inputs([6]) if name == "LLaVA forks" else make_remote_inputs([[1] * 6])
    stages = case.stages(LAYERS)
    asked = 0.5 if len(stages) == 1 else p2d.LayerAveraged(0.6)
    fails = build.reason(case, build.families()[name]) is not None
    refusal = pytest.raises(p2d.PruneError, match="code of") if fails else nullcontext()
    with torch.no_grad(), refusal, p2d.prune(model, case.build(), asked, rig=RIG, cameras=[RIG]):
        model(**inputs)


def test_lines_and_links_of_the_pages():
    pages = [ROOT / "docs" / "methods.md", ROOT / "docs" / "write-a-method.md", *build.PAGES.glob("*.md")]
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        assert max(map(len, text.splitlines())) <= 120, page.name
        defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, re.MULTILINE))
        for target in defined.values():
            assert target.startswith("https://") or (page.parent / target).exists(), target
        used = re.findall(r"\| \[([\w-]+)\] \|", text) + re.findall(r"\]\[([\w.]+)\] \|", text)
        assert set(used) <= set(defined), page.name


# -- the examples of write-a-method.md


@functools.cache
def examples() -> dict[str, type]:
    """The classes of the page's examples, by their names as methods."""
    text = (ROOT / "docs" / "write-a-method.md").read_text()
    space = {
        "p2d": p2d,
        "torch": torch,
        "model": BY_NAME["llava"].model(),
        "inputs": BY_NAME["llava"].inputs([6]),
    }
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "write-a-method.md", "exec", dont_inherit=True), space)
    bases = selector_base.Selector, pruner_base.LayerPruner
    kinds = [value for value in space.values() if isinstance(value, type) and issubclass(value, bases)]
    return {kind.name: kind for kind in kinds if hasattr(kind, "name")}


class Example(MethodCase):
    """A row of the table of methods for a class that has no name in the registry."""

    def build(self):
        return examples()[self.name]()


def test_examples_pass_the_contract(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "engine"))
    import test_methods_contract as contract

    rows = [Example(name) for name in examples()]
    assert {row.name for row in rows} == {"largest-norm", "any-glance", "norm-and-mean"}
    monkeypatch.setattr(contract, "METHODS", rows)
    monkeypatch.setattr(contract, "reason", contract.reason.__wrapped__)
    case = BY_NAME["llava"]
    for method in rows:
        contract.test_forward_equals_the_masked_full_sequence(case, method, "left")
        contract.test_decoding_equals_the_masked_full_sequence(case, method)
        contract.test_keeping_all_changes_nothing(case, method)
        contract.test_a_batch_is_its_samples(case, method)
        contract.test_leaving_restores_the_model(case, method)
        if method.name != "any-glance":
            contract.test_permuting_the_cameras_permutes_the_choice(method)
