"""Figures of how a run went: what was read and who left, what was learned at which step, what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clinpeft.core.schemas import Attrition
from clinpeft.reports.facts import tokens_a_second
from clinpeft.reports.figures.panels import LINES, ROW, told
from clinpeft.reports.figures.style import (
    BLUE,
    GREY,
    WIDTH,
    bars_height,
    legend,
    names_on_y,
    needed,
    sheet,
)
from clinpeft.reports.formats import count, counted, duration
from clinpeft.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 60
SMOOTHED = 0.1  # share of the newest loss in its running mean
_NOT_MEASURED = {"event", "step", "loss", "learning_rate", "tokens", "seconds"}


@dataclass(frozen=True)
class Course:
    """What the log of a run says, by the tokens that were seen.

    Attributes:
        name: of the row.
        steps: (tokens, running mean of the loss), thinned.
        measured: what was measured on the way -> (tokens, value).
    """

    name: str
    steps: tuple[tuple[float, float], ...]
    measured: Mapping[str, tuple[tuple[float, float], ...]]


def course(name: str, run: Run) -> Course:
    """The log of a run; a line that is torn is passed over, and of a step that was done again the last counts."""
    events = {event["step"]: event for event in _events(run)}
    steps, mean = [], None
    for event in events.values():
        loss = event.get("loss")
        if isinstance(loss, int | float):
            mean = loss if mean is None else (1 - SMOOTHED) * mean + SMOOTHED * loss
            steps.append((float(event.get("tokens") or 0), float(mean)))
    measured: dict[str, list[tuple[float, float]]] = {}
    for event in events.values():
        for key, value in event.items():
            if key not in _NOT_MEASURED and isinstance(value, int | float):
                measured.setdefault(key, []).append((float(event.get("tokens") or 0), float(value)))
    thin = max(1, len(steps) // MOST_POINTS)
    return Course(
        name, tuple(steps[::thin]), {key: tuple(points) for key, points in measured.items()}
    )


def _events(run: Run) -> Iterator[dict[str, Any]]:
    path = run.folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if (
            isinstance(event, dict)
            and event.get("event") == "step"
            and isinstance(event.get("step"), int)
        ):
            yield event


def learning(courses: Sequence[Course]) -> Figure:
    """Left the running mean of the training loss, right what was measured on the tuning split, both against the tokens that were seen."""
    courses = [one for one in courses if one.steps]
    needed(courses, "a log of its steps")
    keys = dict.fromkeys(key for one in courses for key in one.measured)
    measured = next((key for key in keys if "metric" in key), next(iter(keys), ""))
    figure, axes = sheet(3.0 + 0.12 * len(courses), 2 if measured else 1)
    for at, one in enumerate(courses):
        colour, style = LINES[at % len(LINES)]
        _line(axes[0], one.name, one.steps, colour, style)
        if measured and measured in one.measured:
            _line(axes[1], one.name, one.measured[measured], colour, style, every=1)
    for axis, title in zip(
        axes, ("training loss, running mean", f"{measured.replace('_', ' ')}"), strict=False
    ):
        axis.set_title(title, loc="left")
        axis.set_xlabel("tokens seen")
        axis.ticklabel_format(axis="x", style="plain")
        axis.xaxis.set_major_formatter(_thousands)
    legend(figure, axes[0], columns=2)
    return figure


def _thousands(value: float, _: float) -> str:
    return (
        f"{value / 1e6:g}M"
        if value >= 1e6
        else f"{value / 1e3:g}k"
        if value >= 1e3
        else f"{value:g}"
    )


def _line(
    axis: Axes,
    name: str,
    points: Sequence[tuple[float, float]],
    colour: str,
    style: str,
    every: int = 10,
) -> None:
    (line,) = axis.plot(
        *zip(*points, strict=True), color=colour, linestyle=style, linewidth=1.4, label=name
    )
    line.set_gid(f"{ROW}{name}")
    for x, y in points[::every]:
        (dot,) = axis.plot([x], [y], marker="o", markersize=3, color=colour, linestyle="none")
        told(dot, f"{name}: {count(x)} tokens, {y:.4g}")


def cost(names: Sequence[str], runs: Sequence[Run]) -> Figure:
    """Seconds in the training loop, and tokens a second."""
    needed([run for run in runs if run.record.training_seconds], "a time of training")
    figure, axes = sheet(bars_height(len(names), 1.0), 2, sharey=True)
    places = names_on_y(axes[0], list(names))
    for location, name, run in zip(places, names, runs, strict=True):
        for axis, value, word in (
            (axes[0], run.record.training_seconds, "in training"),
            (axes[1], tokens_a_second(run), "tokens a second"),
        ):
            if value:
                (bar,) = axis.barh(location, value, color=BLUE, height=0.6)
                told(bar, f"{name}: {duration(value) if axis is axes[0] else count(value)} {word}")
    axes[0].set_xlabel("seconds of training")
    axes[1].set_xlabel("tokens a second")
    for axis in axes:
        axis.xaxis.set_major_formatter(_thousands)
    return figure


def attrition(steps: Sequence[Attrition]) -> Figure:
    """A flow: what entered each step, to the right what left it for which reason, below what was kept. Counts under ten are not told, and steps
    that nothing left are passed over."""
    steps = [step for step in steps if step.entered_rows != step.kept_rows]
    needed(steps, "a step that anything left")
    lines = [
        [
            f"{counted(n)} {reason}"
            for reason, n in sorted(step.dropped_rows.items(), key=lambda one: -one[1])
            if n
        ]
        for step in steps
    ]
    heights = [max(2, len(texts)) + 1.0 for texts in lines]
    figure, (axes,) = sheet(0.19 * sum(heights) + 0.3)
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(sum(heights), -0.3)
    top = 0.0
    for at, (step, texts, height) in enumerate(zip(steps, lines, heights, strict=True)):
        middle = top + (height - 1) / 2 + 0.2
        _box(
            axes,
            1.5,
            middle,
            f"{step.step}\n{counted(step.entered_rows)} entered, {counted(step.kept_rows)} kept",
            GREY,
        )
        _box(axes, 3.5, middle, "\n".join(texts), GREY, "left", "--")
        axes.annotate(
            "",
            (3.38, middle),
            (2.85, middle),
            arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 0.9},
        )
        if at + 1 < len(steps):
            below = top + height + (heights[at + 1] - 1) / 2 + 0.2
            axes.annotate(
                "",
                (1.5, below - 1.1),
                (1.5, middle + 1.1),
                arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 0.9},
            )
        top += height
    return figure


def _box(
    axes: Axes, x: float, y: float, text: str, colour: str, align: str = "center", style: str = "-"
) -> None:
    frame = {
        "boxstyle": "round,pad=0.35",
        "facecolor": "none",
        "edgecolor": colour,
        "linewidth": 0.9,
        "linestyle": style,
    }
    axes.text(x, y, text, ha=align, va="center", fontsize=8, bbox=frame, linespacing=1.25)
