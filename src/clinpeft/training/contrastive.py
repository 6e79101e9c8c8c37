"""Texts that belong together, as a course: steps of pairs in which each is a negative for all others, by gradient caching in flat memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clinpeft.core.errors import InputError, RecipeError, TrainingError
from clinpeft.recipe.contrastive import ContrastiveTrainingSpec
from clinpeft.tokenization import Ints
from clinpeft.training import contrastive_losses
from clinpeft.training.contrastive_batches import Bools, Pairs, clashing, sampled
from clinpeft.training.contrastive_losses import Loss
from clinpeft.training.trainer import Course, Crew, Parameters, Sums, dropout_seed

TUNING_LOSS = "tuning_loss"
TUNING_ACCURACY = "tuning_accuracy"
SAME_READING = 0.01
"""How far, relative to their length, the vectors of a micro-batch may be from those of its first reading: a gradient is as wrong as they are."""


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors.

    Attributes:
        embed: ids of texts -> (texts, width) pooled vectors, float32, through whatever is trained; not normalised. What is random in it is drawn
            from torch's global generators alone.
        grouped: ids of texts -> micro-batches of them.
        width: numbers in a vector.
    """

    embed: Callable[[Ints], torch.Tensor]
    grouped: Callable[[Ints], list[Ints]]
    width: int


@dataclass(frozen=True)
class Asked:
    """What is asked of the texts of a step.

    Attributes:
        texts: (texts,) ids, sorted, each once: a text on several sides is read once.
        anchors, positives: (anchors,) their rows among ``texts``.
        negatives: (negatives,) likewise, of the hard negatives of all anchors, each text once, and none that is a positive as well.
        allowed: (anchors, anchors + negatives) False where a candidate shares a text, passage or section with anchor or positive, unless it is
            named as a negative of this very anchor; the diagonal is True.
        named: (anchors, anchors + negatives) True where a candidate is named as a negative of this anchor.
    """

    texts: Ints
    anchors: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    allowed: torch.Tensor
    named: torch.Tensor


def contrastive(
    pairs: Pairs,
    embedder: Embedder,
    parameters: Parameters,
    mode: Callable[[bool], object],
    spec: ContrastiveTrainingSpec,
    seed: int,
    accelerator: Crew,
    measure: Callable[[], dict[str, float]] | None = None,
    best_by: str = "",
    higher_is_better: bool = False,
    tally: Counter[str] | None = None,
) -> Course:
    """How a model learns which texts belong together; the loss of a step is the mean over its anchors that have a negative.

    Args:
        pairs: to learn from.
        embedder: how texts become vectors.
        parameters: name -> what is trained.
        mode: dropout on and off.
        spec: loss and batches.
        seed: of order and dropout.
        accelerator: the processes. Each reads its share of the texts, and all of them see the vectors of all.
        measure: the tuning split, name -> number, such as ``tuning`` gives.
        best_by: the measurement by which the best weights are kept; empty keeps the last.
        higher_is_better: of that measurement.
        tally: counts what the losses were asked of: ``anchors``, ``negatives masked by id``, ``negatives masked by margin``, ``anchors without
            negatives``.

    Raises:
        InputError: no two pairs can stand in one step, and none has negatives of its own.
        RecipeError: a dimension of the Matryoshka loss is not below the width of the vectors.
    """
    _check(pairs, embedder, spec, seed)
    counts: Counter[str] = Counter() if tally is None else tally

    def backward(chosen: Ints, step: int) -> tuple[float, float]:
        question = asked(pairs, chosen, spec.apart_by)
        loss = partial(
            step_loss, question=question, spec=spec, location=f"step {step}", tally=counts
        )
        return cached_backward(loss, embedder, question.texts, seed, step, accelerator)

    return Course(
        parameters=parameters,
        epoch=lambda number: (
            sampled(
                pairs, spec.batch_pairs, spec.apart_by, np.random.default_rng([seed, number])
            ).steps
        ),
        tokens=lambda chosen: int(
            pairs.texts.lengths[np.unique(np.concatenate(_sides(pairs, chosen)))].sum()
        ),
        backward=backward,
        mode=mode,
        measure=measure,
        best_by=best_by,
        higher_is_better=higher_is_better,
    )


def _check(pairs: Pairs, embedder: Embedder, spec: ContrastiveTrainingSpec, seed: int) -> None:
    too_long = [dim for dim in spec.matryoshka_dims if dim >= embedder.width]
    if too_long:
        message = f"{too_long[0]} is not below the {embedder.width} numbers of a vector"
        raise RecipeError(
            message,
            location="training.matryoshka_dims",
            hint="name smaller ones; the whole vector is always trained",
        )
    if (
        len(pairs.anchors)
        and not sampled(
            pairs, spec.batch_pairs, spec.apart_by, np.random.default_rng([seed, 0])
        ).steps
    ):
        message = f"none of {len(pairs.anchors)} pairs has a negative: no two of them are of different {spec.apart_by}s"
        raise InputError(
            message,
            location="pairs, training split",
            hint="give more pairs, set training.apart_by lower, or mine hard negatives",
        )


def asked(pairs: Pairs, chosen: Ints, apart_by: str) -> Asked:
    """What the pairs of a step ask of their texts."""
    anchors, positives, negatives = _sides(pairs, chosen)
    texts = np.unique(np.concatenate([anchors, positives, negatives]))
    candidates = np.concatenate([positives, negatives])
    own = _named(pairs.texts.same, pairs.named(chosen), candidates) & ~clashing(
        pairs.texts, [anchors, positives], [candidates], "text"
    )
    clashes = [
        clashing(pairs.texts, [anchors, positives], columns, apart_by)
        for columns in ([anchors, positives], [negatives])
    ]
    allowed = ~np.concatenate(clashes, axis=1) | own
    np.fill_diagonal(allowed, True)
    rows = [
        torch.from_numpy(np.searchsorted(texts, ids)) for ids in (anchors, positives, negatives)
    ]
    return Asked(texts, rows[0], rows[1], rows[2], torch.from_numpy(allowed), torch.from_numpy(own))


def _sides(pairs: Pairs, chosen: Ints) -> tuple[Ints, Ints, Ints]:
    """Anchors, positives, and the hard negatives of all of them: each text once, and none that is a positive as well."""
    positives, named, same = pairs.positives[chosen], pairs.named(chosen), pairs.texts.same
    there = named[named >= 0]
    negatives = there[np.unique(same[there], return_index=True)[1]]
    return pairs.anchors[chosen], positives, negatives[~np.isin(same[negatives], same[positives])]


def _named(same: Ints, named: Ints, candidates: Ints) -> Bools:
    """(anchors, candidates) whether a candidate is the text of one of the negatives named for the anchor."""
    found = np.zeros((len(named), len(candidates)), dtype=np.bool_)
    for column in named.T:
        found |= (np.where(column >= 0, same[column], -1)[:, None] == same[candidates][None, :]) & (
            column >= 0
        )[:, None]
    return found


def step_loss(
    vectors: torch.Tensor,
    question: Asked,
    spec: ContrastiveTrainingSpec,
    location: str,
    tally: Counter[str],
) -> Sums:
    """The loss of a step, from the vectors (texts, width) of its texts.

    Raises:
        TrainingError: a vector is not made of numbers, or no anchor has a negative left.
    """
    _must_be_numbers(vectors, location)
    anchors, positives = (
        vectors[question.anchors.to(vectors.device)],
        vectors[question.positives.to(vectors.device)],
    )
    negatives = vectors[question.negatives.to(vectors.device)]
    allowed, back = _allowed(anchors, positives, negatives, question, spec, tally)
    _must_have_negatives(allowed, spec, location)
    loss = OBJECTIVES[spec.objective](spec, allowed, back, question.named.to(vectors.device))
    return contrastive_losses.matryoshka(
        loss, spec.matryoshka_dims, spec.matryoshka_weights, spec.normalise
    )(anchors, positives, negatives)


def _must_be_numbers(vectors: torch.Tensor, location: str) -> None:
    sound = torch.isfinite(vectors).all(dim=1)
    if not sound.all():
        message = f"the vectors of {int((~sound).sum())} of {len(vectors)} texts hold NaN or infinity, and so do their similarities"
        hint = 'lower training.learning_rate, or set base.precision = "float32"; the weights of the last checkpoint are sound'
        raise TrainingError(message, location=location, hint=hint)


@torch.no_grad()
def _allowed(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    question: Asked,
    spec: ContrastiveTrainingSpec,
    tally: Counter[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(anchors, candidates) and, for the way back, (anchors, anchors): by id, and by what the whole vectors say."""
    known = question.allowed.to(anchors.device)
    back = known[:, : len(anchors)]  # whether two pairs share something is the same both ways
    back = (back & back.T).contiguous()
    kept, kept_back = known, back
    if spec.mask_margin is not None:
        scores: list[torch.Tensor] = []
        contrastive_losses.matryoshka(_noting(scores), normalise=spec.normalise)(
            anchors, positives, negatives
        )
        kept = known & contrastive_losses.likely_negative(scores[0], spec.mask_margin)
        kept_back = back & contrastive_losses.likely_negative(
            scores[0][:, : len(anchors)].T, spec.mask_margin
        )
    tally["anchors"] += len(anchors)
    tally["negatives masked by id"] += int((~known).sum())
    tally["negatives masked by margin"] += int((known & ~kept).sum())
    tally["anchors without negatives"] += int((~contrastive_losses.has_negatives(kept)).sum())
    return kept, kept_back


def _noting(scores: list[torch.Tensor]) -> Loss:
    def note(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None
    ) -> Sums:
        scores.append(contrastive_losses.similarities(anchors, positives, negatives))
        return Sums(scores[0].new_zeros(()), 0.0)

    return note


def _must_have_negatives(
    allowed: torch.Tensor, spec: ContrastiveTrainingSpec, location: str
) -> None:
    if not contrastive_losses.has_negatives(allowed).any():
        message = f"all negatives of all {len(allowed)} anchors are masked, training.mask_margin = {spec.mask_margin}"
        hint = "raise training.mask_margin or training.batch_pairs; the model takes every negative for a better answer than the positive"
        raise TrainingError(message, location=location, hint=hint)


def _info_nce(
    spec: ContrastiveTrainingSpec, allowed: torch.Tensor, back: torch.Tensor, named: torch.Tensor
) -> Loss:  # noqa: ARG001
    return partial(
        contrastive_losses.info_nce,
        temperature=spec.temperature,
        symmetric=spec.symmetric,
        allowed=allowed,
        allowed_back=back,
    )


def _triplet(
    spec: ContrastiveTrainingSpec, allowed: torch.Tensor, back: torch.Tensor, named: torch.Tensor
) -> Loss:  # noqa: ARG001
    """Against the negatives named for an anchor; where there are none, against those of its step."""
    used = torch.where((named & allowed).any(dim=1, keepdim=True), named & allowed, allowed)
    return partial(contrastive_losses.triplet, margin=spec.triplet_margin, allowed=used)


OBJECTIVES: Mapping[
    str, Callable[[ContrastiveTrainingSpec, torch.Tensor, torch.Tensor, torch.Tensor], Loss]
] = {
    "info-nce": _info_nce,
    "triplet": _triplet,
}
"""(spec, allowed, allowed on the way back, named) -> loss."""


def cached_backward(
    loss: Callable[[torch.Tensor], Sums],
    embedder: Embedder,
    texts: Ints,
    seed: int,
    step: int,
    accelerator: Crew,
) -> tuple[float, float]:
    """``Course.backward`` of a loss in which every text meets every other, in the memory of one micro-batch.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983, section 3.2): the texts are read without a graph, micro-batch by micro-batch; the loss gives
    the gradient of each vector; then each micro-batch is read again, with the dropout of its first reading, and the gradients of its vectors go on
    into the model. By the chain rule that is the gradient of the whole, and not an approximation. One micro-batch is read once, with its graph.

    Several processes read each their share of the micro-batches, both times, and all see the vectors of all: the sum of their gradients is that of
    one process, which is also why only the first of them gives a loss.

    Args:
        loss: vectors (texts, width) -> sums.
        embedder: how texts become vectors.
        texts: (texts,) ids, sorted, each once.
        seed: of dropout, together with step and micro-batch.
        step: which.
        accelerator: the processes.

    Raises:
        TrainingError: a text has other vectors at the second reading, so that the gradients would be of something else.
    """
    groups = embedder.grouped(texts)
    rows = [np.searchsorted(texts, group) for group in groups]
    with torch.random.fork_rng():
        if len(groups) == 1:
            return (
                _read_once(loss, embedder, groups[0], rows[0], dropout_seed(seed, step, 0))
                if accelerator.process_index == 0
                else (0.0, 0.0)
            )
        mine = [(dropout_seed(seed, step, at), groups[at], rows[at]) for at in range(len(groups))][
            accelerator.process_index :: accelerator.num_processes
        ]
        vectors = torch.zeros(len(texts), embedder.width, device=accelerator.device)
        with torch.no_grad():
            for drawn, group, where in mine:
                torch.manual_seed(drawn)
                vectors[where] = embedder.embed(group).float()
        leaf = accelerator.reduce(vectors, "sum").requires_grad_()
        sums = loss(leaf)
        (wanted,) = torch.autograd.grad(sums.loss, leaf)
        for drawn, group, where in mine:
            torch.manual_seed(drawn)
            again = embedder.embed(group).float()
            _must_be_the_same(again.detach(), leaf.detach()[where], step)
            torch.autograd.backward(again, wanted[where])
    return (sums.loss.item(), sums.targets) if accelerator.process_index == 0 else (0.0, 0.0)


def _read_once(
    loss: Callable[[torch.Tensor], Sums], embedder: Embedder, group: Ints, where: Ints, drawn: int
) -> tuple[float, float]:
    torch.manual_seed(drawn)
    sums = loss(embedder.embed(group).float()[torch.from_numpy(np.argsort(where))])
    torch.autograd.backward(sums.loss)
    return sums.loss.item(), sums.targets


def _must_be_the_same(again: torch.Tensor, first: torch.Tensor, step: int) -> None:
    difference = float((again - first).norm() / first.norm().clamp(min=1e-12))
    if difference > SAME_READING:
        hint = "draw whatever is random from torch's global generators, and move nothing between the two readings of a step"
        raise TrainingError(
            f"the vectors of the same texts differ by {difference:.2g} of their length",
            location=f"step {step}, second reading",
            hint=hint,
        )


def tuning(
    pairs: Pairs, embedder: Embedder, spec: ContrastiveTrainingSpec, seed: int, accelerator: Crew
) -> Callable[[], dict[str, float]] | None:
    """The tuning split as ``Course.measure``, in the same steps every time; None where its pairs make none.

    It gives ``tuning_loss``, the loss of the training a step's anchor without the mask by margin, so that it is of the same negatives every time; and
    ``tuning_accuracy``, the share of anchors more similar to their positive than to every negative of their step, a tie being none.

    Args:
        pairs: of the tuning split.
        embedder: how texts become vectors; the caller sees to it that dropout is off.
        spec: loss and batches.
        seed: of the steps.
        accelerator: the processes, which share the reading.
    """
    steps = sampled(pairs, spec.batch_pairs, spec.apart_by, np.random.default_rng([seed, 0])).steps
    unmasked = spec.model_copy(update={"mask_margin": None})
    if not steps:
        return None

    def measure() -> dict[str, float]:
        summed, targets, right = 0.0, 0.0, 0.0
        for chosen in steps:
            question = asked(pairs, chosen, spec.apart_by)
            vectors = read(embedder, question.texts, accelerator)
            sums = step_loss(vectors, question, unmasked, "tuning split", Counter())
            summed, targets, right = (
                summed + sums.loss.item(),
                targets + sums.targets,
                right + _nearest(vectors, question, spec),
            )
        return {
            TUNING_LOSS: summed / targets,
            TUNING_ACCURACY: right / sum(len(chosen) for chosen in steps),
        }

    return measure


def _nearest(vectors: torch.Tensor, question: Asked, spec: ContrastiveTrainingSpec) -> float:
    """How many anchors are more similar to their positive than to every candidate that is allowed."""
    scores: list[torch.Tensor] = []
    places = [
        rows.to(vectors.device)
        for rows in (question.anchors, question.positives, question.negatives)
    ]
    contrastive_losses.matryoshka(_noting(scores), normalise=spec.normalise)(
        *(vectors[rows] for rows in places)
    )
    allowed = question.allowed.to(vectors.device).clone().fill_diagonal_(False)
    return float(
        (scores[0].diagonal() > scores[0].masked_fill(~allowed, -torch.inf).amax(dim=1)).sum()
    )


def read(embedder: Embedder, texts: Ints, accelerator: Crew) -> torch.Tensor:
    """Vectors (texts, width) of ``texts``, sorted and each once, without gradient, the work shared between the processes."""
    vectors = torch.zeros(len(texts), embedder.width, device=accelerator.device)
    with torch.no_grad():
        for group in embedder.grouped(texts)[
            accelerator.process_index :: accelerator.num_processes
        ]:
            vectors[np.searchsorted(texts, group)] = embedder.embed(group).float()
    everyone: torch.Tensor = accelerator.reduce(vectors, "sum")
    return everyone
