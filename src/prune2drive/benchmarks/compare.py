"""From the records of a comparison to what is reported, and what each contender kept of one scene."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json, write_atomically
from ..tokens import Signal
from .answering import Answerer, Encoded, reads_question
from .contenders import CONTROLS, VISUAL, Contender, Reasons, reads
from .records import Records
from .settings import BLIND, GUESS, UNPRUNED
from .statistics import resamples
from .summary import Table, account
from .world import Sample

FORMAT = 1
"""Of the records. A folder with another one is refused."""

NEAR = 1.0
"""Tokens by which two layer-averaged budgets may differ and still be equal: no count of whole tokens meets
a budget more closely."""


def summarize_comparison(
    records: Records,
    contenders: Sequence[Contender],
    names: Sequence[str],
    about: Mapping[str, Any],
    *,
    layer: int = 1,
    depth: int,
    impossible: Reasons | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Summarize every contender that has a record of every scene, those of earlier runs included.

    Args:
        names: the scenes' names.
        about: benchmark, split, model and seed, which lead the summary.
        layer: where methods of one stage inside the language model chose.
        depth: layers of the language model.
        impossible: contenders that could not run, and why.
        costs: name of a contender -> what `costs.summarize_costs` says of it.

    Returns:
        Plain data: facts, and under ``contenders`` one entry each in the order given.
    """
    rows = records.rows
    known = {contender.name: contender for contender in contenders}
    for row in rows.values():
        if row["setting"] not in known:
            known[row["setting"]] = Contender.from_record(row, layer)
    whole = {n: c for n, c in known.items() if all((n, scene) in rows for scene in names)}
    tables = {n: Table([rows[n, scene] for scene in names]) for n in whole}
    drawn = resamples(len(names), about["seed"])
    entries = [_entry(c, tables, drawn, (costs or {}).get(n)) for n, c in whole.items()]
    _mark_pareto(entries)
    asked = tables[UNPRUNED.name].asked["overall"] if UNPRUNED.name in tables else {}
    return {
        **about,
        "scenes": len(names),
        "questions": int(asked[""].sum()) if asked else 0,
        "visual": VISUAL,
        "depth": depth,
        "layer": layer,
        "contenders": entries,
        "impossible": [{"name": name, "reason": reason} for name, reason in (impossible or {}).items()],
    }


def _entry(
    contender: Contender, tables: Mapping[str, Table], drawn: np.ndarray, costs: Mapping[str, Any] | None
) -> dict[str, Any]:
    table = tables[contender.name]
    sees = contender.name not in (BLIND.name, GUESS.name)
    rivals = {} if contender.name == UNPRUNED.name else {"unpruned": UNPRUNED.name}
    if (rival := contender.rival) is not None:
        rivals["random"] = rival.name
    if (own := contender.own) is not None:
        rivals["tfps"] = own.name
    return {
        "name": contender.name,
        "method": contender.method,
        "title": contender.title,
        "stage": contender.stage,
        "budget": contender.budget,
        "retention": contender.retention,
        "positions": contender.positions,
        "reads_question": reads(contender),
        "layer_averaged": float(np.mean([row["layer_averaged"] for row in table.rows])) if sees else None,
        "kept": float(np.mean(table.tokens)) if sees else None,
        **account(table, tables, rivals, drawn, sees),
        "pareto": False,
        "costs": dict(costs) if costs else None,
    }


def _mark_pareto(entries: Sequence[dict[str, Any]]) -> None:
    """Flag the entries that none beats: more accurate at as many tokens, or as accurate with fewer.

    The controls without pictures see none, so they take no part.
    """
    able = [e for e in entries if e["layer_averaged"] is not None and _accuracy(e) is not None]
    for mine in able:
        tokens, right = mine["layer_averaged"], _accuracy(mine)
        mine["pareto"] = not any(
            (other["layer_averaged"] < tokens + NEAR and _accuracy(other) > right)
            or (other["layer_averaged"] <= tokens - NEAR and _accuracy(other) >= right)
            for other in able
        )


def _accuracy(entry: Mapping[str, Any]) -> Any:
    return entry["accuracy"]["overall"]["value"]


def signals_of(contenders: Sequence[Contender]) -> set[Signal]:
    """Everything that some contender needs besides features."""
    return {signal for contender in contenders for stage in contender.stages for signal in stage.needs}


def kept_tokens(
    answerer: Answerer, contenders: Sequence[Contender], sample: Sample, seed: int, path: Path
) -> dict[str, Any]:
    """What every contender keeps of one scene; of those who choose anew, for its first question.

    Reads what ``path`` has of that scene, adds what it lacks, and writes it there.

    Returns:
        ``sample``, its name; ``question``; and ``contenders``: name -> camera -> kept indices, ascending.
    """
    question = sample.questions[0].text if sample.questions else None
    out: dict[str, Any] = {"sample": sample.name, "question": question, "contenders": {}}
    if path.exists():
        found = read_json(path, "kept tokens", "Delete it; it is made again.")
        if isinstance(found, dict) and all(found.get(key) == out[key] for key in ("sample", "question")):
            out["contenders"] = dict(found.get("contenders") or {})
    lack = [c for c in contenders if c.name not in CONTROLS and c.name not in out["contenders"]]
    if lack:
        short = dataclasses.replace(sample, questions=sample.questions[:1])
        encoded = answerer.encode([short], signals_of(lack))
        for contender in lack:
            out["contenders"][contender.name] = _kept(answerer, contender, encoded, sample.name, seed)
        write_atomically(path, json.dumps(out) + "\n")
    return out


def _kept(
    answerer: Answerer, contender: Contender, encoded: Encoded, name: str, seed: int
) -> dict[str, list[int]]:
    pruned = contender.prune(answerer.model, seed, [name])
    assert pruned is not None  # controls are left out
    if reads_question(pruned.cutter.stages) and not encoded.texts[0]:
        return {}
    answerer.answer(encoded, pruned)
    return answerer.kept(pruned, 0)


def comparison_fingerprint(common: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """What the records of a comparison depend on: ``common`` as `runner.fingerprint`, and the layer."""
    return {**common, "comparison": FORMAT, "layer": layer}
