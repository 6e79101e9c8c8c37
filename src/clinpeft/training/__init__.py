"""One loop for everything: objectives, steps, checkpoints, and what a model thinks of every note."""

from clinpeft.training.likelihood import likelihoods, unigram
from clinpeft.training.loop import Crew, Event, Fitted, Watch, assemble, fit, hardware
from clinpeft.training.objectives import OBJECTIVES, Forward, Lesson

__all__ = ["OBJECTIVES", "Crew", "Event", "Fitted", "Forward", "Lesson", "Watch", "assemble", "fit", "hardware", "likelihoods", "unigram"]
