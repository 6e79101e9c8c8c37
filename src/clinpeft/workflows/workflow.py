"""A kind of run as a value: what it runs, and what can be done with its finished runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from clinpeft.core.errors import UsageError
from clinpeft.models import LoadPurpose
from clinpeft.recipe import Recipe
from clinpeft.runs import Run

if TYPE_CHECKING:
    from clinpeft.workflows.context import RunContext
    from clinpeft.workflows.privacy_attacks import PrivacyAuditConfig, PrivacyAuditResults

SomeRecipe = TypeVar("SomeRecipe", bound=Recipe)


@dataclass(frozen=True)
class Workflow:
    """A kind of run.

    A new kind is one more value of this class in ``WORKFLOWS``; nothing else branches on the kind.

    Attributes:
        kind: the ``kind`` of its recipes.
        recipe_class: class of its recipes.
        purpose: what its base is loaded for: ``language`` keeps the language-modelling head,
            ``vectors`` does not.
        run: recipe and context -> the finished run; the same recipe, inputs and code give the same
            run, which is trained once.
        fingerprint: recipe -> SHA-256 over everything that its source holds.
        compare: two finished runs -> the paired difference of what they measured (None where there
            is none), and the reason why it or a part of it is missing.
        check_reference_output: run and device -> loads the run's model and compares its output
            with that stored when it was saved; False where none was stored.
        audit_privacy: run, context and options -> the results of the privacy attacks.
    """

    kind: str
    recipe_class: type[Recipe]
    purpose: LoadPurpose
    run: Callable[[Any, RunContext], Run]
    fingerprint: Callable[[Any], str]
    compare: Callable[[Run, Run], tuple[pa.Table | None, str]]
    check_reference_output: Callable[[Run, Any], bool]
    audit_privacy: Callable[[Run, RunContext, PrivacyAuditConfig], PrivacyAuditResults]


def require_recipe(
    run: Run, recipe_class: type[SomeRecipe], command: str, missing: str
) -> SomeRecipe:
    """Get the recipe of a run that has to be of one kind.

    Args:
        run: the run.
        recipe_class: the kind's class of recipes.
        command: what needs it, for the error's location.
        missing: what a run of another kind has not, such as ``"holds no encoder"``.

    Raises:
        UsageError: the run is of another kind.
    """
    if isinstance(run.recipe, recipe_class):
        return run.recipe
    kind = recipe_class.model_fields["kind"].annotation
    raise UsageError(
        f"run {run.id} is of kind {run.recipe.kind} and {missing}",
        location=command,
        hint=f"take a run of {getattr(kind, '__args__', ('another kind',))[0]}",
    )
