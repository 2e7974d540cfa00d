"""Comparisons as they are saved, made up: methods at three budgets with intervals, differences and costs."""

import copy
import random

from prune2drive.rig import NUSCENES
from prune2drive.world.questions import STAGES

QUESTIONS, VISUAL, DEPTH = 1700, 864, 8
RETENTIONS = (0.25, 0.10, 0.05)
# Method, title, where it chooses, whether it reads the question, points lost at 25, 10 and 5 %.
METHODS = (
    ("random", "Random", "before", False, (0.031, 0.082, 0.161)),
    ("tfps", "T-FPS", "before", False, (0.009, 0.022, 0.061)),
    ("stratified", "Stratified", "before", False, (0.015, 0.043, 0.104)),
    ("divprune", "DivPrune", "before", False, (0.014, 0.038, 0.091)),
    ("visionzip", "VisionZip", "before", False, (0.047, 0.121, 0.223)),
    ("cdpruner", "CDPruner", "before", True, (0.013, 0.031, 0.070)),
    ("fastv", "FastV", "inside", True, (0.052, 0.140, 0.290)),
    ("pyramiddrop", "PyramidDrop", "inside", True, (0.026, 0.090, 0.190)),
    ("sparsevlm", "SparseVLM", "inside", True, (0.022, 0.085, 0.175)),
    ("tfps+fastv", "T-FPS, then FastV", "both", True, (0.008, 0.026, 0.066)),
)
WHOLE, BLIND, GUESS = 0.952, 0.482, 0.391


def estimate(value: float, n: int = QUESTIONS) -> dict:
    value = min(max(value, 0.0), 1.0)
    half = 1.96 * max(value * (1 - value), 0.002) ** 0.5 / n**0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + 0.9 * half), "n": n}


def paired(by: float, half: float = 0.008) -> dict:
    return {"value": by, "low": by - half, "high": by + half}


def contender(method, title, stage, reads, budget, retention, tokens, value, against=None, **changes) -> dict:
    """One row: ``value`` its accuracy, ``against`` that of random at the same budget."""
    rng = random.Random(f"{method}{budget}{retention}")
    n = QUESTIONS // len(STAGES)
    parts = {name: value + rng.uniform(-0.06, 0.04) for name in STAGES}
    gains = {"unpruned": WHOLE} if method != "unpruned" else {}
    gains |= {"random": against} if against is not None and method not in ("random", "random-layer") else {}
    share = (tokens or 0) / VISUAL
    short = "avg" if budget == "average" else "kept"
    return {
        "name": method if retention is None else f"{method}@{short}{retention:g}",
        "method": method, "title": title, "stage": stage, "budget": budget, "retention": retention,
        "positions": None if retention is None else "keep", "reads_question": reads,
        "layer_averaged": tokens, "kept": tokens if stage in ("before", "control") else 0.8 * tokens,
        "accuracy": {"overall": estimate(value), "type": {k: estimate(v, n) for k, v in parts.items()}},
        "difference": {
            name: {
                "overall": paired(value - other),
                "type": {k: paired(parts[k] - other - 0.01, 0.045) for k in parts},
            }
            for name, other in gains.items()
        },
        "pareto": False,
        "costs": {
            "choose_ms": None if method == "unpruned" else 0.4 + 40 * share * (method != "random"),
            "prefill_ms": 30 + 420 * share, "prefill_ratio": (30 + 420 * share) / 450,
            "flops": 1e9 * (0.06 + share), "flops_ratio": 0.06 + 0.94 * share,
            "kv_bytes": int(2**20 * (0.2 + 6.75 * share)), "memory_bytes": int(2**20 * (3 + 45 * share)),
        },
        "shown": {}, "large": None, **changes,
    }  # fmt: skip


def comparison(methods=METHODS, kept_budget: bool = True, **changes) -> dict:
    """Every method at every average retention, those inside also with a share kept; the bounds first."""
    made = [
        contender("unpruned", "unpruned", "control", False, None, None, VISUAL, WHOLE),
        contender("blind", "blind (grey pictures)", "control", False, None, None, None, BLIND, costs=None),
        contender("guess", "most frequent answer", "control", False, None, None, None, GUESS, costs=None),
    ]
    for at, retention in enumerate(RETENTIONS):
        against = WHOLE - methods[0][4][at]
        late = WHOLE - 0.5 * methods[0][4][at]
        if kept_budget:
            row = ("random-layer", "Random at a layer", "inside", False)
            made.append(contender(*row, "kept", retention, VISUAL * (1 + 7 * retention) / 8, late))
        for number, (method, title, stage, reads, lost) in enumerate(methods):
            row = (method, title, stage, reads)
            tokens = VISUAL * retention + 0.04 * number
            made.append(contender(*row, "average", retention, tokens, WHOLE - lost[at], against))
            if kept_budget and stage == "inside" and method != "pyramiddrop":
                tokens = VISUAL * (1 + 7 * retention) / 8
                made.append(contender(*row, "kept", retention, tokens, WHOLE - 0.6 * lost[at], late))
    for one in made:
        one["pareto"] = one["layer_averaged"] is not None and not any(
            o["layer_averaged"] is not None
            and o["layer_averaged"] < one["layer_averaged"] + 1
            and o["accuracy"]["overall"]["value"] > one["accuracy"]["overall"]["value"]
            for o in made
        )
    return copy.deepcopy(
        {
            "benchmark": "world", "split": "test", "model": "reference", "seed": 0, "scenes": 100,
            "questions": QUESTIONS, "visual": VISUAL, "depth": DEPTH, "contenders": made,
            "impossible": [
                {"name": "sparsevlm-v2@avg0.05",
                 "reason": "sparsevlm-v2 keeps at least 12.5% of the visual tokens on average: its first "
                           "stage comes after layer 1 of 8."},
            ],
            "hardware": {"cpu": "A processor", "cores": 8, "threads": 8, "ram_bytes": 64 * 2**30},
            "versions": {"python": "3.12.3", "torch": "2.9.0"},
            **changes,
        }
    )  # fmt: skip


def picks(summary: dict) -> dict:
    """What every contender kept of the first scene: so many tokens as its share, drawn at random."""
    out = {}
    for one in summary["contenders"]:
        if one["retention"] is None:
            continue
        rng = random.Random(one["name"])
        count = max(1, round(144 * one["retention"]))
        out[one["name"]] = {c: sorted(rng.sample(range(144), count)) for c in NUSCENES.names}
    return {"sample": "test/0", "question": "What should we do ?", "contenders": out}
