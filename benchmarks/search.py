"""What the search of rates finds, and what it costs: every figure about it in the README and the docs.

    python benchmarks/search.py PART [--work FOLDER] [--out FILE] [--quick]

Parts, each written to its own JSON file under benchmarks/results:

    signals   which score, on how many frames, tells best which rates answer best on other frames
    main      searched against uniform rates at 25%, 10%, 5% on the test split; three seeds at 10%
    samplers  TPE, CMA-ES, grid and random at equal cost
    stopping  what stopping hopeless trials saves
    penalty   sensitivity to lambda of the paper's objective
    front     quality against tokens, NSGA-II
    presets   writes the presets that ship with the package, from the studies of "main"
    cost      a trial against encoding and choosing again, at the reference model and at a 0.5B shape

Studies and per-frame scores lie under --work; a part that was stopped goes on there. --quick makes
everything small, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prune2drive as p2d
from prune2drive.allocators import Rates
from prune2drive.allocators.preset import SHIPPED
from prune2drive.benchmarks.answering import Answerer
from prune2drive.benchmarks.statistics import resamples, share
from prune2drive.files import write_atomically
from prune2drive.loading import load_model
from prune2drive.profiling.hardware import hardware, versions
from prune2drive.report.car import rates_svg
from prune2drive.rig import NUSCENES
from prune2drive.search.result import compare, conclude
from prune2drive.search.space import BudgetSplit, even_rates
from prune2drive.search.storage import open_storage
from prune2drive.search.study import Search
from prune2drive.search.task import Scores
from prune2drive.search.world import WorldTask
from prune2drive.world.model import FOLDER

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
SHARES = (0.25, 0.1, 0.05)
PARTS = ("exact", "probability", "likelihood")


class Bench:
    """The reference model, its tasks, and where studies lie."""

    def __init__(self, work: Path, quick: bool) -> None:
        self.work, self.quick = work, quick
        work.mkdir(parents=True, exist_ok=True)
        self._answerers: dict[str, Answerer] = {}

    def answerer(self, dtype: str = "auto") -> Answerer:
        if dtype not in self._answerers:
            self._answerers[dtype] = Answerer(*load_model(FOLDER, dtype=dtype))
        return self._answerers[dtype]

    def task(self, split: str, count: int, dtype: str = "auto", start: int = 0) -> WorldTask:
        count = 32 if self.quick else count
        task = WorldTask(
            self.answerer(dtype),
            FOLDER,
            split=split,
            count=count,
            start=start,
            cache=self.work / "features",
            batch=4 if self.quick else 16,
        )
        task.prepare()
        return task

    def study(self, name: str, task: WorldTask, trials: int, **options: Any) -> tuple[Search, Any]:
        """Run a study to its end, or what is left of it."""
        search = Search(task, trials=12 if self.quick else trials, **options)
        study = search.join(open_storage(f"sqlite:///{self.work}/{name}.db"), name)
        began = time.perf_counter()
        search.work(study, lambda done: print(f"  {name}: {len(done)} trials", end="\r", flush=True))
        print(f"  {name}: {time.perf_counter() - began:.0f} s")
        return search, study


def reports(study: Any) -> list[dict[str, Any]]:
    return [
        trial.user_attrs["report"] | {"value": trial.value, "state": trial.state.name.lower()}
        for trial in study.get_trials(deepcopy=False)
        if "report" in trial.user_attrs and trial.state.is_finished()
    ]


def told(study: Any) -> dict[str, Any]:
    """A study in a few numbers: what it cost, and its best trial."""
    rows, best = reports(study), study.best_trial
    first = next(trial for trial in study.get_trials() if trial.user_attrs.get("start") and trial.values)
    start = first.user_attrs["report"]
    return {
        "trials": len(rows),
        "complete": sum(row["state"] == "complete" for row in rows),
        "copied": sum("copied" in row for row in rows),  # kept as many tokens as an earlier one
        "frames_scored": sum(row["samples"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "start": start["reward"],
        "best": best.value,
        "best_trial": best.number,
        "counts": best.user_attrs["report"]["counts"],
        "rates": best.user_attrs["report"]["rates"],
        "calibration": {
            "uniform": start["parts"],
            "searched": best.user_attrs["report"]["parts"],
        },
    }


def interval(found: dict[str, Any]) -> dict[str, float]:
    return {key: round(found[key], 5) for key in ("value", "low", "high")}


def against(searched: Scores, uniform: Scores) -> dict[str, Any]:
    """Both settings and their paired difference, by score, with bootstrap intervals over frames."""
    found = compare(searched, uniform)
    return {part: {name: found[name][part] for name in ("searched", "uniform", "gain")} for part in PARTS}


def whole(task: WorldTask, rates: dict[str, float] | None) -> Scores:
    return task.score(rates, 0, len(task.frames), PARTS)


# -- parts ------------------------------------------------------------------------------------------


def signals(bench: Bench) -> dict[str, Any]:
    """Score many splits of one budget on two sets of frames; how well does the first foretell the second?"""
    frames, other, draws = (32, 32, 6) if bench.quick else (500, 500, 32)
    calibration, held = bench.task("calibration", frames), bench.task("validation", other)
    file = bench.work / "signals.npz"
    generator = np.random.default_rng(0)
    tokens = calibration.tokens
    splits = [dict.fromkeys(tokens, 1.0)]
    for number in range(draws):
        # Half of them far apart, as a search begins; half near the uniform one, as it ends.
        spread = 4.0 if number % 2 else 1.6
        logs = generator.uniform(-np.log(spread), np.log(spread), len(tokens))
        splits.append(dict(zip(tokens, np.exp(logs), strict=True)))
    space = BudgetSplit(tokens, 0.1)
    done = dict(np.load(file)) if file.exists() else {}
    for number, parameters in enumerate(splits):
        if f"{number}/held/exact" in done:
            continue
        rates = space.rates(parameters)
        for name, task in (("calibration", calibration), ("held", held)):
            scores = whole(task, rates)
            done |= {f"{number}/{name}/{part}": scores.sums[part] for part in PARTS}
            done[f"{name}/asked"] = scores.asked
        np.savez(file, **done)
        print(f"  split {number} of {len(splits)}", end="\r", flush=True)
    count = range(len(splits))
    truth = np.array([done[f"{n}/held/exact"].sum() for n in count]) / done["held/asked"].sum()
    asked = done["calibration/asked"]
    out = []
    for size in [n for n in (25, 50, 100, 200, 500) if n <= len(asked)]:
        for part in PARTS:
            table = np.stack([done[f"{n}/calibration/{part}"] for n in count])
            ranks, gains = [], []
            for _ in range(200):
                drawn = generator.choice(len(asked), size, replace=size == len(asked))
                signal = table[:, drawn].sum(1) / asked[drawn].sum()
                ranks.append(spearman(signal, truth))
                gains.append(truth[int(signal.argmax())] - truth[0])
            out.append(
                {
                    "frames": size,
                    "score": part,
                    "rank_correlation": round(float(np.mean(ranks)), 4),
                    "gain_of_best": round(float(np.mean(gains)), 5),
                    "gain_low": round(float(np.quantile(gains, 0.05)), 5),
                }
            )
    return {
        "budget": 0.1,
        "splits": len(splits),
        "held_out_frames": len(done["held/asked"]),
        "uniform_exact": round(float(truth[0]), 5),
        "best_gain_possible": round(float(truth.max() - truth[0]), 5),
        "table": out,
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def main_part(bench: Bench) -> dict[str, Any]:
    """Searched against uniform rates, several seeds, judged on frames that no search saw."""
    task = bench.task("calibration", 500)
    found: dict[str, Any] = {}
    for seed in (0, 1, 2):
        for budget in SHARES:
            if seed and budget != 0.1:
                continue
            trials = 60 if seed else 100
            _, study = bench.study(f"main-{budget:g}-{seed}", task, trials, budget=budget, seed=seed)
            found[f"{budget:g}/{seed}"] = {"budget": budget, "seed": seed, **told(study)}
    test = bench.task("test", 500, "float32")
    uniform = {
        b: whole(
            test,
            dict.fromkeys(
                test.tokens, BudgetSplit(test.tokens, b).rates(dict.fromkeys(test.tokens, 1.0))["CAM_FRONT"]
            ),
        )
        for b in SHARES
    }
    for row in found.values():
        row["test"] = against(whole(test, row["rates"]), uniform[row["budget"]])
    unpruned = whole(test, None)
    drawn = resamples(len(test.frames))
    return {
        "frames": len(task.frames),
        "test_frames": len(test.frames),
        "test_questions": int(unpruned.asked.sum()),
        "unpruned": {part: interval(share(unpruned.sums[part], unpruned.asked, drawn)) for part in PARTS},
        "studies": found,
    }


def samplers(bench: Bench) -> dict[str, Any]:
    """Every sampler with as many whole trials, nothing stopped: equal numbers of model calls."""
    task = bench.task("calibration", 100)
    held = bench.task("validation", 500)
    rows = {}
    for name in ("tpe", "cmaes", "random", "grid"):
        _, study = bench.study(f"sampler-{name}-0", task, 40, budget=0.1, sampler=name, pruner="none", seed=0)
        rows[name] = {"sampler": name, "seed": 0, **told(study)}
        best = np.maximum.accumulate([row["reward"] for row in reports(study)])
        rows[name]["best_after"] = {n: best[n - 1] for n in (10, 20, 40) if n <= len(best)}
    uniform = whole(held, BudgetSplit(held.tokens, 0.1).rates(dict.fromkeys(held.tokens, 1.0)))
    for row in rows.values():
        row["held_out"] = against(whole(held, row["rates"]), uniform)
    return {"budget": 0.1, "frames": len(task.frames), "held_out_frames": len(held.frames), "studies": rows}


def stopping(bench: Bench) -> dict[str, Any]:
    """The same search with and without stopping hopeless trials."""
    task = bench.task("calibration", 500)
    rows = {}
    for pruner in ("paired", "none"):
        name = "main-0.1-0" if pruner == "paired" else f"stopping-{pruner}"
        _, study = bench.study(name, task, 100, budget=0.1, pruner=pruner)
        rows[pruner] = told(study)
    held = bench.task("validation", 500)
    uniform = whole(held, BudgetSplit(held.tokens, 0.1).rates(dict.fromkeys(held.tokens, 1.0)))
    for row in rows.values():
        row["held_out"] = against(whole(held, row["rates"]), uniform)
        asked = (row["trials"] - row["copied"]) * len(task.frames)
        row["saved"] = round(1 - row["frames_scored"] / asked, 4)
    return {"budget": 0.1, "frames": len(task.frames), "pruners": rows}


def penalty(bench: Bench) -> dict[str, Any]:
    """The paper's objective at several lambdas; R is the probability of the right answer, from 0 to 1."""
    task = bench.task("calibration", 100)
    held = bench.task("validation", 200)
    rows = []
    for weight in (0.003, 0.01, 0.03, 0.1):
        _, study = bench.study(f"penalty-{weight:g}", task, 24, penalty=weight, parts={"probability": 1.0})
        row = {"penalty": weight, **told(study)}
        kept = sum(row["counts"].values())
        row["kept"] = kept
        row["held_out"] = against(whole(held, row["rates"]), whole(held, even_rates(held.tokens, kept)))
        rows.append(row)
    return {"frames": len(task.frames), "held_out_frames": len(held.frames), "rows": rows}


def front(bench: Bench) -> dict[str, Any]:
    """Quality against tokens in one study."""
    task = bench.task("calibration", 60)
    _, study = bench.study("front", task, 80, front=True, parts={"probability": 1.0})
    rows = sorted(study.best_trials, key=lambda trial: trial.values[1])
    even = [trial for trial in study.get_trials() if trial.user_attrs.get("start")]
    return {
        "frames": len(task.frames),
        "front": [t.user_attrs["report"] for t in rows],
        "uniform": [t.user_attrs["report"] for t in even if "report" in t.user_attrs],
    }


def cost(bench: Bench) -> dict[str, Any]:
    """Seconds per frame of one trial: features and order at hand, against encoding and choosing again."""
    out: dict[str, Any] = {"reference": _reference_cost(bench)}
    out["llava-onevision-0.5b"] = _shape_cost("llava-onevision-0.5b", bench.quick)
    return out


def _reference_cost(bench: Bench) -> dict[str, Any]:
    task = bench.task("calibration", 64)
    rates = BudgetSplit(task.tokens, 0.1).rates(dict.fromkeys(task.tokens, 1.0))
    answerer = task.answerer

    def ours() -> None:
        task.score(rates, 0, len(task.frames), PARTS)

    def naive() -> None:
        for start in range(0, len(task.frames), task.batch):
            encoded = answerer.encode(task.samples[start : start + task.batch])
            answerer.logits(encoded, p2d.prune(answerer.model, "tfps", Rates(rates), rig=NUSCENES))

    return {"frames": len(task.frames), **_turns(ours, naive, 3 if bench.quick else 7, len(task.frames))}


def _shape_cost(shape: str, quick: bool) -> dict[str, Any]:
    """At a full-size shape with random weights: speed does not depend on them."""
    from prune2drive.profiling.shapes import build_inputs, build_model
    from prune2drive.search.replay import Recorder, Replay

    model, inputs = build_model(shape, layers=1 if quick else None), build_inputs(shape)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pixels = {name: value for name, value in inputs.items() if name not in text}
    family = p2d.prune(model, "tfps", 0.1, rig="nuscenes").family
    with torch.inference_mode():
        encoded = family.encode(dict(pixels))
        recorder = Recorder(p2d.selectors.TFPS())
        p2d.prune(model, recorder, 1.0, rig="nuscenes").rewrite(
            **text, **_sizes(pixels), mm_encoder_outputs={"image": encoded}
        )
    replay = Replay()
    assert recorder.order is not None
    replay.order = recorder.order

    @torch.inference_mode()
    def ours() -> None:
        with p2d.prune(model, replay, 0.1, rig="nuscenes"):
            model(**text, **_sizes(pixels), mm_encoder_outputs={"image": encoded}, logits_to_keep=8)

    @torch.inference_mode()
    def naive() -> None:
        with p2d.prune(model, "tfps", 0.1, rig="nuscenes"):
            model(**inputs, logits_to_keep=8)

    return {"frames": 1, **_turns(ours, naive, 1 if quick else 3, 1)}


def _sizes(pixels: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in pixels.items() if name != "pixel_values"}


def _turns(ours: Callable[[], None], naive: Callable[[], None], repeat: int, frames: int) -> dict[str, Any]:
    """Medians of both, taking turns, so that drift of the machine falls on both alike."""
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    ours()
    for _ in range(repeat):
        for name, job in (("ours", ours), ("naive", naive)):
            began = time.perf_counter()
            job()
            times[name].append((time.perf_counter() - began) / frames)
    ratios = [n / o for n, o in zip(times["naive"], times["ours"], strict=True)]
    return {
        "repeats": repeat,
        "trial_ms": round(1e3 * statistics.median(times["ours"]), 2),
        "naive_ms": round(1e3 * statistics.median(times["naive"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
    }


def presets(bench: Bench) -> dict[str, Any]:
    """Write the presets that ship with the package, from the studies of "main", and a picture of one."""
    task, held = bench.task("calibration", 500), bench.task("validation", 500)
    folder = bench.work if bench.quick else SHIPPED
    folder.mkdir(exist_ok=True)
    rows = {}
    for budget in SHARES:
        search, study = bench.study(f"main-{budget:g}-0", task, 100, budget=budget)
        name = f"reference-{round(100 * budget)}"
        preset = replace(conclude(search, study, held).preset, name=name)  # type: ignore[type-var]
        preset.save(folder / f"{name}.json")
        rows[name] = {"rates": dict(preset.rates), "score": preset.score}
        if budget == 0.1:
            picture = bench.work / "rates.svg" if bench.quick else IMAGES / "rates.svg"
            write_atomically(picture, rates_svg(preset.rates, NUSCENES, preset.tokens["kept"] / 864) + "\n")
    return {"presets": rows}


JOBS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "signals": signals,
    "main": main_part,
    "samplers": samplers,
    "stopping": stopping,
    "penalty": penalty,
    "front": front,
    "cost": cost,
    "presets": presets,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=sorted(JOBS))
    parser.add_argument("--work", type=Path, default=Path("out/search"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    result = {
        "what": f"search of rates: {args.part}",
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "model": "reference",
        "dtype": "bfloat16 while searching, float32 on the test split",
        **JOBS[args.part](Bench(args.work, args.quick)),
    }
    out = args.out or RESULTS / f"search_{args.part}.json"
    write_atomically(out, json.dumps(result, indent=2) + "\n")
    print(f"  {out}")


if __name__ == "__main__":
    main()
