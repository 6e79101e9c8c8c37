"""Training step of every workflow: differential privacy where it is requested, then the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clinpeft import training
from clinpeft.runs import Run
from clinpeft.training import SubjectArray, Trainable, TrainingResult
from clinpeft.workflows.context import RunContext, create_training_callbacks
from clinpeft.workflows.differential_privacy import account_privacy, apply_differential_privacy


@dataclass(frozen=True)
class FittedTraining:
    """A training that has ended.

    Attributes:
        result: steps, tokens, seconds; the parameters hold the best weights.
        privacy: what was spent of the privacy budget, for the record; None without one.
    """

    result: TrainingResult
    privacy: dict[str, Any] | None = None


def fit(
    trainable: Trainable, subjects: SubjectArray | None, run: Run, context: RunContext
) -> FittedTraining:
    """Train; a run that has checkpoints continues from the newest.

    Args:
        trainable: parameters, steps and gradients.
        subjects: (items,) the subject of each training item, which differential privacy protects;
            None for a kind of run that has none.
        run: of the recipe; checkpoints and log are written to its folder.
        context: processes and callbacks.

    Raises:
        InputError: there is nothing to train on, or a private run lost its noise seed.
        TrainingError: the loss is not a number, nothing changed, or another privacy budget was
            spent than requested.
        InterruptedRunError: ``context.should_stop``; a checkpoint was written.
    """
    private = apply_differential_privacy(trainable, subjects, run, context)
    result = training.run_training(
        private.trainable,
        run.recipe.training,  # type: ignore[attr-defined]
        context.accelerator,
        run.folder / "checkpoints",
        create_training_callbacks(run, context),
    )
    return FittedTraining(result, account_privacy(private, result))
