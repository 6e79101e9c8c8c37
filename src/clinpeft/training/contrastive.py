"""Contrastive training: each pair of a step is a negative of all others, in constant memory.

The loss of a step depends on the vectors of all its texts at once; gradient caching computes it in
the memory of one micro-batch.
"""

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
    TextPairs,
    find_text_conflicts,
    sample_contrastive_epoch,
)
from clinpeft.training.contrastive_losses import ContrastiveLoss
from clinpeft.training.trainer import LossSum, Trainable, TrainableParameters, derive_dropout_seed

TUNING_LOSS = "tuning_loss"
TUNING_ACCURACY = "tuning_accuracy"
MAX_REPEAT_DIFFERENCE = 0.01
"""Largest relative difference of a micro-batch's vectors in the second forward pass from those of
the first; the relative error of the gradient is about the same."""


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors.

    Attributes:
        embed: ids of texts -> (texts, width) pooled vectors, float32, through everything that is
            trained; not normalized. All randomness comes from torch's global generators.
        make_micro_batches: ids of texts -> micro-batches of them.
        width: numbers in a vector.
    """

    embed: Callable[[IndexArray], torch.Tensor]
    make_micro_batches: Callable[[IndexArray], list[IndexArray]]
    width: int


@dataclass(frozen=True)
class ContrastiveBatch:
    """Texts and masks of a step. Candidates are the positives, then the negatives.

    Attributes:
        text_ids: (texts,) ids, sorted, each once: a text on several sides is encoded once.
        anchor_rows, positive_rows: (anchors,) their rows among ``text_ids``.
        negative_rows: (negatives,) likewise, of the hard negatives of all anchors, each text once,
            and none that is a positive as well.
        candidate_mask: (anchors, candidates) False where a candidate shares a text, passage or
            section with anchor or positive, unless it is named as a negative of this very anchor;
            the diagonal is True.
        named_negative_mask: (anchors, candidates) True where a candidate is named as a negative of
            this anchor.
    """

    text_ids: IndexArray
    anchor_rows: torch.Tensor
    positive_rows: torch.Tensor
    negative_rows: torch.Tensor
    candidate_mask: torch.Tensor
    named_negative_mask: torch.Tensor

    def select_sides(
        self, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Select anchors, positives and negatives from the vectors (texts, width) of all texts."""
        anchors, positives, negatives = (
            # (anchors, width), (anchors, width), (negatives, width)
            vectors[rows.to(vectors.device)]
            for rows in (self.anchor_rows, self.positive_rows, self.negative_rows)
        )
        return anchors, positives, negatives


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
    """Build the training of an encoder; a step's loss is the mean over anchors with a negative.

    Args:
        pairs: of the training split.
        embedder: how texts become vectors.
        parameters: name -> trained parameter.
        set_training_mode: turns dropout on and off.
        spec: loss and batches.
        seed: of order and dropout.
        accelerator: the processes. Each encodes its share of the texts, and each computes the loss
            from the vectors of all.
        evaluate: computes the metrics of the tuning split, such as ``build_tuning_evaluation``
            returns.
        best_metric: the metric by which the best weights are selected; empty keeps the last ones.
        higher_is_better: of that metric.
        mask_counts: counts ``anchors``, ``negatives masked by id``, ``negatives masked by margin``
            and ``anchors without negatives`` over all steps.

    Raises:
        InputError: no two pairs can share a step, and none has negatives of its own.
        RecipeError: a dimension of the Matryoshka loss is not below the width of the vectors.
    """
    too_wide = [dim for dim in spec.matryoshka_dims if dim >= embedder.width]
    if too_wide:
        raise RecipeError(
            f"{too_wide[0]} is not below the {embedder.width} numbers of a vector",
            location="training.matryoshka_dims",
            hint="name smaller ones; the whole vector is always trained",
        )

    def make_epoch_batches(number: int) -> list[IndexArray]:
        rng = np.random.default_rng([seed, number])
        return sample_contrastive_epoch(pairs, spec.batch_pairs, spec.apart_by, rng).steps

    if len(pairs.anchors) and not make_epoch_batches(0):
        raise InputError(
            f"none of {len(pairs.anchors)} pairs has a negative: no two of them are of different"
            f" {spec.apart_by}s",
            location="pairs, training split",
            hint="give more pairs, set training.apart_by lower, or mine hard negatives",
        )
    # counted over all steps, for the run's record
    counts: Counter[str] = Counter() if mask_counts is None else mask_counts

    def backward(pair_ids: IndexArray, step: int) -> tuple[float, float]:
        batch = build_contrastive_batch(pairs, pair_ids, spec.apart_by)
        loss = partial(
            compute_step_loss, batch=batch, spec=spec, location=f"step {step}", mask_counts=counts
        )
        return run_cached_backward(loss, embedder, batch.text_ids, seed, step, accelerator)

    def count_tokens(pair_ids: IndexArray) -> int:
        # a text on several sides is encoded once, and counted once
        text_ids = np.unique(np.concatenate(_collect_sides(pairs, pair_ids)))
        return int(pairs.texts.token_counts[text_ids].sum())

    return Trainable(
        parameters=parameters,
        make_epoch_batches=make_epoch_batches,
        count_tokens=count_tokens,
        backward=backward,
        set_training_mode=set_training_mode,
        evaluate=evaluate,
        best_metric=best_metric,
        higher_is_better=higher_is_better,
    )


def build_contrastive_batch(
    pairs: TextPairs, pair_ids: IndexArray, apart_by: str
) -> ContrastiveBatch:
    """Build texts and masks of the pairs of a step.

    Args:
        pairs: all pairs.
        pair_ids: (anchors,) the pairs of the step.
        apart_by: key of ``APART_BY_COLUMNS``.
    """
    anchors, positives, negatives = _collect_sides(pairs, pair_ids)
    # sorted, so that searchsorted below finds the rows of each side
    text_ids = np.unique(np.concatenate([anchors, positives, negatives]))
    candidates = np.concatenate([positives, negatives])
    codes = pairs.texts.text_codes
    # (anchors, candidates), one column of named negatives at a time
    is_named = np.zeros((len(anchors), len(candidates)), dtype=np.bool_)
    for named in pairs.get_named_negatives(pair_ids).T:  # (anchors,)
        same_text = codes[named][:, None] == codes[candidates][None, :]
        is_named |= same_text & (named >= 0)[:, None]
    # a negative with the text of its anchor or positive would contradict the pair
    is_named &= ~find_text_conflicts(pairs.texts, [anchors, positives], [candidates], "text")
    # another pair conflicts with both of its sides, a hard negative only with itself
    conflicts = [
        find_text_conflicts(pairs.texts, [anchors, positives], columns, apart_by)
        for columns in ([anchors, positives], [negatives])
    ]
    # a named negative is one although it shares a section: hard negatives often do
    candidate_mask = ~np.concatenate(conflicts, axis=1) | is_named
    np.fill_diagonal(candidate_mask, True)
    anchor_rows, positive_rows, negative_rows = (
        torch.from_numpy(np.searchsorted(text_ids, ids)) for ids in (anchors, positives, negatives)
    )
    return ContrastiveBatch(
        text_ids,
        anchor_rows,
        positive_rows,
        negative_rows,
        torch.from_numpy(candidate_mask),
        torch.from_numpy(is_named),
    )


def _collect_sides(
    pairs: TextPairs, pair_ids: IndexArray
) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Anchors, positives, and the hard negatives of all: each text once, without positives."""
    # (anchors,) and (anchors, negatives of each)
    positives, named = pairs.positives[pair_ids], pairs.get_named_negatives(pair_ids)
    codes = pairs.texts.text_codes
    named = named[named >= 0]
    # by text and not by id: a text may have several ids
    negatives = named[np.unique(codes[named], return_index=True)[1]]
    negatives = negatives[~np.isin(codes[negatives], codes[positives])]
    return pairs.anchors[pair_ids], positives, negatives


def compute_step_loss(
    vectors: torch.Tensor,
    batch: ContrastiveBatch,
    spec: ContrastiveTrainingSpec,
    location: str,
    mask_counts: Counter[str],
) -> LossSum:
    """Compute the loss of a step from the vectors of its texts.

    Args:
        vectors: (texts, width), in the order of ``batch.text_ids``.
        batch: texts and masks.
        spec: loss.
        location: of errors.
        mask_counts: see ``build_contrastive_trainable``.

    Raises:
        TrainingError: a vector is not finite, or no anchor has a negative left.
    """
    is_finite = torch.isfinite(vectors).all(dim=1)  # (texts,)
    if not is_finite.all():
        raise TrainingError(
            f"the vectors of {int((~is_finite).sum())} of {len(vectors)} texts hold NaN or"
            " infinity, and so do their similarities",
            location=location,
            hint='lower training.learning_rate, or set base.precision = "float32"; the weights of'
            " the last checkpoint are sound",
        )
    anchors, positives, negatives = batch.select_sides(vectors)
    mask, reverse_mask = _mask_candidates((anchors, positives, negatives), batch, spec, mask_counts)
    if not contrastive_losses.has_negatives(mask).any():
        raise TrainingError(
            f"all negatives of all {len(mask)} anchors are masked, training.mask_margin ="
            f" {spec.mask_margin}",
            location=location,
            hint="raise training.mask_margin or training.batch_pairs; every negative is more"
            " similar to its anchor than the positive",
        )
    # (anchors, candidates)
    named_mask = batch.named_negative_mask.to(vectors.device)
    loss = CONTRASTIVE_OBJECTIVES[spec.objective](spec, mask, reverse_mask, named_mask)
    matryoshka_loss = contrastive_losses.build_matryoshka_loss(
        loss, spec.matryoshka_dims, spec.matryoshka_weights, spec.normalise
    )
    return matryoshka_loss(anchors, positives, negatives)


@torch.no_grad()
def _mask_candidates(
    sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch: ContrastiveBatch,
    spec: ContrastiveTrainingSpec,
    mask_counts: Counter[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask candidates by id, and by the similarity of whole vectors.

    Returns:
        (anchors, candidates), and (anchors, anchors) of positives to anchors.
    """
    anchor_count = len(sides[0])
    id_mask = batch.candidate_mask.to(sides[0].device)
    # a conflict of two pairs is one in both directions; a named negative is not
    reverse_mask = id_mask[:, :anchor_count]
    reverse_mask = (reverse_mask & reverse_mask.T).contiguous()
    mask = id_mask
    if spec.mask_margin is not None:
        scores = _compute_spec_similarities(sides, spec)
        reverse_scores = scores[:, :anchor_count].T
        mask = id_mask & contrastive_losses.find_likely_negatives(scores, spec.mask_margin)
        reverse_mask = reverse_mask & contrastive_losses.find_likely_negatives(
            reverse_scores, spec.mask_margin
        )
    # an anchor without negatives adds nothing to the loss, and is not counted
    has_negatives = contrastive_losses.has_negatives(mask)  # (anchors,)
    mask_counts["anchors"] += anchor_count
    mask_counts["negatives masked by id"] += int((~id_mask).sum())
    mask_counts["negatives masked by margin"] += int((id_mask & ~mask).sum())
    mask_counts["anchors without negatives"] += int((~has_negatives).sum())
    return mask, reverse_mask


def _compute_spec_similarities(
    sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor], spec: ContrastiveTrainingSpec
) -> torch.Tensor:
    """(anchors, candidates) similarities of whole vectors, normalized where the spec says so."""
    return contrastive_losses.compute_similarities(
        *(contrastive_losses.truncate_vectors(side, None, spec.normalise) for side in sides)
    )


def _build_info_nce_loss(
    spec: ContrastiveTrainingSpec,
    candidate_mask: torch.Tensor,
    reverse_mask: torch.Tensor,
    named_negative_mask: torch.Tensor,  # noqa: ARG001
) -> ContrastiveLoss:
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
    reverse_mask: torch.Tensor,  # noqa: ARG001
    named_negative_mask: torch.Tensor,
) -> ContrastiveLoss:
    # the negatives named for an anchor, which are hard; where it has none, those of the step
    named = named_negative_mask & candidate_mask  # (anchors, candidates)
    mask = torch.where(named.any(dim=1, keepdim=True), named, candidate_mask)
    return partial(contrastive_losses.triplet_loss, margin=spec.triplet_margin, candidate_mask=mask)


CONTRASTIVE_OBJECTIVES: Mapping[
    str,
    Callable[[ContrastiveTrainingSpec, torch.Tensor, torch.Tensor, torch.Tensor], ContrastiveLoss],
] = {
    "info-nce": _build_info_nce_loss,
    "triplet": _build_triplet_loss,
}
"""Name -> (spec, candidate mask, reverse mask, named negative mask) -> loss."""


def run_cached_backward(
    loss: Callable[[torch.Tensor], LossSum],
    embedder: Embedder,
    text_ids: IndexArray,
    seed: int,
    step: int,
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Compute the gradient of a loss over all texts in the memory of one micro-batch.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983, section 3.2). The texts are encoded without
    a graph, micro-batch by micro-batch; the loss gives the gradient of each vector; then each
    micro-batch is encoded again, with the dropout of the first time, and the gradients of its
    vectors are propagated into the model. By the chain rule that is the exact gradient. A step of
    one micro-batch is encoded once, with its graph.

    Several processes encode each its share of the micro-batches, both times, and all compute the
    loss from all vectors: the sum of their gradients is that of one process, and only the first of
    them returns the loss.

    Args:
        loss: (texts, width) vectors -> summed loss.
        embedder: how texts become vectors.
        text_ids: (texts,) ids, sorted, each once.
        seed: of dropout, together with step and micro-batch.
        step: number of the step.
        accelerator: the processes.

    Returns:
        Summed loss and number of targets.

    Raises:
        TrainingError: the vectors of the second pass differ from those of the first, so that the
            gradients would be wrong.
    """
    # rows of each micro-batch among text_ids; micro-batches are sorted by length
    micro_batches = embedder.make_micro_batches(text_ids)
    rows = [np.searchsorted(text_ids, micro_batch) for micro_batch in micro_batches]
    seeds = [derive_dropout_seed(seed, step, index) for index in range(len(micro_batches))]
    is_first = accelerator.process_index == 0
    # the global generators are as before afterwards
    with torch.random.fork_rng():
        if len(micro_batches) == 1:
            if not is_first:
                return 0.0, 0.0
            torch.manual_seed(seeds[0])
            order = torch.from_numpy(np.argsort(rows[0]))
            # vectors come in the order of the micro-batch; the loss needs that of text_ids
            loss_sum = loss(embedder.embed(micro_batches[0]).float()[order])
            torch.autograd.backward(loss_sum.loss)
            return loss_sum.loss.item(), loss_sum.targets
        # (seed, ids of texts, rows) of each micro-batch
        share = list(zip(seeds, micro_batches, rows, strict=True))
        share = share[accelerator.process_index :: accelerator.num_processes]
        vectors = torch.zeros(len(text_ids), embedder.width, device=accelerator.device)
        with torch.no_grad():
            for dropout_seed, micro_batch, positions in share:
                torch.manual_seed(dropout_seed)
                vectors[positions] = embedder.embed(micro_batch).float()
        # rows of other processes are 0, so that the sum over processes fills them in
        # a leaf: the graph of the loss ends here (section 3.2, step 2)
        cached = accelerator.reduce(vectors, "sum").requires_grad_()  # (texts, width)
        loss_sum = loss(cached)
        (gradients,) = torch.autograd.grad(loss_sum.loss, cached)  # dl/dv, (texts, width)
        for dropout_seed, micro_batch, positions in share:
            torch.manual_seed(dropout_seed)
            # with its graph; the same seed gives the same dropout, and so the same vectors
            repeated = embedder.embed(micro_batch).float()
            # (micro-batch, width)
            first = cached.detach()[positions]
            difference = float((repeated.detach() - first).norm() / first.norm().clamp(min=1e-12))
            if difference > MAX_REPEAT_DIFFERENCE:
                raise TrainingError(
                    f"the vectors of the same texts differ by {difference:.2g} of their length",
                    location=f"step {step}, second forward pass",
                    hint="draw everything random from torch's global generators, and change no"
                    " weight between the two passes of a step",
                )
            # chain rule: dl/dw = sum over texts of dl/dv dv/dw
            torch.autograd.backward(repeated, gradients[positions])
    return (loss_sum.loss.item(), loss_sum.targets) if is_first else (0.0, 0.0)


def build_tuning_evaluation(
    pairs: TextPairs,
    embedder: Embedder,
    spec: ContrastiveTrainingSpec,
    seed: int,
    accelerator: Accelerator,
) -> Callable[[], dict[str, float]] | None:
    """Build ``Trainable.evaluate`` on the tuning split, with the same steps every time.

    ``tuning_loss`` is the training loss without the mask by margin, so that its negatives are the
    same every time. ``tuning_accuracy`` is the fraction of anchors that are more similar to their
    positive than to every negative of their step; a tie counts as an error.

    Args:
        pairs: of the tuning split.
        embedder: how texts become vectors; the caller sets evaluation mode.
        spec: loss and batches.
        seed: of the steps.
        accelerator: the processes, which share the encoding.

    Returns:
        The function; None where the pairs make no step.
    """
    rng = np.random.default_rng([seed, 0])
    steps = sample_contrastive_epoch(pairs, spec.batch_pairs, spec.apart_by, rng).steps
    if not steps:
        return None
    unmasked_spec = spec.model_copy(update={"mask_margin": None})

    def evaluate() -> dict[str, float]:
        summed, targets, correct = 0.0, 0.0, 0.0
        for pair_ids in steps:
            batch = build_contrastive_batch(pairs, pair_ids, spec.apart_by)
            vectors = embed_text_ids(embedder, batch.text_ids, accelerator)
            loss_sum = compute_step_loss(vectors, batch, unmasked_spec, "tuning split", Counter())
            summed += loss_sum.loss.item()
            targets += loss_sum.targets
            # (anchors, candidates), each direction of a vector alone counts if normalized
            scores = _compute_spec_similarities(batch.select_sides(vectors), spec)
            # the diagonal is the positive itself
            is_negative = batch.candidate_mask.to(vectors.device).clone().fill_diagonal_(False)
            hardest = scores.masked_fill(~is_negative, -torch.inf).amax(dim=1)  # (anchors,)
            correct += float((scores.diagonal() > hardest).sum())
        return {
            TUNING_LOSS: summed / targets,
            TUNING_ACCURACY: correct / sum(len(pair_ids) for pair_ids in steps),
        }

    return evaluate


def embed_text_ids(
    embedder: Embedder, text_ids: IndexArray, accelerator: Accelerator
) -> torch.Tensor:
    """Encode texts without gradient, the work shared between the processes.

    Args:
        embedder: how texts become vectors.
        text_ids: (texts,) ids, sorted, each once.
        accelerator: the processes.

    Returns:
        (texts, width), the same in every process.
    """
    vectors = torch.zeros(len(text_ids), embedder.width, device=accelerator.device)
    micro_batches = embedder.make_micro_batches(text_ids)
    with torch.no_grad():
        for micro_batch in micro_batches[accelerator.process_index :: accelerator.num_processes]:
            vectors[np.searchsorted(text_ids, micro_batch)] = embedder.embed(micro_batch).float()
    gathered: torch.Tensor = accelerator.reduce(vectors, "sum")
    return gathered
