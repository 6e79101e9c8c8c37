"""The base class of every part of a recipe, and constrained numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

UnitFraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveCount = Annotated[int, Field(ge=1)]
DropoutProbability = Annotated[float, Field(ge=0.0, lt=1.0)]


class RecipeSpec(BaseModel):
    """A frozen part of a recipe; an unknown key is an error."""

    # protected_namespaces: keys may begin with "model_", which pydantic would warn about
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
