"""`prune2drive run`: ask a model about one surround-view frame, pruned, and show what was kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import PruneError
from .options import (
    add_camera_options,
    add_model_options,
    add_pruning_options,
    check_at_least,
    check_output,
    parse_cameras,
    pruning_setting,
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run",
        help="ask a model about your pictures",
        description="Ask a vision-language model about one surround-view frame with pruned visual tokens.",
    )
    parser.add_argument("--model", required=True, metavar="PATH|ID", help="model folder, or hub id org/name")
    parser.add_argument("--images", required=True, metavar="DIR|JSON", help="pictures of one frame")
    parser.add_argument("--question", required=True, help="what to ask")
    add_camera_options(parser)
    add_pruning_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    add_model_options(parser)
    parser.add_argument("--compare", action="store_true", help="also answer and time without pruning")
    parser.add_argument("--json", metavar="FILE", help="write answer, kept indices and times as JSON")
    parser.add_argument("--report", metavar="FILE", help="write a self-contained HTML page")


def run(args: argparse.Namespace) -> int:
    """Carry out the command; returns the exit code. Raises PruneError for what the user can mend."""
    from ..images import load_frame
    from ..rig import load_rig

    # Cheap checks first: the model may take minutes to load.
    check_at_least(args, max_new_tokens=1)
    if not args.question.strip():
        raise PruneError("--question is empty. Write what to ask.")
    check_output(args.report, "--report")
    check_output(args.json, "--json")
    rig = load_rig(args.rig)
    assert rig is not None  # None only for None
    cameras = parse_cameras(args.cameras, rig)
    setting = pruning_setting(args, rig, cameras)

    from ..loading import load_model, parse_device, parse_dtype

    dtype, device = parse_dtype(args.dtype), parse_device(args.device)
    frame = load_frame(args.images, rig, cameras=cameras, frame=args.frame)

    import torch
    from rich.console import Console

    from .. import prune
    from ..prompts import build_inputs
    from .show import compared, first_token, print_result

    console = Console()
    with console.status("loading the model"):
        model, processor = load_model(
            args.model,
            dtype=dtype,
            device=device,
            attn=args.attn,
            trust_remote_code=args.trust_remote_code,
        )
    inputs = build_inputs(processor, model, [frame], args.question, cameras)
    pruned = prune(model, rig=rig, cameras=cameras, **setting)
    unpruned_answer = None
    try:
        with console.status("answering with pruned tokens"), pruned:
            answer = _answer(model, processor, inputs, args.max_new_tokens)
        if args.compare:
            from ..profiling.latency import profile

            with console.status("answering with all tokens"):
                unpruned_answer = _answer(model, processor, inputs, args.max_new_tokens)
            with console.status("measuring") as status:
                result = profile(
                    model,
                    inputs,
                    rig=rig,
                    cameras=cameras,
                    new_tokens=0,
                    repeat=3,
                    progress=lambda line: status.update(f"measuring: {line}"),
                    **setting,
                )
            times = compared(result)
        else:
            with console.status("measuring"):
                times = first_token(pruned, inputs)
    except torch.cuda.OutOfMemoryError as error:
        raise PruneError(
            f"out of GPU memory ({str(error).splitlines()[0]}). "
            "Try --dtype bfloat16, fewer --cameras, no --compare."
        ) from error
    record = pruned.record

    console.print("\n[bold]Answer[/bold]", end=" ")
    console.print(answer.strip() or "(empty)", markup=False, highlight=False)
    if unpruned_answer is not None:
        console.print("[bold]With all tokens[/bold]", end=" ")
        console.print(unpruned_answer.strip() or "(empty)", markup=False, highlight=False)
    print_result(console, record, times)
    retention = setting["retention"]
    _write(args, console, model, processor, frame, rig, record, retention, times, answer, unpruned_answer)
    return 0


def _answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> str:
    """Greedy, so that two runs agree and the pruned and unpruned answers differ only by pruning."""
    import torch

    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _write(
    args: argparse.Namespace,
    console: Any,
    model: Any,
    processor: Any,
    frame: Any,
    rig: Any,
    record: Any,
    retention: Any,
    times: Any,
    answer: str,
    unpruned_answer: str | None,
) -> None:
    """Write the page and the JSON file that were asked for."""
    from .show import facts

    if not (args.report or args.json):
        return
    # The folder's name alone: a report that is passed on should not tell where things lie.
    folder = Path(args.model).expanduser()
    name = folder.resolve().name if folder.is_dir() else args.model
    about = facts(model, name, record, retention, args.positions, Rig=rig.name, Frame=frame.id)
    if args.report:
        from ..report.page import Report, write_page
        from .show import panels

        cameras, (before, kept) = record.samples[0], record.tokens
        plural = "" if len(cameras) == 1 else "s"
        report = Report(
            title=f"{len(cameras)} camera{plural}, {kept:,} of {before:,} visual tokens",
            question=args.question,
            answer=answer,
            unpruned_answer=unpruned_answer,
            panels=panels(record, frame, rig, processor.image_processor),
            times=times,
            facts=about,
        )
        console.print(f"report: {write_page(report, args.report)}", highlight=False, markup=False)
    if args.json:
        import json

        from ..files import write_atomically

        data = {
            "question": args.question,
            "answer": answer,
            "unpruned_answer": unpruned_answer,
            "record": record.to_dict(),
            "milliseconds": [{"stage": t.stage, "pruned": t.pruned, "unpruned": t.unpruned} for t in times],
            "facts": about,
        }
        write_atomically(args.json, json.dumps(data, indent=2) + "\n")
        console.print(f"json: {args.json}", highlight=False, markup=False)
