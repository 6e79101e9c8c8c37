"""Figures of a search: how the best value came about, and which keys mattered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clinpeft.reports.figures.style import (
    BLACK,
    BLUE,
    GREY,
    bars_height,
    legend,
    names_on_y,
    needed,
    sheet,
    styled,
    write,
)
from clinpeft.runs.searches import SearchRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")


def history(search: SearchRecord) -> Figure:
    """Every trial's value on the tuning split, and the best so far; failed trials are crosses on the lower edge.

    Raises:
        InputError: no trial has a value.
        UsageError: matplotlib is not installed.
    """
    known = [(trial.number, trial.value) for trial in search.trials if trial.value is not None]
    needed(known, "a value on its tuning split")
    figure, (axes,) = sheet(3.2)
    from matplotlib.ticker import MaxNLocator

    numbers, values = [number for number, _ in known], [value for _, value in known]
    choose: Callable[..., float] = max if search.direction == "maximize" else min
    best = [choose(values[: at + 1]) for at in range(len(values))]
    axes.step(numbers, best, where="post", color=BLACK, linewidth=1.2, label="best so far")
    fresh = [
        (trial.number, trial.value)
        for trial in search.trials
        if trial.value is not None and trial.repeats is None
    ]
    again = [
        (trial.number, trial.value)
        for trial in search.trials
        if trial.value is not None and trial.repeats is not None
    ]
    axes.plot(
        *zip(*fresh, strict=True),
        linestyle="none",
        marker="o",
        color=BLUE,
        markersize=5,
        label="trial",
    )
    if again:
        axes.plot(
            *zip(*again, strict=True),
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            markeredgecolor=BLUE,
            label="equal to an earlier one",
        )
    failed = [trial.number for trial in search.trials if trial.state == "failed"]
    if failed:
        bottom = axes.get_ylim()[0]
        axes.plot(
            failed,
            [bottom] * len(failed),
            linestyle="none",
            marker="x",
            color=GREY,
            label="failed",
            clip_on=False,
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{search.metric} on the tuning split")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, axes)
    return figure


def importance(search: SearchRecord) -> Figure:
    """Shares of what the trials' values vary by, a bar a key, the largest first.

    Raises:
        InputError: they are not known.
        UsageError: matplotlib is not installed.
    """
    shares = sorted(search.importance.items(), key=lambda share: -share[1])
    needed(shares, "shares of importance: " + search.importance_by)
    figure, (axes,) = sheet(bars_height(len(shares)))
    places = names_on_y(axes, [key for key, _ in shares])
    axes.barh(places, [share for _, share in shares], color=BLUE, height=0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the variance of {search.metric}; {search.importance_by}")
    return figure


SEARCH_FIGURES: dict[str, Callable[[SearchRecord], Figure]] = {
    "history": history,
    "importance": importance,
}


def write_search_figures(search: SearchRecord) -> tuple[Path, ...]:
    """Every figure that the search has data for, in its folder, as SVG and PNG.

    Raises:
        InputError: no trial has a value.
        UsageError: matplotlib is not installed.
        StorageError: nothing could be written.
    """
    names = [name for name in SEARCH_FIGURES if name != "importance" or search.importance]
    paths = []
    for name in names:
        with styled():
            figure = SEARCH_FIGURES[name](search)
        for form in FORMATS:
            paths.append(search.folder / f"{name}.{form}")
            write(figure, paths[-1])
    return tuple(paths)
