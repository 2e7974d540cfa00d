"""The car from above as SVG, with the rate of each camera."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..rig import Rig
from .chart import FONT, INK, LINE, SOFT, apart, escape, percent, shortened, text_width

_INNER, _OUTER = 32.0, 112.0
"""Radii of the car's wedges at a rate of 0 and at the largest rate, in pixels."""
_LETTER = 15.0
_NAME = 92.0
"""From this width on a camera's name is broken into two lines."""


def rates_svg(rates: Mapping[str, float], rig: Rig | None, uniform: float | None = None) -> str:
    """The car from above, driving upwards, with one wedge per camera.

    Args:
        rates: the share of its tokens that each camera keeps, in [0, 1]; a wedge is as long as its rate.
        rig: where the cameras look and how wide. Without one, or where it lacks a camera, they stand
            evenly around the car, the first ahead and the others to its left.
        uniform: one rate for all to compare with, in [0, 1], drawn as a dashed ring.

    Returns:
        One ``<svg>`` element.

    Raises:
        PruneError: a camera without a name.
    """
    if rates and (rig is None or any(name not in rig for name in rates)):
        rig = Rig.from_names(list(rates))
    top = max([*rates.values(), uniform or 0.0], default=0.0) or 1.0

    def radius(rate: float) -> float:
        return _INNER + (_OUTER - _INNER) * min(1.0, max(0.0, rate / top))

    cameras = [(rig.camera(name), rate) for name, rate in rates.items()] if rig is not None else []
    labels, half, height = _around([(c.name, c.yaw_deg, percent(rate, 1)) for c, rate in cameras])
    drawn = [
        f'<path class="track" fill="{LINE}" d="{_wedge(c.yaw_deg, c.fov_deg, _OUTER)}"/>' for c, _ in cameras
    ]
    for camera, rate in cameras:
        drawn.append(
            f'<path class="fan" fill="#0f766e" fill-opacity=".28" stroke="#0f766e" stroke-opacity=".7" '
            f'd="{_wedge(camera.yaw_deg, camera.fov_deg, radius(rate))}">'
            f"<title>{escape(camera.name)}: {percent(rate, 1)}</title></path>"
        )
    legend = f"outer edge {percent(top, 1)}"
    if uniform is not None:
        drawn.append(
            f'<circle class="ring" r="{radius(uniform):.1f}" fill="none" stroke="currentColor" '
            'stroke-width="1.5" stroke-dasharray="5 4">'
            f"<title>uniform: {percent(uniform, 1)}</title></circle>"
        )
        legend = f"dashed ring: uniform {percent(uniform, 1)}, {legend}"
    half = max(half, text_width(legend) / 2)
    said = ", ".join(f"{name} {percent(rate, 1)}" for name, rate in rates.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="car" role="img" color="{INK}" fill="currentColor" '
        f'viewBox="{-half:.0f} {-height / 2:.0f} {2 * half:.0f} {height + 20:.0f}" font-family="{FONT}" '
        f'font-size="13"><title>The car from above with the rate of each camera</title>'
        f"<desc>{escape(said)}</desc>{''.join(drawn)}"
        '<rect class="body" fill="#c3cad3" x="-12" y="-26" width="24" height="52" rx="8"/>'
        '<path class="glass" fill="#7d8896" d="M-9-10q9-5 18 0l-1.5 7h-15zM-7 15h14l1.5 5q-8 3-17 0z"/>'
        '<path class="lamp" fill="#0f766e" d="M-10-25h6v2.5h-6zM4-25h6v2.5h-6z"/>'
        f'{labels}<g class="soft" color="{SOFT}"><text text-anchor="middle" y="{height / 2 + 12:.1f}" '
        f'font-size="12">{legend}</text></g></svg>\n'
    )


def _wedge(yaw: float, fov: float, radius: float) -> str:
    """A piece of a ring around the car: degrees, positive to the left; from `_INNER` to ``radius``."""
    half = min(fov, 359.9) / 2  # an arc that ends where it begins is nothing
    large = int(half > 90)
    (ax, ay), (bx, by) = (_polar(yaw + side, radius) for side in (half, -half))
    (cx, cy), (dx, dy) = (_polar(yaw + side, _INNER) for side in (-half, half))
    return (
        f"M{ax:.1f} {ay:.1f}A{radius:.1f} {radius:.1f} 0 {large} 1 {bx:.1f} {by:.1f}"
        f"L{cx:.1f} {cy:.1f}A{_INNER:.1f} {_INNER:.1f} 0 {large} 0 {dx:.1f} {dy:.1f}Z"
    )


def _polar(yaw: float, radius: float) -> tuple[float, float]:
    turned = math.radians(yaw)
    return -radius * math.sin(turned), -radius * math.cos(turned)


def _around(cameras: Sequence[tuple[str, float, str]]) -> tuple[str, float, float]:
    """Names and rates around the wedges, apart from one another: (text, half the width, height).

    One label stands above the car and one below it, centred; the others beside it, at the height of
    their cameras unless they would touch.
    """
    rim = _OUTER + 10
    lines = [[*_broken(name), rate] for name, _, rate in cameras]
    tall = _LETTER * max((len(block) for block in lines), default=0) + 6
    half_height = _OUTER + tall + 6
    spots: dict[int, tuple[float, float, str]] = {}
    for up in (1, -1):
        near = [(abs(math.sin(math.radians(c[1]))), i) for i, c in enumerate(cameras)]
        near = [n for n in near if n[0] < 0.3 and up * math.cos(math.radians(cameras[n[1]][1])) > 0]
        if near:
            i = min(near)[1]
            spots[i] = (0.0, -up * (rim + _LETTER * len(lines[i]) / 2 - 4), "middle")
    aside = max([60.0, *(max(map(text_width, lines[i])) / 2 + 8 for i in spots)])
    for side in (-1, 1):
        there = [i for i in range(len(cameras)) if i not in spots]
        there = [i for i in there if (-1 if math.sin(math.radians(cameras[i][1])) >= 0 else 1) == side]
        wanted = sorted((_polar(cameras[i][1], rim)[1], i) for i in there)
        half_height = max(half_height, tall * len(there) / 2)
        edge = half_height - tall / 2
        scale = tall / 16.0  # `apart` keeps 16 between two
        heights = apart([y / scale for y, _ in wanted], -edge / scale, edge / scale)
        for (_, i), height in zip(wanted, heights, strict=True):
            y = height * scale
            across = max(0.0, abs(y) - tall / 2 + 4)  # the corner of the label that is nearest to the car
            x = max(aside, math.sqrt(max(0.0, rim**2 - across**2)))
            spots[i] = (side * x, y, "end" if side < 0 else "start")
    out, half_width = [], _OUTER
    for i, (x, y, anchor) in spots.items():
        top = y - _LETTER * len(lines[i]) / 2 + 11.5
        for at, words in enumerate(lines[i]):
            strong = ' font-weight="680"' if at == len(lines[i]) - 1 else ""
            out.append(
                f'<text x="{x:.1f}" y="{top + _LETTER * at:.1f}" text-anchor="{anchor}"{strong}>'
                f"{escape(words)}</text>"
            )
            long = text_width(words)
            half_width = max(half_width, abs(x) + (long / 2 if anchor == "middle" else long))
    return "".join(out), half_width + 5, 2 * half_height


def _broken(name: str) -> list[str]:
    """A camera's name in one line or, after its last separator, in two; overlong lines are cut."""
    at = max(name.rfind(mark) for mark in "_- ./") + 1
    parts = [name[:at], name[at:]] if 0 < at < len(name) and text_width(name) > _NAME else [name]
    return [shortened(part) for part in parts]
