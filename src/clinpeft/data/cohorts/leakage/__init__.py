"""The leakage audit: does the cohort ask what it tells, or what was learned from? Run with every build, written beside it.

Findings are numbers, names of sections and single words that many people's notes hold; never a sentence of a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from clinpeft.core.errors import StorageError
from clinpeft.core.schemas import CORPUS_SCHEMA, SPLIT_NAMES, ProblemType
from clinpeft.data.cohorts import cohort_files
from clinpeft.data.cohorts.leakage import lexicons, overlap, words

__all__ = ["LeakageAudit", "LeakageFinding", "audit_leakage"]

LeakageVerdict = Literal["not measured", "ok", "look", "stop"]
_BoolArray = NDArray[np.bool_]
_Int64Array = NDArray[np.int64]

LEAKAGE_VERDICTS: tuple[LeakageVerdict, ...] = (
    "not measured",
    "ok",
    "look",
    "stop",
)  # from the mildest
TRAIN_INDEX, TUNING_INDEX, HELD_OUT_INDEX = range(3)

MAX_PROBED_STAYS = 20_000  # a side, drawn at random, so that time and memory stay bounded; the finding says of how many
_STOP_COPY_FRACTION = 0.01  # of the notes asked: more than that moves a metric
_STOP_WORD_RATIO = 10.0  # as often in one group as elsewhere: the words are the answer
_MIN_STOP_STAYS = 10
_SUSPICIOUS_AUROC = 0.95  # published AUROC of the best models on these tasks stay below 0.9
_LOOK_NAMED_FRACTION, _STOP_NAMED_FRACTION = 0.05, 0.5


@dataclass(frozen=True)
class LeakageFinding:
    """One measurement and what it means; ``value`` is None when it was not measured."""

    name: str
    value: float | None
    verdict: LeakageVerdict
    meaning: str
    detail: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """As it stands in ``leakage.json``."""
        return {
            "name": self.name,
            "value": self.value,
            "verdict": self.verdict,
            "meaning": self.meaning,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True)
class LeakageAudit:
    """All findings on one cohort."""

    findings: tuple[LeakageFinding, ...]

    @property
    def verdict(self) -> LeakageVerdict:
        """The gravest verdict of any finding."""
        return max((finding.verdict for finding in self.findings), key=LEAKAGE_VERDICTS.index)

    def get_finding(self, name: str) -> LeakageFinding:
        """The finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def as_json(self) -> dict[str, object]:
        """As it stands in ``leakage.json``."""
        return {
            "verdict": self.verdict,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True)
class _CohortRows:
    """A cohort without its texts: where it is, and the subject, split, answers and group of every row."""

    path: Path
    classes: tuple[str, ...]
    subjects: _Int64Array
    splits: _Int64Array
    label_matrix: sp.csr_array
    groups: list[str]

    def iterate_texts(self, row_mask: _BoolArray) -> overlap.TextBatches:
        return cohort_files.iterate_text_batches(self.path, row_mask)


def audit_leakage(
    cohort: Path,
    classes: Sequence[str],
    kind: ProblemType,
    folder: Path,
    seed: int,
    adaptation_corpus: Path | None = None,
    *,
    task_name: str = "",
    titles: Mapping[str, Sequence[str]] | None = None,
) -> LeakageAudit:
    """Measure every known way in which a cohort can leak, and write ``leakage.json``.

    Args:
        cohort: Parquet of schema ``tables.COHORT``.
        classes: the name of every class, in the order of its index.
        kind: what ``label`` and ``labels`` of the cohort hold.
        folder: where ``leakage.json`` goes.
        seed: of the stays that are probed, where there are many, and of the shuffled answers.
        adaptation_corpus: Parquet of schema ``tables.CORPUS`` that the base was, or will be, adapted on.
        task_name: a key of ``lexicons.LEXICONS``: which words tell the answer.
        titles: class -> its names in words, to look for in the text.

    Raises:
        InputError: a file without the columns of its schema, a split or a class that is none.
        StorageError: the folder cannot be written to.
    """
    stays = _read_cohort_rows(cohort, classes, kind)
    generator = np.random.default_rng(seed)
    findings = (
        _measure_subject_overlap(stays),
        *_measure_copies(stays),
        *_measure_adaptation_overlap(stays, adaptation_corpus),
        _measure_outcome_words(stays, task_name),
        *_probe_bag_of_words(stays, task_name, generator),
        _measure_class_names(stays, titles or {}),
    )
    audit = LeakageAudit(findings)
    _write_audit(audit, folder / "leakage.json")
    return audit


def _read_cohort_rows(cohort: Path, classes: Sequence[str], kind: ProblemType) -> _CohortRows:
    table = cohort_files.read_cohort_without_text(cohort)
    answers = cohort_files.build_cohort_label_matrix(table, kind, classes, cohort)
    one_each = kind != "multilabel"
    groups = (
        [classes[location] for location in answers.indices.tolist()]
        if one_each
        else ["all stays"] * table.num_rows
    )
    return _CohortRows(
        cohort,
        tuple(classes),
        table["subject_id"].to_numpy(),
        cohort_files.encode_cohort_splits(table, cohort),
        answers,
        groups,
    )


def _write_audit(audit: LeakageAudit, path: Path) -> None:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(audit.as_json(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path.name} cannot be written: {error.strerror}",
            location=str(path.parent),
            hint="give a folder with space",
        ) from error


def _measure_subject_overlap(stays: _CohortRows) -> LeakageFinding:
    pairs = np.unique(np.stack([stays.subjects, stays.splits]), axis=1)
    _, counts = np.unique(pairs[0], return_counts=True)
    straddling = int((counts > 1).sum())
    meaning = "people with stays in more than one split: what is learned about a person is asked about the same person"
    return LeakageFinding(
        "subjects_in_several_splits",
        straddling,
        "stop" if straddling else "ok",
        meaning,
        {"subjects": len(counts)},
    )


def _grade_copies(copies: int, evaluated_stays: int) -> LeakageVerdict:
    if not evaluated_stays:
        return "not measured"
    return (
        "ok"
        if not copies
        else "stop"
        if copies >= _STOP_COPY_FRACTION * evaluated_stays
        else "look"
    )


def _measure_copies(stays: _CohortRows) -> tuple[LeakageFinding, LeakageFinding]:
    """Notes of tuning and held_out that stand in an earlier split: as they are, and by half or more."""
    asked = int((stays.splits != TRAIN_INDEX).sum())
    equal = _count_equal_notes(stays)
    tuning, held_out = (
        overlap.sketch_notes(stays.iterate_texts(stays.splits == split))
        for split in (TUNING_INDEX, HELD_OUT_INDEX)
    )
    near = int(
        overlap.find_contained_notes(tuning, stays.iterate_texts(stays.splits == TRAIN_INDEX)).sum()
    )
    near += int(
        overlap.find_contained_notes(
            held_out, stays.iterate_texts(stays.splits != HELD_OUT_INDEX)
        ).sum()
    )
    comparable = int(tuning.comparable_mask.sum() + held_out.comparable_mask.sum())
    detail = {
        "stays_asked": asked,
        "long_enough": comparable,
        "contained_from": overlap.MIN_CONTAINMENT,
        "words": overlap.LEAKAGE_SHINGLE_WORDS,
    }
    meaning = "stays of tuning and held_out whose text, de-identification marks aside, "
    return (
        LeakageFinding(
            "equal_notes_across_splits",
            equal,
            _grade_copies(equal, asked),
            meaning + "equals one of an earlier split",
            {"stays_asked": asked},
        ),
        LeakageFinding(
            "near_notes_across_splits",
            near if comparable else None,
            _grade_copies(near, comparable),
            meaning + "stands by half or more in one of an earlier split",
            detail,
        ),
    )


def _count_equal_notes(stays: _CohortRows) -> int:
    earliest: dict[bytes, int] = {}
    rows, found = [], []
    for row, batch in stays.iterate_texts(np.ones(len(stays.splits), np.bool_)):
        rows.append(row)
        found += overlap.hash_notes(overlap.normalize_note_words(batch))
    splits = stays.splits[np.concatenate(rows)].tolist() if rows else []
    for digest, split in zip(found, splits, strict=True):
        earliest[digest] = min(split, earliest.get(digest, split))
    return sum(
        bool(digest) and earliest[digest] < split
        for digest, split in zip(found, splits, strict=True)
    )


def _measure_adaptation_overlap(
    stays: _CohortRows, corpus: Path | None
) -> tuple[LeakageFinding, LeakageFinding]:
    """Whether held-out people and notes were read during adaptation."""
    names = ("held_out_subjects_in_adaptation", "held_out_notes_in_adaptation")
    meanings = (
        "held-out people whose notes the base was adapted on; ids of two data sets do not meet, so that 0 says little across data sets",
        "held-out stays whose text, de-identification marks aside, stands by half or more in one note that the base was adapted on",
    )
    if corpus is None:
        missing = "no adaptation corpus was given: "
        return LeakageFinding(
            names[0], None, "not measured", missing + meanings[0]
        ), LeakageFinding(names[1], None, "not measured", missing + meanings[1])
    cohort_files.open_checked_parquet(corpus, CORPUS_SCHEMA).close()
    subjects, learned = _read_training_rows(corpus)
    asked = np.unique(stays.subjects[stays.splits == HELD_OUT_INDEX])
    known = int(np.isin(asked, subjects).sum())
    held_out = overlap.sketch_notes(stays.iterate_texts(stays.splits == HELD_OUT_INDEX))
    near, comparable = (
        int(
            overlap.find_contained_notes(
                held_out, cohort_files.iterate_text_batches(corpus, learned)
            ).sum()
        ),
        int(held_out.comparable_mask.sum()),
    )
    detail = {
        "stays_asked": len(held_out.row_numbers),
        "long_enough": comparable,
        "contained_from": overlap.MIN_CONTAINMENT,
    }
    return (
        LeakageFinding(
            names[0], known, _grade_copies(known, len(asked)), meanings[0], {"subjects": len(asked)}
        ),
        LeakageFinding(
            names[1],
            near if comparable else None,
            _grade_copies(near, comparable),
            meanings[1],
            detail,
        ),
    )


def _read_training_rows(corpus: Path) -> tuple[_Int64Array, _BoolArray]:
    """The people of the corpus' train split, and which rows they are."""
    with cohort_files.open_checked_parquet(corpus, CORPUS_SCHEMA) as file:
        table = file.read(columns=["subject_id", "split"])
    learned = pc.equal(table["split"], SPLIT_NAMES[TRAIN_INDEX]).to_numpy()
    return np.unique(table["subject_id"].to_numpy()[learned]), learned


def _measure_outcome_words(stays: _CohortRows, task_name: str) -> LeakageFinding:
    name, outcome = "outcome_words", lexicons.compile_outcome_pattern(task_name)
    if outcome is None:
        return LeakageFinding(
            name,
            None,
            "not measured",
            f"no lexicon for the task {task_name!r}; data/cohorts/leakage/lexicons.py has {', '.join(lexicons.OUTCOME_LEXICONS)}",
        )
    found = words.count_outcome_words(
        stays.iterate_texts(np.ones(len(stays.splits), np.bool_)), stays.groups, outcome
    )
    detail = {
        "stays_by_section": found.by_section,
        "stays": found.matching_stays,
        "asked": found.total_stays,
        "ratio": round(found.ratio, 2),
    }
    meaning = "stays whose text has a word that tells the outcome, by section and class; ratio: how many times as often in one class as elsewhere"
    total = sum(found.matching_stays.values())
    return LeakageFinding(
        name,
        total,
        _grade_outcome_words(total, found.ratio),
        meaning,
        {**detail, "lexicon": list(lexicons.OUTCOME_LEXICONS[task_name])},
    )


def _grade_outcome_words(total: int, ratio: float) -> LeakageVerdict:
    if not total:
        return "ok"
    return "stop" if ratio >= _STOP_WORD_RATIO and total >= _MIN_STOP_STAYS else "look"


def _probe_bag_of_words(
    stays: _CohortRows, task_name: str, rng: np.random.Generator
) -> tuple[LeakageFinding, LeakageFinding]:
    """The probe, and the same on shuffled answers."""
    names = ("bag_of_words", "shuffled_answers")
    train, held_out = (_sample_stays(stays, split, rng) for split in (TRAIN_INDEX, HELD_OUT_INDEX))
    bag = (
        words.build_word_features(train, held_out)
        if words.select_probe_classes(train, held_out)
        else None
    )
    if bag is None:
        missing = f"too few stays: both answers in train and held_out, and a word in the notes of {words.MIN_WORD_SUBJECTS} people, are needed"
        return LeakageFinding(names[0], None, "not measured", missing), LeakageFinding(
            names[1], None, "not measured", missing
        )
    probes = words.probe_classes(bag, train, held_out, stays.classes)
    control = words.probe_shuffled_labels(
        bag, train, held_out, words.select_probe_classes(train, held_out)[0], rng
    )
    n, n_events = probes[0].n, probes[0].n_events
    by_chance = float(
        np.sqrt((n + 1) / (12 * n_events * (n - n_events)))
    )  # of the Mann-Whitney statistic
    sizes = {
        SPLIT_NAMES[split]: [len(side.texts), int((stays.splits == split).sum())]
        for split, side in ((TRAIN_INDEX, train), (HELD_OUT_INDEX, held_out))
    }
    return _report_probes(names[0], probes, task_name, sizes), _report_shuffled_labels(
        names[1], control, by_chance, sizes
    )


def _sample_stays(stays: _CohortRows, split: int, rng: np.random.Generator) -> words.ProbeSample:
    rows = np.flatnonzero(stays.splits == split)
    rows = np.sort(rng.choice(rows, min(MAX_PROBED_STAYS, len(rows)), replace=False))
    chosen = np.zeros(len(stays.splits), np.bool_)
    chosen[rows] = True
    texts = [text for _, batch in stays.iterate_texts(chosen) for text in batch.to_pylist()]
    return words.ProbeSample(texts, stays.subjects[rows], stays.label_matrix[rows])


def _report_probes(
    name: str,
    probes: Sequence[words.ProbeResult],
    task_name: str,
    probed_stays: Mapping[str, list[int]],
) -> LeakageFinding:
    outcome = lexicons.compile_outcome_pattern(task_name)
    telling = sorted(
        {
            word
            for probe in probes
            for word, _ in probe.top_words
            if outcome and outcome.search(word)
        }
    )
    value = float(np.mean([probe.auroc for probe in probes]))
    verdict: LeakageVerdict = "stop" if telling else "look" if value >= _SUSPICIOUS_AUROC else "ok"
    classes = {
        p.name: {
            "auroc": round(p.auroc, 4),
            "n": p.n,
            "n_events": p.n_events,
            "top": [list(pair) for pair in p.top_words],
        }
        for p in probes
    }
    meaning = (
        f"AUROC on held_out of TF-IDF and logistic regression, mean over {len(probes)} classes; a leak shows among the words of largest weight "
        f"(words in the notes of {words.MIN_WORD_SUBJECTS} people or more)"
    )
    return LeakageFinding(
        name,
        round(value, 4),
        verdict,
        meaning,
        {"classes": classes, "words_that_tell": telling, "stays_probed_of": dict(probed_stays)},
    )


def _report_shuffled_labels(
    name: str,
    aurocs: NDArray[np.float64],
    auroc_standard_error: float,
    probed_stays: Mapping[str, list[int]],
) -> LeakageFinding:
    """Near 0.5: within 0.05, or three standard errors where a small held_out (``auroc_standard_error``: of one AUROC) or the shuffles scatter more."""
    mean, spread = float(aurocs.mean()), float(aurocs.std(ddof=1) / np.sqrt(len(aurocs)))
    verdict: LeakageVerdict = (
        "ok" if abs(mean - 0.5) <= max(0.05, 3 * auroc_standard_error, 3 * spread) else "stop"
    )
    meaning = "AUROC on held_out after training on shuffled answers, which must be near 0.5: else the evaluation itself knows the answers"
    return LeakageFinding(
        name,
        round(mean, 4),
        verdict,
        meaning,
        {
            "shuffles": len(aurocs),
            "standard_error": round(spread, 4),
            "stays_probed_of": dict(probed_stays),
        },
    )


def _measure_class_names(stays: _CohortRows, titles: Mapping[str, Sequence[str]]) -> LeakageFinding:
    name, meaning = (
        "class_names_in_text",
        "share of (stay, class) pairs whose text has a name of the class, word for word; a known diagnosis is no leak",
    )
    found = (
        words.count_class_names(
            stays.iterate_texts(np.ones(len(stays.splits), np.bool_)),
            stays.label_matrix,
            words.list_class_titles(titles, stays.classes),
        )
        if titles
        else None
    )
    if found is None or not found.labeled_stays.sum():
        return LeakageFinding(
            name, None, "not measured", f"no class that applies has a title: {meaning}"
        )
    share = float(found.named_stays.sum() / found.labeled_stays.sum())
    verdict: LeakageVerdict = (
        "stop"
        if share >= _STOP_NAMED_FRACTION
        else "look"
        if share >= _LOOK_NAMED_FRACTION
        else "ok"
    )
    order = np.argsort(-found.named_stays, kind="stable")[: words.TOP_PROBE_WORDS]
    most = {
        stays.classes[at]: [int(found.named_stays[at]), int(found.labeled_stays[at])]
        for at in order
        if found.named_stays[at]
    }
    return LeakageFinding(
        name,
        round(share, 4),
        verdict,
        meaning,
        {"named_of_answered": most, "pairs": int(found.labeled_stays.sum())},
    )
