"""Texts that belong together, as a course: steps of pairs in which each is a negative for all others, by gradient caching in flat memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from clinpeft.core.errors import InputError, RecipeError, TrainingError
from clinpeft.recipe.contrastive import ContrastiveTrainingSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training import contrastive_losses
from clinpeft.training.contrastive_batches import (
    ConflictMask,
    TextPairs,
    find_text_conflicts,
    sample_contrastive_epoch,
)
from clinpeft.training.contrastive_losses import ContrastiveLoss
from clinpeft.training.trainer import LossSum, Trainable, TrainableParameters, derive_dropout_seed

TUNING_LOSS = "tuning_loss"
TUNING_ACCURACY = "tuning_accuracy"
MAX_REPEAT_DIFFERENCE = 0.01
"""How far, relative to their length, the vectors of a micro-batch may be from those of its first reading: a gradient is as wrong as they are."""


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors.

    Attributes:
        embed: ids of texts -> (texts, width) pooled vectors, float32, through whatever is trained; not normalised. What is random in it is drawn
            from torch's global generators alone.
        make_micro_batches: ids of texts -> micro-batches of them.
        width: numbers in a vector.
    """

    embed: Callable[[IndexArray], torch.Tensor]
    make_micro_batches: Callable[[IndexArray], list[IndexArray]]
    width: int


@dataclass(frozen=True)
class ContrastiveBatch:
    """What is asked of the texts of a step.

    Attributes:
        text_ids: (texts,) ids, sorted, each once: a text on several sides is read once.
        anchor_rows, positive_rows: (anchors,) their rows among ``text_ids``.
        negative_rows: (negatives,) likewise, of the hard negatives of all anchors, each text once, and none that is a positive as well.
        candidate_mask: (anchors, anchors + negatives) False where a candidate shares a text, passage or section with anchor or positive, unless it is
            named as a negative of this very anchor; the diagonal is True.
        named_negative_mask: (anchors, anchors + negatives) True where a candidate is named as a negative of this anchor.
    """

    text_ids: IndexArray
    anchor_rows: torch.Tensor
    positive_rows: torch.Tensor
    negative_rows: torch.Tensor
    candidate_mask: torch.Tensor
    named_negative_mask: torch.Tensor


def build_contrastive_trainable(
    pairs: TextPairs,
    embedder: Embedder,
    parameters: TrainableParameters,
    set_training_mode: Callable[[bool], object],
    spec: ContrastiveTrainingSpec,
    seed: int,
    accelerator: Accelerator,
    evaluate: Callable[[], dict[str, float]] | None = None,
    best_metric: str = "",
    higher_is_better: bool = False,
    mask_counts: Counter[str] | None = None,
) -> Trainable:
    """How a model learns which texts belong together; the loss of a step is the mean over its anchors that have a negative.

    Args:
        pairs: to learn from.
        embedder: how texts become vectors.
        parameters: name -> what is trained.
        set_training_mode: dropout on and off.
        spec: loss and batches.
        seed: of order and dropout.
        accelerator: the processes. Each reads its share of the texts, and all of them see the vectors of all.
        evaluate: the tuning split, name -> number, such as ``tuning`` gives.
        best_metric: the measurement by which the best weights are kept; empty keeps the last.
        higher_is_better: of that measurement.
        mask_counts: counts what the losses were asked of: ``anchors``, ``negatives masked by id``, ``negatives masked by margin``, ``anchors without
            negatives``.

    Raises:
        InputError: no two pairs can stand in one step, and none has negatives of its own.
        RecipeError: a dimension of the Matryoshka loss is not below the width of the vectors.
    """
    _check_contrastive_inputs(pairs, embedder, spec, seed)
    counts: Counter[str] = Counter() if mask_counts is None else mask_counts

    def backward(chosen: IndexArray, step: int) -> tuple[float, float]:
        question = build_contrastive_batch(pairs, chosen, spec.apart_by)
        loss = partial(
            compute_step_loss,
            batch=question,
            spec=spec,
            location=f"step {step}",
            mask_counts=counts,
        )
        return run_cached_backward(loss, embedder, question.text_ids, seed, step, accelerator)

    return Trainable(
        parameters=parameters,
        make_epoch_batches=lambda number: (
            sample_contrastive_epoch(
                pairs, spec.batch_pairs, spec.apart_by, np.random.default_rng([seed, number])
            ).steps
        ),
        count_tokens=lambda chosen: int(
            pairs.texts.token_counts[np.unique(np.concatenate(_collect_sides(pairs, chosen)))].sum()
        ),
        backward=backward,
        set_training_mode=set_training_mode,
        evaluate=evaluate,
        best_metric=best_metric,
        higher_is_better=higher_is_better,
    )


def _check_contrastive_inputs(
    pairs: TextPairs, embedder: Embedder, spec: ContrastiveTrainingSpec, seed: int
) -> None:
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
        and not sample_contrastive_epoch(
            pairs, spec.batch_pairs, spec.apart_by, np.random.default_rng([seed, 0])
        ).steps
    ):
        message = f"none of {len(pairs.anchors)} pairs has a negative: no two of them are of different {spec.apart_by}s"
        raise InputError(
            message,
            location="pairs, training split",
            hint="give more pairs, set training.apart_by lower, or mine hard negatives",
        )


def build_contrastive_batch(
    pairs: TextPairs, pair_ids: IndexArray, apart_by: str
) -> ContrastiveBatch:
    """What the pairs of a step ask of their texts."""
    anchors, positives, negatives = _collect_sides(pairs, pair_ids)
    texts = np.unique(np.concatenate([anchors, positives, negatives]))
    candidates = np.concatenate([positives, negatives])
    own = _match_named_negatives(
        pairs.texts.text_codes, pairs.get_named_negatives(pair_ids), candidates
    ) & ~find_text_conflicts(pairs.texts, [anchors, positives], [candidates], "text")
    clashes = [
        find_text_conflicts(pairs.texts, [anchors, positives], columns, apart_by)
        for columns in ([anchors, positives], [negatives])
    ]
    allowed = ~np.concatenate(clashes, axis=1) | own
    np.fill_diagonal(allowed, True)
    rows = [
        torch.from_numpy(np.searchsorted(texts, ids)) for ids in (anchors, positives, negatives)
    ]
    return ContrastiveBatch(
        texts, rows[0], rows[1], rows[2], torch.from_numpy(allowed), torch.from_numpy(own)
    )


def _collect_sides(
    pairs: TextPairs, pair_ids: IndexArray
) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Anchors, positives, and the hard negatives of all of them: each text once, and none that is a positive as well."""
    positives, named, same = (
        pairs.positives[pair_ids],
        pairs.get_named_negatives(pair_ids),
        pairs.texts.text_codes,
    )
    there = named[named >= 0]
    negatives = there[np.unique(same[there], return_index=True)[1]]
    return pairs.anchors[pair_ids], positives, negatives[~np.isin(same[negatives], same[positives])]


def _match_named_negatives(
    text_codes: IndexArray, named_negatives: IndexArray, candidates: IndexArray
) -> ConflictMask:
    """(anchors, candidates) whether a candidate is the text of one of the negatives named for the anchor."""
    found = np.zeros((len(named_negatives), len(candidates)), dtype=np.bool_)
    for column in named_negatives.T:
        found |= (
            np.where(column >= 0, text_codes[column], -1)[:, None]
            == text_codes[candidates][None, :]
        ) & (column >= 0)[:, None]
    return found


def compute_step_loss(
    vectors: torch.Tensor,
    batch: ContrastiveBatch,
    spec: ContrastiveTrainingSpec,
    location: str,
    mask_counts: Counter[str],
) -> LossSum:
    """The loss of a step, from the vectors (texts, width) of its texts.

    Raises:
        TrainingError: a vector is not made of numbers, or no anchor has a negative left.
    """
    _check_finite_vectors(vectors, location)
    anchors, positives = (
        vectors[batch.anchor_rows.to(vectors.device)],
        vectors[batch.positive_rows.to(vectors.device)],
    )
    negatives = vectors[batch.negative_rows.to(vectors.device)]
    allowed, back = _mask_candidates(anchors, positives, negatives, batch, spec, mask_counts)
    _check_negatives(allowed, spec, location)
    loss = CONTRASTIVE_OBJECTIVES[spec.objective](
        spec, allowed, back, batch.named_negative_mask.to(vectors.device)
    )
    return contrastive_losses.build_matryoshka_loss(
        loss, spec.matryoshka_dims, spec.matryoshka_weights, spec.normalise
    )(anchors, positives, negatives)


def _check_finite_vectors(vectors: torch.Tensor, location: str) -> None:
    sound = torch.isfinite(vectors).all(dim=1)
    if not sound.all():
        message = f"the vectors of {int((~sound).sum())} of {len(vectors)} texts hold NaN or infinity, and so do their similarities"
        hint = 'lower training.learning_rate, or set base.precision = "float32"; the weights of the last checkpoint are sound'
        raise TrainingError(message, location=location, hint=hint)


@torch.no_grad()
def _mask_candidates(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    batch: ContrastiveBatch,
    spec: ContrastiveTrainingSpec,
    mask_counts: Counter[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(anchors, candidates) and, for the way back, (anchors, anchors): by id, and by what the whole vectors say."""
    known = batch.candidate_mask.to(anchors.device)
    back = known[:, : len(anchors)]  # whether two pairs share something is the same both ways
    back = (back & back.T).contiguous()
    kept, kept_back = known, back
    if spec.mask_margin is not None:
        scores: list[torch.Tensor] = []
        contrastive_losses.build_matryoshka_loss(
            _record_similarities(scores), normalize=spec.normalise
        )(anchors, positives, negatives)
        kept = known & contrastive_losses.find_likely_negatives(scores[0], spec.mask_margin)
        kept_back = back & contrastive_losses.find_likely_negatives(
            scores[0][:, : len(anchors)].T, spec.mask_margin
        )
    mask_counts["anchors"] += len(anchors)
    mask_counts["negatives masked by id"] += int((~known).sum())
    mask_counts["negatives masked by margin"] += int((known & ~kept).sum())
    mask_counts["anchors without negatives"] += int((~contrastive_losses.has_negatives(kept)).sum())
    return kept, kept_back


def _record_similarities(scores: list[torch.Tensor]) -> ContrastiveLoss:
    def note(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None
    ) -> LossSum:
        scores.append(contrastive_losses.compute_similarities(anchors, positives, negatives))
        return LossSum(scores[0].new_zeros(()), 0.0)

    return note


def _check_negatives(
    candidate_mask: torch.Tensor, spec: ContrastiveTrainingSpec, location: str
) -> None:
    if not contrastive_losses.has_negatives(candidate_mask).any():
        message = f"all negatives of all {len(candidate_mask)} anchors are masked, training.mask_margin = {spec.mask_margin}"
        hint = "raise training.mask_margin or training.batch_pairs; the model takes every negative for a better answer than the positive"
        raise TrainingError(message, location=location, hint=hint)


def _build_info_nce_loss(
    spec: ContrastiveTrainingSpec,
    candidate_mask: torch.Tensor,
    reverse_mask: torch.Tensor,
    named_negative_mask: torch.Tensor,
) -> ContrastiveLoss:  # noqa: ARG001
    return partial(
        contrastive_losses.info_nce_loss,
        temperature=spec.temperature,
        symmetric=spec.symmetric,
        candidate_mask=candidate_mask,
        reverse_mask=reverse_mask,
    )


def _build_triplet_loss(
    spec: ContrastiveTrainingSpec,
    candidate_mask: torch.Tensor,
    reverse_mask: torch.Tensor,
    named_negative_mask: torch.Tensor,
) -> ContrastiveLoss:  # noqa: ARG001
    """Against the negatives named for an anchor; where there are none, against those of its step."""
    used = torch.where(
        (named_negative_mask & candidate_mask).any(dim=1, keepdim=True),
        named_negative_mask & candidate_mask,
        candidate_mask,
    )
    return partial(contrastive_losses.triplet_loss, margin=spec.triplet_margin, candidate_mask=used)


CONTRASTIVE_OBJECTIVES: Mapping[
    str,
    Callable[[ContrastiveTrainingSpec, torch.Tensor, torch.Tensor, torch.Tensor], ContrastiveLoss],
] = {
    "info-nce": _build_info_nce_loss,
    "triplet": _build_triplet_loss,
}
"""(spec, allowed, allowed on the way back, named) -> loss."""


def run_cached_backward(
    loss: Callable[[torch.Tensor], LossSum],
    embedder: Embedder,
    text_ids: IndexArray,
    seed: int,
    step: int,
    accelerator: Accelerator,
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
        text_ids: (texts,) ids, sorted, each once.
        seed: of dropout, together with step and micro-batch.
        step: which.
        accelerator: the processes.

    Raises:
        TrainingError: a text has other vectors at the second reading, so that the gradients would be of something else.
    """
    groups = embedder.make_micro_batches(text_ids)
    rows = [np.searchsorted(text_ids, group) for group in groups]
    with torch.random.fork_rng():
        if len(groups) == 1:
            return (
                _backward_without_cache(
                    loss, embedder, groups[0], rows[0], derive_dropout_seed(seed, step, 0)
                )
                if accelerator.process_index == 0
                else (0.0, 0.0)
            )
        mine = [
            (derive_dropout_seed(seed, step, at), groups[at], rows[at]) for at in range(len(groups))
        ][accelerator.process_index :: accelerator.num_processes]
        vectors = torch.zeros(len(text_ids), embedder.width, device=accelerator.device)
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
            _check_repeat_vectors(again.detach(), leaf.detach()[where], step)
            torch.autograd.backward(again, wanted[where])
    return (sums.loss.item(), sums.targets) if accelerator.process_index == 0 else (0.0, 0.0)


def _backward_without_cache(
    loss: Callable[[torch.Tensor], LossSum],
    embedder: Embedder,
    text_ids: IndexArray,
    vector_rows: IndexArray,
    seed: int,
) -> tuple[float, float]:
    torch.manual_seed(seed)
    sums = loss(embedder.embed(text_ids).float()[torch.from_numpy(np.argsort(vector_rows))])
    torch.autograd.backward(sums.loss)
    return sums.loss.item(), sums.targets


def _check_repeat_vectors(
    repeat_vectors: torch.Tensor, first_vectors: torch.Tensor, step: int
) -> None:
    difference = float(
        (repeat_vectors - first_vectors).norm() / first_vectors.norm().clamp(min=1e-12)
    )
    if difference > MAX_REPEAT_DIFFERENCE:
        hint = "draw whatever is random from torch's global generators, and move nothing between the two readings of a step"
        raise TrainingError(
            f"the vectors of the same texts differ by {difference:.2g} of their length",
            location=f"step {step}, second reading",
            hint=hint,
        )


def build_tuning_evaluation(
    pairs: TextPairs,
    embedder: Embedder,
    spec: ContrastiveTrainingSpec,
    seed: int,
    accelerator: Accelerator,
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
    steps = sample_contrastive_epoch(
        pairs, spec.batch_pairs, spec.apart_by, np.random.default_rng([seed, 0])
    ).steps
    unmasked = spec.model_copy(update={"mask_margin": None})
    if not steps:
        return None

    def measure() -> dict[str, float]:
        summed, targets, right = 0.0, 0.0, 0.0
        for chosen in steps:
            question = build_contrastive_batch(pairs, chosen, spec.apart_by)
            vectors = embed_text_ids(embedder, question.text_ids, accelerator)
            sums = compute_step_loss(vectors, question, unmasked, "tuning split", Counter())
            summed, targets, right = (
                summed + sums.loss.item(),
                targets + sums.targets,
                right + _count_nearest_positives(vectors, question, spec),
            )
        return {
            TUNING_LOSS: summed / targets,
            TUNING_ACCURACY: right / sum(len(chosen) for chosen in steps),
        }

    return measure


def _count_nearest_positives(
    vectors: torch.Tensor, batch: ContrastiveBatch, spec: ContrastiveTrainingSpec
) -> float:
    """How many anchors are more similar to their positive than to every candidate that is allowed."""
    scores: list[torch.Tensor] = []
    places = [
        rows.to(vectors.device)
        for rows in (batch.anchor_rows, batch.positive_rows, batch.negative_rows)
    ]
    contrastive_losses.build_matryoshka_loss(
        _record_similarities(scores), normalize=spec.normalise
    )(*(vectors[rows] for rows in places))
    allowed = batch.candidate_mask.to(vectors.device).clone().fill_diagonal_(False)
    return float(
        (scores[0].diagonal() > scores[0].masked_fill(~allowed, -torch.inf).amax(dim=1)).sum()
    )


def embed_text_ids(
    embedder: Embedder, text_ids: IndexArray, accelerator: Accelerator
) -> torch.Tensor:
    """Vectors (texts, width) of ``text_ids``, sorted and each once, without gradient, the work shared between the processes."""
    vectors = torch.zeros(len(text_ids), embedder.width, device=accelerator.device)
    with torch.no_grad():
        for group in embedder.make_micro_batches(text_ids)[
            accelerator.process_index :: accelerator.num_processes
        ]:
            vectors[np.searchsorted(text_ids, group)] = embedder.embed(group).float()
    everyone: torch.Tensor = accelerator.reduce(vectors, "sum")
    return everyone
