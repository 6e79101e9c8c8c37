"""Figures of a search: its history, and the importance of the keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    trials = [trial for trial in search.trials if trial.value is not None]
    check_plot_data(trials, "a value on its tuning split")
    figure, (axes,) = create_figure(3.2)
    from matplotlib.ticker import MaxNLocator

    values = [trial.value for trial in trials if trial.value is not None]
    choose: Callable[..., float] = max if search.direction == "maximize" else min
    # Running best after each trial
    best = [choose(values[: at + 1]) for at in range(len(values))]
    numbers = [trial.number for trial in trials]
    axes.step(numbers, best, where="post", color=BLACK, linewidth=1.2, label="best so far")
    filled: dict[str, Any] = {"color": BLUE, "markersize": 5, "label": "trial"}
    hollow: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": BLUE,
        "label": "equal to an earlier one",
    }
    for is_repeat, style in ((False, filled), (True, hollow)):
        points = [(t.number, t.value) for t in trials if (t.repeats is not None) == is_repeat]
        if points:
            axes.plot(*zip(*points, strict=True), linestyle="none", marker="o", **style)
    # A failed trial has no value, but took its number and time
    failed = [trial.number for trial in search.trials if trial.state == "failed"]
    if failed:
        axes.plot(
            failed,
            [axes.get_ylim()[0]] * len(failed),
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
    """Share of the variance of the trials' values per key, the largest first.

    Raises:
        InputError: the search has no importance.
        UsageError: matplotlib is not installed.
    """
    shares = sorted(search.importance.items(), key=lambda share: -share[1])
    check_plot_data(shares, "shares of importance: " + search.importance_by)
    figure, (axes,) = create_figure(compute_bars_height(len(shares)))
    positions = set_y_names(axes, [key for key, _ in shares])
    axes.barh(positions, [share for _, share in shares], color=BLUE, height=0.6)
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
    # Few trials give no importance, which is no reason to fail
    names = [name for name in SEARCH_FIGURES if name != "importance" or search.importance]
    paths = []
    for name in names:
        with apply_plot_style():
            figure = SEARCH_FIGURES[name](search)
        for form in SEARCH_FIGURE_FORMATS:
            paths.append(search.folder / f"{name}.{form}")
            write_figure(figure, paths[-1])
    return tuple(paths)
