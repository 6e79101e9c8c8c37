"""One loop for everything: ``loop`` trains whatever a ``Course`` describes, with the loss divided once, and goes on where it was stopped.

```
loop.py            the loop                         checkpoint.py   what survives a kill
language.py        the course of an adapter         objectives.py   windows -> questions and their loss
classification.py  the course of answers            likelihood.py   what a model thinks of every note
contrastive.py     the course of vectors            losses.py       of vectors that belong together
batches.py         which pairs may share a step     mining.py       negatives that are hard
vocabulary.py      the loss of words, in blocks
memory.py          its peak, and a step in smaller pieces
together.py        several courses in one pass over one base
private.py         differential privacy by subject
```
"""

from clinpeft.training.chunked_loss import Vocabulary, block_rows
from clinpeft.training.classification import (
    Answer,
    Exam,
    as_parameters,
    classification,
    shuffled,
    truth,
)
from clinpeft.training.contrastive import TUNING_LOSS, Embedder, contrastive, tuning
from clinpeft.training.contrastive_batches import Pairs as TextPairs
from clinpeft.training.contrastive_batches import Texts
from clinpeft.training.differential_privacy import (
    Mechanism,
    Subjects,
    Tally,
    accounted,
    mechanism,
    must_be_countable,
    private,
)
from clinpeft.training.hard_negatives import Mined, mined
from clinpeft.training.joint import Fit, Outcome, fit_together
from clinpeft.training.language_modeling import language
from clinpeft.training.likelihood import likelihoods, perplexity_of, unigram
from clinpeft.training.memory import peak_bytes, sparing
from clinpeft.training.objectives import OBJECTIVES, Forward, Lesson
from clinpeft.training.trainer import (
    Course,
    Crew,
    Event,
    Fitted,
    Sums,
    Watch,
    additive,
    assemble,
    fit,
    hardware,
    total_steps,
)

__all__ = [
    "OBJECTIVES",
    "TUNING_LOSS",
    "Answer",
    "Course",
    "Crew",
    "Embedder",
    "Event",
    "Exam",
    "Fit",
    "Fitted",
    "Forward",
    "Lesson",
    "Mechanism",
    "Mined",
    "Outcome",
    "Subjects",
    "Sums",
    "Tally",
    "TextPairs",
    "Texts",
    "Vocabulary",
    "Watch",
    "accounted",
    "additive",
    "as_parameters",
    "assemble",
    "block_rows",
    "classification",
    "contrastive",
    "fit",
    "fit_together",
    "hardware",
    "language",
    "likelihoods",
    "mechanism",
    "mined",
    "must_be_countable",
    "peak_bytes",
    "perplexity_of",
    "private",
    "shuffled",
    "sparing",
    "total_steps",
    "truth",
    "tuning",
    "unigram",
]
