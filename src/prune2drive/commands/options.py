"""Options that several commands share, and their checks. All are done before a model is touched."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PruneError, did_you_mean

if TYPE_CHECKING:
    from ..allocators import LayerAveraged
    from ..rig import Rig


AVERAGED = "avg:"
"""Marks a share as what a layer sees on average."""


def add_pruning_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `prune2drive.prune`."""
    parser.add_argument(
        "--retention",
        default="0.10",
        metavar="SHARE",
        help='share of each camera\'s tokens to keep, "avg:0.10" of what a layer sees on average, '
        '"CAM_FRONT=0.25,*=0.08", a preset or its file (default: %(default)s)',
    )
    parser.add_argument(
        "--method", default="tfps", metavar="NAME", help='see "prune2drive methods" (default: %(default)s)'
    )
    parser.add_argument(
        "--positions",
        choices=("keep", "reindex", "calibrate"),
        default="keep",
        help="position ids of kept tokens (default: %(default)s)",
    )


def add_camera_options(parser: argparse.ArgumentParser) -> None:
    """Add which cameras there are, and which are shown."""
    parser.add_argument(
        "--rig", default="nuscenes", metavar="NAME|FILE", help="the cameras (default: %(default)s)"
    )
    parser.add_argument("--cameras", metavar="A,B,C", help="only these, in this prompt order")
    parser.add_argument("--frame", metavar="ID|INDEX", help="which frame, for a JSON file with several")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add how a model is loaded."""
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="auto (as stored), float32, bfloat16, float16, or fp32, bf16, fp16 (default: %(default)s)",
    )
    parser.add_argument(
        "--attn",
        metavar="NAME",
        help="attention implementation, such as sdpa, eager, flash_attention_2 (default: the model's own)",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that ships with the model (only if you trust it)",
    )


def parse_retention(text: str) -> float | dict[str, float] | LayerAveraged:
    """Read ``--retention``: a number, ``avg:`` and a number, ``CAMERA=share`` pairs, or a preset.

    Raises:
        PruneError: none of these, or a damaged preset file.
    """
    from ..allocators import LayerAveraged, Rates

    averaged = text.startswith(AVERAGED)
    try:
        number = float(text.removeprefix(AVERAGED))
    except ValueError:
        if averaged:
            raise PruneError(f"--retention {text!r}: write a number, as in {AVERAGED}0.10.") from None
    else:
        return LayerAveraged(number) if averaged else number
    from ..allocators.preset import list_presets, load_preset

    if os.path.isfile(text) or text in list_presets():  # unlike Path's, this takes a text too long for a name
        # The rates themselves go into reports: what a file held, and not where it lay.
        return dict(Rates(load_preset(text).rates).rates)
    rates: dict[str, float] = {}
    for pair in text.split(","):
        name, equals, share = (part.strip() for part in pair.partition("="))
        try:
            value = float(share)
        except ValueError:
            equals = ""
            value = 0.0
        if not name or not equals:
            raise PruneError(
                f"--retention {text!r}: {pair.strip()!r} is not CAMERA=share, and no such file or preset "
                'exists. Write 0.10 or "CAM_FRONT=0.25,*=0.08".'
            )
        if name in rates:
            raise PruneError(f"--retention {text!r} names {name} twice. Keep one of them.")
        rates[name] = value
    return rates


def parse_names(text: str, option: str) -> list[str]:
    """Read names separated by commas.

    Raises:
        PruneError: an empty name, or one given twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise PruneError(f"{option} {text!r}: give names separated by commas, each once.")
    return names


def parse_shares(text: str) -> list[float]:
    """Read ``--retention`` as several shares.

    Raises:
        PruneError: something that is no number.
    """
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise PruneError(f"--retention {text!r}: give shares with commas, such as 0.25,0.1.") from None


def parse_cameras(text: str | None, rig: Rig) -> list[str]:
    """Read ``--cameras``; all of the rig's without it.

    Raises:
        PruneError: a camera that is not of the rig, or one named twice.
    """
    if text is None:
        return list(rig.names)
    cameras = [name.strip() for name in text.split(",")]
    for name in cameras:
        if name not in rig:
            raise PruneError(f"--cameras {text}: {name!r} is not in the rig.{did_you_mean(name, rig.names)}")
    if len(set(cameras)) < len(cameras):
        raise PruneError(f"--cameras {text}: name each camera once.")
    return cameras


def pruning_setting(args: argparse.Namespace, rig: Rig, cameras: Sequence[str]) -> dict[str, Any]:
    """The keywords of `prune2drive.prune` that the options stand for.

    Raises:
        PruneError: an unknown method, a share outside (0, 1], a rate for a camera that the rig lacks,
            or a camera without a rate.
    """
    retention = parse_retention(args.retention)
    import torch

    from ..allocators.average import AveragedStage
    from ..engine.stages import resolve_stages
    from ..tokens import View

    none = torch.zeros(1, dtype=torch.long)
    views = [View(name, none, torch.zeros(1, 4), none, none) for name in cameras]
    for stage in resolve_stages(args.method, retention):
        if isinstance(stage.allocator, AveragedStage):  # speaks of a prompt's tokens, which are not known yet
            continue
        stage.allocator.allocate(views, rig, stage.method.rounding)
    return {"method": args.method, "retention": retention, "positions": args.positions}


def check_at_least(args: argparse.Namespace, **least: int) -> None:
    """Refuse counts below their minimum, ``option=minimum``."""
    for name, minimum in least.items():
        if (value := getattr(args, name)) < minimum:
            raise PruneError(f"--{name.replace('_', '-')} {value}: give at least {minimum}.")


def check_output(path: str | None, option: str) -> None:
    """Refuse a file that cannot be written before minutes are spent on what should go into it."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise PruneError(f"{option} {path} is a folder. Give a file name.")
    if target.exists() and not target.is_file():  # a device or a pipe: written to, not replaced
        if not os.access(target, os.W_OK):
            raise PruneError(f"{option} {path} cannot be written. Choose another file.")
        return
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        raise PruneError(f"{option} {path}: no folder {folder}. Create it first.")
    if not os.access(folder, os.W_OK):
        raise PruneError(f"{option} {path}: {folder} cannot be written. Choose another folder.")
