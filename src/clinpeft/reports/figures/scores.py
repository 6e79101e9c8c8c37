"""Figures 1, 5 to 9 and 13 of the study: separation before and after adaptation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft import runs
from clinpeft.core.errors import InputError
from clinpeft.reports.encoders import (
    ADAPTED_ENCODER,
    CLINICALLY_USEFUL_SEPARATION,
    HELD_OUT_CHAPTERS_TASK,
    STUDY_TASK,
    ZERO_SHOT_ENCODER,
    AblationPoint,
    EncoderGrid,
    EncoderRow,
    find_ablation,
)
from clinpeft.reports.figures.style import (
    ADAPTED_STYLE,
    ARCHITECTURE_STYLES,
    BLACK,
    BLUE,
    ERROR_BAR_STYLE,
    GRAY,
    GREEN,
    ORANGE,
    PUBLISHED_LABEL,
    PUBLISHED_MARKER,
    PUBLISHED_OFFSET,
    SKY_BLUE,
    VERMILION,
    ZERO_SHOT_STYLE,
    add_legend,
    check_plot_data,
    compute_bars_height,
    compute_error_bars,
    create_figure,
    get_plot_style,
    list_architectures,
    set_y_names,
    to_plot_values,
)
from clinpeft.reports.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEPARATION_LABEL = "separation (difference of mean cosines)"
BAR_HEIGHT = 0.36  # of one of the two bars of a backbone, in units of the axis
UNRELATED_COLOR = "#F3D9A4"

RowEstimate = tuple[EncoderRow, Estimate]
# (row, zero-shot, adapted)
StatePair = tuple[EncoderRow, Estimate, Estimate]


def draw_separation_ranking(grid: EncoderGrid) -> Figure:
    """Figure 1: separation of each adapted backbone, best first, with the study's threshold."""
    pairs = _sort_by_estimate(
        (row, separation)
        for row in grid.rows
        if (separation := grid.get_pair_metric(row, "separation"))
    )
    check_plot_data(pairs, "a separation")
    figure, (axes,) = create_figure(compute_bars_height(len(pairs)))
    positions = set_y_names(axes, [grid.format_row_name(row) for row, _ in pairs])
    for position, (row, separation) in zip(positions, pairs, strict=True):
        style = get_plot_style(row)
        axes.barh(
            position,
            to_plot_values([separation]),
            0.62,
            color=style.color,
            hatch=style.hatch,
            edgecolor="white",
            label=style.name,
        )
    _draw_intervals(axes, [separation for _, separation in pairs], positions)
    published = [row.get_published_number("separation") for row, _ in pairs]
    _draw_published(axes, published, [position + PUBLISHED_OFFSET for position in positions])
    axes.axvline(
        CLINICALLY_USEFUL_SEPARATION,
        color=BLACK,
        linestyle="--",
        linewidth=1,
        label=f"the study's threshold, {CLINICALLY_USEFUL_SEPARATION}",
    )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_xlabel(SEPARATION_LABEL)
    add_legend(figure, axes)
    return figure


def draw_separation_before_after(grid: EncoderGrid) -> Figure:
    """Figure 5: zero-shot and adapted separation side by side."""
    pairs = _list_state_pairs(grid)
    figure, (axes,) = create_figure(compute_bars_height(len(pairs)) + 0.08 * len(pairs))
    positions = set_y_names(axes, [grid.format_row_name(row) for row, _, _ in pairs])
    sides = (
        (ZERO_SHOT_STYLE, [before for _, before, _ in pairs], -BAR_HEIGHT / 2, BLACK),
        (ADAPTED_STYLE, [after for _, _, after in pairs], BAR_HEIGHT / 2, "white"),
    )
    published_keys = ("zero_shot_separation", "separation")
    for (style, estimates, shift, edge), key in zip(sides, published_keys, strict=True):
        bars = [position + shift for position in positions]
        axes.barh(
            bars,
            to_plot_values(estimates),
            BAR_HEIGHT,
            color=style.color,
            hatch=style.hatch,
            edgecolor=edge,
            linewidth=0.5,
            label=style.name,
        )
        _draw_intervals(axes, estimates, bars)
        published = [row.get_published_number(key) for row, _, _ in pairs]
        _draw_published(axes, published, [position + 1.7 * shift for position in positions])
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_xlabel(SEPARATION_LABEL)
    add_legend(figure, axes)
    return figure


def draw_separation_waterfall(grid: EncoderGrid) -> Figure:
    """Figure 6: a waterfall from the zero-shot separation, by the difference, to the adapted
    one."""
    pairs = _list_state_pairs(grid)
    figure, (axes,) = create_figure(compute_bars_height(len(pairs)))
    positions = set_y_names(axes, [grid.format_row_name(row) for row, _, _ in pairs])
    for position, (row, before, after) in zip(positions, pairs, strict=True):
        first, last = to_plot_values([before, after])
        # The hatch repeats the color for readers who cannot see it
        color, hatch, name = (GREEN, "", "gained") if last >= first else (VERMILION, "xxx", "lost")
        axes.barh(
            position,
            first,
            0.62,
            color=ZERO_SHOT_STYLE.color,
            edgecolor=BLACK,
            linewidth=0.5,
            label="zero-shot",
        )
        axes.barh(
            position,
            last - first,
            0.62,
            left=first,
            color=color,
            hatch=hatch,
            edgecolor="white",
            label=name,
        )
        # The paired difference, which may differ from that of the means over seeds
        gain = grid.compute_gain(row) or Estimate(last - first)
        axes.annotate(
            _format_signed(gain),
            (max(first, last, 0.0 if after.high is None else after.high), position),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _draw_intervals(axes, [after for _, _, after in pairs], positions)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.12 * (high - low))  # space for the differences
    axes.set_xlabel(f"{SEPARATION_LABEL}; beside the bar: difference")
    add_legend(figure, axes)
    return figure


def draw_separation_gains(grid: EncoderGrid) -> Figure:
    """Figure 7: gains in order with their median, as differences with intervals and not in percent
    of a separation near 0."""
    gains = _sort_by_estimate((row, gain) for row in grid.rows if (gain := grid.compute_gain(row)))
    check_plot_data(gains, "a separation before and after")
    figure, (axes,) = create_figure(compute_bars_height(len(gains)))
    positions = set_y_names(axes, [grid.format_row_name(row) for row, _ in gains])
    for position, (row, gain) in zip(positions, gains, strict=True):
        style = get_plot_style(row)
        axes.errorbar(
            to_plot_values([gain]),
            [position],
            xerr=compute_error_bars([gain]),
            marker=style.marker,
            color=style.color,
            label=style.name,
            **{**ERROR_BAR_STYLE, "ecolor": style.color},
        )
    published = [row.published_gain for row, _ in gains]
    _draw_published(axes, published, [position + PUBLISHED_OFFSET for position in positions])
    # The median and not the mean: one backbone that collapses would decide the mean
    median = statistics.median(to_plot_values([gain for _, gain in gains]))
    axes.axvline(
        median,
        color=BLACK,
        linestyle=":",
        linewidth=1,
        label=f"median, {_format_signed(Estimate(median))}",
    )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_xlabel("separation, adapted less zero-shot")
    add_legend(figure, axes)
    return figure


def draw_separation_arrows(grid: EncoderGrid) -> Figure:
    """Figure 8: an arrow from zero-shot to adapted for each backbone, and the medians of both."""
    pairs = _list_state_pairs(grid)
    figure, (axes,) = create_figure(compute_bars_height(len(pairs)))
    positions = set_y_names(axes, [grid.format_row_name(row) for row, _, _ in pairs])
    firsts = to_plot_values([before for _, before, _ in pairs])
    lasts = to_plot_values([after for _, _, after in pairs])
    for position, first, last in zip(positions, firsts, lasts, strict=True):
        arrow = {
            "arrowstyle": "-|>",
            "color": BLUE if last >= first else VERMILION,
            "linewidth": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
            "linestyle": "-" if last >= first else "--",
        }
        axes.annotate("", (last, position), xytext=(first, position), arrowprops=arrow, zorder=3)
    axes.plot(
        firsts,
        positions,
        "o",
        markersize=5.5,
        color=ZERO_SHOT_STYLE.color,
        markeredgecolor=BLACK,
        label="zero-shot",
        zorder=4,
    )
    _draw_intervals(axes, [after for _, _, after in pairs], positions)
    axes.plot(
        lasts, positions, "|", markersize=9, color=BLACK, label="adapted, with interval", zorder=4
    )
    _draw_published(
        axes,
        [row.get_published_number("separation") for row, _, _ in pairs],
        [position + PUBLISHED_OFFSET for position in positions],
        "published, adapted",
    )
    for values, style, name in ((firsts, ":", "zero-shot"), (lasts, "--", "adapted")):
        median = statistics.median(values)
        label = f"median {name}, {median:.3f}"
        axes.axvline(median, color=GRAY, linestyle=style, linewidth=1.2, label=label, zorder=1)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_xlabel(SEPARATION_LABEL)
    add_legend(figure, axes, columns=3)
    return figure


def draw_cosine_distributions(grid: EncoderGrid) -> Figure:
    """Figure 9: notched boxes of the cosines of related and unrelated pairs, a panel per
    architecture."""
    rows = [(row, scores) for row in grid.rows if (scores := _read_cosines(row))]
    check_plot_data(rows, "scores of pairs")
    architectures = list_architectures([row for row, _ in rows])
    groups = [
        [(row, scores) for row, scores in rows if row.backbone_info.architecture == architecture]
        for architecture in architectures
    ]
    # Height of a panel in rows, so that all boxes are equally high
    ratios = [len(group) + 0.5 for group in groups]
    figure, panels = create_figure(
        1.2 + 0.5 * sum(ratios),
        rows=len(groups),
        sharex=True,
        gridspec_kw={"height_ratios": ratios},
    )
    for axes, architecture, group in zip(panels, architectures, groups, strict=True):
        positions = set_y_names(axes, [grid.format_row_name(row) for row, _ in group])
        related, unrelated = zip(*(scores for _, scores in group), strict=True)
        _draw_boxes(axes, related, [at - 0.2 for at in positions], BLUE, "", "white")
        _draw_boxes(axes, unrelated, [at + 0.2 for at in positions], UNRELATED_COLOR, "///", BLACK)
        plural = "s" if architecture in ("encoder", "decoder") else ""
        axes.set_title(f"{ARCHITECTURE_STYLES[architecture].name}{plural}", loc="left")
    panels[-1].set_xlabel(
        "cosine; box: quartiles, notch: interval of the median, whiskers: 5th and 95th percentile"
    )
    from matplotlib.patches import Patch

    marks = [
        Patch(facecolor=BLUE, hatch="", edgecolor=BLACK, label="related"),
        Patch(facecolor=UNRELATED_COLOR, hatch="///", edgecolor=BLACK, label="unrelated"),
    ]
    add_legend(figure, panels[0], extra_handles=marks)
    return figure


def _draw_boxes(
    axes: Axes,
    scores: Sequence[Sequence[float]],
    positions: Sequence[float],
    color: str,
    hatch: str,
    median_color: str,
) -> None:
    """A notched box per backbone; whiskers end at the 5th and 95th percentile."""
    axes.boxplot(
        scores,
        positions=positions,
        widths=0.34,
        orientation="horizontal",
        notch=True,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": color, "hatch": hatch, "edgecolor": BLACK, "linewidth": 0.7},
        medianprops={"color": median_color, "linewidth": 1.4},
    )


def _read_cosines(row: EncoderRow) -> tuple[list[float], list[float]] | None:
    """Scores of related and of unrelated pairs of the adapted model, all seeds together; None if no
    run has them."""
    tables = []
    for run in row.runs:
        if run.state != "finished":
            continue
        try:
            scores = runs.read_run_table(run, "pair_scores")
        except InputError:
            continue
        scores = scores.filter(pc.equal(scores["state"], ADAPTED_ENCODER))
        # The study's pairs if they were scored, else held-out chapters against random pairs
        for task, stratum in ((STUDY_TASK, "different"), (HELD_OUT_CHAPTERS_TASK, "random")):
            pairs = scores.filter(pc.equal(scores["task"], task))
            pairs = pairs.filter(pc.or_(pairs["related"], pc.equal(pairs["stratum"], stratum)))
            if len(pairs):
                tables.append(pairs.select(["related", "score"]))
                break
    if not tables:
        return None
    # (pairs of all seeds, 2)
    scores = pa.concat_tables(tables)
    related = scores.filter(scores["related"])["score"].to_pylist()
    unrelated = scores.filter(pc.invert(scores["related"]))["score"].to_pylist()
    return (related, unrelated) if related and unrelated else None


_RANK_STYLES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (VERMILION, "v", ":"),
    (SKY_BLUE, "P", "-"),
    (BLACK, "X", "--"),
)


def draw_ablation(grid: EncoderGrid) -> Figure:
    """Figure 13: separation against the fraction of the training pairs, a line per rank, a panel
    per objective."""
    points = [
        point
        for point in find_ablation(grid)
        if point.pairs_fraction and grid.get_pair_metric(point.row, "separation")
    ]
    check_plot_data(
        points,
        "an ablation: rows on one backbone that differ in the share of pairs, the objective or the "
        "rank",
    )
    objectives = list(dict.fromkeys(point.objective for point in points))
    ranks = sorted({point.rank or 0 for point in points})
    figure, panels = create_figure(3.6, columns=len(objectives), sharey=True)
    for axes, objective in zip(panels, objectives, strict=True):
        for at, rank in enumerate(ranks):
            # Adapters without a rank are drawn as rank 0
            of_rank = [p for p in points if (p.objective, p.rank or 0) == (objective, rank)]
            # The ranks are a little apart, so that their intervals can be seen
            shift = 1.6 * (at - (len(ranks) - 1) / 2)
            _draw_rank_line(axes, grid, of_rank, shift, f"rank {rank}", _RANK_STYLES[at % 6])
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_xticks(sorted({100 * (point.pairs_fraction or 0) for point in points}))
        axes.set_title(objective, loc="left")
        axes.set_xlabel("pairs learned from, %")
    panels[0].set_ylabel("separation")
    add_legend(figure, panels[0])
    return figure


def _draw_rank_line(
    axes: Axes,
    grid: EncoderGrid,
    points: Sequence[AblationPoint],
    shift: float,
    label: str,
    style: tuple[str, str, str],
) -> None:
    """The line of one rank with intervals and published values; ``style`` is (color, marker, line
    style)."""
    color, marker, line = style
    estimates = [e for point in points if (e := grid.get_pair_metric(point.row, "separation"))]
    percents = [100 * (point.pairs_fraction or 0) + shift for point in points]
    axes.errorbar(
        percents,
        to_plot_values(estimates),
        yerr=compute_error_bars(estimates),
        marker=marker,
        markersize=5,
        color=color,
        label=label,
        **{**ERROR_BAR_STYLE, "ecolor": color, "linestyle": line},
    )
    published = [
        (percent, value)
        for percent, point in zip(percents, points, strict=True)
        if (value := point.row.get_published_number("separation")) is not None
    ]
    if published:
        axes.plot(*zip(*published, strict=True), label=PUBLISHED_LABEL, **PUBLISHED_MARKER)


def _list_state_pairs(grid: EncoderGrid) -> list[StatePair]:
    """Rows whose separation was measured in both states, the best adapted first."""
    pairs = []
    for row in grid.rows:
        before = grid.get_pair_metric(row, "separation", ZERO_SHOT_ENCODER)
        after = grid.get_pair_metric(row, "separation")
        if before and after:
            pairs.append((row, before, after))
    check_plot_data(pairs, "a separation before and after")
    return sorted(pairs, key=lambda pair: -(pair[2].value or 0))


def _sort_by_estimate(pairs: Iterable[RowEstimate]) -> list[RowEstimate]:
    return sorted(pairs, key=lambda pair: -(pair[1].value or 0))


def _format_signed(estimate: Estimate) -> str:
    return "" if estimate.value is None else f"{estimate.value:+.3f}".replace("-", "−")


def _draw_intervals(axes: Axes, estimates: Sequence[Estimate], positions: Sequence[float]) -> None:
    """Horizontal whiskers of the estimates that have an interval."""
    pairs = [
        (estimate, position)
        for estimate, position in zip(estimates, positions, strict=True)
        if estimate.low is not None and estimate.high is not None
    ]
    if pairs:
        estimates = [estimate for estimate, _ in pairs]
        axes.errorbar(
            to_plot_values(estimates),
            [position for _, position in pairs],
            xerr=compute_error_bars(estimates),
            **ERROR_BAR_STYLE,
        )


def _draw_published(
    axes: Axes,
    values: Sequence[float | None],
    positions: Sequence[float],
    label: str = PUBLISHED_LABEL,
) -> None:
    """Hollow marks of the published values."""
    points = [(v, at) for v, at in zip(values, positions, strict=True) if v is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **PUBLISHED_MARKER)
