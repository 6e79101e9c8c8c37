"""Training: one loop for every objective, which divides the loss once and resumes where it stopped.

``run_training`` trains the parameters of a ``Trainable``; the other modules build one.

```
trainable.py             what is trained: parameters, steps, gradients
trainer.py               the loop
checkpoint.py            checkpoints and best weights on disk
language_modeling.py     training of adapters on language-model windows
objectives.py            labels and loss of windows
chunked_loss.py          cross-entropy over a vocabulary, in blocks
likelihood.py            likelihoods of notes, perplexity
classification.py        training of classifiers, one task or several
contrastive.py           training of encoders on pairs of texts
contrastive_batches.py   which pairs may share a step
contrastive_losses.py    InfoNCE, triplet and Matryoshka losses
hard_negatives.py        mining of hard negatives
joint.py                 several trials in one pass over one base
differential_privacy.py  differential privacy by subject
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
from clinpeft.training.trainable import (
    LossSum,
    Trainable,
    build_additive_backward,
)
from clinpeft.training.trainer import (
    StepEvent,
    TrainingCallbacks,
    TrainingResult,
    count_total_steps,
    create_accelerator,
    describe_hardware,
    run_training,
)

__all__ = [
    "LANGUAGE_OBJECTIVES",
    "TUNING_LOSS",
    "Accelerator",
    "ClassificationData",
    "ClippingStats",
    "DocumentLogitFunction",
    "Embedder",
    "JointTrainingOutcome",
    "LanguageModelHead",
    "LanguageModelingData",
    "LossSum",
    "MinedNegatives",
    "PrivacyMechanism",
    "StepEvent",
    "SubjectArray",
    "TextAttributes",
    "TextPairs",
    "TokenLogitFunction",
    "Trainable",
    "TrainingCallbacks",
    "TrainingResult",
    "TrialTraining",
    "build_additive_backward",
    "build_classification_trainable",
    "build_contrastive_trainable",
    "build_language_modeling_trainable",
    "build_tuning_evaluation",
    "calibrate_privacy_mechanism",
    "check_opacus_installed",
    "collect_module_parameters",
    "compute_loss_block_rows",
    "compute_note_likelihoods",
    "compute_unigram_likelihoods",
    "compute_window_perplexity",
    "count_total_steps",
    "create_accelerator",
    "describe_hardware",
    "encode_labels",
    "make_trainable_private",
    "measure_peak_memory_bytes",
    "mine_hard_negatives",
    "retry_backward_on_oom",
    "run_training",
    "shuffle_labels",
    "summarize_privacy_spending",
    "train_jointly",
]
