"""A search over keys of a recipe: what is tried next, who works on it, what was found. A trial is a run; the tuning split alone is looked at.

``papers`` holds the papers' spaces, ``space`` a checked one; ``proposals`` says what is tried next, ``storage`` where that is kept and who has what;
``working`` is a worker, ``measured`` what a run is judged by, ``outcome`` what was found.
"""

from clinpeft.search.objective_value import measured
from clinpeft.search.outcome import found, with_held_out, write_winner
from clinpeft.search.paper_spaces import PAPER
from clinpeft.search.proposals import SAMPLERS, opened_study
from clinpeft.search.space import Space, space_of
from clinpeft.search.storage import opened, reached, shown
from clinpeft.search.worker import Bench, take, work

__all__ = [
    "PAPER",
    "SAMPLERS",
    "Bench",
    "Space",
    "found",
    "measured",
    "opened",
    "opened_study",
    "reached",
    "shown",
    "space_of",
    "take",
    "with_held_out",
    "work",
    "write_winner",
]
