"""What the figures of classification share: a panel per row of the grid, tooltips, and the classes
that are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clinpeft.core.errors import InputError
from clinpeft.reports.facts import CLASSIFIER_GROUP, SUBGROUP_SEPARATOR, get_task_names
from clinpeft.reports.figures.style import (
    BLACK,
    BLUE,
    FIGURE_WIDTH_INCHES,
    GRAY,
    GREEN,
    ORANGE,
    SKY_BLUE,
    VERMILION,
    create_figure,
)
from clinpeft.runs import Run, read_run_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Color and style of the first, second ... line of a figure
LINE_STYLES = tuple(
    (color, style)
    for style in ("-", "--", ":")
    for color in (BLUE, ORANGE, GREEN, VERMILION, SKY_BLUE, BLACK, GRAY)
)

MAX_CURVE_CLASSES = 3
# Prefix of the id of a mark that has a tooltip, and of a group that belongs to one row
TOOLTIP_ID_PREFIX, ROW_ID_PREFIX = "tip: ", "row: "

CurvePoints = Sequence[Mapping[str, Any]]  # rows of CURVE_POINT_SCHEMA


@dataclass(frozen=True)
class ClassificationPanel:
    """One row of a grid on one task, by its finished run with the smallest seed.

    Attributes:
        name: of the row.
        run: the run.
        task: one of its tasks.
    """

    name: str
    run: Run
    task: str

    def read_table(self, name: str) -> pa.Table | None:
        """A table of the run about the task; None if the run has none."""
        # Tables of the main task have no suffix
        is_main = get_task_names(self.run.recipe)[:1] == (self.task,)
        try:
            return read_run_table(self.run, name if is_main else f"{name}-{self.task}")
        except InputError:
            return None

    def read_curves(self, name: str) -> dict[str, CurvePoints]:
        """Group, or class for distributions, -> points of one kind of curve, in their order."""
        table = self.read_table("curves")
        curves: dict[str, list[Mapping[str, Any]]] = {}
        for row in [] if table is None else table.to_pylist():
            if row["name"] == name and row["y"] is not None:
                curves.setdefault(row["group"], []).append(row)
        return {**curves}


def choose_curve_classes(curves: Mapping[str, CurvePoints]) -> list[str]:
    """The classes whose curves are drawn: the most frequent ones, by the events in the bins of the
    calibration curve; a binary task has one, with an empty name."""
    # y: observed fraction, n: predictions in the bin
    events = {
        group: sum(row["y"] * row["n"] for row in rows)
        for group, rows in curves.items()
        if group.partition(SUBGROUP_SEPARATOR)[0] == CLASSIFIER_GROUP
    }
    # In the order of the curves, which is that of the classes
    frequent = sorted(events, key=lambda group: -events[group])[:MAX_CURVE_CLASSES]
    return [group.partition(SUBGROUP_SEPARATOR)[2] for group in curves if group in frequent]


def format_class_group(state: str, class_name: str) -> str:
    """The group of a class: ``model · 3 to 7 days``."""
    return f"{state}{SUBGROUP_SEPARATOR}{class_name}" if class_name else state


def set_tooltip(artist: Any, text: str) -> None:
    """Give a mark a text that a page shows beside the pointer."""
    # SVG has no attribute for it that matplotlib writes: the id carries it to ``render_svg``
    artist.set_gid(f"{TOOLTIP_ID_PREFIX}{text}")


def create_panel_axes(
    panels: Sequence[ClassificationPanel], height: float, x_label: str, y_label: str = ""
) -> tuple[Figure, list[Axes]]:
    """Axes for every panel, three side by side, with its name above.

    Args:
        panels: one per axes.
        height: inches of one.
        x_label, y_label: below the lowest and left of the leftmost.
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = create_figure(height * rows + 0.5, columns, rows, sharex=True, sharey=True)
    if columns < 3:
        figure.set_size_inches(
            FIGURE_WIDTH_INCHES * (0.55 if columns == 1 else 0.8), height * rows + 0.5
        )
    # The last line of a grid of panels may be incomplete
    for axis in axes[len(panels) :]:
        axis.remove()
    for at, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        axis.set_title(wrap_title(panel.name), loc="left", fontsize=8.5)
        axis.set_gid(f"{ROW_ID_PREFIX}{panel.name}")
        if at + columns >= len(panels):
            # Shared axes have tick labels in the last line alone, where this column may have no
            # panel
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(x_label)
        if at % columns == 0:
            axis.set_ylabel(y_label)
    return figure, axes[: len(panels)]


def wrap_title(name: str, width: int = 34) -> str:
    """A long name in several lines."""
    lines = [""]
    for word in name.split(" "):
        if len(lines[-1]) + len(word) < width:
            lines[-1] = f"{lines[-1]} {word}".strip()
        else:
            lines.append(word)
    return "\n".join(lines)
