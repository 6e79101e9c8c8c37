"""What all figures share: colors and marks that are distinguishable in gray, axes, names beside
points, files.

The colors are those of Okabe and Ito (2008), which people with any common color blindness can
distinguish; a hatch, a marker or a line style repeats what the color says. Nothing is drawn through
``pyplot``, which would keep a global state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clinpeft.core.errors import InputError, UsageError
from clinpeft.reports.encoders import EncoderRow
from clinpeft.reports.tables import Estimate
from clinpeft.runs import replace_file_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY_BLUE, GREEN, BLUE, VERMILION, GRAY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#767676",
)

FIGURE_WIDTH_INCHES = 7.2  # two columns of a journal
BAR_ROW_INCHES = 0.34  # height of one backbone

MATPLOTLIB_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "clinpeft",  # the same figure is the same file
}


@dataclass(frozen=True)
class PlotStyle:
    """How one kind of model or state is drawn, the same in every figure."""

    name: str
    color: str
    hatch: str
    marker: str


ARCHITECTURE_STYLES = {
    "encoder": PlotStyle("encoder", BLUE, "", "o"),
    "decoder": PlotStyle("decoder", ORANGE, "///", "s"),
    "unknown": PlotStyle("architecture not known", GRAY, "...", "^"),
}
ZERO_SHOT_STYLE, ADAPTED_STYLE = (
    PlotStyle("zero-shot", "#D9D9D9", "", "o"),
    PlotStyle("adapted", BLUE, "///", "s"),
)

PUBLISHED_MARKER: dict[str, Any] = {
    "marker": "D",
    "markersize": 4.5,
    "markerfacecolor": "white",
    "markeredgecolor": BLACK,
    "linestyle": "none",
    "zorder": 5,
}
PUBLISHED_LABEL = "published"
# Published marks are this far below the measured ones, so that neither covers the other
PUBLISHED_OFFSET = 0.3

ERROR_BAR_STYLE: dict[str, Any] = {
    "ecolor": BLACK,
    "elinewidth": 1.0,
    "capsize": 2.5,
    "linestyle": "none",
    "zorder": 4,
}


def import_matplotlib() -> ModuleType:
    """The library, which comes with the extra ``figures``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import matplotlib as library
    except ImportError as error:
        raise UsageError(
            "matplotlib is not installed",
            location="figures",
            hint='install it: pip install "clinpeft[figures]"',
        ) from error
    return library


@contextlib.contextmanager
def apply_plot_style() -> Iterator[None]:
    """Draw and write in the style of ``MATPLOTLIB_RC``; afterwards matplotlib is as before."""
    with import_matplotlib().rc_context(MATPLOTLIB_RC):
        yield


def create_figure(
    height: float, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure of the usual width and its axes, row by row.

    Args:
        height: in inches.
        columns, rows: of axes.
        options: of ``Figure.subplots``.
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(FIGURE_WIDTH_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)  # ``label_points`` needs a renderer for the sizes of texts
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def write_figure(figure: Figure, path: Path) -> None:
    """One file in the format of its suffix, without a date in it.

    Raises:
        StorageError: it cannot be written; an earlier file is intact.
    """
    # A date in the file would make equal figures differ
    form = path.suffix.removeprefix(".")
    with apply_plot_style(), replace_file_atomically(path) as target:
        figure.savefig(
            target,
            format=form,
            dpi=200,
            metadata={"Date": None} if form == "svg" else {"Software": None},
        )


def check_plot_data(rows: Sequence[Any], required_data: str) -> None:
    """Stop a figure that has nothing to show.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError(
            f"no run has {required_data}", location="figures", hint="run the cells that measure it"
        )


def get_plot_style(row: EncoderRow) -> PlotStyle:
    """The style of a backbone, by its architecture."""
    return ARCHITECTURE_STYLES[row.backbone_info.architecture]


def list_architectures(rows: Sequence[EncoderRow]) -> list[str]:
    """The architectures that rows have, in the order of ``ARCHITECTURE_STYLES``."""
    present = {row.backbone_info.architecture for row in rows}
    return [name for name in ARCHITECTURE_STYLES if name in present]


def draw_mark(axes: Axes, x: float, y: float, style: PlotStyle, **options: Any) -> None:
    """One mark with a thin black edge.

    Args:
        axes: to draw on.
        x, y: in the units of the axes.
        style: its marker and color.
        options: of ``Axes.plot``.
    """
    edge = {"markersize": 7, "markeredgecolor": BLACK, "markeredgewidth": 0.5}
    axes.plot([x], [y], style.marker, color=style.color, **{**edge, **options})


def compute_error_bars(estimates: Sequence[Estimate]) -> Any:
    """Distances from the values to both ends of their intervals, shape (2, n); 0 for a missing
    end."""

    def distance(upper: float | None, lower: float | None) -> float:
        return 0.0 if upper is None or lower is None else max(0.0, upper - lower)

    return [
        [distance(estimate.value, estimate.low) for estimate in estimates],
        [distance(estimate.high, estimate.value) for estimate in estimates],
    ]


def to_plot_values(estimates: Sequence[Estimate]) -> list[float]:
    """The values; NaN, which is not drawn, for unknown ones."""
    return [math.nan if estimate.value is None else estimate.value for estimate in estimates]


def set_y_names(axes: Axes, names: Sequence[str], gap: float = 0.6) -> list[int]:
    """Write the names from top to bottom.

    Args:
        axes: to write on.
        names: from top to bottom.
        gap: above the first and below the last, in rows.

    Returns:
        The y coordinate of each name.
    """
    positions = list(range(len(names)))
    axes.set_yticks(positions, labels=list(names))
    # Inverted: the first name is at the top
    axes.set_ylim(len(names) - 1 + gap, -gap)
    axes.tick_params(axis="y", length=0)
    return positions


def compute_bars_height(count: int, margin_inches: float = 1.3) -> float:
    """Inches for so many horizontal bars, their axis and legend."""
    return margin_inches + BAR_ROW_INCHES * count


def set_log_axis(axes: Axes, axis_name: str) -> None:
    """A logarithmic axis with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{axis_name}scale")("log")
    axis = axes.xaxis if axis_name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    # Less than two decades: 1, 2, 5 instead of powers of ten alone
    is_short = high / low < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    # Minor labels would overlap
    axis.set_minor_formatter(NullFormatter())


def set_log_limits(
    axes: Axes, axis_name: str, plot_values: Sequence[float], factor: float = 1.6
) -> None:
    """Limits of a logarithmic axis around values that are above 0."""
    getattr(axes, f"set_{axis_name}lim")(min(plot_values) / factor, max(plot_values) * factor)


def add_legend(
    figure: Figure, axes: Axes, columns: int = 4, extra_handles: Sequence[Any] = (), title: str = ""
) -> None:
    """A legend below the axes, one entry per name."""
    handles, names = axes.get_legend_handles_labels()
    handles = [*handles, *extra_handles]
    names = [*names, *(handle.get_label() for handle in extra_handles)]
    # Artists are drawn row by row with repeated labels: the last of each name is its entry
    entries = dict(zip(names, handles, strict=True))
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(columns, len(entries)),
            title=title or None,
            title_fontsize=8.5,
        )


# Directions in which a label may be moved away from its point, the preferred ones first
_LABEL_DIRECTIONS = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (0.9, 0.8),
    (-0.9, 0.8),
    (0.9, -0.8),
    (-0.9, -0.8),
)

# (left, bottom, right, top) in pixels
PixelBox = tuple[float, float, float, float]


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], radius: float = 6.0
) -> None:
    """Write each name beside its point, where it covers no other point and no other name if there
    is such a position; names that are farther away get a line.

    Args:
        axes: with their final limits.
        points: in the units of the axes.
        names: of the points.
        radius: of the marks, in typographic points.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # the layout, and with it the pixels of the points
    scale = figure.dpi / 72  # pixels per typographic point
    r = radius * scale
    pixels = [tuple(float(x) for x in axes.transData.transform(point)) for point in points]
    occupied: list[PixelBox] = [(x - r, y - r, x + r, y + r) for x, y in pixels]
    frame = axes.get_window_extent()
    edges = (frame.x0, frame.y0, frame.x1, frame.y1)
    renderer = figure.canvas.get_renderer()
    # From top to bottom: labels of lower points yield to those of higher ones
    labels = zip(pixels, points, names, strict=True)
    for (x, y), point, name in sorted(labels, key=lambda label: -label[0][1]):
        text = axes.annotate(
            name,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            zorder=6,
        )
        # A box and not a stroke, with which SVG would hold outlines instead of text
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6})
        text.set_in_layout(False)
        extent = text.get_window_extent(renderer)
        distances = [radius * step * scale for step in (1.4, 2.6, 4.0, 6.0)]
        size = (extent.width, extent.height)
        box, distance = _place_label((x, y), size, distances, occupied, edges)
        occupied.append(box)
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        text.set_position(((center[0] - x) / scale, (center[1] - y) / scale))
        # The point itself counts as one
        neighbors = sum(math.hypot(x - x2, y - y2) < 3 * radius * scale for x2, y2 in pixels)
        if neighbors > 1 or distance > 2 * radius * scale:
            axes.annotate(
                "",
                point,
                xytext=text.get_position(),
                textcoords="offset points",
                arrowprops={
                    "arrowstyle": "-",
                    "color": GRAY,
                    "linewidth": 0.6,
                    "shrinkA": 0,
                    "shrinkB": radius / 2,
                },
                zorder=3,
            ).set_in_layout(False)


def _place_label(
    point: tuple[float, float],
    size: tuple[float, float],
    distances: Sequence[float],
    occupied: Sequence[PixelBox],
    edges: PixelBox,
) -> tuple[PixelBox, float]:
    """The box of a label that covers the least of other boxes, and its distance from the point."""
    x, y = point
    width, height = size
    placements: list[tuple[float, PixelBox, float]] = []
    for distance in distances:
        for dx, dy in _LABEL_DIRECTIONS:
            center_x, center_y = x + dx * (width / 2 + distance), y + dy * (height / 2 + distance)
            box = (
                center_x - width / 2,
                center_y - height / 2,
                center_x + width / 2,
                center_y + height / 2,
            )
            covered = sum(compute_box_overlap(box, other) for other in occupied)
            area = (box[2] - box[0]) * (box[3] - box[1])
            # Outside of the axes costs ten times as much as on another mark or name
            outside = 10 * (area - compute_box_overlap(box, edges))
            placements.append((covered + outside + distance / 200, box, distance))
    # The first of equal cost, which is the nearest in the preferred direction
    _, box, distance = min(placements, key=lambda placement: placement[0])
    return box, distance


def compute_box_overlap(box: PixelBox, other: PixelBox) -> float:
    """Area that two boxes share, in pixels."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height)
