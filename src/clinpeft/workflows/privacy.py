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
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.data.notes import corpus
from clinpeft.evaluation import AttackScoring
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe
from clinpeft.runs import (
    PRIVACY_AUDIT_FILE,
    Run,
    check_model_files,
    find_run,
    hash_trained_weights,
    read_privacy_audit,
    read_run_likelihoods,
    write_file_atomically,
)
from clinpeft.tokenization import EncodedCorpus
from clinpeft.training import Accelerator
from clinpeft.workflows import language_model, task_cohorts

PRIVACY_AUDIT_STATES = ("base", "adapted")
_Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class PrivacyAuditConfig:
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
    def attack(self) -> AttackScoring:
        """What the numbers need of it."""
        return AttackScoring(self.resamples, self.level, self.seed)


@dataclass(frozen=True)
class PrivacyAuditResults:
    """What an audit found: results, and of every attack that could not be made the reason."""

    results: pa.Table
    skipped_attacks: dict[str, str]


def audit_run_privacy(
    home: Path, run_name: str, config: PrivacyAuditConfig, now: datetime, version: str
) -> Run:
    """Attack a finished run and write what came out into its folder as ``privacy.json``; of classify also ``privacy/``, the probabilities by split.

    The record names the hashes of the weights that were attacked, so that it is not taken for the audit of others.

    Raises:
        UsageError: there is no such run.
        RefusedError: the run's files are not those that it finished with.
        InputError: what it learned from is not there any more.
    """
    run = find_run(home, run_name, finished_only=True)
    check_model_files(run)
    found = {
        "adapt": _audit_language_model,
        "classify": _audit_classifier,
        "embed": _audit_encoder,
    }[run.recipe.kind](run, home, config)
    rows = found.results.to_pylist()
    whole = {
        "format": 1,
        "run": run.id,
        "kind": run.recipe.kind,
        "weights": hash_trained_weights(run.folder),
        "made": now.isoformat(),
        "clinpeft": version,
        "asked": asdict(config),
        "results": rows,
        "left_out": found.skipped_attacks,
    }
    write_file_atomically(run.folder / PRIVACY_AUDIT_FILE, json.dumps(whole, indent=1) + "\n")
    return run


def _audit_encoder(run: Run, home: Path, config: PrivacyAuditConfig) -> PrivacyAuditResults:  # noqa: ARG001 - one signature for every kind
    reason = "the run learned from books and not from people; no attack by subject is defined"
    return PrivacyAuditResults(
        METRIC_RESULT_SCHEMA.empty_table(),
        {"membership": reason, "verbatim": reason, "canaries": reason},
    )


# ------------------------------------------------------------------------------------------------------------------------- language


def _audit_language_model(run: Run, home: Path, config: PrivacyAuditConfig) -> PrivacyAuditResults:
    """Membership from what base and adapted model thought of every note at the end of the run; the rest asks the model anew."""
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe)
    results, left_out = [_attack_membership(run, config)], {}
    accelerator = training.create_accelerator()
    base = models.load_base_model(recipe.base, accelerator.device)
    stack = adapters.load_adapter(base, run.folder / "adapter")
    if base.family.objective == "causal-lm":
        encodings, _ = language_model.prepare_corpus_encodings(
            recipe, base, home, accelerator, run.record.hashes
        )
        results.append(_measure_verbatim_overlap(stack, encodings, config))
        results.append(_measure_canary_exposure(recipe, stack, home, accelerator, config))
    else:
        reason = "the model fills in masked words and does not go on with a text"
        left_out = {"verbatim": reason, "canaries": reason}
    if not recipe.privacy.canaries:
        left_out["canaries"] = "the recipe put none in: set privacy.canaries, and train again"
    return PrivacyAuditResults(pa.concat_tables(results), left_out)


def _attack_membership(run: Run, config: PrivacyAuditConfig) -> pa.Table:
    """The gain in log-likelihood from base to adapted, of each subject: the base is the reference that says how easy a note is for anybody."""
    before, after = (
        read_run_likelihoods(run, state).sort_by("note_id") for state in PRIVACY_AUDIT_STATES
    )
    if not len(before) or not before["note_id"].equals(after["note_id"]):
        raise InputError(
            f"run {run.id} has no likelihoods of base and adapted model",
            location=str(run.folder),
            hint="take a run that has finished",
        )
    subjects, inside, outside = _assign_subjects_to_splits(before)
    gained = np.asarray(
        pc.subtract(before["negative_log_likelihood"], after["negative_log_likelihood"]), np.float64
    )
    summed, surprise, counted = (
        _sum_by_subject(before["subject_id"], column, subjects)
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
        [
            evaluation.score_membership_inference(score, member, name, config.attack)
            for name, score in scores.items()
        ]
    )


def _assign_subjects_to_splits(
    table: pa.Table,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(subjects, whether each has rows in the training split, whether in the held-out split)."""
    ids, split = table["subject_id"].to_numpy(), table["split"].to_numpy(zero_copy_only=False)
    subjects = np.unique(ids)
    return (
        subjects,
        np.isin(subjects, ids[split == "train"]),
        np.isin(subjects, ids[split == "held_out"]),
    )


def _sum_by_subject(
    subject_ids: pa.ChunkedArray, values: NDArray[np.generic], subjects: NDArray[np.int64]
) -> _Float64Array:
    at = np.searchsorted(subjects, subject_ids.to_numpy())
    summed: _Float64Array = np.bincount(
        at, weights=values.astype(np.float64), minlength=len(subjects)
    ).astype(np.float64)
    return summed


def _activate_state(stack: Stack, state: str) -> AbstractContextManager[None]:
    return stack.disable_adapters() if state == "base" else nullcontext()


def _measure_verbatim_overlap(
    stack: Stack, encodings: EncodedCorpus, config: PrivacyAuditConfig
) -> pa.Table:
    """The beginning of a note is shown; what the model goes on with is held against how the note goes on."""
    shape = tokenization.create_special_token_layout(stack.base.tokenizer, "causal-lm")
    found = []
    for split in ("train", "held_out"):
        prompts, true = _sample_prompts(encodings, split, len(shape.window_prefix), config)
        for state in PRIVACY_AUDIT_STATES:
            with _activate_state(stack, state):
                said = adapters.generate_greedily(stack, prompts, config.continuation_tokens)
            runs = [
                evaluation.measure_longest_shared_run(one.tolist(), other)
                for one, other in zip(said, true, strict=True)
            ]
            found.append(
                evaluation.score_verbatim_memorization(
                    runs, config.overlap_tokens, state, split, config.level
                )
            )
    return pa.concat_tables(found)


def _sample_prompts(
    encodings: EncodedCorpus, split: str, special_tokens: int, config: PrivacyAuditConfig
) -> tuple[NDArray[np.int64], list[list[int]]]:
    """(rows, time) prompts and what truly follows, of the first note of each subject that is long enough; subjects drawn by the seed."""
    shown = special_tokens + config.prompt_tokens
    windows = encodings.select_windows(split)
    first = windows[
        np.unique(encodings.window_notes[windows], return_index=True)[1]
    ]  # the first window of every note
    invented = language_model.find_canary_notes(encodings)[encodings.window_notes[first]]
    first = first[(encodings.lengths[first] >= shown + config.overlap_tokens) & ~invented]
    ids = encodings.note_table["subject_id"].to_numpy()[encodings.window_notes[first]]
    first = first[np.unique(ids, return_index=True)[1]]
    chosen = np.random.default_rng([config.seed, 3]).permutation(first)[: config.subjects]
    pieces = [
        encodings.tokens[
            encodings.starts[at] : encodings.starts[at] + encodings.lengths[at]
        ].astype(np.int64)
        for at in chosen
    ]
    prompts = (
        np.stack([piece[:shown] for piece in pieces]) if pieces else np.zeros((0, shown), np.int64)
    )
    return prompts, [piece[shown : shown + config.continuation_tokens].tolist() for piece in pieces]


def _measure_canary_exposure(
    recipe: AdaptRecipe,
    stack: Stack,
    home: Path,
    accelerator: Accelerator,
    config: PrivacyAuditConfig,
) -> pa.Table:
    """The rank of each invented secret among random ones, by likelihood, before and after."""
    planted = corpus.generate_canaries(recipe.privacy, recipe.seed)
    if not planted:
        return METRIC_RESULT_SCHEMA.empty_table()
    rng = np.random.default_rng([config.seed, 4])
    others = [corpus.draw_canary_secrets(rng, config.candidates - 1) for _ in planted]
    notes = [
        (f"{number:06d}-{at:06d}", number, canary.format_note(secret))
        for number, (canary, more) in enumerate(zip(planted, others, strict=True))
        for at, secret in enumerate(
            (canary.secret, *(secret for secret in more if secret != canary.secret))
        )
    ]
    found = []
    for state, table in _score_canary_notes(recipe, stack, notes, home, accelerator):
        table = table.sort_by("note_id")  # noqa: PLW2901 - the same rows in the order of the candidates
        ids, surprise = table["subject_id"].to_numpy(), table["negative_log_likelihood"].to_numpy()
        bits = np.asarray(
            [evaluation.compute_exposure(surprise[ids == number]) for number in range(len(planted))]
        )
        for repeats in sorted(set(recipe.privacy.repeats)):
            chosen = np.asarray([canary.repeats == repeats for canary in planted])
            found.append(
                evaluation.summarize_exposures(
                    bits[chosen], f"{state}, {repeats} repeats", config.candidates, config.attack
                )
            )
    return pa.concat_tables(found)


def _score_canary_notes(
    recipe: AdaptRecipe,
    stack: Stack,
    notes: list[tuple[str, int, str]],
    home: Path,
    accelerator: Accelerator,
) -> Iterator[tuple[str, pa.Table]]:
    """State -> what it thinks of invented notes, through the same path as any note."""
    folder = home / "cache" / "privacy-canaries"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    try:
        pq.write_table(corpus.build_corpus_table(notes, "held_out"), folder / "corpus.parquet")
        base: FrozenBaseModel = stack.base
        encodings = tokenization.encode_corpus(
            folder / "corpus.parquet",
            base.tokenizer,
            tokenization.create_special_token_layout(base.tokenizer, "causal-lm"),
            recipe.base,
            folder / "tokens",
        )
        lesson = language_model.build_language_data(recipe, base, encodings)
        forward = functools.partial(adapters.compute_token_logits, stack)
        for state in PRIVACY_AUDIT_STATES:
            with _activate_state(stack, state):
                yield (
                    state,
                    training.compute_note_likelihoods(
                        forward,
                        lesson,
                        encodings.select_windows("held_out"),
                        recipe.training.micro_batch_tokens,
                        accelerator,
                    ),
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------------------- answers


def _audit_classifier(run: Run, home: Path, config: PrivacyAuditConfig) -> PrivacyAuditResults:
    """Membership by how sure the model is of the right answer, and the probabilities by split as files."""
    recipe = run.recipe
    assert isinstance(recipe, ClassifyRecipe)
    reason = "a classifier says no words"
    left_out = {"verbatim": reason, "canaries": reason}
    folder = run.folder / "privacy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    results = []
    for name, table in _predict_cohorts(run, recipe, home):
        question = evaluation.read_prediction_label_space(table)
        subjects, inside, outside = _assign_subjects_to_splits(table)
        right = _compute_label_log_likelihoods(table)
        counted = _sum_by_subject(table["subject_id"], np.ones(len(right)), subjects)
        score, known = (
            _sum_by_subject(table["subject_id"], right, subjects) / counted,
            inside ^ outside,
        )
        results.append(
            evaluation.score_membership_inference(
                score[known],
                inside[known],
                "log-likelihood of the answer, a stay",
                config.attack,
                name,
            )
        )
        if question.kind == "multilabel":
            left_out[f"probability files of {name}"] = (
                "all that apply are asked; the files hold one class a row"
            )
        else:
            _write_probabilities(table, folder / name)
    return PrivacyAuditResults(pa.concat_tables(results), left_out)


def _predict_cohorts(
    run: Run, recipe: ClassifyRecipe, home: Path
) -> Iterator[tuple[str, pa.Table]]:
    """Question -> answers to all training and held-out stays, by the run's model as it is kept, not recalibrated."""
    accelerator = training.create_accelerator()
    served = inference.load_classifier(run.folder, recipe.base, accelerator.device)
    asked = task_cohorts.prepare_cohorts(recipe, home, accelerator, run.record.hashes)
    for one in task_cohorts.prepare_cohort_documents(
        recipe, served.stack.base, asked, home, accelerator
    ):
        name, documents = one.cohort.label_space.name, one.documents
        answer = inference.build_logit_function(
            served.stack,
            documents,
            served.heads[name],
            served.pooling,
            recipe.truncation.pool,
            accelerator.device,
        )
        chosen = np.concatenate(
            [documents.select_split("train"), documents.select_split("held_out")]
        )
        grouped = functools.partial(
            tokenization.group_documents,
            documents,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
        )
        logits = inference.gather_logits(
            answer, len(one.cohort.label_space.classes), grouped, accelerator, chosen
        )
        yield (
            name,
            inference.build_prediction_table(documents, chosen, logits, one.cohort.label_space),
        )


def _compute_label_log_likelihoods(table: pa.Table) -> _Float64Array:
    """(rows,) log-probability of the right answer; where all that apply are asked, the mean over the labels."""
    given = np.clip(
        np.stack(table["probabilities"].to_numpy(zero_copy_only=False)).astype(np.float64),
        1e-12,
        1 - 1e-12,
    )
    if table["label"].null_count < len(table):
        chosen: _Float64Array = np.log(
            given[np.arange(len(given)), table["label"].to_numpy().astype(np.int64)]
        )
        return chosen
    applies = np.zeros(given.shape, np.bool_)
    for row, labels in enumerate(table["labels"].to_pylist()):
        applies[row, labels or []] = True
    means: _Float64Array = np.where(applies, np.log(given), np.log1p(-given)).mean(axis=1)
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


def read_privacy_results(run: Run) -> tuple[pa.Table, dict[str, str]]:
    """What ``privacy.json`` of a run holds: results, and the reasons of what was left out.

    Raises:
        UsageError: the run was not audited.
        InputError: the file cannot be read.
    """
    found = read_privacy_audit(run)
    if found is None:
        raise UsageError(
            f"run {run.id} was not audited",
            location=str(run.folder),
            hint=f"clinpeft privacy {run.id}",
        )
    return pa.Table.from_pylist(found["results"], schema=METRIC_RESULT_SCHEMA), dict(
        found["left_out"]
    )
