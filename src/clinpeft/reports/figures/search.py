"""Figures of a search: how the best value came about, and which keys mattered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clinpeft.reports.figures.style import (
    BLACK,
    BLUE,
    GRAY,
    add_legend,
    apply_plot_style,
    check_plot_data,
    compute_bars_height,
    create_figure,
    set_y_names,
    write_figure,
)
from clinpeft.runs.searches import SearchRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEARCH_FIGURE_FORMATS = ("svg", "png")


def draw_search_history(search: SearchRecord) -> Figure:
    """Every trial's value on the tuning split, and the best so far; failed trials are crosses on
    the lower edge.

    Raises:
        InputError: no trial has a value.
        UsageError: matplotlib is not installed.
    """
    known = [(trial.number, trial.value) for trial in search.trials if trial.value is not None]
    check_plot_data(known, "a value on its tuning split")
    figure, (axes,) = create_figure(3.2)
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
            color=GRAY,
            label="failed",
            clip_on=False,
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{search.metric} on the tuning split")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, axes)
    return figure


def draw_hyperparameter_importance(search: SearchRecord) -> Figure:
    """Shares of what the trials' values vary by, a bar a key, the largest first.

    Raises:
        InputError: they are not known.
        UsageError: matplotlib is not installed.
    """
    shares = sorted(search.importance.items(), key=lambda share: -share[1])
    check_plot_data(shares, "shares of importance: " + search.importance_by)
    figure, (axes,) = create_figure(compute_bars_height(len(shares)))
    places = set_y_names(axes, [key for key, _ in shares])
    axes.barh(places, [share for _, share in shares], color=BLUE, height=0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the variance of {search.metric}; {search.importance_by}")
    return figure


SEARCH_FIGURES: dict[str, Callable[[SearchRecord], Figure]] = {
    "history": draw_search_history,
    "importance": draw_hyperparameter_importance,
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
        with apply_plot_style():
            figure = SEARCH_FIGURES[name](search)
        for form in SEARCH_FIGURE_FORMATS:
            paths.append(search.folder / f"{name}.{form}")
            write_figure(figure, paths[-1])
    return tuple(paths)
