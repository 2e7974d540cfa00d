"""Time to choose: batched farthest point sampling against two plain loops.

    python benchmarks/fps.py [--device cpu|cuda] [--repeat N] [--json FILE]

Both rivals are written here from the description of the rule. "released style": view by view, the rows
of all picked tokens gathered again at every pick, several host synchronisations per pick, in the features'
own dtype. "textbook": view by view, one running minimum, one ``.item()`` per pick, float32 distances as ours.
"ours, released" is our loop with ``compat="released"``, the like-for-like rival of "released style": in half
precision both multiply in half precision, which is cheaper than the float32 of "ours" and chooses otherwise.
All take turns within every repetition, so drift of the machine falls on all alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from prune2drive.functional import fps
from prune2drive.profiling.timing import device_ms, in_turns

CASES = [
    *[(6, 729, 4096, k) for k in (72, 182, 364)],
    *[(6, 256, 4096, k) for k in (25, 64, 128)],
    (6, 729, 896, 73),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def released_style(features: Tensor, k: int) -> list[Tensor]:
    orders = []
    for view in features:
        unit = torch.nn.functional.normalize(view, p=2, dim=1)
        distance = 1 - unit @ unit.T
        distance.fill_diagonal_(torch.inf)
        taken = torch.zeros(len(view), dtype=torch.bool, device=view.device)
        order: list[int] = []
        for _ in range(k):
            if taken.sum() == 0:
                near = distance.clone().min(dim=1).values
            else:
                near = distance[taken, :].min(dim=0).values
            near[taken] = -torch.inf
            pick = int(near.argmax().item())
            taken[pick] = True
            order.append(pick)
        orders.append(torch.tensor(order, device=view.device))
    return orders


def textbook(features: Tensor, k: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    orders = []
    for view in features:
        unit = torch.nn.functional.normalize(view.to(dtype), p=2, dim=1)
        distance = 1 - unit @ unit.T
        distance.fill_diagonal_(torch.inf)
        pick = int(distance.min(dim=1).values.argmax().item())
        near = torch.full((len(view),), torch.inf, dtype=dtype, device=view.device)
        order = [pick]
        while len(order) < k:
            near = torch.minimum(near, distance[pick])
            near[order[-1]] = -torch.inf
            pick = int(near.argmax().item())
            order.append(pick)
        orders.append(torch.tensor(order, device=view.device))
    return orders


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device: str) -> dict[str, object]:
    found: dict[str, object] = {"processor": processor(), "threads": torch.get_num_threads()}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "lowest": min(times), "highest": max(times)}


def run(case: tuple[int, int, int, int], dtype: str, device: str, repeat: int) -> dict[str, object]:
    views, n, dim, k = case
    generator = torch.Generator().manual_seed(0)
    # Leaning features: visual tokens share a direction, so cosines are well above zero.
    features = (torch.randn(views, n, dim, generator=generator) + 1.0).to(device, DTYPES[dtype])
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: fps(features, k),
        "ours, released": lambda: fps(features, k, compat="released"),
        "textbook": lambda: textbook(features, k),
        "released style": lambda: released_style(features, k),
    }
    mine = fps(features, k)
    other = torch.stack(textbook(features, k))
    shared = [len(set(a) & set(b)) / k for a, b in zip(mine.tolist(), other.tolist(), strict=True)]
    names = list(works)
    target = torch.device(device)
    times = in_turns(works, repeat, lambda work: device_ms(work, target))
    row: dict[str, object] = {"shape": [views, n, dim], "k": k, "dtype": dtype}
    row["milliseconds"] = {name: summary(spent) for name, spent in times.items()}
    row["ratio to ours"] = {
        name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        for name in names[1:]
    }
    row["same tokens as textbook"] = sum(shared) / views
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rows = []
    print(f"{'shape':>14} {'k':>4} {'dtype':>9} | milliseconds: median [lowest, highest], and times ours")
    for case in CASES:
        for dtype in DTYPES:
            row = run(case, dtype, arguments.device, arguments.repeat)
            rows.append(row)
            cells = []
            for name, spent in row["milliseconds"].items():  # type: ignore[attr-defined]
                ratio = row["ratio to ours"].get(name)  # type: ignore[attr-defined]
                cells.append(
                    f"{name} {spent['median']:.1f} [{spent['lowest']:.1f}, {spent['highest']:.1f}]"
                    + (f" x{ratio:.2f}" if ratio else "")
                )
            shape = "x".join(map(str, case[:3]))
            print(f"{shape:>14} {case[3]:>4} {dtype:>9} | " + " | ".join(cells), flush=True)
    result = {
        "what": "time to choose, farthest point sampling",
        "date": datetime.date.today().isoformat(),
        "device": arguments.device,
        "hardware": hardware(arguments.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "repeat": arguments.repeat,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
