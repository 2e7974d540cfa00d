"""What there is to tell of a method: read from its class, its docstring and its stages.

A method's docstring is laid out as

    Summary, one line.

    The idea in a few sentences. Source: where it comes from.

    Formula: ...

    Args:
        field: what it means.

    Needs: ...

    Costs: ...

    Decisions:
        - What the source leaves open or does otherwise.

and both `prune2drive methods NAME` and the pages of the documentation are made of it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .engine.stages import USUAL_DEPTH
from .registry import resolve_method
from .schedules.base import Schedule
from .selectors.base import Selector
from .tokens import READS_QUESTION, Signal

SECTIONS = ("Formula", "Args", "Needs", "Costs", "Decisions", "Raises")
"""Headings of a docstring, in order."""

_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):")
_ITEM = re.compile(r"^\s*[-*] ")


@dataclass(frozen=True)
class Parameter:
    """A field of a method: its default as Python writes it, and what the docstring says of it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A method in words; what its docstring leaves out is empty.

    ``kind``: its class as "package.module.Class". ``idea``: paragraphs. ``formula``: one paragraph, or
    several lines to be shown as they are. ``layers``: the layer each stage starts at in a model of
    ``depth`` layers, 0 before the language model. ``scopes``: what each stage ranks together.
    """

    name: str
    kind: str
    summary: str
    idea: tuple[str, ...]
    source: str
    formula: str
    parameters: tuple[Parameter, ...]
    needs: str
    costs: str
    decisions: tuple[str, ...]
    schedule: bool
    layers: tuple[int, ...]
    scopes: tuple[str, ...]
    signals: tuple[Signal, ...]
    reads_question: bool
    merges: bool
    proportional: bool
    allocates: bool
    depth: int = USUAL_DEPTH

    @property
    def place(self) -> str:
        """Where it chooses, in a few words."""
        inside = [layer for layer in self.layers if layer]
        if not inside:
            return "before"
        where = f"layer{'s' if len(inside) > 1 else ''} {', '.join(map(str, inside))}"
        where += f" of {self.depth}" if self.schedule else ""
        return where if len(inside) == len(self.layers) else f"before, {where}"

    @property
    def chooses(self) -> str:
        """Where it chooses, as a sentence."""
        inside = [str(layer) for layer in self.layers if layer]
        before = "before the language model"
        if not inside:
            return f"{before}."
        *most, last = inside
        layers = f"layers {', '.join(most)} and {last}" if most else f"layer {last}"
        if not self.schedule:
            return f"inside the language model, at the input of {layers} (``layer``)."
        stages = f"at the input of {layers} of {self.depth}, at the same depth in other models"
        return f"{stages}." if len(inside) == len(self.layers) else f"{before}, and {stages}."

    @property
    def pool(self) -> str:
        """Which tokens are ranked together, as a sentence."""
        view = "each camera's tokens by themselves, to that camera's count"
        sample = "all tokens of a sample together: how many each camera keeps is an outcome"
        kinds = list(dict.fromkeys(self.scopes))
        if len(kinds) > 1:
            words = {"view": "each camera by itself", "sample": "all cameras together"}
            return f"stage by stage: {', then '.join(words[kind] for kind in self.scopes)}."
        text = sample if kinds == ["sample"] else view
        if self.allocates:
            text = "each camera's tokens by themselves; how many each camera keeps, it decides"
        option = any(parameter.name == "scope" for parameter in self.parameters)
        return f"{text} (``scope``)." if option else f"{text}."

    @property
    def merging(self) -> str:
        """What becomes of tokens that leave, as a sentence."""
        if not self.merges:
            return "no, tokens that leave are gone."
        weight = "weighs as many as it stands for" if self.proportional else "weighs as one token"
        return f"yes; a token that took in others {weight} in attention."


def describe(name: str) -> Description:
    """What there is to tell of a registered method with its defaults.

    Raises:
        PruneError: an unknown name, or a method that cannot be loaded.
    """
    method = resolve_method(name)
    kind = type(method)
    parts = read(inspect.getdoc(kind) or "")
    stages = method.stages(USUAL_DEPTH) if isinstance(method, Schedule) else [method]
    needs = frozenset[Signal]().union(*(stage.needs for stage in stages))
    return Description(
        name=name,
        kind=f"{kind.__module__}.{kind.__qualname__}",
        summary=parts.summary,
        idea=parts.idea,
        source=parts.source,
        formula=parts.sections.get("Formula", ""),
        parameters=tuple(_parameters(method, parts.sections.get("Args", ""))),
        needs=joined(parts.sections.get("Needs", "")),
        costs=joined(parts.sections.get("Costs", "")),
        decisions=tuple(items(parts.sections.get("Decisions", ""))),
        schedule=isinstance(method, Schedule),
        layers=tuple(0 if isinstance(stage, Selector) else stage.layer for stage in stages),
        scopes=tuple(stage.scope for stage in stages),
        signals=tuple(signal for signal in Signal if signal in needs),
        reads_question=bool(needs & READS_QUESTION),
        merges=any(stage.merges for stage in stages),
        proportional=any(stage.proportional for stage in stages),
        allocates=any(stage.allocates for stage in stages),
    )


def meanings() -> dict[Signal, str]:
    """What each signal is, in the words of `Signal`'s docstring."""
    found = re.findall(r"^\s*``([A-Z_]+)`` (.+?)[;.]$", Signal.__doc__ or "", re.MULTILINE)
    return {Signal[name]: words for name, words in found}


@dataclass(frozen=True)
class Parts:
    """A docstring taken apart; ``sections`` by heading, their text without the heading."""

    summary: str
    idea: tuple[str, ...]
    source: str
    sections: dict[str, str]


def read(doc: str) -> Parts:
    """Take a docstring apart that is laid out as above."""
    opening: list[str] = []
    sections: dict[str, list[str]] = {}
    current = opening
    for line in doc.splitlines():
        if heading := _HEADING.match(line):
            # "Formula::" announces lines to be shown as they are.
            current = sections.setdefault(heading[1], [line[heading.end() :].removeprefix(":").strip()])
        else:
            current.append(line)
    summary, *paragraphs = [joined(text) for text in "\n".join(opening).split("\n\n")] or [""]
    idea, source = [], ""
    for paragraph in paragraphs:
        before, mark, after = paragraph.partition("Source: ")
        source = after if mark else source
        idea.append(before.strip().removeprefix("Idea: "))
    texts = {name: inspect.cleandoc("\n".join(lines)).strip() for name, lines in sections.items()}
    if "Formula::" not in doc:
        texts["Formula"] = _capital(joined(texts.get("Formula", "")))
    return Parts(summary, tuple(_capital(text) for text in idea if text), source, texts)


def joined(text: str) -> str:
    """Lines as one."""
    return " ".join(text.split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def items(text: str) -> list[str]:
    """The entries of a list, each as one line."""
    out: list[str] = []
    for line in text.splitlines():
        if _ITEM.match(line):
            out.append(_ITEM.sub("", line))
        elif out and line.strip():
            out[-1] += f" {line.strip()}"
    return out


def arguments(text: str) -> dict[str, str]:
    """Field -> meaning of an "Args" section."""
    out: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if (entry := re.match(r"^(\w+): (.*)", line)) is not None:
            name = entry[1]
            out[name] = entry[2]
        elif name and line.strip():
            out[name] += f" {line.strip()}"
    return out


def _parameters(method: object, text: str) -> Sequence[Parameter]:
    if not dataclasses.is_dataclass(method):
        return []
    said = arguments(text)
    fields = [field for field in dataclasses.fields(method) if field.init]
    return [Parameter(f.name, _plain(getattr(method, f.name)), said.get(f.name, "")) for f in fields]


def _plain(value: object) -> str:
    """A value as Python writes it; long fractions are cut."""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
