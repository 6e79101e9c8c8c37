"""Privacy: canaries, by which memorization is measured, and noise, by which it is bounded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clinpeft.recipe.spec import RecipeSpec


class PrivacySpec(RecipeSpec):
    """Canaries: notes on invented people among the training notes.

    With them ``clinpeft privacy`` measures what a model memorizes (Carlini et al. 2019, arXiv
    1802.08232).

    Attributes:
        canaries: invented people for each number of repeats; 0: none.
        repeats: how often the note of such a person occurs in the training split.
    """

    canaries: Annotated[int, Field(ge=0, le=1000)] = 0
    repeats: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 10, 100)


class DifferentialPrivacySpec(RecipeSpec):
    """Differential privacy by subject (DP-SGD, Abadi et al. 2016, arXiv 1607.00133).

    Each step sums the clipped gradients of subjects drawn at random, and adds noise. Without this
    table there is none. Needs the extra ``private``.

    Attributes:
        epsilon: how much the trained weights may reveal about whether a subject was in the
            training split, at most; smaller is more private, and noisier.
        delta: the probability with which they may reveal more; well below 1 over the number of
            training subjects.
        clip_norm: the largest gradient of one subject, all notes and all trained tensors together;
            a larger one is scaled down.
        subjects_per_step: expected number; a step draws each training subject independently of all
            others (Poisson sampling), instead of ``batch_notes`` or ``batch_tokens``.
    """

    # No default: how much may be revealed has to be decided for each data set
    epsilon: Annotated[float, Field(gt=0.0)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    subjects_per_step: Annotated[int, Field(ge=1)] = 64
