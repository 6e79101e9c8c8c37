"""One loop for everything: ``loop`` trains whatever a ``Course`` describes, with the loss divided once, and goes on where it was stopped.

```
loop.py            the loop                         checkpoint.py   what survives a kill
language.py        the course of an adapter         objectives.py   windows -> questions and their loss
classification.py  the course of answers            likelihood.py   what a model thinks of every note
```
"""

from clinpeft.training.classification import Answer, Exam, as_parameters, classification, shuffled, truth
from clinpeft.training.language import language
from clinpeft.training.likelihood import likelihoods, unigram
from clinpeft.training.loop import Course, Crew, Event, Fitted, Sums, Watch, additive, assemble, fit, hardware
from clinpeft.training.objectives import OBJECTIVES, Forward, Lesson

__all__ = [
    "OBJECTIVES",
    "Answer",
    "Course",
    "Crew",
    "Event",
    "Exam",
    "Fitted",
    "Forward",
    "Lesson",
    "Sums",
    "Watch",
    "additive",
    "as_parameters",
    "assemble",
    "classification",
    "fit",
    "hardware",
    "language",
    "likelihoods",
    "shuffled",
    "truth",
    "unigram",
]
