"""The 13 figures of the embedding study (arXiv 2511.19739) from the runs of a grid, with the intervals that the study did not have.

```
scores.py   1, 5 to 9 and 13: what was gained        costs.py   2 to 4 and 10 to 12: speed, memory, parameters
canvas.py   colours, marks, axes, names, files
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clinpeft.core.errors import InputError
from clinpeft.reports.encoders import Grid, grid
from clinpeft.reports.facts import Entry
from clinpeft.reports.figures import costs, scores
from clinpeft.reports.figures.style import styled, write
from clinpeft.runs import write_file_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "FORMATS", "drawn", "write_figures"]

FORMATS = ("svg", "png")

_HOLLOW = "Hollow diamonds: as published, on other pairs and another machine."

FIGURES: dict[str, tuple[str, Callable[[Grid], Figure]]] = {
    "figure-1": (
        f"Separation of the adapted backbones with intervals, best first. Dashed: what the study calls clinically useful. {_HOLLOW}",
        scores.figure_1,
    ),
    "figure-2": ("Separation against speed. The larger the mark, the less memory.", costs.figure_2),
    "figure-3": (
        f"Peak memory against parameters; lines: the weights alone at 2 and 4 bytes a parameter. Marks: tiers of separation. {_HOLLOW}",
        costs.figure_3,
    ),
    "figure-4": ("Dimension against speed (left) and against peak memory (right).", costs.figure_4),
    "figure-5": (f"Separation before and after adapting. {_HOLLOW}", scores.figure_5),
    "figure-6": (
        "From the zero-shot separation to the adapted one: grey what was there, coloured what adapting added or took away.",
        scores.figure_6,
    ),
    "figure-7": (
        f"Gains in separation in order, with intervals and their median. The study shows them in percent of zero-shot separations near 0. {_HOLLOW}",
        scores.figure_7,
    ),
    "figure-8": (
        f"Separation before (dot) and after (bar with its interval) adapting, with the medians of both. {_HOLLOW}",
        scores.figure_8,
    ),
    "figure-9": (
        "Cosines of pairs after adapting. Box: quartiles; notch: 95 % interval of the median; whiskers: 5th and 95th percentile.",
        scores.figure_9,
    ),
    "figure-10": (
        "Separation, embeddings per second, 1 / memory and 1 / parameters, each as a share of the best in the grid; the ring is 0.5.",
        costs.figure_10,
    ),
    "figure-11": ("The Pareto frontier of separation and speed.", costs.figure_11),
    "figure-12": (f"Embeddings per second for each GB of peak memory. {_HOLLOW}", costs.figure_12),
    "figure-13": (
        f"Ablation: separation against the share of the pairs that were learned from. {_HOLLOW}",
        scores.figure_13,
    ),
}
"""File name without ending -> caption, and grid -> figure; numbered as in the study."""


def drawn(entries: Sequence[Entry]) -> tuple[dict[str, Figure], dict[str, str]]:
    """Every figure that the runs have data for, and for each other why it has none.

    Args:
        entries: cells of a grid; their published values stand beside as hollow marks.

    Raises:
        UsageError: matplotlib is not installed.
    """
    made, figures, skipped = grid(entries), {}, {}
    for name, (_, draw) in FIGURES.items():
        try:
            with styled():
                figures[name] = draw(made)
        except InputError as error:
            skipped[name] = error.message
    return figures, skipped


def write_figures(entries: Sequence[Entry], folder: Path) -> tuple[Path, ...]:
    """Every figure in every format of ``FORMATS``, and ``figures.md`` with their captions and with those that are missing, and why.

    Args:
        entries: as in ``drawn``.
        folder: made where it is not there.

    Returns:
        What was written, ``figures.md`` last.

    Raises:
        UsageError: matplotlib is not installed.
        StorageError: nothing could be written; what was there before is intact.
    """
    figures, skipped = drawn(entries)
    paths = [folder / f"{name}.{form}" for name in figures for form in FORMATS]
    for path in paths:
        write(figures[path.stem], path)
    measured = f"Separation: {grid(entries).said}. Whiskers: intervals of the runs."
    blocks = [f"![{name}]({name}.svg)\n\n**{name}.** {FIGURES[name][0]}" for name in figures]
    blocks += [f"**{name}** was not drawn: {reason}." for name, reason in skipped.items()]
    captions = folder / "figures.md"
    write_file_atomically(captions, "\n\n".join(["# Figures", measured, *blocks]) + "\n")
    return (*paths, captions)
