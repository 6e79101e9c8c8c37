"""Training with differential privacy, as a whole run sees it: what is refused, the secret of the noise, what was spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clinpeft import runs, training
from clinpeft.core.errors import InputError, RecipeError
from clinpeft.recipe import (
    AdaptRecipe,
    ClassifyRecipe,
    DifferentialPrivacySpec,
    EmbedRecipe,
    Recipe,
)
from clinpeft.runs import Run
from clinpeft.tokenization import EncodedCorpus
from clinpeft.training import (
    Accelerator,
    ClippingStats,
    PrivacyMechanism,
    SubjectArray,
    Trainable,
    TrainingResult,
)
from clinpeft.workflows.context import RunContext
from clinpeft.workflows.task_cohorts import EncodedCohort

NOISE_SEED_PATH = Path("checkpoints", "noise.secret")
"""In the run's folder while it is trained: with it the noise could be drawn again, and taken away."""


@dataclass(frozen=True)
class DpTrainable:
    """What the loop is given, and how private that is; None where no privacy was asked for."""

    trainable: Trainable
    mechanism: PrivacyMechanism | None = None
    clipping_stats: ClippingStats | None = None


def get_differential_privacy_spec(recipe: Recipe) -> DifferentialPrivacySpec | None:
    """What a recipe asks for, if anything."""
    return (
        recipe.training.differential_privacy
        if isinstance(recipe, AdaptRecipe | ClassifyRecipe)
        else None
    )


def check_differential_privacy(
    recipe: AdaptRecipe | ClassifyRecipe, accelerator: Accelerator
) -> None:
    """Stop before anything is read where the promise could not be kept to the letter.

    Raises:
        RecipeError: something in the recipe lets one subject touch the gradient of another, or trains past the noise.
        UsageError: opacus is not installed.
    """
    if get_differential_privacy_spec(recipe) is None:
        return
    for location, holds, message, hint in (
        *_list_common_requirements(recipe, accelerator),
        *_list_recipe_requirements(recipe),
    ):
        if holds:
            raise RecipeError(
                f"{message}, with training.differential_privacy", location=location, hint=hint
            )
    training.check_opacus_installed()


PrivacyRequirement = tuple[str, bool, str, str]
"""Where it stands, whether it holds, what is wrong, what to do."""


def _list_common_requirements(
    recipe: AdaptRecipe | ClassifyRecipe, accelerator: Accelerator
) -> list[PrivacyRequirement]:
    several, early = accelerator.num_processes > 1, recipe.training.patience > 0
    return [
        (
            "torchrun",
            several,
            f"{accelerator.num_processes} processes would each add noise of their own",
            "start one process",
        ),
        (
            "training.patience",
            early,
            "when to stop would depend on what was learned",
            "set training.patience = 0; the best weights are kept anyway",
        ),
    ]


def _list_recipe_requirements(recipe: AdaptRecipe | ClassifyRecipe) -> list[PrivacyRequirement]:
    if isinstance(recipe, AdaptRecipe):
        merged, straddling = recipe.corpus.deduplicate != "none", recipe.split.by != "subject"
        return [
            (
                "corpus.deduplicate",
                merged,
                "whether a note is kept depends on the notes of others",
                'set corpus.deduplicate = "none"',
            ),
            ("split.by", straddling, "subjects straddle the splits", 'set split.by = "subject"'),
        ]
    training_spec, loss = recipe.training, recipe.loss
    return [
        (
            "base.trainable",
            recipe.base.trainable,
            "noise on every weight of the base",
            "train an adapter on the frozen base",
        ),
        (
            "loss.class_weights",
            loss.class_weights != "none",
            "weights are counted from the answers of all",
            'set loss.class_weights = "none"',
        ),
        (
            "loss.shuffled_labels",
            loss.shuffled_labels,
            "answers dealt out among subjects",
            "set loss.shuffled_labels = false",
        ),
        (
            "training.head_epochs",
            training_spec.head_epochs > 0,
            "the head would learn first, without noise",
            "set training.head_epochs = 0",
        ),
    ]


def get_document_subjects(encoded_cohorts: Sequence[EncodedCohort]) -> SubjectArray:
    """Who each item of a course of questions is about: the documents of the first question, then those of the next."""
    return np.concatenate(
        [
            one.documents.read_table(["subject_id"])["subject_id"].to_numpy()
            for one in encoded_cohorts
        ]
    )


def get_window_subjects(encodings: EncodedCorpus) -> SubjectArray:
    """Who each window of a corpus is about."""
    found: SubjectArray = encodings.note_table["subject_id"].to_numpy()[encodings.window_notes]
    return found


def apply_differential_privacy(
    trainable: Trainable, subjects: SubjectArray, run: Run, context: RunContext
) -> DpTrainable:
    """The course with the privacy that the run's recipe asks for; the same course where it asks for none.

    Raises:
        InputError: too few subjects, or a run that was begun and whose secret is gone.
        UsageError: opacus is not installed, or no noise is enough.
    """
    recipe, spec = run.recipe, get_differential_privacy_spec(run.recipe)
    if spec is None or not isinstance(recipe, AdaptRecipe | ClassifyRecipe):
        return DpTrainable(trainable)
    noise, tally = (
        training.calibrate_privacy_mechanism(trainable, subjects, spec, recipe.training),
        ClippingStats(),
    )
    return DpTrainable(
        training.make_trainable_private(
            trainable, subjects, noise, _read_noise_seed(run, context), tally
        ),
        noise,
        tally,
    )


def _read_noise_seed(run: Run, context: RunContext) -> int:
    """Drawn when the run begins, and kept only as long as it may have to go on."""
    path = run.folder / NOISE_SEED_PATH
    if not path.exists():
        if list(path.parent.glob("*.safetensors")):
            hint = "remove the folder of checkpoints: the run begins anew"
            raise InputError(
                "this run was begun with noise that cannot be drawn again",
                location=str(path),
                hint=hint,
            )
        runs.write_file_atomically(path, context.draw_noise_seed().hex())
    return int(path.read_text(encoding="ascii"), 16)


def account_privacy(
    dp_trainable: DpTrainable, training_result: TrainingResult
) -> dict[str, Any] | None:
    """For ``run.json``; None where no privacy was asked for.

    Raises:
        TrainingError: what was spent is not what was asked.
    """
    if dp_trainable.mechanism is None or dp_trainable.clipping_stats is None:
        return None
    return training.summarize_privacy_spending(
        dp_trainable.mechanism, training_result.progress.step, dp_trainable.clipping_stats
    )


def discard_noise_seed(run: Run) -> Run:
    """A finished run, without the secret of its noise."""
    if get_differential_privacy_spec(run.recipe) is not None:
        (run.folder / NOISE_SEED_PATH).unlink(missing_ok=True)
    return run


def collect_privacy_notices(
    recipe: Recipe, earlier_recipes: Mapping[str, Recipe]
) -> tuple[str, ...]:
    """What the reader of a private run should know of the adapters that it stands on.

    Args:
        recipe: of the run.
        earlier_recipes: run -> its recipe, of each adapter that was made before.
    """
    if get_differential_privacy_spec(recipe) is None:
        return ()
    told = []
    for name, theirs in earlier_recipes.items():
        spec = get_differential_privacy_spec(theirs)
        if spec is not None:
            told.append(
                f"the adapter of run {name} spent epsilon {spec.epsilon:g}, delta {spec.delta:g}: for people in both runs they add up"
            )
        elif not isinstance(theirs, EmbedRecipe):
            told.append(
                f"the adapter of run {name} learned without differential privacy: what it kept of the people it read is not covered here"
            )
    return tuple(told)
