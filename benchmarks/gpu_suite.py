"""All speed figures in one go: choosing, first token, rivals, memory, and where pruning does not pay.

    python benchmarks/gpu_suite.py                       # one CUDA GPU, 80 GB for all of it: ten minutes
    python benchmarks/gpu_suite.py --device cpu          # a small model on a CPU: ten minutes
    python benchmarks/gpu_suite.py --device cpu --quick  # some minutes: does all of it work here?

Writes OUT/suite.json after every job and OUT/index.html at the end. A run that was stopped, or whose budget
ran out, goes on where it was when started again. Weights are random: what a call costs depends on sizes only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prune2drive import PruneError
from prune2drive.errors import did_you_mean
from prune2drive.loading import DTYPES, parse_device, parse_dtype
from prune2drive.profiling.shapes import SHAPES
from prune2drive.profiling.shapes import shape as check_shape
from speed import break_even, kernel, memory, pictures, predictions, prefill, rivals, steps
from speed.bench import Bench
from speed.ceilings import ceilings
from speed.setting import EAGER, GPU_SHAPES, MODES, Setting
from speed.sheet import OUT_OF_TIME, Sheet

SECTIONS = ("ceilings", "kernel", "prefill", "steps", "preprocess", "rivals", "memory", "break_even")
BUDGET = 570.0
"""Seconds after which a run on a GPU begins nothing more: ten minutes in all, and the rest another time."""
SHORT = ("internvl2.5-8b", 2)
"""A prompt so short that launches take longer than computing."""
SMALL = "llava-onevision-0.5b"
Job = tuple[str, str, Callable[[], Any]]
"""Section, name, work."""


def jobs(setting: Setting, bench: Bench, sheet: Sheet) -> Iterator[Job]:
    """What is measured, the most telling first: a budget cuts off the end.

    Reckoned for an H100, from FLOPs and launches, with building: kernel 20 s; a shape at batch 1 in both
    modes 15 to 45 s, in all 155; steps 20; rivals 30; memory 20; break-even 100; pictures 15; batch 8,
    captured only since launches hide behind computing there, 130; largest batch 60: some 550 s. Unmeasured.
    """
    main, *others = setting.shapes
    for case in kernel.cases(setting):
        name = f"kernel/{kernel.name_of(case)}"
        yield "kernel", name, lambda c=case, n=name: {n: kernel.measure(c, setting, sheet.data["ceilings"])}
    first, *more = setting.batches

    def prefills(shape: str, batch: int) -> Iterator[Job]:
        for mode in setting.modes if batch == first else setting.modes[-1:]:
            yield (
                "prefill",
                f"prefill/{shape}-b{batch}-{mode}",
                partial(prefill.measure, bench, shape, batch, mode),
            )

    yield from prefills(main, first)
    yield "steps", f"steps/{main}", partial(steps.measure, bench, main)
    yield "rivals", f"rivals/{main}", partial(rivals.measure, bench, main, 0.1, sheet)
    for samples in setting.samples:
        for r in memory.RETENTIONS:
            name = f"memory/{main}-n{samples}-{memory.variant_name(r)}"
            yield "memory", name, partial(memory.measure, bench, main, samples, r)
    yield from _breaks(setting, bench, main)
    for shape in others:
        yield from prefills(shape, first)
        yield from _breaks(setting, bench, shape)
    if setting.cuda and not setting.quick and SMALL not in setting.shapes:
        yield from _breaks(setting, bench, SMALL)
    for shape in dict.fromkeys(setting.shapes):
        yield "preprocess", f"preprocess/{shape}", partial(pictures.measure, setting, shape)
    for r in memory.RETENTIONS:
        name = f"memory/{main}-largest-{memory.variant_name(r)}"
        yield "memory", name, partial(memory.largest, bench, main, r, sheet.cells)
    # Long prompts last: they take most of the time.
    for batch in more:
        for shape in sorted(setting.shapes, key=lambda name: SHAPES[name].rows):
            yield from prefills(shape, batch)


def _breaks(setting: Setting, bench: Bench, shape: str) -> Iterator[Job]:
    prompts = [(shape, 6)] + ([SHORT] if shape == SHORT[0] else [])
    if shape == setting.shapes[0]:
        prompts.append((shape, 2))
    for name, cameras in dict.fromkeys(prompts):
        for mode in setting.modes:
            work = partial(break_even.measure, bench, name, cameras, mode)
            yield "break_even", f"break_even/{name}-b1-{cameras}cam-{mode}", work


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite; 1 if anything failed, 2 for bad input, else 0."""
    args = _parser().parse_args(argv)
    try:
        setting = _setting(args)
        return _run(setting, args)
    except PruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(setting: Setting, args: argparse.Namespace) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = args.sections or SECTIONS
    budget = BUDGET if args.budget is None and setting.cuda else args.budget
    sheet = Sheet(args.out / "suite.json", setting, budget=budget, fresh=args.fresh)
    bench = Bench(setting)
    if "ceilings" in wanted and not sheet.data["ceilings"]:
        sheet.data["ceilings"] = ceilings(setting)
        sheet.write()
    for section, name, work in jobs(setting, bench, sheet):
        if section in wanted:
            sheet.run(name, work)
    prefill.across_modes(sheet.cells)
    sheet.data["predictions"] = predictions.told(sheet.cells, sheet.data["hardware"].get("gpu"))
    sheet.write()
    _page(sheet, args.out / "index.html")
    _closing(sheet)
    return 1 if sheet.data["failures"] else 0


def _page(sheet: Sheet, path: Path) -> None:
    from prune2drive.files import write_atomically
    from prune2drive.report.speed import speed_page

    write_atomically(path, speed_page(sheet.data))
    print(f"written: {sheet.path} and {path}")


def _closing(sheet: Sheet) -> None:
    """The figures that were asked for, and what is not there."""
    for told in sheet.data["predictions"]:
        if told["outcome"] is not None:
            found = f"{told['outcome']:.3g} {told['unit']}"
            print(f"{told['id']:>20}: {found}, predicted {told['predicted']}: {told['verdict']}")
    for name, row in sheet.cells.items():
        if name.startswith("prefill/") and row["retention"] != 1.0 and row["prefill_ratio"]:
            limit = row["share_of_limit"]
            share = "" if limit is None else f", {limit:.0%} of the FLOPs limit"
            print(f"{name}: prefill x{row['prefill_ratio']:.2f}{share}, first token x{row['ttft_ratio']:.2f}")
    late = [entry["cell"] for entry in sheet.data["skipped"] if entry["reason"] == OUT_OF_TIME]
    if late:
        print(f"not measured for want of time: {', '.join(late)}; run the same command again to go on")
    for entry in sheet.data["failures"]:
        print(f"failed: {entry['cell']}: {entry['reason']}")


def _setting(args: argparse.Namespace) -> Setting:
    device = parse_device(args.device)
    cuda = device.type == "cuda"
    dtype = parse_dtype(args.dtype) if args.dtype else torch.bfloat16 if cuda else torch.float32
    if isinstance(dtype, str):
        raise PruneError("--dtype auto is for checkpoints; name one of fp32, bf16, fp16.")
    shapes = tuple(args.shapes or (("demo",) if not cuda or args.quick else GPU_SHAPES))
    for name in shapes:
        check_shape(name)
    kwargs: dict[str, Any] = {}
    if args.quick:
        kwargs = {"retentions": (1.0, 0.1), "repeat": 2, "new_tokens": 2, "samples": (1, 2)}
    if not cuda and not args.quick:
        kwargs["modes"] = (EAGER,)  # there are no graphs to replay
    if not cuda or args.quick:
        kwargs |= {"batches": (1,), "samples": kwargs.get("samples", (1, 4))}
    for name in ("repeat", "new_tokens", "batches", "retentions", "modes", "samples"):
        if (given := getattr(args, name)) is not None:
            kwargs[name] = tuple(given) if isinstance(given, list) else given
    return Setting(
        device=str(device), dtype=str(dtype).removeprefix("torch."), shapes=shapes, attn=args.attn,
        layers=args.layer_limit, compile=args.compile, quick=args.quick,
        frame=(90, 160) if args.quick else (900, 1600), **kwargs,
    )  # fmt: skip


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"unknown section {name!r}.{did_you_mean(name, SECTIONS)}")
    return name


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    doc = str(__doc__).partition("\n")
    parser = argparse.ArgumentParser(
        description=doc[0], epilog=doc[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--out", type=Path, default=Path("out/speed"), metavar="DIR", help="folder of the results (out/speed)"
    )
    add("--device", help="cuda, cuda:1 or cpu; default: CUDA where there is one")
    add("--dtype", help=f"{', '.join(sorted(DTYPES))}; default bf16 on CUDA, fp32 on a CPU")
    add("--shapes", nargs="+", metavar="SIZE", help=f"published sizes; default {', '.join(GPU_SHAPES)}")
    add("--attn", default="sdpa", help="attention of the models: sdpa, flash_attention_2, eager")
    add("--sections", nargs="+", type=_section, metavar="NAME", help=f"of {', '.join(SECTIONS)}; default all")
    add("--budget", type=float, metavar="SECONDS", help="begin nothing more after this time (CUDA: 570)")
    add("--quick", action="store_true", help="few cases and rounds: to see that it works")
    add("--compile", action="store_true", help="also torch.compile in captured calls (minutes of compiling)")
    add("--layer-limit", type=_count, metavar="N", help="only the first N layers of the language models")
    add("--repeat", type=_count, metavar="N", help="timed rounds at batch 1 (5)")
    add("--new-tokens", type=_count, metavar="N", help="tokens of the answers that are timed (64)")
    add("--batches", nargs="+", type=_count, metavar="N", help="samples per call (1 8; CPU: 1)")
    add(
        "--samples",
        nargs="+",
        type=_count,
        metavar="N",
        help="samples of the memory section (1 4 16; CPU: 1 4)",
    )
    add("--retentions", nargs="+", type=_share, metavar="SHARE", help="shares to keep (1 0.5 0.25 0.1 0.05)")
    add(
        "--modes", nargs="+", choices=MODES, help=f"how calls are made; default both ({EAGER} as users begin)"
    )
    add("--fresh", action="store_true", help="begin anew instead of going on with the result in OUT")
    return parser


if __name__ == "__main__":
    sys.exit(main())
