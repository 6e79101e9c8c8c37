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

from accelerate import Accelerator

from clinpeft.runtime.memory import measure_peak_memory_bytes, retry_backward_on_oom
from clinpeft.training.chunked_loss import LanguageModelHead, compute_loss_block_rows
from clinpeft.training.classification import (
    ClassificationData,
    DocumentLogitFunction,
    build_classification_trainable,
    collect_module_parameters,
    encode_labels,
    shuffle_labels,
)
from clinpeft.training.contrastive import (
    TUNING_LOSS,
    Embedder,
    build_contrastive_trainable,
    build_tuning_evaluation,
)
from clinpeft.training.contrastive_batches import TextAttributes
from clinpeft.training.contrastive_batches import TextPairs as TextPairs
from clinpeft.training.differential_privacy import (
    ClippingStats,
    PrivacyMechanism,
    SubjectArray,
    calibrate_privacy_mechanism,
    check_opacus_installed,
    make_trainable_private,
    summarize_privacy_spending,
)
from clinpeft.training.hard_negatives import MinedNegatives, mine_hard_negatives
from clinpeft.training.joint import JointTrainingOutcome, TrialTraining, train_jointly
from clinpeft.training.language_modeling import build_language_modeling_trainable
from clinpeft.training.likelihood import (
    compute_note_likelihoods,
    compute_unigram_likelihoods,
    compute_window_perplexity,
)
from clinpeft.training.objectives import (
    LANGUAGE_OBJECTIVES,
    LanguageModelingData,
    TokenLogitFunction,
)
from clinpeft.training.trainer import (
    LossSum,
    StepEvent,
    Trainable,
    TrainingCallbacks,
    TrainingResult,
    build_additive_backward,
    count_total_steps,
    create_accelerator,
    describe_hardware,
    run_training,
)

__all__ = [
    "LANGUAGE_OBJECTIVES",
    "TUNING_LOSS",
    "DocumentLogitFunction",
    "Trainable",
    "Accelerator",
    "Embedder",
    "StepEvent",
    "ClassificationData",
    "TrialTraining",
    "TrainingResult",
    "TokenLogitFunction",
    "LanguageModelingData",
    "PrivacyMechanism",
    "MinedNegatives",
    "JointTrainingOutcome",
    "SubjectArray",
    "LossSum",
    "ClippingStats",
    "TextPairs",
    "TextAttributes",
    "LanguageModelHead",
    "TrainingCallbacks",
    "summarize_privacy_spending",
    "build_additive_backward",
    "collect_module_parameters",
    "create_accelerator",
    "compute_loss_block_rows",
    "build_classification_trainable",
    "build_contrastive_trainable",
    "run_training",
    "train_jointly",
    "describe_hardware",
    "build_language_modeling_trainable",
    "compute_note_likelihoods",
    "calibrate_privacy_mechanism",
    "mine_hard_negatives",
    "check_opacus_installed",
    "measure_peak_memory_bytes",
    "compute_window_perplexity",
    "make_trainable_private",
    "shuffle_labels",
    "retry_backward_on_oom",
    "count_total_steps",
    "encode_labels",
    "build_tuning_evaluation",
    "compute_unigram_likelihoods",
]
