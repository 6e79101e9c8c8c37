"""READ FIRST: the paper's method, one room a line.

``adapt`` is the first half of arXiv 2307.03042: a frozen language model learns the language of clinical notes with a small adapter.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import clinpeft
from clinpeft import adapters, corpora, evaluation, models, registry, sources, tokens, training
from clinpeft.errors import RecipeError
from clinpeft.models import Base
from clinpeft.recipe import AdaptRecipe, CorpusSpec, EvaluationSpec, SourceSpec, SplitSpec
from clinpeft.registry import Comparison, Hardware, Hashes, Run, RunRecord
from clinpeft.tables import SPLITS, Attrition
from clinpeft.tokens import Encodings
from clinpeft.training import Crew, Event, Forward, Lesson, Watch


@dataclass(frozen=True)
class Circumstances:
    """What only the outermost room may look at: the clock, and what was typed where.

    Attributes:
        now: the time, with its zone.
        command: as typed.
        git_commit: of the working tree, or None outside one.
        versions: of Python and the libraries.
        tell, stopping: who watches training, and who may stop it.
    """

    now: Callable[[], datetime]
    command: str = ""
    git_commit: str | None = None
    versions: dict[str, str] | None = None
    tell: Callable[[Event], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False


def adapt(recipe: AdaptRecipe, home: Path, around: Circumstances) -> Run:
    """Notes in, a recorded adapter out. The same recipe, source, base and code give the same run, which is made once.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    crew = training.assemble()
    with _opened(recipe, home, around, crew) as run:
        if run.record.state == "finished":
            return run
        base = models.load(recipe.base, crew.device)
        encodings, attrition = _encoded(recipe, base, home, crew, run.record.hashes)
        lesson = _lesson(recipe, base, encodings)
        scoring = functools.partial(_scored, recipe, lesson, crew)
        before = _remembered(home, run, encodings, base, crew, lambda: scoring(_bare(base)))
        stack = adapters.attach(base, recipe.adapters, seed=recipe.seed)
        forward = functools.partial(adapters.logits, stack)
        watch = Watch(functools.partial(_heard, run, around), around.stopping)
        fitted = training.fit(stack, forward, lesson, recipe.training, crew, run.folder / "checkpoints", watch)
        stack.model.eval()
        thought = {"unigram": training.unigram(lesson, lesson.train, _asked(recipe, encodings)), "base": before, "adapted": scoring(forward)}
        results = _perplexities(recipe, thought)
        return _recorded(run, around, crew, fitted, results, (*attrition, encodings.attrition), thought)


def compared(home: Path, first: str, second: str) -> tuple[Comparison, pa.Table | None, str]:
    """Two runs side by side, the paired ratio of their perplexities, and, where there is none, the reason."""
    one, other = registry.find(home, first), registry.find(home, second)
    found = registry.compare(one, other)
    if found.incomparable:
        return found, None, found.incomparable
    before, after = registry.likelihoods(one, "adapted"), registry.likelihoods(other, "adapted")
    names = (one.id, other.id)
    reason = evaluation.mismatch(before, after, names)
    spec = one.recipe.evaluation if isinstance(one.recipe, AdaptRecipe) else EvaluationSpec()
    paired = None if reason else evaluation.difference(before, after, spec, np.random.default_rng([one.recipe.seed, 1]), names)
    return found, paired, reason


@contextlib.contextmanager
def _opened(recipe: AdaptRecipe, home: Path, around: Circumstances, crew: Crew) -> Iterator[Run]:
    """The run, held by the first process alone; how it ends is written down whatever happens."""
    opening = _opening(recipe, around, crew)
    if not crew.is_main_process:
        folder = home / opening.id
        yield registry.read(folder) if (folder / "run.json").exists() else Run(folder, recipe, opening)
        return
    with registry.open_run(home, recipe, opening) as run:
        try:
            yield run
        except BaseException as error:
            if run.record.state != "finished":
                registry.fail(run, error, around.now())
            raise


def _opening(recipe: AdaptRecipe, around: Circumstances, crew: Crew) -> RunRecord:
    source, base = sources.fingerprint(recipe.source), models.fingerprint(recipe.base.path)
    policy = corpora.policy_version(recipe.corpus.deidentification)
    now = around.now()
    return RunRecord(
        id=registry.identity(recipe, source, base, code_version()),
        name=recipe.name,
        kind=recipe.kind,
        created=now,
        started=now,
        command=around.command,
        git_commit=around.git_commit,
        versions=(around.versions or {}) | {"clinpeft": code_version()},
        hashes=Hashes(source=source, base=base, corpus_policy=policy),
        hardware=Hardware(**training.hardware(crew)),
    )


@functools.cache
def code_version() -> str:
    """The version and a hash of the code, so that a result is never taken for that of other code."""
    folder = Path(clinpeft.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".sql", ".toml")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"{clinpeft.__version__}+{digest.hexdigest()[:8]}"


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _encoded(recipe: AdaptRecipe, base: Base, home: Path, crew: Crew, hashes: Hashes) -> tuple[Encodings, tuple[Attrition, ...]]:
    """Windows of tokens, made once for all runs that ask for the same ones; the first process makes them, the others wait."""
    corpus_key = _key(hashes.source, recipe.corpus.model_dump(), recipe.split.model_dump(), recipe.seed, code_version())
    objective = _objective(recipe, base)
    token_key = _key(corpus_key, hashes.base, recipe.base.max_tokens, recipe.base.overflow, objective)
    corpus, folder = home / "cache" / f"corpus-{corpus_key}", home / "cache" / f"tokens-{token_key}"
    with crew.main_process_first():
        attrition = _corpus(recipe.source, recipe.corpus, recipe.split, recipe.seed, corpus)
        if not tokens.is_encoded(folder):
            shape = tokens.layout(base.tokenizer, objective)
            tokens.encode(corpus / "corpus.parquet", base.tokenizer, shape, recipe.base, folder)
    return tokens.open_encodings(folder), attrition


def _corpus(source: SourceSpec, spec: CorpusSpec, split: SplitSpec, seed: int, folder: Path) -> tuple[Attrition, ...]:
    """The corpus in ``folder`` and what was dropped on the way to it, made once."""
    counted = folder / "attrition.json"
    if not counted.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        read = Attrition("read")
        corpus = corpora.build(sources.read(source, read, folder.parent), spec, split, seed, folder)
        registry.write_atomically(counted, json.dumps([step.as_json() for step in (read, *corpus.attrition)]))
    return tuple(Attrition.from_json(step) for step in json.loads(counted.read_text(encoding="utf-8")))


def _objective(recipe: AdaptRecipe, base: Base) -> str:
    asked = recipe.training.objective
    name = base.family.objective if asked == "auto" else asked
    if name != base.family.objective:
        way_out = f'leave training.objective at "auto", or take a base that fits {name}'
        raise RecipeError(f"{asked!r} does not fit {type(base.model).__name__}", place="training.objective", way_out=way_out)
    return name


def _lesson(recipe: AdaptRecipe, base: Base, encodings: Encodings) -> Lesson:
    asking = training.OBJECTIVES[_objective(recipe, base)]
    return Lesson(
        encodings, base.tokenizer, asking, recipe.seed, encodings.windows("train"), encodings.windows("tuning", recipe.evaluation.max_notes)
    )


def _bare(base: Base) -> Forward:
    return lambda input_ids, attention_mask: base.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _asked(recipe: AdaptRecipe, encodings: Encodings) -> tokens.Ints:
    """The windows that perplexities are measured on: every split, each within ``evaluation.max_notes``."""
    return np.concatenate([encodings.windows(split, recipe.evaluation.max_notes) for split in SPLITS])


def _scored(recipe: AdaptRecipe, lesson: Lesson, crew: Crew, forward: Forward) -> pa.Table:
    return training.likelihoods(forward, lesson, _asked(recipe, lesson.encodings), recipe.training.micro_batch_tokens, crew)


def _remembered(home: Path, run: Run, encodings: Encodings, base: Base, crew: Crew, score: Callable[[], pa.Table]) -> pa.Table:
    """What the bare base thinks of the notes: the same in every cell of a grid, so it is asked once."""
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    notes = encodings.folder.name
    key = _key(notes, run.record.hashes.base, base.precision_reason, recipe.evaluation.max_notes, str(crew.device.type))
    path = home / "cache" / f"base-{key}.parquet"
    if not path.exists():
        table = score()
        if crew.is_main_process:
            pq.write_table(table, path.with_suffix(".writing"))
            path.with_suffix(".writing").replace(path)
        crew.wait_for_everyone()
    return pq.read_table(path)


def _heard(run: Run, around: Circumstances, event: Event) -> None:
    """Into the log, and to whoever watches."""
    values = {
        "step": event.step,
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "tokens": event.tokens,
        "seconds": round(event.seconds, 3),
    }
    if event.tuning_perplexity is not None:
        values["tuning_perplexity"] = event.tuning_perplexity
    registry.append(run, "step", **values)
    around.tell(event)


def _perplexities(recipe: AdaptRecipe, thought: dict[str, pa.Table]) -> pa.Table:
    """Every state on every split, and the paired ratio of adapted to base."""
    spec = recipe.evaluation
    rows = [evaluation.perplexity(table, state, spec, np.random.default_rng([recipe.seed, 1])) for state, table in thought.items()]
    rows.append(evaluation.difference(thought["base"], thought["adapted"], spec, np.random.default_rng([recipe.seed, 1])))
    return pa.concat_tables(rows)


def _recorded(
    run: Run,
    around: Circumstances,
    crew: Crew,
    fitted: training.Fitted,
    results: pa.Table,
    attrition: tuple[Attrition, ...],
    thought: dict[str, pa.Table],
) -> Run:
    """Adapter, tokenizer, numbers and record into the run folder, by the first process."""
    if not crew.is_main_process:
        return run
    stack = fitted.stack
    adapters.save(stack, run.folder / "adapter")
    stack.base.tokenizer.save_pretrained(run.folder / "tokenizer")
    finished = around.now()
    return registry.record(
        run,
        results=results,
        attrition=attrition,
        likelihoods=thought,
        finished=finished,
        trained_parameters=stack.counts.trained,
        base_parameters=stack.counts.base,
        share=stack.counts.share,
        precision=str(stack.base.precision).removeprefix("torch."),
        precision_reason=stack.base.precision_reason,
        counts={"steps": fitted.progress.step, "best_step": fitted.progress.best_step, "total_steps": fitted.total_steps},
        tokens_seen=fitted.progress.tokens,
        training_seconds=fitted.progress.seconds,
        total_seconds=(finished - run.record.started).total_seconds(),
        notices=stack.notices,
    )
