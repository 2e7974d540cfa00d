"""Reading drawings: their parts by class, the corners of their paths, where their words stand."""

import itertools
import re
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def classed(root, tag: str, name: str) -> list:
    return [node for node in root.iter(f"{SVG}{tag}") if node.get("class") == name]


def outline(node) -> list[tuple[float, float]]:
    """The corners of a path of absolute M, L, H, V and A commands."""
    x = y = 0.0
    out = []
    for letter, rest in re.findall(r"([MLHVA])([^MLHVAZ]*)", node.get("d")):
        numbers = list(map(float, rest.split()))
        if letter == "H":
            x = numbers[0]
        elif letter == "V":
            y = numbers[0]
        else:
            x, y = numbers[-2:]
        out.append((x, y))
    return out


def marks(root, name: str) -> list[tuple[float, float]]:
    places = [re.findall(r"-?[\d.]+", g.get("transform")) for g in classed(root, "g", name)]
    return [(float(x), float(y)) for x, y in places]


def boxes(root) -> list[tuple[float, float, float, float]]:
    """About where each text stands: left, top, right, bottom."""
    out = []
    for node in root.iter(f"{SVG}text"):
        x, y = float(node.get("x", 0)), float(node.get("y"))
        long = sum(8.9 if c.isupper() else 6.9 for c in node.text)
        left = {"end": x - long, "middle": x - long / 2}.get(node.get("text-anchor"), x)
        out.append((left, y - 10, left + long, y + 3))
    return out


def assert_apart_and_inside(root):
    left, top, width, height = map(float, root.get("viewBox").split())
    found = boxes(root)
    for a, b, c, d in found:
        assert left <= a and top <= b and c <= left + width and d <= top + height
    for one, other in itertools.combinations(found, 2):
        across = min(one[2], other[2]) - max(one[0], other[0])
        down = min(one[3], other[3]) - max(one[1], other[1])
        assert across <= 0 or down <= 0, (one, other)
