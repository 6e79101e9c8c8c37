"""What every part of a recipe is: frozen, typed, closed to keys that it does not know."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

UnitFraction = Annotated[float, Field(ge=0.0, le=1.0)]


class RecipeSpec(BaseModel):
    """A frozen part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
