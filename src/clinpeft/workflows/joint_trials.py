"""Several recipes of ``classify`` in one pass over one base, each a run of its own: what a search does with proposals that differ in little."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft import adapters, models, training
from clinpeft.adapters import Joint, Witness
from clinpeft.core.errors import ClinpeftError, RecipeError
from clinpeft.recipe import ClassifyRecipe, Recipe
from clinpeft.runs import Hashes, Run
from clinpeft.training import Crew, Fit
from clinpeft.workflows import classifier, compilation, plan, quantization, task_cohorts
from clinpeft.workflows.classifier import Answering, Origin
from clinpeft.workflows.context import Circumstances, hashes_of, opened, watch
from clinpeft.workflows.task_cohorts import Read

Outcome = Run | ClinpeftError
"""A finished run, or why there is none; a run that stopped says so in its folder as well."""

OWN = frozenset({"name", "seed", "adapters", "head", "loss", "training"})
"""Sections in which recipes that are trained together may differ."""


def are_shareable(recipes: Sequence[Recipe]) -> bool:
    """Whether these can be trained in one pass: questions that differ in ``OWN`` alone, each with a low-rank adapter that is trained,
    and without differential privacy, which wants every subject on its own."""
    asked = [recipe for recipe in recipes if isinstance(recipe, ClassifyRecipe)]
    if len(asked) < len(recipes) or not asked or not all(map(_has_own_rows, asked)):
        return False
    shared = [recipe.model_dump(exclude=set(OWN)) for recipe in asked]
    return all(each == shared[0] for each in shared)


def _has_own_rows(recipe: ClassifyRecipe) -> bool:
    fused = all(
        adapters.METHODS[spec.method].fused and spec.active and not spec.merged
        for spec in recipe.adapters
    )
    return (
        fused
        and any(spec.trainable for spec in recipe.adapters)
        and not recipe.base.trainable
        and recipe.training.private is None
    )


@dataclass(frozen=True)
class _Held:
    """A run that is to be made, open until ``end`` is closed."""

    at: int
    recipe: ClassifyRecipe
    origins: dict[str, Origin]
    hashes: Hashes
    run: Run
    end: contextlib.ExitStack


@dataclass(frozen=True)
class _Prepared:
    """All of a trial that stands before the first step."""

    held: _Held
    answering: Answering
    witness: Witness


def classify_together(
    recipes: Sequence[ClassifyRecipe], home: Path, arounds: Sequence[Circumstances]
) -> list[Outcome]:
    """``classify`` of every recipe, trained in one pass; each is recorded as its own run under its own id.

    It is the run that it would be alone, but for a notice that names the others; its seconds and memory are those of the pass. A run that was there
    already is given back. One that fails leaves the others alone.

    Args:
        recipes: for which ``are_shareable`` holds.
        home: the folder of all runs.
        arounds: of each recipe.

    Returns:
        In the order of the recipes.

    Raises:
        ClinpeftError: what concerns all of them: the recipes cannot be trained together, the notes or the base cannot be read.
    """
    accelerator = training.assemble()
    if not are_shareable(recipes) or accelerator.num_processes > 1:
        message = f"{len(recipes)} recipes that cannot be trained in one pass by {accelerator.num_processes} process{'es' * (accelerator.num_processes > 1)}"
        raise RecipeError(
            message,
            location="recipes",
            hint=f"let them differ in {', '.join(sorted(OWN))} only, or make them one after another",
        )
    quantization.refuse_impossible(recipes[0], accelerator)
    outcomes: dict[int, Outcome] = {}
    with contextlib.ExitStack() as every:
        waiting: list[_Held] = []
        for at, recipe in enumerate(recipes):
            with _noted(outcomes, at):
                held = _open(at, recipe, home, arounds[at], accelerator, every)
                if held.run.record.state == "finished":
                    outcomes[at] = held.run
                else:
                    waiting.append(held)
        if waiting:
            _made(waiting, home, arounds, accelerator, outcomes)
    return [outcomes[at] for at in range(len(recipes))]


@contextlib.contextmanager
def _noted(outcomes: dict[int, Outcome], at: int, held: _Held | None = None) -> Iterator[None]:
    """An error of one run ends that run, which writes it down."""
    try:
        with contextlib.nullcontext() if held is None else _let_go_by(held.end):
            yield
    except ClinpeftError as error:
        outcomes[at] = error


@contextlib.contextmanager
def _let_go_by(end: contextlib.ExitStack) -> Iterator[None]:
    """An error closes what is held, with that error; without one it stays held."""
    try:
        yield
    except ClinpeftError:
        with end:
            raise


def _open(
    at: int,
    recipe: ClassifyRecipe,
    home: Path,
    context: Circumstances,
    accelerator: Crew,
    every: contextlib.ExitStack,
) -> _Held:
    recipe, origins = classifier.resolved(recipe, home)
    hashes = hashes_of(
        task_cohorts.fingerprint(recipe), recipe, adapters=classifier.adapter_hashes(origins)
    )
    end = every.enter_context(contextlib.ExitStack())
    return _Held(
        at,
        recipe,
        origins,
        hashes,
        end.enter_context(opened(recipe, hashes, home, context, accelerator)),
        end,
    )


def _made(
    waiting: Sequence[_Held],
    home: Path,
    arounds: Sequence[Circumstances],
    accelerator: Crew,
    outcomes: dict[int, Outcome],
) -> None:
    """From open runs to recorded ones."""
    first = waiting[0]
    asked = task_cohorts.cohorts_of(first.recipe, home, accelerator, first.hashes)
    base = models.load(
        quantization.whole(classifier.precise(first.recipe.base)), accelerator.device, "vectors"
    )
    read = task_cohorts.encoded(first.recipe, base, asked, home, accelerator)
    quantization.by_documents(first.recipe, base, read[0], accelerator)
    trials = [
        adapters.Trial(held.recipe.adapters, held.recipe.seed, classifier.folders(held.origins))
        for held in waiting
    ]
    joint = adapters.together(base, trials)
    plan.settle_activations([held.recipe for held in waiting], joint.stacks, accelerator)
    prepared = [
        _prepared(joint, location, held, read, home, arounds[held.at], accelerator)
        for location, held in enumerate(waiting)
    ]
    compilation.settle_compilation(
        [held.recipe for held in waiting],
        joint.stacks,
        prepared[0].answering.course,
        home,
        accelerator,
    )
    fits = [
        Fit(
            each.answering.course,
            each.held.recipe.training,
            each.held.run.folder / "checkpoints",
            watch(each.held.run, arounds[each.held.at]),
        )
        for each in prepared
    ]
    for location, (each, fitted) in enumerate(
        zip(prepared, training.fit_together(joint, fits, accelerator), strict=True)
    ):
        held = each.held
        with _noted(outcomes, held.at, held), joint.alone(location):
            if isinstance(fitted, ClinpeftError):
                raise fitted
            liveness = each.witness.testify(each.answering.probe)
            found = classifier.scored(held.recipe, each.answering, read, home, accelerator)
            others = ", ".join(other.run.id for other in waiting if other is not held)
            told = (*classifier.notices(held.recipe, held.origins, read), *joint.notices)
            told += (
                (f"trained in one pass with {others}: seconds and memory are those of all",)
                if others
                else ()
            )
            outcomes[held.at] = classifier.recorded(
                held.recipe,
                held.run,
                arounds[held.at],
                accelerator,
                each.answering,
                fitted,
                liveness,
                found,
                told,
                read,
            )


def _prepared(
    joint: Joint,
    location: int,
    held: _Held,
    read: Sequence[Read],
    home: Path,
    context: Circumstances,
    accelerator: Crew,
) -> _Prepared:
    with joint.alone(location) as stack:
        answering = classifier.answering(held.recipe, stack, read, home, accelerator)
        witness = adapters.watch(stack, answering.head_parameters)
        classifier.probed(held.recipe, answering, read, home, accelerator, held.run, context)
    return _Prepared(held, answering, witness)
