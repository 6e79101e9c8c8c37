"""Privacy attacks on a finished run of each kind.

Membership inference by subject, exposure of canaries (Carlini et al. 2019, arXiv 1802.08232), and
verbatim memorization of training notes (Carlini et al. 2023, arXiv 2202.07646).
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinpeft import adapters, evaluation, inference, models, runs, tokenization, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.data import notes as note_corpus
from clinpeft.evaluation import AttackScoring
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe
from clinpeft.runs import Run
from clinpeft.tokenization import EncodedCorpus
from clinpeft.workflows.context import RunContext
from clinpeft.workflows.language_model import (
    build_language_data,
    find_canary_notes,
    prepare_corpus,
)
from clinpeft.workflows.task_cohorts import build_cohorts, encode_cohort_documents

PRIVACY_AUDIT_STATES = ("base", "adapted")
_Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class PrivacyAuditConfig:
    """How hard a run is attacked.

    Attributes:
        resamples, level, seed: of the intervals and of every draw.
        prompt_tokens, continuation_tokens: of a note, how many tokens the model is given, and how
            many it continues with.
        overlap_tokens: from how many tokens in a row a continuation counts as memorized.
        subjects: at most so many subjects of each split are attacked for verbatim memorization.
        candidates: number of secrets among which that of a canary is ranked.
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
        """Resamples, level and seed, as ``evaluation`` takes them."""
        return AttackScoring(self.resamples, self.level, self.seed)


@dataclass(frozen=True)
class PrivacyAuditResults:
    """Results of schema ``METRIC_RESULT_SCHEMA``, and skipped attack -> the reason."""

    results: pa.Table
    skipped_attacks: dict[str, str]


def audit_encoder(run: Run, context: RunContext, config: PrivacyAuditConfig) -> PrivacyAuditResults:  # noqa: ARG001
    """Skip all attacks: books have no subjects."""
    reason = "the run was trained on books and not on people; no attack by subject is defined"
    return PrivacyAuditResults(
        METRIC_RESULT_SCHEMA.empty_table(),
        {"membership": reason, "verbatim": reason, "canaries": reason},
    )


# ---------------------------------------------------------------------------------- language model


def audit_language_model(
    run: Run, context: RunContext, config: PrivacyAuditConfig
) -> PrivacyAuditResults:
    """Attack an adapted language model.

    Membership is inferred from the likelihoods that the run recorded; verbatim memorization and
    canaries need the model, and a base that predicts the next token.
    """
    recipe = cast(AdaptRecipe, run.recipe)
    results, skipped = [_attack_membership(run, config)], {}
    base = models.load_base_model(recipe.base, context.accelerator.device)
    stack = adapters.load_adapter(base, run.folder / "adapter")
    if base.family.objective == "causal-lm":
        encodings = prepare_corpus(recipe, base, run.record.hashes, context).encodings
        results.append(_measure_verbatim_overlap(stack, encodings, config))
        results.append(_measure_canary_exposure(recipe, stack, context, config))
    else:
        reason = "the model fills in masked tokens and does not continue a text"
        skipped = {"verbatim": reason, "canaries": reason}
    if not recipe.privacy.canaries:
        skipped["canaries"] = "the recipe has none: set privacy.canaries, and train again"
    return PrivacyAuditResults(pa.concat_tables(results), skipped)


def _attack_membership(run: Run, config: PrivacyAuditConfig) -> pa.Table:
    """Membership inference by the gain in log-likelihood from base to adapted model.

    The base is the reference model that says how likely a note is without training on it (compare
    Mireshghallah et al. 2022, arXiv 2203.03929).
    """
    before, after = (
        runs.read_run_likelihoods(run, state).sort_by("note_id") for state in PRIVACY_AUDIT_STATES
    )
    if not len(before) or not before["note_id"].equals(after["note_id"]):
        raise InputError(
            f"run {run.id} has no likelihoods of base and adapted model",
            location=str(run.folder),
            hint="take a run that has finished",
        )
    subjects, in_training, held_out = _assign_subjects_to_splits(before)
    losses = after["negative_log_likelihood"].to_numpy()  # (notes,)
    gains = np.asarray(pc.subtract(before["negative_log_likelihood"], losses), np.float64)
    gain, loss, tokens = (
        _sum_by_subject(before["subject_id"], values, subjects)
        for values in (gains, losses, before["tokens"].to_numpy())
    )  # (subjects,) each
    # A subject on both sides, of a split by note, is neither a member nor a non-member.
    attacked = (in_training ^ held_out) & (tokens > 0)
    scores = {
        "log-likelihood gain, summed": gain[attacked],
        "log-likelihood gain a token": gain[attacked] / tokens[attacked],
        "log-likelihood a token, without reference": -loss[attacked] / tokens[attacked],
    }
    is_member = in_training[attacked]
    return pa.concat_tables(
        [
            evaluation.score_membership_inference(score, is_member, name, config.attack)
            for name, score in scores.items()
        ]
    )


def _assign_subjects_to_splits(
    table: pa.Table,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(subjects,) ids, whether each has training rows, whether each has held-out rows."""
    ids, split = table["subject_id"].to_numpy(), table["split"].to_numpy(zero_copy_only=False)
    subjects = np.unique(ids)
    in_training = np.isin(subjects, ids[split == "train"])
    return subjects, in_training, np.isin(subjects, ids[split == "held_out"])


def _sum_by_subject(
    subject_ids: pa.ChunkedArray, values: NDArray[np.generic], subjects: NDArray[np.int64]
) -> _Float64Array:
    """(rows,) values -> (subjects,) sums."""
    positions = np.searchsorted(subjects, subject_ids.to_numpy())
    weights = values.astype(np.float64)
    sums: _Float64Array = np.bincount(positions, weights=weights, minlength=len(subjects)).astype(
        np.float64
    )
    return sums


def _activate_state(stack: Stack, state: str) -> AbstractContextManager[None]:
    return stack.disable_adapters() if state == "base" else nullcontext()


def _measure_verbatim_overlap(
    stack: Stack, encodings: EncodedCorpus, config: PrivacyAuditConfig
) -> pa.Table:
    """Give the model the beginning of a note, and compare its continuation with the note's."""
    layout = tokenization.create_special_token_layout(stack.base.tokenizer, "causal-lm")
    results = []
    for split in ("train", "held_out"):
        prompts, references = _sample_prompts(encodings, split, len(layout.window_prefix), config)
        for state in PRIVACY_AUDIT_STATES:
            with _activate_state(stack, state):
                continuations = adapters.generate_greedily(
                    stack, prompts, config.continuation_tokens
                )
            shared = [
                evaluation.measure_longest_shared_run(continuation.tolist(), reference)
                for continuation, reference in zip(continuations, references, strict=True)
            ]
            results.append(
                evaluation.score_verbatim_memorization(
                    shared, config.overlap_tokens, state, split, config.level
                )
            )
    return pa.concat_tables(results)


def _sample_prompts(
    encodings: EncodedCorpus, split: str, special_tokens: int, config: PrivacyAuditConfig
) -> tuple[NDArray[np.int64], list[list[int]]]:
    """(rows, time) prompts, and the tokens that follow each in its note.

    A prompt is the beginning of the first note of a subject that is long enough; subjects are drawn
    with the seed.
    """
    prompt_length = special_tokens + config.prompt_tokens
    windows = encodings.select_windows(split)
    first = windows[
        np.unique(encodings.window_notes[windows], return_index=True)[1]
    ]  # of every note
    is_canary = find_canary_notes(encodings)[encodings.window_notes[first]]
    long_enough = encodings.lengths[first] >= prompt_length + config.overlap_tokens
    first = first[long_enough & ~is_canary]
    ids = encodings.note_table["subject_id"].to_numpy()[encodings.window_notes[first]]
    first = first[np.unique(ids, return_index=True)[1]]  # of every subject
    sampled = np.random.default_rng([config.seed, 3]).permutation(first)[: config.subjects]
    texts = [
        encodings.tokens[start : start + length].astype(np.int64)
        for start, length in zip(encodings.starts[sampled], encodings.lengths[sampled], strict=True)
    ]
    end = prompt_length + config.continuation_tokens
    prompts = [text[:prompt_length] for text in texts]
    return (
        np.stack(prompts) if prompts else np.zeros((0, prompt_length), np.int64),
        [text[prompt_length:end].tolist() for text in texts],
    )


def _measure_canary_exposure(
    recipe: AdaptRecipe, stack: Stack, context: RunContext, config: PrivacyAuditConfig
) -> pa.Table:
    """The rank of each canary's secret among random ones by likelihood, before and after."""
    canaries = note_corpus.generate_canaries(recipe.privacy, recipe.seed)
    if not canaries:
        return METRIC_RESULT_SCHEMA.empty_table()
    rng = np.random.default_rng([config.seed, 4])
    alternatives = [note_corpus.draw_canary_secrets(rng, config.candidates - 1) for _ in canaries]
    notes = []
    for number, (canary, secrets) in enumerate(zip(canaries, alternatives, strict=True)):
        others = (secret for secret in secrets if secret != canary.secret)
        for position, secret in enumerate((canary.secret, *others)):  # the true one comes first
            notes.append((f"{number:06d}-{position:06d}", number, canary.format_note(secret)))
    results = []
    for state, table in _score_canary_notes(recipe, stack, notes, context):
        ordered = table.sort_by("note_id")
        numbers = ordered["subject_id"].to_numpy()
        losses = ordered["negative_log_likelihood"].to_numpy()
        exposures = np.asarray(
            [evaluation.compute_exposure(losses[numbers == row]) for row in range(len(canaries))]
        )  # (canaries,) bits
        for repeats in sorted(set(recipe.privacy.repeats)):
            rows = np.asarray([canary.repeats == repeats for canary in canaries])
            results.append(
                evaluation.summarize_exposures(
                    exposures[rows], f"{state}, {repeats} repeats", config.candidates, config.attack
                )
            )
    return pa.concat_tables(results)


def _score_canary_notes(
    recipe: AdaptRecipe,
    stack: Stack,
    notes: list[tuple[str, int, str]],
    context: RunContext,
) -> Iterator[tuple[str, pa.Table]]:
    """State -> likelihoods of synthetic notes, computed as those of any note."""
    folder = context.cache / "privacy-canaries"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    try:
        pq.write_table(note_corpus.build_corpus_table(notes, "held_out"), folder / "corpus.parquet")
        base = stack.base
        encodings = tokenization.encode_corpus(
            folder / "corpus.parquet",
            base.tokenizer,
            tokenization.create_special_token_layout(base.tokenizer, "causal-lm"),
            recipe.base,
            folder / "tokens",
        )
        language_data = build_language_data(recipe, base, encodings)
        forward = functools.partial(adapters.compute_token_logits, stack)
        for state in PRIVACY_AUDIT_STATES:
            with _activate_state(stack, state):
                yield (
                    state,
                    training.compute_note_likelihoods(
                        forward,
                        language_data,
                        encodings.select_windows("held_out"),
                        recipe.training.micro_batch_tokens,
                        context.accelerator,
                    ),
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -------------------------------------------------------------------------------------- classifier


def audit_classifier(
    run: Run, context: RunContext, config: PrivacyAuditConfig
) -> PrivacyAuditResults:
    """Infer membership from a classifier's confidence in the true class.

    The probabilities by split are written to ``privacy/`` of the run's folder, for other auditing
    tools.
    """
    reason = "a classifier generates no text"
    skipped = {"verbatim": reason, "canaries": reason}
    folder = run.folder / "privacy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    results = []
    for name, table in _predict_cohorts(run, context):
        subjects, in_training, held_out = _assign_subjects_to_splits(table)
        log_likelihoods = _compute_label_log_likelihoods(table)
        ids = table["subject_id"]
        stays = _sum_by_subject(ids, np.ones(len(log_likelihoods)), subjects)
        # mean over the stays of a subject
        score = _sum_by_subject(ids, log_likelihoods, subjects) / stays
        attacked = in_training ^ held_out
        results.append(
            evaluation.score_membership_inference(
                score[attacked],
                in_training[attacked],
                "log-likelihood of the answer, a stay",
                config.attack,
                name,
            )
        )
        if evaluation.read_prediction_label_space(table).kind == "multilabel":
            skipped[f"probability files of {name}"] = (
                "the files hold one class a row, and this task has all that apply"
            )
        else:
            _write_probabilities(table, folder / name)
    return PrivacyAuditResults(pa.concat_tables(results), skipped)


def _predict_cohorts(run: Run, context: RunContext) -> Iterator[tuple[str, pa.Table]]:
    """Task -> predictions for all training and held-out stays, not recalibrated."""
    recipe, accelerator = cast(ClassifyRecipe, run.recipe), context.accelerator
    classifier = inference.load_classifier(run.folder, recipe.base, accelerator.device)
    cohorts = build_cohorts(recipe, run.record.hashes, context)
    for encoded in encode_cohort_documents(recipe, classifier.stack.base, cohorts, context):
        label_space, documents = encoded.cohort.label_space, encoded.documents
        compute_logits = inference.build_logit_function(
            classifier.stack,
            documents,
            classifier.heads[label_space.name],
            classifier.pooling,
            recipe.truncation.pool,
            accelerator.device,
        )
        rows = np.concatenate([documents.select_split("train"), documents.select_split("held_out")])
        make_batches = functools.partial(
            tokenization.group_documents,
            documents,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
        )
        logits = inference.gather_logits(
            compute_logits, len(label_space.classes), make_batches, accelerator, rows
        )
        table = inference.build_prediction_table(documents, rows, logits, label_space)
        yield label_space.name, table


def _compute_label_log_likelihoods(table: pa.Table) -> _Float64Array:
    """(rows,) log-probability of the true class; of a multilabel task, the mean over the labels."""
    probabilities = np.clip(
        np.stack(table["probabilities"].to_numpy(zero_copy_only=False)).astype(np.float64),
        1e-12,
        1 - 1e-12,
    )  # (rows, classes)
    if table["label"].null_count < len(table):
        true_classes = table["label"].to_numpy().astype(np.int64)
        log_likelihoods: _Float64Array = np.log(
            probabilities[np.arange(len(probabilities)), true_classes]
        )
        return log_likelihoods
    applies = np.zeros(probabilities.shape, np.bool_)
    for row, labels in enumerate(table["labels"].to_pylist()):
        applies[row, labels or []] = True
    means: _Float64Array = np.where(applies, np.log(probabilities), np.log1p(-probabilities)).mean(
        axis=1
    )
    return means


def _write_probabilities(table: pa.Table, folder: Path) -> None:
    """Write probabilities and classes of training and held-out (``test``) stays.

    ``proba_train.csv`` and ``proba_test.csv`` have no header, a row a stay and a column a class, as
    SACRO-ML's example for models of unknown type reads them; ``y_train.csv`` and ``y_test.csv``
    hold the classes. The same is written as ``.npy``.
    """
    folder.mkdir(mode=0o700)
    for split, word in (("train", "train"), ("held_out", "test")):
        rows = table.filter(pc.equal(table["split"], split))
        probabilities = np.stack(rows["probabilities"].to_numpy(zero_copy_only=False))
        probabilities = probabilities.astype(np.float64)
        classes = rows["label"].to_numpy().astype(np.int64)
        np.savetxt(folder / f"proba_{word}.csv", probabilities, delimiter=",", fmt="%.9g")
        np.savetxt(folder / f"y_{word}.csv", classes, delimiter=",", fmt="%d")
        np.save(folder / f"proba_{word}.npy", probabilities)
        np.save(folder / f"y_{word}.npy", classes)
