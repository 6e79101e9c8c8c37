"""A figure as SVG, with tooltips; and, inlined in a page, without styles or ids of its own."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from clinpeft.reports.figures.panels import ROW_ID_PREFIX, TOOLTIP_ID_PREFIX
from clinpeft.reports.figures.style import apply_plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG_NAMESPACE, _XLINK_NAMESPACE = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# The prefixes under which ElementTree writes them; without, it would write ns0 and ns1
ET.register_namespace("", _SVG_NAMESPACE)
ET.register_namespace("xlink", _XLINK_NAMESPACE)
# CSS shorthand as matplotlib writes it: style? weight? size family
_FONT_PATTERN = re.compile(r"(?:(\w+) )??(?:(\d+) )?([\d.]+)px (.*)")
# Properties that SVG also has as attributes, which a page without inline styles may hold
_SVG_STYLE_ATTRIBUTES = frozenset(
    (
        *("fill", "fill-opacity", "fill-rule", "opacity", "stroke", "stroke-dasharray"),
        *("stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "stroke-miterlimit"),
        *("stroke-opacity", "stroke-width", "text-anchor", "font-size", "font-weight"),
        "font-style",
    )
)


def render_svg(figure: Figure) -> str:
    """The figure as an SVG file; the tooltips of ``panels.set_tooltip`` become ``<title>``."""
    buffer = io.BytesIO()
    # Without a date and the version of matplotlib, equal figures are equal files
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with apply_plot_style():
        figure.savefig(buffer, format="svg", metadata=metadata)
    # matplotlib writes the ids that ``set_tooltip`` set on groups; here they get their meaning
    root = ET.fromstring(buffer.getvalue())
    for group in list(root.iter(f"{{{_SVG_NAMESPACE}}}g")):
        mark = group.get("id", "")
        if mark.startswith(TOOLTIP_ID_PREFIX):
            del group.attrib["id"]
            title = ET.Element(f"{{{_SVG_NAMESPACE}}}title")
            # ElementTree escapes it when it writes the file
            title.text = mark.removeprefix(TOOLTIP_ID_PREFIX)
            group.insert(0, title)
        elif mark.startswith(ROW_ID_PREFIX):
            del group.attrib["id"]
            group.set("data-row", mark.removeprefix(ROW_ID_PREFIX))
    return ET.tostring(root, encoding="unicode")


def inline_svg(text: str, name: str, label: str) -> str:
    """An SVG file as an element of a page: labeled for screen readers, sized by the page, its ids
    unique on the page.

    Args:
        text: of the file.
        name: of the figure, a prefix of every id that is referenced.
        label: what the figure shows.
    """
    root = ET.fromstring(text)
    referenced_ids = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    # A style element would need a hash of its own in the policy of the page
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG_NAMESPACE}}}metadata", f"{{{_SVG_NAMESPACE}}}style"):
                parent.remove(child)
    for node in root.iter():
        _inline_styles(node)
        _prefix_ids(node, name, referenced_ids)
    width = root.get("width", "").removesuffix("pt")
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("width", f"{float(width or 520) * 4 / 3:.0f}")  # points to CSS pixels
    root.attrib |= {"role": "img", "aria-label": label, "focusable": "false"}
    # HTML knows svg without namespaces, and href without xlink
    body = ET.tostring(root, encoding="unicode").replace("ns0:", "").replace("xlink:href", "href")
    return re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", body)


def _inline_styles(node: ET.Element) -> None:
    """Replace the style of a node by attributes: the policy of the page forbids inline styles."""
    for declaration in node.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (font := _FONT_PATTERN.fullmatch(value)):
            node.set("font-size", font.group(3))
            if font.group(2) == "700" or font.group(1) == "bold":
                node.set("font-weight", "bold")
        elif key in _SVG_STYLE_ATTRIBUTES:
            node.set(key, value.removesuffix("px") if key == "font-size" else value)


def _prefix_ids(node: ET.Element, name: str, referenced_ids: set[str]) -> None:
    """Prefix the id of a node and its references with the name of the figure; ids that nothing
    refers to are dropped."""
    mark = node.attrib.pop("id", None)
    # Clip paths and markers; two figures on one page use the same ids
    if mark in referenced_ids:
        node.set("id", f"{name}-{mark}")
    for key, value in list(node.attrib.items()):
        if value.startswith("url(#"):
            node.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == f"{{{_XLINK_NAMESPACE}}}href" and value.startswith("#"):
            node.set(key, f"#{name}-{value[1:]}")
