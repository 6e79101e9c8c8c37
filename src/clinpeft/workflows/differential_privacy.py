"""Differential privacy of a whole run: its requirements, the seed of its noise, what was spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clinpeft import runs, training
from clinpeft.core.errors import InputError, RecipeError
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, Recipe
from clinpeft.runs import Run
from clinpeft.tokenization import EncodedCorpus
from clinpeft.training import (
    ClippingStats,
    PrivacyMechanism,
    SubjectArray,
    Trainable,
    TrainingResult,
)
from clinpeft.workflows.context import RunContext
from clinpeft.workflows.task_cohorts import EncodedCohort

NOISE_SEED_PATH = Path("checkpoints", "noise.secret")
"""In the run's folder while it is trained: whoever has it can draw the noise again and subtract
it, so that it is removed when the run has finished."""


@dataclass(frozen=True)
class PrivacyRequirement:
    """A setting that would break the privacy guarantee.

    Attributes:
        location: key of the recipe.
        violated: whether the recipe has the setting.
        message: why it breaks the guarantee.
        hint: what to set instead.
    """

    location: str
    violated: bool
    message: str
    hint: str


@dataclass(frozen=True)
class DpTrainable:
    """A trainable, and its privacy mechanism; without one where no privacy was requested."""

    trainable: Trainable
    mechanism: PrivacyMechanism | None = None
    clipping_stats: ClippingStats | None = None


def check_differential_privacy(
    recipe: AdaptRecipe | ClassifyRecipe,
    context: RunContext,
    requirements: Sequence[PrivacyRequirement],
) -> None:
    """Check, before anything is read, that the privacy guarantee can hold.

    Args:
        recipe: of the run.
        context: its processes.
        requirements: those of the kind of run, besides those of every run.

    Raises:
        RecipeError: a setting lets one subject influence the gradient of another, or trains
            without noise.
        UsageError: opacus is not installed.
    """
    if recipe.differential_privacy is None:
        return
    processes = context.accelerator.num_processes
    common = (
        PrivacyRequirement(
            "torchrun",
            processes > 1,
            f"{processes} processes would each add noise of their own",
            "start one process",
        ),
        PrivacyRequirement(
            "training.patience",
            recipe.training.patience > 0,
            "when to stop would depend on the data",
            "set training.patience = 0; the best weights are kept anyway",
        ),
    )
    for requirement in (*common, *requirements):
        if requirement.violated:
            raise RecipeError(
                f"{requirement.message}, with training.differential_privacy",
                location=requirement.location,
                hint=requirement.hint,
            )
    training.check_opacus_installed()


def list_corpus_requirements(recipe: AdaptRecipe) -> tuple[PrivacyRequirement, ...]:
    """List what differential privacy requires of a corpus of notes."""
    return (
        PrivacyRequirement(
            "corpus.deduplicate",
            recipe.corpus.deduplicate != "none",
            "whether a note is kept depends on the notes of other subjects",
            'set corpus.deduplicate = "none"',
        ),
        PrivacyRequirement(
            "split.by",
            recipe.split.by != "subject",
            "subjects straddle the splits",
            'set split.by = "subject"',
        ),
    )


def list_classifier_requirements(recipe: ClassifyRecipe) -> tuple[PrivacyRequirement, ...]:
    """List what differential privacy requires of the training of a classifier."""
    return (
        PrivacyRequirement(
            "base.trainable",
            recipe.base.trainable,
            "noise on every weight of the base",
            "train an adapter on the frozen base",
        ),
        PrivacyRequirement(
            "loss.class_weights",
            recipe.loss.class_weights != "none",
            "weights are counted from the labels of all subjects",
            'set loss.class_weights = "none"',
        ),
        PrivacyRequirement(
            "loss.shuffled_labels",
            recipe.loss.shuffled_labels,
            "labels are shuffled among subjects",
            "set loss.shuffled_labels = false",
        ),
        PrivacyRequirement(
            "training.head_epochs",
            recipe.training.head_epochs > 0,
            "the head would be trained first, without noise",
            "set training.head_epochs = 0",
        ),
    )


def get_document_subjects(encoded_cohorts: Sequence[EncodedCohort]) -> SubjectArray:
    """Get (items,) the subject of each document: of the first task, then of the next."""
    return np.concatenate(
        [
            cohort.documents.read_table(["subject_id"])["subject_id"].to_numpy()
            for cohort in encoded_cohorts
        ]
    )


def get_window_subjects(encodings: EncodedCorpus) -> SubjectArray:
    """Get (windows,) the subject of each window of a corpus."""
    subjects: SubjectArray = encodings.note_table["subject_id"].to_numpy()[encodings.window_notes]
    return subjects


def apply_differential_privacy(
    trainable: Trainable, subjects: SubjectArray | None, run: Run, context: RunContext
) -> DpTrainable:
    """Train with the privacy that the run's recipe requests; without a request, as before.

    Args:
        trainable: what is trained.
        subjects: (items,) the subject of each training item.
        run: of the recipe.
        context: draws the seed of the noise.

    Raises:
        InputError: too few subjects, or a run that was started and whose noise seed is gone.
        UsageError: opacus is not installed, or no noise is enough.
    """
    spec = run.recipe.differential_privacy
    if spec is None or subjects is None:
        return DpTrainable(trainable)
    training_spec = run.recipe.training  # type: ignore[attr-defined]
    mechanism = training.calibrate_privacy_mechanism(trainable, subjects, spec, training_spec)
    stats = ClippingStats()
    seed = _read_noise_seed(run, context)
    private = training.make_trainable_private(trainable, subjects, mechanism, seed, stats)
    return DpTrainable(private, mechanism, stats)


def _read_noise_seed(run: Run, context: RunContext) -> int:
    """The seed, drawn when the run starts and kept as long as it may have to resume."""
    path = run.folder / NOISE_SEED_PATH
    if not path.exists():
        # With another seed, noise drawn before and after the resume would not be that of one run.
        if list(path.parent.glob("*.safetensors")):
            raise InputError(
                "this run was started with noise that cannot be drawn again",
                location=str(path),
                hint="remove the folder of checkpoints: the run starts again",
            )
        runs.write_file_atomically(path, context.draw_noise_seed().hex())
    return int(path.read_text(encoding="ascii"), 16)


def account_privacy(
    dp_trainable: DpTrainable, training_result: TrainingResult
) -> dict[str, Any] | None:
    """Summarize the spent privacy budget for ``run.json``; None where none was requested.

    Raises:
        TrainingError: the budget that was spent is not the requested one.
    """
    if dp_trainable.mechanism is None or dp_trainable.clipping_stats is None:
        return None
    return training.summarize_privacy_spending(
        dp_trainable.mechanism, training_result.progress.step, dp_trainable.clipping_stats
    )


def discard_noise_seed(run: Run) -> Run:
    """Remove the seed of the noise from a finished run."""
    if run.recipe.differential_privacy is not None:
        (run.folder / NOISE_SEED_PATH).unlink(missing_ok=True)
    return run


def collect_privacy_notices(
    recipe: Recipe, earlier_recipes: Mapping[str, Recipe]
) -> tuple[str, ...]:
    """Collect what a reader of a private run should know of its earlier adapters.

    Args:
        recipe: of the run.
        earlier_recipes: run -> recipe, of each adapter that was trained by an earlier run.
    """
    if recipe.differential_privacy is None:
        return ()
    notices = []
    for name, earlier in earlier_recipes.items():
        spec = earlier.differential_privacy
        if spec is not None:
            # Sequential composition: epsilons and deltas add up (Dwork and Roth 2014, theorem 3.16)
            notices.append(
                f"the adapter of run {name} spent epsilon {spec.epsilon:g}, delta {spec.delta:g}: "
                "for subjects in both runs they add up"
            )
        elif earlier.compared_unit != "pairs":  # pairs come from books, and not from subjects
            notices.append(
                f"the adapter of run {name} was trained without differential privacy: what it "
                "retains of the people in its notes is not covered here"
            )
    return tuple(notices)
