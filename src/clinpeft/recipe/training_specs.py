"""Training and evaluation of language models and classifiers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clinpeft.recipe.privacy import DifferentialPrivacySpec
from clinpeft.recipe.spec import PositiveCount, RecipeSpec, UnitFraction


class OptimizationSpec(RecipeSpec):
    """How any model is trained.

    Attributes:
        learning_rate: peak of the schedule.
        epochs: passes over the training split.
        max_steps: upper bound on optimizer steps; 0: none.
        micro_batch_tokens: tokens of a forward pass; changes memory and speed, not the result.
        activations: what the backward pass of a layer needs is kept, or recomputed
            (``recompute``), which takes a third more time and the memory of one layer instead of
            all; ``auto`` keeps it unless a micro-batch would not fit the device. Does not change
            the result either.
        compilation: ``auto`` compiles norms and gates of a decoder in long runs, where a trial
            before the first step shows that it is faster.
        warmup_fraction: of the steps, over which the learning rate rises linearly.
        schedule: after the warm-up.
        weight_decay: of AdamW, on all trained parameters.
        clip_norm: largest gradient norm.
        evaluations: how often in the run the tuning split is evaluated, evenly spaced.
        patience: stop after so many evaluations without improvement; 0: never stop early.
        checkpoints: how often in the run a checkpoint is written, evenly spaced.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    # A fraction of an epoch is allowed
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=0)] = 0
    micro_batch_tokens: PositiveCount = 4096
    activations: Literal["auto", "keep", "recompute"] = "auto"
    compilation: Literal["auto", "never"] = "auto"
    # The published code passed a fraction where a number of steps was expected: no warm-up at all
    warmup_fraction: UnitFraction = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluations: Annotated[int, Field(ge=1)] = 4
    patience: Annotated[int, Field(ge=0)] = 0
    checkpoints: Annotated[int, Field(ge=1)] = 10


class TrainingSpec(OptimizationSpec):
    """How an adapter is trained on notes.

    Attributes:
        objective: ``auto`` takes that of the model family (causal for decoders, masked for
            encoders).
        batch_tokens: tokens of an optimizer step, over all micro-batches and processes.
        differential_privacy: differential privacy by subject, see below; none: without.
    """

    objective: Literal["auto", "causal-lm", "masked-lm"] = "auto"
    batch_tokens: PositiveCount = 8192
    differential_privacy: DifferentialPrivacySpec | None = None


class ClassifierTrainingSpec(OptimizationSpec):
    """How head and adapters are trained on a task.

    Attributes:
        learning_rate: peak of the schedule, of the adapters, or of the model where it is trainable.
        head_learning_rate: of the head; 0: the same.
        head_epochs: passes in which the head alone is trained first, on vectors computed once:
            linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054), which spares
            the adapters the steps in which the gradients of a random head carry no information;
            0: none.
        epochs: passes over the training split.
        batch_notes: notes of an optimizer step, over all micro-batches and processes.
        select_by: the weights of the run are the best on the tuning split by its ``loss`` or the
            ``metric`` of the task; ``last``: the last ones.
        differential_privacy: differential privacy by subject, see below; none: without.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    head_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    head_epochs: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[float, Field(gt=0)] = 3.0
    batch_notes: PositiveCount = 16
    select_by: Literal["loss", "metric", "last"] = "loss"
    differential_privacy: DifferentialPrivacySpec | None = None


class EvaluationSpec(RecipeSpec):
    """How a language model is evaluated.

    Attributes:
        resamples: bootstrap resamples of subjects.
        level: of the interval.
        max_notes: score at most so many notes of a split, the same ones every time; 0: all.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    max_notes: Annotated[int, Field(ge=0)] = 0


class ClassificationEvaluationSpec(RecipeSpec):
    """How predictions of a classifier are evaluated.

    Attributes:
        resamples: bootstrap resamples of subjects.
        level: of the interval.
        compat: ``clinical-peft`` also reports the AUROC of the paper's code (arXiv 2307.03042:
            softmax over all labels, labels with one class only skipped, one-vs-one where there are
            several classes).
        recalibration: fitted on the tuning split and applied to all probabilities.
        min_positives: labels with fewer held-out positives are left out of macro averages, and
            counted.
        smallest_cell: groups of fewer subjects are reported together.
        subgroups: whether results are also reported by age, sex, race and so on.
        baselines: whether the trivial baselines are also trained and evaluated.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    compat: Literal["", "clinical-peft"] = ""
    recalibration: Literal["none", "temperature", "isotonic"] = "none"
    min_positives: PositiveCount = 1
    # Protects people in small groups from being recognized in a report
    smallest_cell: Annotated[int, Field(ge=1)] = 10
    subgroups: bool = True
    baselines: bool = True
