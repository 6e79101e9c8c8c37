"""What the figures of answers share: a panel a row of the grid, a word for every mark, and no count below the smallest cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clinpeft.core.errors import InputError
from clinpeft.reports.facts import MODEL, SUBGROUP, tasks
from clinpeft.reports.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    WIDTH,
    sheet,
)
from clinpeft.runs import Run, read_run_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = tuple(
    (colour, style)
    for style in ("-", "--", ":")
    for colour in (BLUE, ORANGE, GREEN, VERMILION, SKY, BLACK, GREY)
)
"""Colour and style of the first, second ... line of a figure."""

MOST_CLASSES = 3
TIP, ROW = "tip: ", "row: "
"""How the id of a mark begins that has a word for whoever points at it, and of a group that belongs to one row of the grid."""

Points = Sequence[Mapping[str, Any]]  # of tables.CURVE


@dataclass(frozen=True)
class Panel:
    """One row of a grid on one task, by its first run that has finished."""

    name: str
    run: Run
    task: str

    def kept(self, name: str) -> pa.Table | None:
        """A table of the run that is about the task; None where the run has none."""
        first = tasks(self.run.recipe)[:1] == (self.task,)
        try:
            return read_run_table(self.run, name if first else f"{name}-{self.task}")
        except InputError:
            return None

    def curve(self, name: str) -> dict[str, Points]:
        """Class (empty where one thing is asked) or group -> points of one kind of ``tables.CURVE``, in their order."""
        found = self.kept("curves")
        rows = (
            []
            if found is None
            else [row for row in found.to_pylist() if row["name"] == name and row["y"] is not None]
        )
        return {
            group: [row for row in rows if row["group"] == group]
            for group in dict.fromkeys(row["group"] for row in rows)
        }


def classes(curves: Mapping[str, Points]) -> list[str]:
    """The classes that a curve is drawn of: the most frequent of several, by the events in the bins of its calibration."""
    events = {
        group: sum(row["y"] * row["n"] for row in rows)
        for group, rows in curves.items()
        if group.partition(SUBGROUP)[0] == MODEL
    }
    chosen = sorted(events, key=lambda group: -events[group])[:MOST_CLASSES]
    return [group.partition(SUBGROUP)[2] for group in curves if group in chosen]


def named(state: str, one: str) -> str:
    """The group of a class: ``model · 3 to 7 days``."""
    return f"{state}{SUBGROUP}{one}" if one else state


def told(artist: Any, text: str) -> None:
    """What is said to whoever points at a mark."""
    artist.set_gid(f"{TIP}{text}")


def grid_of(
    panels: Sequence[Panel], height: float, x: str, y: str = ""
) -> tuple[Figure, list[Axes]]:
    """Axes for every panel, three side by side, with its name above; what is left over is taken away.

    Args:
        panels: one an axis.
        height: inches of one.
        x, y: what stands below the lowest and left of the leftmost.
    """
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = sheet(height * rows + 0.5, columns, rows, sharex=True, sharey=True)
    if columns < 3:
        figure.set_size_inches(WIDTH * (0.55 if columns == 1 else 0.8), height * rows + 0.5)
    for axis in axes[len(panels) :]:
        axis.remove()
    for at, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        axis.set_title(wrapped(panel.name), loc="left", fontsize=8.5)
        axis.set_gid(f"{ROW}{panel.name}")
        if at + columns >= len(panels):
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(x)
        if at % columns == 0:
            axis.set_ylabel(y)
    return figure, axes[: len(panels)]


def wrapped(name: str, width: int = 34) -> str:
    """A long name in two lines or more."""
    lines = [""]
    for word in name.split(" "):
        lines = (
            [*lines[:-1], f"{lines[-1]} {word}".strip()]
            if len(lines[-1]) + len(word) < width
            else [*lines, word]
        )
    return "\n".join(lines)
