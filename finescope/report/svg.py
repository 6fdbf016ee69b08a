"""Figures inside a page: an SVG document made fit to stand between others, in the page's own colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from finescope.html.plain import plain
from finescope.report import look

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOURS = {
    look.INK: "ink",
    look.MUTED: "muted",
    look.EDGE: "edge",
    look.GRID: "line",
    look.PAGE: "page",
    look.CORPUS: "corpus",
    look.SELECTED: "accent",
    look.TARGET: "target",
    **{colour: f"other-{number}" for number, colour in enumerate(look.OTHERS, start=1)},
}
"""Colours of the figures and the names under which the style sheet has them, for light pages and for dark."""
_HEX = re.compile("#[0-9a-f]{6}")
_FAMILY = re.compile("font-family: [^;]*;? ?")
_LONG_NUMBER = re.compile(r"(\d\.\d\d)\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline(document: str, name: str, description: str) -> str:
    """Return a figure's SVG as an element for the inside of an HTML page.

    Everything that would leak into the page goes: the document's own style sheet, metadata and fonts, and
    ids that nothing refers to; the other ids are preceded by ``name``. Colours become the page's variables,
    so that the figure follows the reader's scheme. Coordinates keep two decimals: hundredths of a point.

    Args:
        document: SVG as matplotlib writes it.
        name: unlike that of every other figure of the page.
        description: what the figure shows, for those who don't see it.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    values = [value for node in root.iter() for value in node.attrib.values()]
    used = {value[1:] for value in values if value.startswith("#")}
    used.update(found for value in values for found in _REFERENCE.findall(value))
    for node in root.iter():
        _adapt(node, name, used)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": plain(description)})
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(node: ElementTree.Element, name: str, used: set[str]) -> None:
    own = node.attrib.pop("id", None)
    if own in used:
        node.set("id", f"{name}-{own}")
    place = node.attrib.pop(f"{{{_XLINK}}}href", None)
    if place is not None:
        node.set("href", f"#{name}-{place[1:]}" if place.startswith("#") else re.sub(r"\s", "", place))
    for key, value in node.attrib.items():
        if "url(#" in value:
            node.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    if "style" in node.attrib:
        style = _FAMILY.sub("", node.attrib["style"])
        node.set("style", _HEX.sub(_variable, style))
    if "d" in node.attrib:
        node.set("d", _LONG_NUMBER.sub(r"\1", " ".join(node.attrib["d"].split())))
    node.tail = None if not (node.tail or "").strip() else node.tail
    node.text = None if not (node.text or "").strip() else node.text


def _variable(colour: re.Match[str]) -> str:
    name = _COLOURS.get(colour[0])
    return colour[0] if name is None else f"var(--{name})"
