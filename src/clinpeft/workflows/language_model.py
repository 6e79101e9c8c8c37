"""Steps of ``adapt``: a corpus as windows of tokens, likelihoods of its notes, the record."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinpeft import adapters, evaluation, models, runs, tokenization, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import SPLIT_NAMES, Attrition
from clinpeft.data import sources
from clinpeft.data.notes import CANARY_ID_PREFIX, build_note_corpus, insert_canaries
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AdaptRecipe
from clinpeft.runs import InputHashes, Run
from clinpeft.tokenization import EncodedCorpus
from clinpeft.training import LanguageModelingData, TokenLogitFunction
from clinpeft.workflows.context import (
    RunContext,
    compute_cache_key,
    get_code_version,
    summarize_training,
)
from clinpeft.workflows.fitting import FittedTraining


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus as windows of tokens, and the notes that were dropped on the way, by reason."""

    encodings: EncodedCorpus
    attrition: tuple[Attrition, ...]


def prepare_corpus(
    recipe: AdaptRecipe, base: FrozenBaseModel, hashes: InputHashes, context: RunContext
) -> PreparedCorpus:
    """Build the corpus of a recipe and cut it into windows of tokens.

    Both are computed once for all runs that need the same; the first process computes them, the
    others wait.

    Args:
        recipe: source, cleaning, split, canaries, window length.
        base: its tokenizer cuts the text.
        hashes: of the run; those of source and base are part of the cache keys.
        context: home and processes.
    """
    corpus_key = compute_cache_key(
        hashes.source, recipe.corpus.model_dump(), recipe.split.model_dump(), get_code_version()
    )
    objective = _resolve_objective(recipe, base)
    canaries = [recipe.privacy.model_dump(), recipe.seed] if recipe.privacy.canaries else []
    base_spec = recipe.base
    folder = context.get_cache_path(
        "tokens",
        *(corpus_key, hashes.base, base_spec.max_tokens, base_spec.overflow, objective, *canaries),
    )
    with context.accelerator.main_process_first():
        corpus = context.cache / f"corpus-{corpus_key}"
        attrition = _build_corpus(recipe, corpus)
        text, planted = prepare_canary_corpus(recipe, corpus / "corpus.parquet")
        if not tokenization.is_encoded(folder):
            layout = tokenization.create_special_token_layout(base.tokenizer, objective)
            tokenization.encode_corpus(text, base.tokenizer, layout, base_spec, folder)
    return PreparedCorpus(tokenization.open_encoded_corpus(folder), (*attrition, *planted))


def prepare_canary_corpus(recipe: AdaptRecipe, corpus: Path) -> tuple[Path, tuple[Attrition, ...]]:
    """Add the notes of synthetic people to a corpus, where the recipe requests canaries.

    Returns:
        The corpus to train on, and how many notes were added.
    """
    if not recipe.privacy.canaries:
        return corpus, ()
    key = compute_cache_key(recipe.privacy.model_dump(), recipe.seed)
    target = corpus.with_name(f"canaries-{key}.parquet")
    return target, (insert_canaries(corpus, recipe.privacy, recipe.seed, target),)


def _build_corpus(recipe: AdaptRecipe, folder: Path) -> tuple[Attrition, ...]:
    """Build the corpus into ``folder`` unless it is there; gives what was dropped on the way."""
    path = folder / "attrition.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        read = Attrition("read")
        notes = sources.read_notes(recipe.source, read, folder.parent)
        corpus = build_note_corpus(notes, recipe.corpus, recipe.split, recipe.split.seed, folder)
        steps = [step.as_json() for step in (read, *corpus.attrition)]
        runs.write_file_atomically(path, json.dumps(steps))  # last: the corpus is complete
    steps = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Attrition.from_json(step) for step in steps)


def _resolve_objective(recipe: AdaptRecipe, base: FrozenBaseModel) -> str:
    """The objective by name; ``auto`` is the one that the base was pretrained with."""
    requested = recipe.training.objective
    if requested not in ("auto", base.family.objective):
        raise RecipeError(
            f"{requested!r} does not fit {type(base.model).__name__}",
            location="training.objective",
            hint=f'leave training.objective at "auto", or take a base that fits {requested}',
        )
    return base.family.objective


def build_language_data(
    recipe: AdaptRecipe, base: FrozenBaseModel, encodings: EncodedCorpus
) -> LanguageModelingData:
    """Collect windows and objective of the training."""
    return LanguageModelingData(
        encodings,
        base.tokenizer,
        training.LANGUAGE_OBJECTIVES[_resolve_objective(recipe, base)],
        recipe.seed,
        encodings.select_windows("train"),
        encodings.select_windows("tuning", recipe.evaluation.max_notes),
        training.LanguageModelHead(base.model),
    )


def select_evaluation_windows(
    recipe: AdaptRecipe, encodings: EncodedCorpus
) -> tokenization.IndexArray:
    """Select the windows that perplexities are computed on.

    Returns:
        (windows,) of every split, each within ``evaluation.max_notes``, without canaries.
    """
    windows = np.concatenate(
        [encodings.select_windows(split, recipe.evaluation.max_notes) for split in SPLIT_NAMES]
    )
    if not recipe.privacy.canaries:
        return windows
    without: tokenization.IndexArray = windows[
        ~find_canary_notes(encodings)[encodings.window_notes[windows]]
    ]
    return without


def find_canary_notes(encodings: EncodedCorpus) -> NDArray[np.bool_]:
    """Find the notes on synthetic people, which are trained on and counted in no other result.

    Returns:
        (notes,) whether each row of ``encodings.note_table`` is one.
    """
    is_canary: NDArray[np.bool_] = pc.starts_with(
        encodings.note_table["note_id"], CANARY_ID_PREFIX
    ).to_numpy(zero_copy_only=False)
    return is_canary


def score_notes(
    recipe: AdaptRecipe,
    language_data: LanguageModelingData,
    forward: TokenLogitFunction,
    context: RunContext,
) -> pa.Table:
    """Compute the likelihood of every evaluation note under a model.

    Returns:
        Table of schema ``LIKELIHOOD_SCHEMA``.
    """
    return training.compute_note_likelihoods(
        forward,
        language_data,
        select_evaluation_windows(recipe, language_data.encodings),
        recipe.training.micro_batch_tokens,
        context.accelerator,
    )


def score_base_notes(
    run: Run, language_data: LanguageModelingData, base: FrozenBaseModel, context: RunContext
) -> pa.Table:
    """Compute ``score_notes`` of the base without adapters, once for all cells of a grid."""
    recipe = cast(AdaptRecipe, run.recipe)
    path = context.get_cache_path(
        "base",
        language_data.encodings.folder.name,
        run.record.hashes.base,
        base.precision_reason,
        base.quantization,
        base.kernels,
        recipe.evaluation.max_notes,
        str(context.accelerator.device.type),
        suffix=".parquet",
    )
    if not path.exists():
        bare = adapters.attach_adapters(base, ())
        forward = functools.partial(adapters.compute_token_logits, bare)
        table = score_notes(recipe, language_data, forward, context)
        if context.accelerator.is_main_process:
            pq.write_table(table, path.with_suffix(".writing"))
            path.with_suffix(".writing").replace(path)
        context.accelerator.wait_for_everyone()
    return pq.read_table(path)


def score_all_states(
    recipe: AdaptRecipe,
    language_data: LanguageModelingData,
    base_likelihoods: pa.Table,
    forward: TokenLogitFunction,
    context: RunContext,
) -> dict[str, pa.Table]:
    """Compute the likelihoods of the evaluation notes under unigrams, base and adapted model.

    Returns:
        State -> table of schema ``LIKELIHOOD_SCHEMA``.
    """
    unigram = training.compute_unigram_likelihoods(
        language_data,
        language_data.train_windows,
        select_evaluation_windows(recipe, language_data.encodings),
    )
    adapted = score_notes(recipe, language_data, forward, context)
    return {"unigram": unigram, "base": base_likelihoods, "adapted": adapted}


def compute_perplexity_results(recipe: AdaptRecipe, likelihoods: dict[str, pa.Table]) -> pa.Table:
    """Compute the perplexity of every state on every split, and the ratio of adapted to base.

    Each is resampled with the same seed, so that intervals of all states come from the same
    subjects.

    Returns:
        Table of schema ``METRIC_RESULT_SCHEMA``.
    """
    spec = recipe.evaluation
    create_rng: Callable[[], np.random.Generator] = functools.partial(
        np.random.default_rng, [recipe.seed, 1]
    )
    rows = [
        evaluation.evaluate_perplexity(table, state, spec, create_rng())
        for state, table in likelihoods.items()
    ]
    rows.append(
        evaluation.compare_perplexity(
            likelihoods["base"], likelihoods["adapted"], spec, create_rng()
        )
    )
    return pa.concat_tables(rows)


def record_adapt_run(
    run: Run,
    stack: Stack,
    fitted: FittedTraining,
    likelihoods: dict[str, pa.Table],
    corpus: PreparedCorpus,
    context: RunContext,
) -> Run:
    """Write adapter, tokenizer, results and record into the run's folder, by the first process."""
    recipe = cast(AdaptRecipe, run.recipe)
    results = compute_perplexity_results(recipe, likelihoods)
    if not context.accelerator.is_main_process:
        return run
    adapters.save_adapter(stack, run.folder / "adapter")
    adapters.save_stack_reference_output(stack, run.folder)
    stack.base.tokenizer.save_pretrained(run.folder / "tokenizer")
    canaries, repeats = recipe.privacy.canaries, recipe.privacy.repeats
    notices = [
        f"{canaries * sum(repeats)} notes on {canaries * len(repeats)} invented people were put "
        "among the training notes, to measure what is memorized"
    ]
    return runs.finish_run(
        run,
        results=results,
        attrition=(*corpus.attrition, corpus.encodings.attrition),
        likelihoods=likelihoods,
        differential_privacy=fitted.privacy,
        **summarize_training(run, context, stack, fitted.result),
        notices=(*stack.notices, *(notices if canaries else ())),
    )


def check_language_model_output(run: Run, device: object) -> bool:
    """Load base and adapter of a run and compare their output with the stored one.

    Returns:
        False where none was stored.

    Raises:
        ClinpeftError: the output differs, or the model cannot be loaded.
    """
    base = models.load_base_model(cast(AdaptRecipe, run.recipe).base, device)  # type: ignore[arg-type]
    stack = adapters.load_adapter(base, run.folder / "adapter")
    return adapters.check_stack_reference_output(stack, run.folder)
