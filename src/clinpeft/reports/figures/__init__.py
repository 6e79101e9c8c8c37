"""The 13 figures of the embedding study (arXiv 2511.19739) from the runs of a grid, with the
intervals that the study does not have.

```
scores.py   1, 5 to 9 and 13: gains in separation    costs.py   2 to 4 and 10 to 12: speed, memory
classification.py, training.py, search.py: figures of reports and searches
style.py    colors, marks, axes, names, files        panels.py  panels and tooltips of reports
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clinpeft.core.errors import InputError
from clinpeft.reports.encoders import EncoderGrid, build_encoder_grid
from clinpeft.reports.facts import CellResult
from clinpeft.reports.figures import costs, scores
from clinpeft.reports.figures.style import apply_plot_style, write_figure
from clinpeft.runs import write_file_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "EMBEDDING_FIGURES",
    "FIGURE_FORMATS",
    "draw_embedding_figures",
    "write_embedding_figures",
]

FIGURE_FORMATS = ("svg", "png")

_PUBLISHED_MARKS_NOTE = "Hollow diamonds: published values, on other pairs and another machine."

# File name without ending -> caption, and grid -> figure; numbered as in the study
EMBEDDING_FIGURES: dict[str, tuple[str, Callable[[EncoderGrid], Figure]]] = {
    "figure-1": (
        (
            "Separation of the adapted backbones with intervals, best first. Dashed: what the "
            f"study calls clinically useful. {_PUBLISHED_MARKS_NOTE}"
        ),
        scores.draw_separation_ranking,
    ),
    "figure-2": (
        "Separation against speed. The larger the mark, the less memory.",
        costs.draw_separation_against_speed,
    ),
    "figure-3": (
        (
            "Peak memory against parameters; lines: the weights alone at 2 and 4 bytes a "
            f"parameter. Marks: tiers of separation. {_PUBLISHED_MARKS_NOTE}"
        ),
        costs.draw_memory_against_parameters,
    ),
    "figure-4": (
        "Dimension against speed (left) and against peak memory (right).",
        costs.draw_dimension_against_cost,
    ),
    "figure-5": (
        f"Separation before and after adapting. {_PUBLISHED_MARKS_NOTE}",
        scores.draw_separation_before_after,
    ),
    "figure-6": (
        (
            "From the zero-shot separation to the adapted one: grey what was there, coloured "
            "what adapting added or took away."
        ),
        scores.draw_separation_waterfall,
    ),
    "figure-7": (
        (
            "Gains in separation in order, with intervals and their median. The study shows "
            f"them in percent of zero-shot separations near 0. {_PUBLISHED_MARKS_NOTE}"
        ),
        scores.draw_separation_gains,
    ),
    "figure-8": (
        (
            "Separation before (dot) and after (bar with its interval) adapting, with the "
            f"medians of both. {_PUBLISHED_MARKS_NOTE}"
        ),
        scores.draw_separation_arrows,
    ),
    "figure-9": (
        (
            "Cosines of pairs after adapting. Box: quartiles; notch: 95 % interval of the "
            "median; whiskers: 5th and 95th percentile."
        ),
        scores.draw_cosine_distributions,
    ),
    "figure-10": (
        (
            "Separation, embeddings per second, 1 / memory and 1 / parameters, each as a share "
            "of the best in the grid; the ring is 0.5."
        ),
        costs.draw_radar_charts,
    ),
    "figure-11": ("The Pareto frontier of separation and speed.", costs.draw_pareto_frontier),
    "figure-12": (
        f"Embeddings per second for each GB of peak memory. {_PUBLISHED_MARKS_NOTE}",
        costs.draw_speed_per_gigabyte,
    ),
    "figure-13": (
        (
            "Ablation: separation against the share of the pairs that were learned from. "
            f"{_PUBLISHED_MARKS_NOTE}"
        ),
        scores.draw_ablation,
    ),
}


def draw_embedding_figures(
    entries: Sequence[CellResult],
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Every figure that the runs have data for, and for each other figure the reason.

    Args:
        entries: cells of a grid; their published values are drawn as hollow marks.

    Returns:
        (name -> figure, name -> why it was not drawn).

    Raises:
        UsageError: matplotlib is not installed.
    """
    grid = build_encoder_grid(entries)
    figures, skipped = {}, {}
    for name, (_, draw) in EMBEDDING_FIGURES.items():
        try:
            with apply_plot_style():
                figures[name] = draw(grid)
        # A grid seldom has data for all 13: a missing figure is no error
        except InputError as error:
            skipped[name] = error.message
    return figures, skipped


def write_embedding_figures(entries: Sequence[CellResult], folder: Path) -> tuple[Path, ...]:
    """Write every figure in every format of ``FIGURE_FORMATS``, and ``figures.md`` with their
    captions and the reasons of those that are missing.

    Args:
        entries: as in ``draw_embedding_figures``.
        folder: created if it does not exist.

    Returns:
        The files, ``figures.md`` last.

    Raises:
        UsageError: matplotlib is not installed.
        StorageError: a file cannot be written; earlier files are intact.
    """
    figures, skipped = draw_embedding_figures(entries)
    paths = [folder / f"{name}.{form}" for name in figures for form in FIGURE_FORMATS]
    for path in paths:
        write_figure(figures[path.stem], path)
    # Which pairs the separations are of decides whether they compare with the published ones
    pairs = build_encoder_grid(entries).pairs_description
    blocks = ["# Figures", f"Separation: {pairs}. Whiskers: intervals of the runs."]
    blocks += [
        f"![{name}]({name}.svg)\n\n**{name}.** {EMBEDDING_FIGURES[name][0]}" for name in figures
    ]
    blocks += [f"**{name}** was not drawn: {reason}." for name, reason in skipped.items()]
    captions = folder / "figures.md"
    write_file_atomically(captions, "\n\n".join(blocks) + "\n")
    return (*paths, captions)
