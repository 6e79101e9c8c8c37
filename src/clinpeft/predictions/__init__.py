"""A fitted model and documents -> answers, and the fitted model kept so that it answers again.

``answers`` asks: live, or from what is remembered of the notes; ``kept`` writes and opens what a run needs to be asked later.
"""

from clinpeft.predictions.answers import Answer, Floats, features, joined, live, predictions, probabilities, remembered, scores, shared
from clinpeft.predictions.kept import Served, keep, open_run

__all__ = [
    "Answer",
    "Floats",
    "Served",
    "features",
    "joined",
    "keep",
    "live",
    "open_run",
    "predictions",
    "probabilities",
    "remembered",
    "scores",
    "shared",
]
