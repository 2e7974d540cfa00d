"""`prune2drive demo`: the whole path on drawn pictures and a small model with random weights."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_pruning_options, check_at_least, check_output, pruning_setting

WARNING = (
    "The weights of this model are random, so its answer is meaningless. The choice of tokens, the "
    "token counts and the times are real."
)
TEXT_TOKENS = 64


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "demo",
        help="try it without data or weights",
        description="Prune a small random model on six drawn pictures: what is kept, and what it saves.",
    )
    add_pruning_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="of pictures and weights (default: 0)")
    parser.add_argument("--max-new-tokens", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="timed calls of each kind (default: 1)"
    )
    parser.add_argument("--report", metavar="FILE", help="write a self-contained HTML page")


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code."""
    from ..rig import NUSCENES

    check_at_least(args, max_new_tokens=1, repeat=1)
    check_output(args.report, "--report")
    setting = pruning_setting(args, NUSCENES, NUSCENES.names)

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from .. import prune
    from ..demo_pictures import draw_frame
    from ..profiling.latency import profile
    from ..profiling.shapes import build_inputs, build_model
    from .show import compared, facts, panels, print_result

    console = Console()
    console.print(WARNING, style="yellow", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        steps = 3 + 1 + 2 * (1 + 1 + args.repeat)
        task = progress.add_task("drawing six pictures", total=steps)
        frame = draw_frame(args.seed)
        progress.update(task, advance=1, description="building the model")
        model = build_model("demo", seed=args.seed)
        inputs = build_inputs("demo", cameras=len(frame), text_tokens=TEXT_TOKENS, seed=args.seed)
        inputs["pixel_values"] = _pixels(frame, inputs["pixel_values"].shape)
        pruned = prune(model, rig=NUSCENES, **setting)

        def generate() -> str:
            with torch.inference_mode():
                out = model.generate(
                    **inputs, max_new_tokens=args.max_new_tokens, do_sample=False, pad_token_id=0
                )
            return "token ids " + ", ".join(map(str, out[0, inputs["input_ids"].shape[1] :].tolist()))

        progress.update(task, advance=1, description="answering with pruned tokens")
        with pruned:
            answer = generate()
        progress.update(task, advance=1, description="answering with all tokens")
        unpruned_answer = generate()
        progress.update(task, advance=1, description="measuring")
        result = profile(
            model,
            inputs,
            rig=NUSCENES,
            new_tokens=0,
            repeat=args.repeat,
            progress=lambda line: progress.update(task, advance=1, description=f"measuring: {line}"),
            **setting,
        )
    times, record = compared(result), pruned.record
    print_result(console, record, times)
    faster = result.ratio["ttft_ms"]
    if faster:
        console.print(f"Time to first token: {faster:.1f} times faster than unpruned.", highlight=False)
    if args.report:
        from ..report.page import Report, write_page

        name, retention = "demo (random weights)", setting["retention"]
        about = facts(model, name, record, retention, args.positions, Rig=NUSCENES.name)
        report = Report(
            title=f"Six drawn cameras, {record.tokens[1]:,} of {record.tokens[0]:,} visual tokens",
            question=f"None: the text of this demo is {TEXT_TOKENS} random tokens.",
            answer=answer,
            unpruned_answer=unpruned_answer,
            panels=panels(record, frame, NUSCENES),
            times=times,
            facts=about,
            notes=[WARNING],
        )
        console.print(f"report: {write_page(report, args.report)}", highlight=False, markup=False)
    return 0


def _pixels(frame: Any, shape: Any) -> Any:
    """The pictures as the tower wants them: float32 of ``shape`` (cameras, tiles, 3, side, side), -1 to 1."""
    import numpy as np
    import torch
    from PIL import Image

    side = shape[-1]
    rows = [
        np.asarray(p.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) for p in frame.values()
    ]
    return torch.from_numpy(np.stack(rows) / 127.5 - 1).permute(0, 3, 1, 2).reshape(shape).contiguous()
