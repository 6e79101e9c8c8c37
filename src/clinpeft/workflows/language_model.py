"""The parts of ``adapt``: windows of tokens, what was thought of them before and after, the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinpeft import adapters, evaluation, runs, tokenization, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import SPLIT_NAMES, Attrition
from clinpeft.data.notes import sources
from clinpeft.data.notes.corpus import CANARY_ID_PREFIX, build_note_corpus, insert_canaries
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AdaptRecipe, CorpusSpec, SourceSpec, SplitSpec
from clinpeft.runs import InputHashes, Run
from clinpeft.tokenization import EncodedCorpus
from clinpeft.training import Accelerator, LanguageModelingData, TokenLogitFunction, TrainingResult
from clinpeft.workflows.context import (
    RunContext,
    compute_cache_key,
    get_code_version,
    summarize_training,
)


def prepare_corpus_encodings(
    recipe: AdaptRecipe,
    base: FrozenBaseModel,
    home: Path,
    accelerator: Accelerator,
    hashes: InputHashes,
) -> tuple[EncodedCorpus, tuple[Attrition, ...]]:
    """Windows of tokens, made once for all runs that ask for the same ones; the first process makes them, the others wait."""
    corpus_key = compute_cache_key(
        hashes.source, recipe.corpus.model_dump(), recipe.split.model_dump(), get_code_version()
    )
    objective = _resolve_objective(recipe, base)
    canaries = [recipe.privacy.model_dump(), recipe.seed] if recipe.privacy.canaries else []
    token_key = compute_cache_key(
        corpus_key, hashes.base, recipe.base.max_tokens, recipe.base.overflow, objective, *canaries
    )
    corpus, folder = home / "cache" / f"corpus-{corpus_key}", home / "cache" / f"tokens-{token_key}"
    with accelerator.main_process_first():
        attrition = _build_corpus(recipe.source, recipe.corpus, recipe.split, corpus)
        text, planted = prepare_canary_corpus(recipe, corpus / "corpus.parquet")
        if not tokenization.is_encoded(folder):
            shape = tokenization.create_special_token_layout(base.tokenizer, objective)
            tokenization.encode_corpus(text, base.tokenizer, shape, recipe.base, folder)
    return tokenization.open_encoded_corpus(folder), (*attrition, *planted)


def prepare_canary_corpus(recipe: AdaptRecipe, corpus: Path) -> tuple[Path, tuple[Attrition, ...]]:
    """The corpus to learn from: with invented people in it where the recipe asks for them, and how many of their notes were put in."""
    if not recipe.privacy.canaries:
        return corpus, ()
    target = corpus.with_name(
        f"canaries-{compute_cache_key(recipe.privacy.model_dump(), recipe.seed)}.parquet"
    )
    return target, (insert_canaries(corpus, recipe.privacy, recipe.seed, target),)


def _build_corpus(
    source: SourceSpec, spec: CorpusSpec, split: SplitSpec, folder: Path
) -> tuple[Attrition, ...]:
    """The corpus in ``folder`` and what was dropped on the way to it, made once."""
    counted = folder / "attrition.json"
    if not counted.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        read = Attrition("read")
        corpus = build_note_corpus(
            sources.read_notes(source, read, folder.parent), spec, split, split.seed, folder
        )
        runs.write_file_atomically(
            counted, json.dumps([step.as_json() for step in (read, *corpus.attrition)])
        )
    return tuple(
        Attrition.from_json(step) for step in json.loads(counted.read_text(encoding="utf-8"))
    )


def _resolve_objective(recipe: AdaptRecipe, base: FrozenBaseModel) -> str:
    asked = recipe.training.objective
    name = base.family.objective if asked == "auto" else asked
    if name != base.family.objective:
        hint = f'leave training.objective at "auto", or take a base that fits {name}'
        raise RecipeError(
            f"{asked!r} does not fit {type(base.model).__name__}",
            location="training.objective",
            hint=hint,
        )
    return name


def build_language_data(
    recipe: AdaptRecipe, base: FrozenBaseModel, encodings: EncodedCorpus
) -> LanguageModelingData:
    """What is learned from the windows."""
    asking = training.LANGUAGE_OBJECTIVES[_resolve_objective(recipe, base)]
    train, tuning = (
        encodings.select_windows("train"),
        encodings.select_windows("tuning", recipe.evaluation.max_notes),
    )
    return LanguageModelingData(
        encodings,
        base.tokenizer,
        asking,
        recipe.seed,
        train,
        tuning,
        training.LanguageModelHead(base.model),
    )


def build_base_forward(base: FrozenBaseModel) -> TokenLogitFunction:
    """The base as it comes."""
    nothing = adapters.attach_adapters(base, ())
    return lambda input_ids, attention_mask: adapters.compute_token_logits(
        nothing, input_ids, attention_mask
    )


def select_evaluation_windows(
    recipe: AdaptRecipe, encodings: EncodedCorpus
) -> tokenization.IndexArray:
    """The windows that perplexities are measured on: every split, each within ``evaluation.max_notes``."""
    windows = np.concatenate(
        [encodings.select_windows(split, recipe.evaluation.max_notes) for split in SPLIT_NAMES]
    )
    return (
        windows[~find_canary_notes(encodings)[encodings.window_notes[windows]]]
        if recipe.privacy.canaries
        else windows
    )


def find_canary_notes(encodings: EncodedCorpus) -> NDArray[np.bool_]:
    """Which notes are about invented people, a truth value for each row of ``encodings.table``: they are learned, and are in no other number."""
    found: NDArray[np.bool_] = pc.starts_with(
        encodings.note_table["note_id"], CANARY_ID_PREFIX
    ).to_numpy(zero_copy_only=False)
    return found


def score_note_likelihoods(
    recipe: AdaptRecipe,
    language_data: LanguageModelingData,
    accelerator: Accelerator,
    forward: TokenLogitFunction,
) -> pa.Table:
    """What a model thinks of the notes that are asked."""
    return training.compute_note_likelihoods(
        forward,
        language_data,
        select_evaluation_windows(recipe, language_data.encodings),
        recipe.training.micro_batch_tokens,
        accelerator,
    )


def cache_base_likelihoods(
    home: Path,
    run: Run,
    encodings: EncodedCorpus,
    base: FrozenBaseModel,
    accelerator: Accelerator,
    score_base: Callable[[], pa.Table],
) -> pa.Table:
    """What the bare base thinks of the notes: the same in every cell of a grid, so it is asked once."""
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    notes = encodings.folder.name
    name = compute_cache_key(
        notes,
        run.record.hashes.base,
        base.precision_reason,
        base.quantization,
        base.kernels,
        recipe.evaluation.max_notes,
        str(accelerator.device.type),
    )
    path = home / "cache" / f"base-{name}.parquet"
    if not path.exists():
        table = score_base()
        if accelerator.is_main_process:
            pq.write_table(table, path.with_suffix(".writing"))
            path.with_suffix(".writing").replace(path)
        accelerator.wait_for_everyone()
    return pq.read_table(path)


def compute_perplexity_results(recipe: AdaptRecipe, likelihoods: dict[str, pa.Table]) -> pa.Table:
    """Every state on every split, and the paired ratio of adapted to base."""
    spec = recipe.evaluation
    rows = [
        evaluation.evaluate_perplexity(table, state, spec, np.random.default_rng([recipe.seed, 1]))
        for state, table in likelihoods.items()
    ]
    rows.append(
        evaluation.compare_perplexity(
            likelihoods["base"],
            likelihoods["adapted"],
            spec,
            np.random.default_rng([recipe.seed, 1]),
        )
    )
    return pa.concat_tables(rows)


def record_adapt_run(
    run: Run,
    context: RunContext,
    accelerator: Accelerator,
    stack: Stack,
    training_result: TrainingResult,
    results: pa.Table,
    attrition: tuple[Attrition, ...],
    likelihoods: dict[str, pa.Table],
    privacy_accounting: dict[str, Any] | None = None,
) -> Run:
    """Adapter, tokenizer, numbers and record into the run folder, by the first process."""
    if not accelerator.is_main_process:
        return run
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    adapters.save_adapter(stack, run.folder / "adapter")
    adapters.save_stack_reference_output(stack, run.folder)
    stack.base.tokenizer.save_pretrained(run.folder / "tokenizer")
    return runs.finish_run(
        run,
        results=results,
        attrition=attrition,
        likelihoods=likelihoods,
        private=privacy_accounting,
        **summarize_training(run, context, accelerator, stack, training_result),
        notices=(*stack.notices, *_describe_canaries(recipe)),
    )


def _describe_canaries(recipe: AdaptRecipe) -> tuple[str, ...]:
    asked = recipe.privacy
    if not asked.canaries:
        return ()
    notes, people = asked.canaries * sum(asked.repeats), asked.canaries * len(asked.repeats)
    return (
        f"{notes} notes on {people} invented people were put among the training notes, to measure what is remembered",
    )
