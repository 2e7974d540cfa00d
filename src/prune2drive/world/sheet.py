"""Look at scenes: ``python -m prune2drive.world.sheet --out sheet.png``.

Writes one picture, a row per scene and the cameras of nuScenes side by side from the left to the back,
each in its own 16:9; by default two scenes of every weather.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..errors import PruneError
from ..rig import NUSCENES, Rig
from .generate import SPLITS, scene
from .render import render
from .scene import WEATHERS, Scene

WIDTH, HEIGHT = 256, 144
"""Size of one picture on the sheet."""

_HEADER, _MARGIN, _GAP = 22, 110, 4
_PAPER, _INK, _FAINT = (24, 25, 28), (240, 240, 240), (160, 164, 170)


def pick(split: str, weathers: Sequence[str], each: int) -> list[Scene]:
    """Return the first ``each`` scenes of a split in every one of ``weathers``, weather by weather.

    Raises:
        PruneError: an unknown split, or fewer than one scene.
    """
    if each < 1:
        raise PruneError(f"{each} scenes make no sheet; ask for 1 or more")
    found: dict[str, list[Scene]] = {weather: [] for weather in weathers}
    for number in count():
        drawn = scene(split, number)
        rows = found.get(drawn.weather)
        if rows is not None and len(rows) < each:
            rows.append(drawn)
            if all(len(some) == each for some in found.values()):
                break
    return [drawn for some in found.values() for drawn in some]


def sheet(scenes: Sequence[Scene], rig: Rig = NUSCENES) -> Image.Image:
    """Draw scenes as rows under a header of camera names.

    The columns go round to the right as we look: what leaves a picture on its right comes into the next
    on its left (neighbours overlap). The camera behind is last.
    """
    order = sorted(range(len(rig)), key=lambda v: -((rig.cameras[v].yaw_deg + 180) % 360))
    size = (_MARGIN + len(rig) * (WIDTH + _GAP), _HEADER + len(scenes) * (HEIGHT + _GAP))
    page = Image.new("RGB", size, _PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for at, v in enumerate(order):
        middle = _MARGIN + at * (WIDTH + _GAP) + WIDTH / 2
        pen.text((middle, _HEADER / 2), rig.names[v], _INK, font, anchor="mm")
    for n, drawn in enumerate(scenes):
        top = _HEADER + n * (HEIGHT + _GAP)
        pen.text((8, top + HEIGHT / 2 - 9), drawn.name, _INK, font, anchor="lm")
        pen.text((8, top + HEIGHT / 2 + 9), drawn.weather, _FAINT, font, anchor="lm")
        images = render([drawn], rig).images[0].permute(0, 2, 3, 1).numpy()
        for at, v in enumerate(order):
            picture = Image.fromarray(images[v]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            page.paste(picture, (_MARGIN + at * (WIDTH + _GAP), top))
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Write a sheet; 0 when it is written."""
    parser = argparse.ArgumentParser(
        prog="python -m prune2drive.world.sheet", description="Draw scenes of the world on one sheet."
    )
    parser.add_argument("--out", type=Path, required=True, help="the picture to write (.png, .jpg, ...)")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--scenes", type=int, default=2, metavar="N", help="per weather (default: 2)")
    parser.add_argument("--weather", choices=WEATHERS, help="this weather only")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() not in Image.registered_extensions():
        parser.error(f"--out {args.out}: end it in .png or another picture format")
    try:
        page = sheet(pick(args.split, (args.weather,) if args.weather else WEATHERS, args.scenes))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        page.save(args.out)
    except (PruneError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
