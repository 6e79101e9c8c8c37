"""Model step of ``embed``: how a text becomes a vector, and the contrastive training of an
encoder."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft import adapters, inference, models, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import Attrition
from clinpeft.models import EmbeddingConfig
from clinpeft.recipe import EmbedRecipe
from clinpeft.runs import Run
from clinpeft.training import Trainable
from clinpeft.workflows.context import RunContext
from clinpeft.workflows.embedding_evaluation import EncodeFunction
from clinpeft.workflows.textbooks import EmbeddingData

PROBE_PAIR_COUNT = 4
NOT_IN_TRAINING_FRACTION = "not in the fraction that is trained on"


@dataclass(frozen=True)
class EncoderSetup:
    """An encoder, ready to be trained.

    Attributes:
        stack: base and adapters.
        embedding_config: how a text becomes a vector.
        trainable: what the training loop is given.
        monitor: state of every weight before training, see ``ClassifierSetup``.
        compute_probe_vectors: vectors of a few training texts, with their gradient.
        notices: what a reader of the results should know.
        pair_counts: split -> pairs.
        attrition: training pairs that were left out by ``training.fraction``.
    """

    stack: Stack
    embedding_config: EmbeddingConfig
    trainable: Trainable
    monitor: adapters.AdapterMonitor
    compute_probe_vectors: Callable[[], Any]
    notices: tuple[str, ...]
    pair_counts: Mapping[str, int]
    attrition: Attrition


def resolve_recipe_embedding_config(recipe: EmbedRecipe) -> EmbeddingConfig:
    """Resolve how a text becomes a vector: the backbone's own way, but for the recipe's
    settings."""
    spec = recipe.base
    pooling = None if spec.pooling == "auto" else spec.pooling
    config = models.resolve_embedding_config(spec.path, spec.backbone, pooling)
    prompts = {"query_prompt": spec.query_prompt, "document_prompt": spec.document_prompt}
    changes: dict[str, Any] = {key: text for key, text in prompts.items() if text is not None}
    return replace(config, max_tokens=min(config.max_tokens, spec.max_tokens), **changes)


def create_encode_function(stack: Stack, embedding_config: EmbeddingConfig) -> EncodeFunction:
    """Create the function from texts to vectors of a stack as it is at each call."""
    return lambda texts, prompt: inference.encode_texts(
        stack, embedding_config, list(texts), prompt, precision="auto"
    )


def build_encoder(
    recipe: EmbedRecipe,
    stack: Stack,
    embedding_config: EmbeddingConfig,
    embedding_data: EmbeddingData,
    context: RunContext,
) -> EncoderSetup:
    """Set up the contrastive training of a stack on the pairs of the training split.

    Args:
        recipe: loss, batches, fraction of the pairs, hard negatives.
        stack: base and adapters.
        embedding_config: how a text becomes a vector.
        embedding_data: pairs of the books.
        context: device.
    """
    table, attrition = embedding_data.training_books.pairs, Attrition("share")
    tables = {split: table.filter(pc.equal(table["split"], split)) for split in ("train", "tuning")}
    tables["train"] = sample_training_pairs(
        tables["train"], recipe.training.fraction, recipe.seed, attrition
    )
    # train, tuning: (pairs,) rows of texts for anchors and for positives
    texts, train, tuning = _index_texts(tables["train"], tables["tuning"], embedding_config)
    encoder = inference.build_text_batch_encoder(
        stack,
        embedding_config,
        texts.prompted_texts,
        recipe.training.micro_batch_tokens,
        context.accelerator.device,
    )
    attributes = training.TextAttributes(
        encoder.lengths, texts.text_codes, texts.passage_codes, texts.section_codes
    )
    embedder = training.Embedder(encoder.embed, encoder.make_batches, stack.base.width)
    pairs = training.TextPairs(attributes, *train)
    notices: list[str] = []
    if encoder.truncated_texts:
        notices.append(
            f"{encoder.truncated_texts} of {len(encoder.lengths)} training texts are longer than "
            f"{embedding_config.max_tokens} tokens, and were cut"
        )
    if recipe.mining.hard_negatives:
        encode = functools.partial(
            inference.encode_texts, stack, embedding_config, precision="auto"
        )
        pairs, notice = _add_hard_negatives(recipe, encode, texts, pairs, context)
        notices.append(notice)
    evaluate = None
    if len(tuning[0]):
        tuning_pairs = training.TextPairs(attributes, *tuning)
        evaluate = training.build_tuning_evaluation(
            tuning_pairs, embedder, recipe.training, recipe.seed, context.accelerator
        )
    trainable = training.build_contrastive_trainable(
        pairs,
        embedder,
        stack.trained_parameters,
        stack.train,
        recipe.training,
        recipe.seed,
        context.accelerator,
        evaluate,
        training.TUNING_LOSS if evaluate else "",
    )
    # A few texts of either side, through the whole model with gradients.
    probe_texts = np.unique(np.concatenate([side[:PROBE_PAIR_COUNT] for side in train]))
    return EncoderSetup(
        stack,
        embedding_config,
        trainable,
        adapters.monitor_adapters(stack),
        lambda: encoder.embed(probe_texts),
        tuple(notices),
        {split: len(part) for split, part in tables.items()},
        attrition,
    )


def sample_training_pairs(
    pairs: pa.Table, fraction: float, seed: int, attrition: Attrition
) -> pa.Table:
    """Sample a fraction of the training pairs, in their order.

    Pairs are taken in the order of a hash of seed and id, so that a smaller fraction lies within a
    larger one.

    Args:
        pairs: of schema ``PAIR_SCHEMA``.
        fraction: of the pairs.
        seed: of the hash.
        attrition: the others are counted in it.

    Raises:
        InputError: fewer than two pairs are left; a contrastive loss needs two.
    """
    attrition.entered_rows += len(pairs)
    if fraction == 1.0:
        return pairs
    count = round(fraction * len(pairs))
    if count < 2:
        raise InputError(
            f"{fraction:g} of {len(pairs)} pairs is {count}, and a contrastive loss needs two",
            location="training.fraction",
            hint="take a larger fraction, or give more books",
        )
    digests = [
        hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
        for name in pairs["pair_id"].to_pylist()
    ]
    attrition.drop_rows(NOT_IN_TRAINING_FRACTION, len(pairs) - count)
    # Nested: the first k of one order, whatever k.
    by_digest = sorted(range(len(pairs)), key=digests.__getitem__)
    return pairs.take(pa.array(sorted(by_digest[:count])))


@dataclass(frozen=True)
class _PairTexts:
    """The texts of pairs, each once for each prompt.

    Attributes:
        prompted_texts: with the prompt of the side that a text stands on.
        text_codes, passage_codes, section_codes: (texts,) equal where two texts, or what they are
            of, are equal; -1 for unknown.
    """

    prompted_texts: list[str]
    text_codes: Any
    passage_codes: Any
    section_codes: Any


def _index_texts(
    train: pa.Table, tuning: pa.Table, embedding_config: EmbeddingConfig
) -> tuple[_PairTexts, tuple[Any, Any], tuple[Any, Any]]:
    """All texts, and both splits as rows of texts: (pairs,) anchors and (pairs,) positives."""
    row_of: dict[tuple[str, str], int] = {}
    passages: list[str | None] = []
    sections: list[tuple[str, str] | None] = []
    sides = []
    prompts = {
        "anchor": embedding_config.query_prompt,
        "positive": embedding_config.document_prompt,
    }
    for table in (train, tuning):
        for side, prompt in prompts.items():
            rows = []
            columns = (table[name].to_pylist() for name in (side, f"{side}_id", "book", "section"))
            for text, passage, book, section in zip(*columns, strict=True):
                row = row_of.setdefault((prompt, text), len(row_of))
                if row == len(passages):  # a new text: what it is of is that of its first pair
                    passages.append(passage)
                    sections.append(None if section is None else (book, section))
                rows.append(row)
            sides.append(np.asarray(rows, dtype=np.int64))
    texts = _PairTexts(
        [prompt + text for prompt, text in row_of],
        *(_factorize(values) for values in ([text for _, text in row_of], passages, sections)),
    )
    return texts, (sides[0], sides[1]), (sides[2], sides[3])


def _factorize(values: Sequence[Any]) -> Any:
    """(values,) equal numbers where they are equal; -1 for None."""
    codes: dict[Any, int] = {}
    return np.asarray(
        [-1 if value is None else codes.setdefault(value, len(codes)) for value in values],
        dtype=np.int64,
    )


def _add_hard_negatives(
    recipe: EmbedRecipe,
    encode: Callable[[list[str]], Any],
    texts: _PairTexts,
    pairs: training.TextPairs,
    context: RunContext,
) -> tuple[training.TextPairs, str]:
    """Mine negatives with the untrained model (NV-Retriever, arXiv 2407.15831)."""
    corpus = np.unique(pairs.positives)
    corpus_vectors = encode([texts.prompted_texts[row] for row in corpus])  # (corpus, width)
    anchors = encode([texts.prompted_texts[row] for row in pairs.anchors])  # (pairs, width)
    positives = corpus_vectors[np.searchsorted(corpus, pairs.positives)]
    mined = training.mine_hard_negatives(
        pairs,
        anchors,
        positives,
        corpus,
        corpus_vectors,
        recipe.mining,
        np.random.default_rng([recipe.seed, 5]),
        context.accelerator.device,
    )
    notice = (
        f"hard negatives: {mined.random_count} of {mined.negatives.size} are random texts, "
        f"{mined.missing_count} are missing"
    )
    return replace(pairs, negatives=mined.negatives), notice


def check_encoder_output(run: Run, device: Any) -> bool:
    """Load the encoder of a run and compare its output with the stored one.

    Returns:
        False where none was stored.

    Raises:
        ClinpeftError: the output differs, or the model cannot be loaded.
    """
    stack, _ = inference.load_encoder(run.folder, cast(EmbedRecipe, run.recipe).base, device)
    return adapters.check_stack_reference_output(stack, run.folder)
