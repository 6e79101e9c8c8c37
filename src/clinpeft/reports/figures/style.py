"""What all figures share: colours and marks that can be told apart in grey, axes, names beside
points, files.

The colours are those of Okabe and Ito (2008), which people with any common colour blindness can
tell apart; a hatch, a marker or a line style says the same again. Nothing is drawn through
``pyplot``, which would keep a state of its own.
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

FIGURE_WIDTH_INCHES = 7.2  # inches: two columns of a journal
BAR_ROW_INCHES = 0.34  # inches for one backbone

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
    """How one kind of thing is drawn, the same in every figure."""

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
PUBLISHED_OFFSET = (
    0.3  # of what was measured stands what was published, so that neither covers the other
)

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
    """Draw and write in the style of ``RC``; afterwards matplotlib is as it was."""
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
    FigureCanvasAgg(figure)  # names beside points have to know how large they are
    made = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(made.ravel())


def write_figure(figure: Figure, path: Path) -> None:
    """One file in the format of its ending, without a date in it.

    Raises:
        StorageError: it could not be written; what was there before is intact.
    """
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
    """By the architecture."""
    return ARCHITECTURE_STYLES[row.backbone_info.architecture]


def compute_error_bars(estimates: Sequence[Estimate]) -> Any:
    """Distances from the values to both ends of their intervals, shape (2, n); 0 where there is no
    interval."""
    low = [_compute_distance(known.value, known.low) for known in estimates]
    high = [_compute_distance(known.high, known.value) for known in estimates]
    return [low, high]


def _compute_distance(upper: float | None, lower: float | None) -> float:
    return 0.0 if upper is None or lower is None else max(0.0, upper - lower)


def to_plot_values(estimates: Sequence[Estimate]) -> list[float]:
    """Without their intervals; NaN for what is not known, which is drawn as nothing."""
    return [math.nan if known.value is None else known.value for known in estimates]


def set_y_names(axes: Axes, names: Sequence[str], gap: float = 0.6) -> list[int]:
    """The names from top to bottom, and where each stands."""
    places = list(range(len(names)))
    axes.set_yticks(places, labels=list(names))
    axes.set_ylim(len(names) - 1 + gap, -gap)
    axes.tick_params(axis="y", length=0)
    return places


def compute_bars_height(count: int, margin_inches: float = 1.3) -> float:
    """Inches for so many horizontal bars, their axis and legend."""
    return margin_inches + BAR_ROW_INCHES * count


def set_log_axis(axes: Axes, axis_name: str) -> None:
    """A logarithmic axis with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{axis_name}scale")("log")
    axis = axes.xaxis if axis_name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    is_short = high / low < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda known, _: f"{known:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def set_log_limits(
    axes: Axes, axis_name: str, plot_values: Sequence[float], factor: float = 1.6
) -> None:
    """Limits of a logarithmic axis around values that are above 0."""
    getattr(axes, f"set_{axis_name}lim")(min(plot_values) / factor, max(plot_values) * factor)


def add_legend(
    figure: Figure, axes: Axes, columns: int = 4, extra_handles: Sequence[Any] = (), title: str = ""
) -> None:
    """Below the axes, one entry a name, and above them what else is to be said."""
    drawn, names = axes.get_legend_handles_labels()
    known = dict(
        zip(
            [*names, *(one.get_label() for one in extra_handles)],
            [*drawn, *extra_handles],
            strict=True,
        )
    )
    if known:
        figure.legend(
            list(known.values()),
            list(known),
            loc="outside lower center",
            ncols=min(columns, len(known)),
            title=title or None,
            title_fontsize=8.5,
        )


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], radius: float = 6.0
) -> None:
    """Each name beside its point, where it covers no other point and no other name as far as there
    is such a place; farther ones have a line.

    Args:
        axes: with their final limits.
        points: in the units of the axes.
        names: what stands beside each.
        radius: of the drawn points, in typographic points.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    at = [tuple(float(known) for known in axes.transData.transform(point)) for point in points]
    taken = [
        (x - radius * scale, y - radius * scale, x + radius * scale, y + radius * scale)
        for x, y in at
    ]
    frame = axes.get_window_extent()
    edges = (frame.x0, frame.y0, frame.x1, frame.y1)
    renderer = figure.canvas.get_renderer()
    for (x, y), point, name in sorted(
        zip(at, points, names, strict=True), key=lambda one: -one[0][1]
    ):
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
        text.set_bbox(
            {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
        )  # a stroke around it would make it a drawing in SVG
        text.set_in_layout(False)
        extent = text.get_window_extent(renderer)
        width, height = extent.width, extent.height
        away = [
            (radius * step * scale, side)
            for step in (1.4, 2.6, 4.0, 6.0)
            for side in _LABEL_DIRECTIONS
        ]
        boxes = [
            _center_box(x + dx * (width / 2 + far), y + dy * (height / 2 + far), width, height)
            for far, (dx, dy) in away
        ]
        costs = [
            _compute_overlap_cost(box, taken, edges) + far / 200
            for box, (far, _) in zip(boxes, away, strict=True)
        ]
        chosen = costs.index(min(costs))
        best = boxes[chosen]
        taken.append(best)
        centre = ((best[0] + best[2]) / 2, (best[1] + best[3]) / 2)
        text.set_position(((centre[0] - x) / scale, (centre[1] - y) / scale))
        is_crowded = (
            sum(
                math.hypot(x - other, y - height_of) < 3 * radius * scale for other, height_of in at
            )
            > 1
        )
        if is_crowded or away[chosen][0] > 2 * radius * scale:
            line = {
                "arrowstyle": "-",
                "color": GRAY,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": radius / 2,
            }
            axes.annotate(
                "",
                point,
                xytext=text.get_position(),
                textcoords="offset points",
                arrowprops=line,
                zorder=3,
            ).set_in_layout(False)


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

PixelBox = tuple[float, float, float, float]


def _center_box(x: float, y: float, width: float, height: float) -> PixelBox:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _compute_overlap_cost(
    box: PixelBox, occupied_boxes: Sequence[PixelBox], edges: PixelBox
) -> float:
    """What it covers, in pixels, and far more for what would be outside."""
    covered = sum(_compute_overlap(box, other) for other in occupied_boxes)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return covered + 10 * (area - _compute_overlap(box, edges))


def _compute_overlap(box: PixelBox, other: PixelBox) -> float:
    wide, high = (
        min(box[2], other[2]) - max(box[0], other[0]),
        min(box[3], other[3]) - max(box[1], other[1]),
    )
    return max(0.0, wide) * max(0.0, high)
