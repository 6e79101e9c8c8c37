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
from clinpeft.core.schemas import SPLITS, Attrition
from clinpeft.data.notes import sources
from clinpeft.data.notes.corpus import MARK, build, with_canaries
from clinpeft.models import Base
from clinpeft.recipe import AdaptRecipe, CorpusSpec, SourceSpec, SplitSpec
from clinpeft.runs import Hashes, Run
from clinpeft.tokenization import Encodings
from clinpeft.training import Crew, Fitted, Forward, Lesson
from clinpeft.workflows.context import Circumstances, code_version, key, outcome


def encoded(
    recipe: AdaptRecipe, base: Base, home: Path, accelerator: Crew, hashes: Hashes
) -> tuple[Encodings, tuple[Attrition, ...]]:
    """Windows of tokens, made once for all runs that ask for the same ones; the first process makes them, the others wait."""
    corpus_key = key(
        hashes.source, recipe.corpus.model_dump(), recipe.split.model_dump(), code_version()
    )
    objective = _objective(recipe, base)
    canaries = [recipe.privacy.model_dump(), recipe.seed] if recipe.privacy.canaries else []
    token_key = key(
        corpus_key, hashes.base, recipe.base.max_tokens, recipe.base.overflow, objective, *canaries
    )
    corpus, folder = home / "cache" / f"corpus-{corpus_key}", home / "cache" / f"tokens-{token_key}"
    with accelerator.main_process_first():
        attrition = _corpus(recipe.source, recipe.corpus, recipe.split, corpus)
        text, planted = canary_corpus(recipe, corpus / "corpus.parquet")
        if not tokenization.is_encoded(folder):
            shape = tokenization.layout(base.tokenizer, objective)
            tokenization.encode(text, base.tokenizer, shape, recipe.base, folder)
    return tokenization.open_encodings(folder), (*attrition, *planted)


def canary_corpus(recipe: AdaptRecipe, corpus: Path) -> tuple[Path, tuple[Attrition, ...]]:
    """The corpus to learn from: with invented people in it where the recipe asks for them, and how many of their notes were put in."""
    if not recipe.privacy.canaries:
        return corpus, ()
    target = corpus.with_name(f"canaries-{key(recipe.privacy.model_dump(), recipe.seed)}.parquet")
    return target, (with_canaries(corpus, recipe.privacy, recipe.seed, target),)


def _corpus(
    source: SourceSpec, spec: CorpusSpec, split: SplitSpec, folder: Path
) -> tuple[Attrition, ...]:
    """The corpus in ``folder`` and what was dropped on the way to it, made once."""
    counted = folder / "attrition.json"
    if not counted.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        read = Attrition("read")
        corpus = build(sources.read(source, read, folder.parent), spec, split, split.seed, folder)
        runs.write_atomically(
            counted, json.dumps([step.as_json() for step in (read, *corpus.attrition)])
        )
    return tuple(
        Attrition.from_json(step) for step in json.loads(counted.read_text(encoding="utf-8"))
    )


def _objective(recipe: AdaptRecipe, base: Base) -> str:
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


def lesson_of(recipe: AdaptRecipe, base: Base, encodings: Encodings) -> Lesson:
    """What is learned from the windows."""
    asking = training.OBJECTIVES[_objective(recipe, base)]
    train, tuning = (
        encodings.windows("train"),
        encodings.windows("tuning", recipe.evaluation.max_notes),
    )
    return Lesson(
        encodings,
        base.tokenizer,
        asking,
        recipe.seed,
        train,
        tuning,
        training.Vocabulary(base.model),
    )


def bare(base: Base) -> Forward:
    """The base as it comes."""
    nothing = adapters.attach(base, ())
    return lambda input_ids, attention_mask: adapters.logits(nothing, input_ids, attention_mask)


def asked(recipe: AdaptRecipe, encodings: Encodings) -> tokenization.Ints:
    """The windows that perplexities are measured on: every split, each within ``evaluation.max_notes``."""
    windows = np.concatenate(
        [encodings.windows(split, recipe.evaluation.max_notes) for split in SPLITS]
    )
    return (
        windows[~canary_notes(encodings)[encodings.notes[windows]]]
        if recipe.privacy.canaries
        else windows
    )


def canary_notes(encodings: Encodings) -> NDArray[np.bool_]:
    """Which notes are about invented people, a truth value for each row of ``encodings.table``: they are learned, and are in no other number."""
    found: NDArray[np.bool_] = pc.starts_with(encodings.table["note_id"], MARK).to_numpy(
        zero_copy_only=False
    )
    return found


def scored(recipe: AdaptRecipe, lesson: Lesson, accelerator: Crew, forward: Forward) -> pa.Table:
    """What a model thinks of the notes that are asked."""
    return training.likelihoods(
        forward,
        lesson,
        asked(recipe, lesson.encodings),
        recipe.training.micro_batch_tokens,
        accelerator,
    )


def remembered(
    home: Path,
    run: Run,
    encodings: Encodings,
    base: Base,
    accelerator: Crew,
    score: Callable[[], pa.Table],
) -> pa.Table:
    """What the bare base thinks of the notes: the same in every cell of a grid, so it is asked once."""
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    notes = encodings.folder.name
    name = key(
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
        table = score()
        if accelerator.is_main_process:
            pq.write_table(table, path.with_suffix(".writing"))
            path.with_suffix(".writing").replace(path)
        accelerator.wait_for_everyone()
    return pq.read_table(path)


def perplexities(recipe: AdaptRecipe, thought: dict[str, pa.Table]) -> pa.Table:
    """Every state on every split, and the paired ratio of adapted to base."""
    spec = recipe.evaluation
    rows = [
        evaluation.perplexity(table, state, spec, np.random.default_rng([recipe.seed, 1]))
        for state, table in thought.items()
    ]
    rows.append(
        evaluation.difference(
            thought["base"], thought["adapted"], spec, np.random.default_rng([recipe.seed, 1])
        )
    )
    return pa.concat_tables(rows)


def recorded(
    run: Run,
    context: Circumstances,
    accelerator: Crew,
    stack: Stack,
    fitted: Fitted,
    results: pa.Table,
    attrition: tuple[Attrition, ...],
    thought: dict[str, pa.Table],
    noise: dict[str, Any] | None = None,
) -> Run:
    """Adapter, tokenizer, numbers and record into the run folder, by the first process."""
    if not accelerator.is_main_process:
        return run
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    adapters.save(stack, run.folder / "adapter")
    adapters.keep_probe(stack, run.folder)
    stack.base.tokenizer.save_pretrained(run.folder / "tokenizer")
    return runs.record(
        run,
        results=results,
        attrition=attrition,
        likelihoods=thought,
        private=noise,
        **outcome(run, context, accelerator, stack, fitted),
        notices=(*stack.notices, *_planted(recipe)),
    )


def _planted(recipe: AdaptRecipe) -> tuple[str, ...]:
    asked = recipe.privacy
    if not asked.canaries:
        return ()
    notes, people = asked.canaries * sum(asked.repeats), asked.canaries * len(asked.repeats)
    return (
        f"{notes} notes on {people} invented people were put among the training notes, to measure what is remembered",
    )
