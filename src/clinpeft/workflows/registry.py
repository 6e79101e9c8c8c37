"""All kinds of runs."""

from __future__ import annotations

from typing import Any

from clinpeft.core.errors import UsageError
from clinpeft.workflows.adapt import ADAPT
from clinpeft.workflows.classify import CLASSIFY
from clinpeft.workflows.embed import EMBED
from clinpeft.workflows.workflow import Workflow

WORKFLOWS: dict[str, Workflow] = {workflow.kind: workflow for workflow in (ADAPT, CLASSIFY, EMBED)}
"""``kind`` of a recipe -> its workflow."""


def get_workflow(recipe: Any) -> Workflow:
    """Get the workflow of a recipe, or of a file of recipes: of whatever has a ``kind``.

    Raises:
        UsageError: a recipe of this kind trains nothing.
    """
    if recipe.kind not in WORKFLOWS:
        raise UsageError(
            f"a recipe of kind {recipe.kind!r} trains nothing",
            location="kind",
            hint=f"take one of kind {', '.join(WORKFLOWS)}",
        )
    return WORKFLOWS[recipe.kind]
