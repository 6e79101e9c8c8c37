"""The privacy audit of a run: is a person recognised, is an invented secret known, are notes given back word for word."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinpeft import adapters, evaluation, inference, models, tokenization, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import InputError, UsageError
from clinpeft.core.schemas import RESULT
from clinpeft.data.notes import corpus
from clinpeft.evaluation import Attack
from clinpeft.models import Base
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe
from clinpeft.runs import (
    PRIVACY,
    Run,
    find,
    likelihoods,
    privacy_of,
    refuse_changed,
    weights_of,
    write_atomically,
)
from clinpeft.tokenization import Encodings
from clinpeft.training import Crew
from clinpeft.workflows import language_model, task_cohorts

STATES = ("base", "adapted")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """How hard a run is attacked.

    Attributes:
        resamples, level, seed: of the intervals and of every draw.
        prompt_tokens, continuation_tokens: of a note, what the model is shown and how far it goes on.
        overlap_tokens: from how many tokens in a row something counts as given back.
        subjects: at most so many of each split are asked for their words.
        candidates: among which an invented secret is ranked.
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    prompt_tokens: int = 32
    continuation_tokens: int = 32
    overlap_tokens: int = 16
    subjects: int = 100
    candidates: int = 1000

    @property
    def attack(self) -> Attack:
        """What the numbers need of it."""
        return Attack(self.resamples, self.level, self.seed)


@dataclass(frozen=True)
class Audited:
    """What an audit found: results, and of every attack that could not be made the reason."""

    results: pa.Table
    left_out: dict[str, str]


def audited(home: Path, text: str, asked: Asked, now: datetime, version: str) -> Run:
    """Attack a finished run and write what came out into its folder as ``privacy.json``; of classify also ``privacy/``, the probabilities by split.

    The record names the hashes of the weights that were attacked, so that it is not taken for the audit of others.

    Raises:
        UsageError: there is no such run.
        RefusedError: the run's files are not those that it finished with.
        InputError: what it learned from is not there any more.
    """
    run = find(home, text, finished=True)
    refuse_changed(run)
    found = {"adapt": _of_language, "classify": _of_answers, "embed": _of_vectors}[run.recipe.kind](
        run, home, asked
    )
    rows = found.results.to_pylist()
    whole = {
        "format": 1,
        "run": run.id,
        "kind": run.recipe.kind,
        "weights": weights_of(run.folder),
        "made": now.isoformat(),
        "clinpeft": version,
        "asked": asdict(asked),
        "results": rows,
        "left_out": found.left_out,
    }
    write_atomically(run.folder / PRIVACY, json.dumps(whole, indent=1) + "\n")
    return run


def _of_vectors(run: Run, home: Path, asked: Asked) -> Audited:  # noqa: ARG001 - one signature for every kind
    reason = "the run learned from books and not from people; no attack by subject is defined"
    return Audited(
        RESULT.empty_table(), {"membership": reason, "verbatim": reason, "canaries": reason}
    )


# ------------------------------------------------------------------------------------------------------------------------- language


def _of_language(run: Run, home: Path, asked: Asked) -> Audited:
    """Membership from what base and adapted model thought of every note at the end of the run; the rest asks the model anew."""
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    results, left_out = [_members(run, asked)], {}
    accelerator = training.assemble()
    base = models.load(recipe.base, accelerator.device)
    stack = adapters.load(base, run.folder / "adapter")
    if base.family.objective == "causal-lm":
        encodings, _ = language_model.encoded(recipe, base, home, accelerator, run.record.hashes)
        results.append(_verbatim(stack, encodings, asked))
        results.append(_known_secrets(recipe, stack, home, accelerator, asked))
    else:
        reason = "the model fills in masked words and does not go on with a text"
        left_out = {"verbatim": reason, "canaries": reason}
    if not recipe.privacy.canaries:
        left_out["canaries"] = "the recipe put none in: set privacy.canaries, and train again"
    return Audited(pa.concat_tables(results), left_out)


def _members(run: Run, asked: Asked) -> pa.Table:
    """The gain in log-likelihood from base to adapted, of each subject: the base is the reference that says how easy a note is for anybody."""
    before, after = (likelihoods(run, state).sort_by("note_id") for state in STATES)
    if not len(before) or not before["note_id"].equals(after["note_id"]):
        raise InputError(
            f"run {run.id} has no likelihoods of base and adapted model",
            location=str(run.folder),
            hint="take a run that has finished",
        )
    subjects, inside, outside = _by_split(before)
    gained = np.asarray(
        pc.subtract(before["negative_log_likelihood"], after["negative_log_likelihood"]), np.float64
    )
    summed, surprise, counted = (
        _per_subject(before["subject_id"], column, subjects)
        for column in (
            gained,
            after["negative_log_likelihood"].to_numpy(),
            before["tokens"].to_numpy(),
        )
    )
    known = (inside ^ outside) & (
        counted > 0
    )  # a subject on both sides, of a split by note, is neither
    scores = {
        "log-likelihood gain, summed": summed[known],
        "log-likelihood gain a token": summed[known] / counted[known],
        "log-likelihood a token, without reference": -surprise[known] / counted[known],
    }
    member = inside[known]
    return pa.concat_tables(
        [evaluation.membership(score, member, name, asked.attack) for name, score in scores.items()]
    )


def _by_split(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(subjects, whether each has rows in the training split, whether in the held-out split)."""
    ids, split = table["subject_id"].to_numpy(), table["split"].to_numpy(zero_copy_only=False)
    subjects = np.unique(ids)
    return (
        subjects,
        np.isin(subjects, ids[split == "train"]),
        np.isin(subjects, ids[split == "held_out"]),
    )


def _per_subject(
    ids: pa.ChunkedArray, values: NDArray[np.generic], subjects: NDArray[np.int64]
) -> Floats:
    at = np.searchsorted(subjects, ids.to_numpy())
    summed: Floats = np.bincount(
        at, weights=values.astype(np.float64), minlength=len(subjects)
    ).astype(np.float64)
    return summed


def _state(stack: Stack, state: str) -> AbstractContextManager[None]:
    return stack.off() if state == "base" else nullcontext()


def _verbatim(stack: Stack, encodings: Encodings, asked: Asked) -> pa.Table:
    """The beginning of a note is shown; what the model goes on with is held against how the note goes on."""
    shape = tokenization.layout(stack.base.tokenizer, "causal-lm")
    found = []
    for split in ("train", "held_out"):
        prompts, true = _beginnings(encodings, split, len(shape.first), asked)
        for state in STATES:
            with _state(stack, state):
                said = adapters.continued(stack, prompts, asked.continuation_tokens)
            runs = [
                evaluation.longest_shared_run(one.tolist(), other)
                for one, other in zip(said, true, strict=True)
            ]
            found.append(evaluation.verbatim(runs, asked.overlap_tokens, state, split, asked.level))
    return pa.concat_tables(found)


def _beginnings(
    encodings: Encodings, split: str, specials: int, asked: Asked
) -> tuple[NDArray[np.int64], list[list[int]]]:
    """(rows, time) prompts and what truly follows, of the first note of each subject that is long enough; subjects drawn by the seed."""
    shown = specials + asked.prompt_tokens
    windows = encodings.windows(split)
    first = windows[
        np.unique(encodings.notes[windows], return_index=True)[1]
    ]  # the first window of every note
    invented = language_model.canary_notes(encodings)[encodings.notes[first]]
    first = first[(encodings.lengths[first] >= shown + asked.overlap_tokens) & ~invented]
    ids = encodings.table["subject_id"].to_numpy()[encodings.notes[first]]
    first = first[np.unique(ids, return_index=True)[1]]
    chosen = np.random.default_rng([asked.seed, 3]).permutation(first)[: asked.subjects]
    pieces = [
        encodings.tokens[
            encodings.starts[at] : encodings.starts[at] + encodings.lengths[at]
        ].astype(np.int64)
        for at in chosen
    ]
    prompts = (
        np.stack([piece[:shown] for piece in pieces]) if pieces else np.zeros((0, shown), np.int64)
    )
    return prompts, [piece[shown : shown + asked.continuation_tokens].tolist() for piece in pieces]


def _known_secrets(
    recipe: AdaptRecipe, stack: Stack, home: Path, accelerator: Crew, asked: Asked
) -> pa.Table:
    """The rank of each invented secret among random ones, by likelihood, before and after."""
    planted = corpus.canaries(recipe.privacy, recipe.seed)
    if not planted:
        return RESULT.empty_table()
    rng = np.random.default_rng([asked.seed, 4])
    others = [corpus.secrets(rng, asked.candidates - 1) for _ in planted]
    notes = [
        (f"{number:06d}-{at:06d}", number, canary.note(secret))
        for number, (canary, more) in enumerate(zip(planted, others, strict=True))
        for at, secret in enumerate(
            (canary.secret, *(secret for secret in more if secret != canary.secret))
        )
    ]
    found = []
    for state, table in _surprises(recipe, stack, notes, home, accelerator):
        table = table.sort_by("note_id")  # noqa: PLW2901 - the same rows in the order of the candidates
        ids, surprise = table["subject_id"].to_numpy(), table["negative_log_likelihood"].to_numpy()
        bits = np.asarray(
            [evaluation.exposure(surprise[ids == number]) for number in range(len(planted))]
        )
        for repeats in sorted(set(recipe.privacy.repeats)):
            chosen = np.asarray([canary.repeats == repeats for canary in planted])
            found.append(
                evaluation.exposures(
                    bits[chosen], f"{state}, {repeats} repeats", asked.candidates, asked.attack
                )
            )
    return pa.concat_tables(found)


def _surprises(
    recipe: AdaptRecipe,
    stack: Stack,
    notes: list[tuple[str, int, str]],
    home: Path,
    accelerator: Crew,
) -> Iterator[tuple[str, pa.Table]]:
    """State -> what it thinks of invented notes, through the same path as any note."""
    folder = home / "cache" / "privacy-canaries"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    try:
        pq.write_table(corpus.corpus_of(notes, "held_out"), folder / "corpus.parquet")
        base: Base = stack.base
        encodings = tokenization.encode(
            folder / "corpus.parquet",
            base.tokenizer,
            tokenization.layout(base.tokenizer, "causal-lm"),
            recipe.base,
            folder / "tokens",
        )
        lesson = language_model.lesson_of(recipe, base, encodings)
        forward = functools.partial(adapters.logits, stack)
        for state in STATES:
            with _state(stack, state):
                yield (
                    state,
                    training.likelihoods(
                        forward,
                        lesson,
                        encodings.windows("held_out"),
                        recipe.training.micro_batch_tokens,
                        accelerator,
                    ),
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------------------- answers


def _of_answers(run: Run, home: Path, asked: Asked) -> Audited:
    """Membership by how sure the model is of the right answer, and the probabilities by split as files."""
    recipe = run.recipe
    assert isinstance(recipe, ClassifyRecipe)
    reason = "a classifier says no words"
    left_out = {"verbatim": reason, "canaries": reason}
    folder = run.folder / "privacy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    results = []
    for name, table in _answered(run, recipe, home):
        question = evaluation.question_of(table)
        subjects, inside, outside = _by_split(table)
        right = _log_likelihoods(table)
        counted = _per_subject(table["subject_id"], np.ones(len(right)), subjects)
        score, known = (
            _per_subject(table["subject_id"], right, subjects) / counted,
            inside ^ outside,
        )
        results.append(
            evaluation.membership(
                score[known],
                inside[known],
                "log-likelihood of the answer, a stay",
                asked.attack,
                name,
            )
        )
        if question.kind == "multilabel":
            left_out[f"probability files of {name}"] = (
                "all that apply are asked; the files hold one class a row"
            )
        else:
            _write_probabilities(table, folder / name)
    return Audited(pa.concat_tables(results), left_out)


def _answered(run: Run, recipe: ClassifyRecipe, home: Path) -> Iterator[tuple[str, pa.Table]]:
    """Question -> answers to all training and held-out stays, by the run's model as it is kept, not recalibrated."""
    accelerator = training.assemble()
    served = inference.open_run(run.folder, recipe.base, accelerator.device)
    asked = task_cohorts.cohorts_of(recipe, home, accelerator, run.record.hashes)
    for one in task_cohorts.encoded(recipe, served.stack.base, asked, home, accelerator):
        name, documents = one.asked.question.name, one.documents
        answer = inference.live(
            served.stack,
            documents,
            served.heads[name],
            served.pooling,
            recipe.reading.pool,
            accelerator.device,
        )
        chosen = np.concatenate([documents.of("train"), documents.of("held_out")])
        grouped = functools.partial(
            tokenization.document_batches,
            documents,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
        )
        logits = inference.scores(
            answer, len(one.asked.question.classes), grouped, accelerator, chosen
        )
        yield name, inference.predictions(documents, chosen, logits, one.asked.question)


def _log_likelihoods(table: pa.Table) -> Floats:
    """(rows,) log-probability of the right answer; where all that apply are asked, the mean over the labels."""
    given = np.clip(
        np.stack(table["probabilities"].to_numpy(zero_copy_only=False)).astype(np.float64),
        1e-12,
        1 - 1e-12,
    )
    if table["label"].null_count < len(table):
        chosen: Floats = np.log(
            given[np.arange(len(given)), table["label"].to_numpy().astype(np.int64)]
        )
        return chosen
    applies = np.zeros(given.shape, np.bool_)
    for row, labels in enumerate(table["labels"].to_pylist()):
        applies[row, labels or []] = True
    means: Floats = np.where(applies, np.log(given), np.log1p(-given)).mean(axis=1)
    return means


def _write_probabilities(table: pa.Table, folder: Path) -> None:
    """``proba_train.csv`` and ``proba_test.csv`` without a header, a row a stay and a column a class, as SACRO-ML's example of models that it does
    not know reads them, and beside them the classes as ``y_train.csv`` and ``y_test.csv``; the same as ``.npy``. The test files are the held-out
    split."""
    folder.mkdir(mode=0o700)
    for split, word in (("train", "train"), ("held_out", "test")):
        rows = table.filter(pc.equal(table["split"], split))
        given = np.stack(rows["probabilities"].to_numpy(zero_copy_only=False)).astype(np.float64)
        classes = rows["label"].to_numpy().astype(np.int64)
        np.savetxt(folder / f"proba_{word}.csv", given, delimiter=",", fmt="%.9g")
        np.savetxt(folder / f"y_{word}.csv", classes, delimiter=",", fmt="%d")
        np.save(folder / f"proba_{word}.npy", given)
        np.save(folder / f"y_{word}.npy", classes)


def results_in(run: Run) -> tuple[pa.Table, dict[str, str]]:
    """What ``privacy.json`` of a run holds: results, and the reasons of what was left out.

    Raises:
        UsageError: the run was not audited.
        InputError: the file cannot be read.
    """
    found = privacy_of(run)
    if found is None:
        raise UsageError(
            f"run {run.id} was not audited",
            location=str(run.folder),
            hint=f"clinpeft privacy {run.id}",
        )
    return pa.Table.from_pylist(found["results"], schema=RESULT), dict(found["left_out"])
