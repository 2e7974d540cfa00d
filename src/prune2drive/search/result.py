"""What a finished search says: every trial, the best rates, their worth on other frames, and presets."""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..allocators.preset import Preset
from ..benchmarks.statistics import difference, resamples, share
from ..errors import PruneError
from ..files import read_json, write_atomically
from .space import even_rates
from .storage import RETRIES, differing
from .study import REPORT, Search
from .task import Scores, Task

FORMAT = 1

RESULT, PRESET, PAGE, FRONT = "result.json", "preset.json", "report.html", "front"
"""What `Found.save` writes into a folder."""

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}

FEWEST = 10
"""Complete trials below which nothing is said about importance."""


@dataclass(frozen=True, eq=False)
class Found:
    """The result of a search.

    ``result``: everything as plain JSON data. ``preset``: the best rates; None for a front, whose
    points are ``presets``, fewest tokens first.
    """

    result: dict[str, Any]
    preset: Preset | None
    presets: list[Preset] = field(default_factory=list)

    def save(self, folder: str | Path) -> Path:
        """Write the result, the presets and the page into a folder, and return the folder.

        Raises:
            PruneError: the folder holds the result of another search, which is left alone.
        """
        from ..report.search import write_search

        folder = Path(folder)
        check_folder(folder, self.result["about"])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RESULT, json.dumps(self.result, indent=1) + "\n")
        if self.preset is not None:
            self.preset.save(folder / PRESET)
        points = {f"{preset.tokens['kept']}.json": preset for preset in self.presets}
        if points:
            (folder / FRONT).mkdir(exist_ok=True)
            for old in (folder / FRONT).glob("*.json"):
                if old.name not in points:  # of this search, see above; a better one has come since
                    old.unlink()
        for name, preset in points.items():
            preset.save(folder / FRONT / name)
        write_search(self.result, folder / PAGE)
        return folder


def check_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder with the result of a search about something else."""
    if not (folder / RESULT).exists():
        return
    found = read_json(folder / RESULT, "result", "Choose another folder.")
    old = found.get("about", {}) if isinstance(found, Mapping) else {}
    mine = {key: value for key, value in json.loads(json.dumps(about)).items() if key != "trials"}
    if changed := differing({key: old.get(key) for key in mine}, mine):
        raise PruneError(
            f"{folder} holds the result of a search with another {changed[0]}: {changed[1]!r} there, "
            f"{changed[2]!r} now. Choose another folder."
        )


def check_apart(task: Task, held_out: Task | None) -> None:
    """Refuse held-out frames that the search looks at, by whatever name.

    Raises:
        PruneError: naming such a frame.
    """
    if held_out is None:
        return
    seen = set(task.frames) | set(task.contents)
    for name, content in zip(held_out.frames, held_out.contents, strict=True):
        if name in seen or content in seen:
            raise PruneError(
                f"frame {name} of the held-out data is one that the search looks at. Give other frames."
            )


def conclude(search: Search, study: optuna.Study, held_out: Task | None = None) -> Found:
    """Sum up a study: the best trial, or the front, and what it is worth on frames the search never saw.

    Args:
        held_out: other frames, with the same model. Without them presets carry no score.

    Raises:
        PruneError: no trial was finished; ``held_out`` shares a frame with the search.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise PruneError(f"no trial of the study {study.study_name!r} was finished. Run more.")
    check_apart(search.task, held_out)
    result: dict[str, Any] = {
        "format": FORMAT,
        "about": {"name": study.study_name, **search.about(), "trials": search.trials},
        "trials": _rows([trial for trial in trials if trial.state in STATES]),
        "best": None,
        "front": [],
        "importance": importance(complete, search),
        "held_out": None,
        "preset": None,
    }
    if search.mode == "front":
        chosen = nondominated(complete)
        result["front"] = [trial.number for trial in chosen]
        presets = [_preset(search, study, trial, _scored(search, held_out, trial)) for trial in chosen]
        return Found(result, None, presets)
    best = max(complete, key=lambda trial: trial.values[0])
    score = _scored(search, held_out, best)
    preset = _preset(search, study, best, score)
    result |= {"best": best.number, "held_out": score, "preset": preset.to_dict()}
    return Found(result, preset)


def importance(complete: list[FrozenTrial], search: Search) -> dict[str, float] | None:
    """How much each camera's rate decides the objective: PED-ANOVA of the finished trials.

    Of the rates, not of the sampled parameters, which for a budget mean nothing alone. None for a
    front, with fewer than `FEWEST` trials, or where nothing differs.
    """
    if search.mode == "front" or len(complete) < FEWEST:
        return None
    rows = [trial.user_attrs[REPORT]["rates"] for trial in complete]
    low, high = (pick(rate for row in rows for rate in row.values()) for pick in (min, max))
    if low == high:
        return None
    bounds = dict.fromkeys(rows[0], optuna.distributions.FloatDistribution(low, high, log=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        for trial, rates in zip(complete, rows, strict=True):
            study.add_trial(
                optuna.create_trial(params=dict(rates), distributions=dict(bounds), value=trial.value)  # type: ignore[arg-type]
            )
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), normalize=True
            )
        except (ValueError, RuntimeError, ZeroDivisionError):
            return None
    shares = {camera: float(found.get(camera, 0.0)) for camera in search.task.cameras}
    return shares if sum(shares.values()) > 0 else None


def compare(searched: Scores, uniform: Scores) -> dict[str, dict[str, Any]]:
    """Both settings by score, with intervals over frames, and the paired difference ``gain``."""
    drawn = resamples(len(uniform.asked))
    out: dict[str, dict[str, Any]] = {"searched": {}, "uniform": {}, "gain": {}}
    for part in uniform.sums:
        ours, theirs, asked = searched.sums[part], uniform.sums[part], uniform.asked
        out["searched"][part] = _interval(share(ours, asked, drawn))
        out["uniform"][part] = _interval(share(theirs, asked, drawn))
        out["gain"][part] = _interval(difference(ours, theirs, asked, drawn))
    return out


def _scored(search: Search, held_out: Task | None, trial: FrozenTrial) -> dict[str, Any] | None:
    """The rates of a trial against as many tokens split evenly, on held-out frames."""
    if held_out is None:
        return None
    report, everything = trial.user_attrs[REPORT], len(held_out.frames)
    parts = list(dict.fromkeys([*search.objective.parts, "exact"]))
    searched = held_out.score(report["rates"], 0, everything, parts)
    even = even_rates(search.task.tokens, report["kept"])
    uniform = held_out.score(even, 0, everything, parts)
    return {
        "data": held_out.about()["data"],
        "kept": {"searched": held_out.kept(report["rates"]), "uniform": held_out.kept(even)},
        **compare(searched, uniform),
    }


def _preset(search: Search, study: optuna.Study, trial: FrozenTrial, score: dict[str, Any] | None) -> Preset:
    about, report = search.about(), trial.user_attrs[REPORT]
    states = [other.state for other in study.get_trials(deepcopy=False)]
    return Preset(
        rates=report["rates"],
        name=study.study_name,
        model={"name": about["model"], "weights": about["weights"], "dtype": about["dtype"]},
        method=about["method"],
        tokens={"kept": report["kept"], "of": sum(search.task.tokens.values())},
        data={**about["data"], "ids": list(search.task.frames)},
        objective={
            "mode": search.mode,
            "words": str(search.objective),
            **{key: about[key] for key in ("parts", "penalty", "budget", "bounds")},
        },
        search={
            "sampler": search.sampler,
            "pruner": search.pruner,
            "seed": search.seed,
            "trials": sum(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states),
            "complete": states.count(TrialState.COMPLETE),
            "best": trial.number,
            "value": trial.values[0],
        },
        score=score,
        date=datetime.date.today().isoformat(),
        version=metadata.version("prune2drive"),
    )


def nondominated(complete: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that no other beats in reward with as few tokens: fewest tokens first, one per number."""
    front: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda trial: (trial.values[1], -trial.values[0], trial.number)):
        if not front or trial.values[0] > front[-1].values[0]:
            front.append(trial)
    return front


def _rows(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """All trials as plain data; workers are numbered, since hosts' names are nobody's business."""
    rows = [_row(trial) for trial in trials]
    numbers = {
        name: at for at, name in enumerate(dict.fromkeys(row["worker"] for row in rows if row["worker"]), 1)
    }
    return [{**row, "worker": numbers.get(row["worker"])} for row in rows]


def _row(trial: FrozenTrial) -> dict[str, Any]:
    """One trial as plain data; a failed one may have nothing but its number."""
    report = trial.user_attrs.get(REPORT, {})
    value = trial.values[0] if trial.values and trial.state == TrialState.COMPLETE else None
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    history = trial.system_attrs.get("retry_history", [])
    return {
        "number": trial.number,
        "state": STATES[trial.state],
        "value": value,
        "reward": report.get("reward"),
        "rates": report.get("rates", {}),
        "counts": report.get("counts", {}),
        "kept": report.get("kept"),
        "parts": report.get("parts", {}),
        "samples": report.get("samples", 0),
        "seconds": report.get("seconds", 0.0),
        "start": trial.user_attrs.get("start"),
        "worker": report.get("worker"),
        "copied": report.get("copied"),
        "retries": history[-RETRIES:],
    }


def _interval(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: None if found[key] is None else round(found[key], 6) for key in ("value", "low", "high")}
