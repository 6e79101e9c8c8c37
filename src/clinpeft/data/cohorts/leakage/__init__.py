"""The leakage audit: whether labels or evaluated notes can be read off training data or text.

It runs with every build and is written beside the cohort. Findings are numbers, names of sections
and single words that the notes of many subjects have; never a sentence of a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from clinpeft.core.files import write_file_atomically
from clinpeft.core.schemas import CORPUS_SCHEMA, SPLIT_NAMES, ProblemType
from clinpeft.data.cohorts import cohort_files
from clinpeft.data.cohorts.leakage import lexicons, overlap, words
from clinpeft.data.cohorts.leakage.findings import (
    LOOK_NAMED_FRACTION,
    MIN_STOP_STAYS,
    STOP_NAMED_FRACTION,
    STOP_WORD_RATIO,
    SUSPICIOUS_AUROC,
    LeakageAudit,
    LeakageFinding,
    LeakageVerdict,
    build_copy_finding,
)

__all__ = ["LeakageAudit", "LeakageFinding", "audit_leakage"]

_BoolArray = NDArray[np.bool_]
_Int64Array = NDArray[np.int64]

TRAIN_INDEX, TUNING_INDEX, HELD_OUT_INDEX = range(3)  # in SPLIT_NAMES

# Of each split, drawn at random, so that time and memory are bounded; the finding has both numbers.
MAX_PROBED_STAYS = 20_000


@dataclass(frozen=True)
class _AuditedCohort:
    """A cohort without its texts.

    Attributes:
        path: of the Parquet file.
        classes: names in the order of their index.
        subjects: ``(stays,)``.
        splits: indices in ``SPLIT_NAMES``, ``(stays,)``.
        label_matrix: ``(stays, classes)``.
        groups: of each stay its class, or one name for all where a stay has several classes.
    """

    path: Path
    classes: tuple[str, ...]
    subjects: _Int64Array
    splits: _Int64Array
    label_matrix: sp.csr_array
    groups: list[str]

    def iterate_texts(self, row_mask: _BoolArray | None = None) -> overlap.TextBatches:
        """Row numbers and texts of the rows of a mask, or of all."""
        mask = np.ones(len(self.splits), np.bool_) if row_mask is None else row_mask
        return cohort_files.iterate_text_batches(self.path, mask)


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
    """Measure the ways in which a cohort can leak, and write ``leakage.json``.

    Args:
        cohort: Parquet of ``COHORT_SCHEMA``.
        classes: names in the order of their index.
        kind: of the task: whether ``label`` or ``labels`` has the labels.
        folder: of ``leakage.json``.
        seed: of the sample of stays for the probe and of the shuffled labels.
        adaptation_corpus: Parquet of ``CORPUS_SCHEMA`` that the base model was, or will be, adapted
            on.
        task_name: a key of ``lexicons.OUTCOME_LEXICONS``: which words state the label.
        titles: class -> its names in words, which are searched in the text.

    Raises:
        InputError: a file does not have the columns of its schema, or has an unknown split or
            class.
        StorageError: ``folder`` cannot be written.
    """
    table = cohort_files.read_cohort_without_text(cohort)
    label_matrix = cohort_files.build_cohort_label_matrix(table, kind, classes, cohort)
    stays = _AuditedCohort(
        cohort,
        tuple(classes),
        table["subject_id"].to_numpy(),
        cohort_files.encode_cohort_splits(table, cohort),
        label_matrix,
        ["all stays"] * table.num_rows
        if kind == "multilabel"
        else [classes[index] for index in label_matrix.indices.tolist()],
    )
    # Without a fixed seed two builds of one cohort would differ in the probe.
    audit = LeakageAudit(
        (
            _measure_subject_overlap(stays),
            *_measure_copies(stays),
            *_measure_adaptation_overlap(stays, adaptation_corpus),
            _measure_outcome_words(stays, task_name),
            *_probe_bag_of_words(stays, task_name, np.random.default_rng(seed)),
            _measure_class_names(stays, titles or {}),
        )
    )
    content = json.dumps(audit.as_json(), indent=1) + "\n"
    write_file_atomically(folder / "leakage.json", content)
    return audit


def _measure_subject_overlap(stays: _AuditedCohort) -> LeakageFinding:
    _, straddling = cohort_files.find_subject_splits(stays.subjects, stays.splits)
    return LeakageFinding(
        "subjects_in_several_splits",
        straddling,
        "stop" if straddling else "ok",
        "subjects with stays in more than one split: a model is evaluated on patients of its "
        "training data",
        {"subjects": len(np.unique(stays.subjects))},
    )


def _measure_copies(stays: _AuditedCohort) -> tuple[LeakageFinding, LeakageFinding]:
    """Notes of tuning and held_out that are in an earlier split: equal, and by half or more."""
    evaluated = int((stays.splits != TRAIN_INDEX).sum())
    digests: list[bytes] = []
    splits: list[int] = []
    for rows, batch in stays.iterate_texts():
        digests += overlap.hash_notes(overlap.normalize_note_words(batch))
        splits += stays.splits[rows].tolist()
    # Splits are in the order train, tuning, held_out: a copy counts for the later one.
    earliest: dict[bytes, int] = {}
    for digest, split in zip(digests, splits, strict=True):
        earliest[digest] = min(split, earliest.get(digest, split))
    equal = sum(
        bool(digest) and earliest[digest] < split
        for digest, split in zip(digests, splits, strict=True)
    )
    contained, comparable = 0, 0
    for split in (TUNING_INDEX, HELD_OUT_INDEX):
        sketches = overlap.sketch_notes(stays.iterate_texts(stays.splits == split))
        # Tuning is compared with train, held_out with both.
        earlier = stays.iterate_texts(stays.splits < split)
        contained += int(overlap.find_contained_notes(sketches, earlier).sum())
        comparable += int(sketches.comparable_mask.sum())
    meaning = "stays of tuning and held_out whose text, without de-identification marks, "
    near = build_copy_finding(
        "near_notes_across_splits",
        contained,
        comparable,
        meaning + "is by half or more in one of an earlier split",
        {
            "stays_asked": evaluated,
            "long_enough": comparable,
            "contained_from": overlap.MIN_CONTAINMENT,
            "words": overlap.LEAKAGE_SHINGLE_WORDS,
        },
    )
    return (
        build_copy_finding(
            "equal_notes_across_splits",
            equal,
            evaluated,
            meaning + "equals one of an earlier split",
            {"stays_asked": evaluated},
        ),
        near if comparable else replace(near, value=None),
    )


def _measure_adaptation_overlap(
    stays: _AuditedCohort, corpus: Path | None
) -> tuple[LeakageFinding, LeakageFinding]:
    """Held-out subjects and notes in the training split of an adaptation corpus."""
    names = ("held_out_subjects_in_adaptation", "held_out_notes_in_adaptation")
    meanings = (
        "held-out subjects on whose notes the base model was adapted; two data sets have different "
        "ids, so that 0 says little across data sets",
        "held-out stays whose text, without de-identification marks, is by half or more in one "
        "note on which the base model was adapted",
    )
    if corpus is None:
        subject_finding, note_finding = (
            LeakageFinding(name, None, "not measured", f"no adaptation corpus: {meaning}")
            for name, meaning in zip(names, meanings, strict=True)
        )
        return subject_finding, note_finding
    with cohort_files.open_checked_parquet(corpus, CORPUS_SCHEMA) as file:
        table = file.read(columns=["subject_id", "split"])
    # Only the training split of the corpus was read by the base model.
    in_train = pc.equal(table["split"], SPLIT_NAMES[TRAIN_INDEX]).to_numpy()
    is_held_out = stays.splits == HELD_OUT_INDEX
    subjects = np.unique(stays.subjects[is_held_out])
    overlapping = int(np.isin(subjects, table["subject_id"].to_numpy()[in_train]).sum())
    sketches = overlap.sketch_notes(stays.iterate_texts(is_held_out))
    corpus_texts = cohort_files.iterate_text_batches(corpus, in_train)
    contained = int(overlap.find_contained_notes(sketches, corpus_texts).sum())
    comparable = int(sketches.comparable_mask.sum())
    note_finding = build_copy_finding(
        names[1],
        contained,
        comparable,
        meanings[1],
        {
            "stays_asked": len(sketches.row_numbers),
            "long_enough": comparable,
            "contained_from": overlap.MIN_CONTAINMENT,
        },
    )
    return (
        build_copy_finding(
            names[0], overlapping, len(subjects), meanings[0], {"subjects": len(subjects)}
        ),
        note_finding if comparable else replace(note_finding, value=None),
    )


def _measure_outcome_words(stays: _AuditedCohort, task_name: str) -> LeakageFinding:
    """Stays whose text has a word of the task's lexicon."""
    name, pattern = "outcome_words", lexicons.compile_outcome_pattern(task_name)
    if pattern is None:
        return LeakageFinding(
            name,
            None,
            "not measured",
            f"no lexicon for the task {task_name!r}; data/cohorts/leakage/lexicons.py has "
            f"{', '.join(lexicons.OUTCOME_LEXICONS)}",
        )
    counts = words.count_outcome_words(stays.iterate_texts(), stays.groups, pattern)
    total = sum(counts.matching_stays.values())
    verdict: LeakageVerdict = "look" if total else "ok"
    if counts.ratio >= STOP_WORD_RATIO and total >= MIN_STOP_STAYS:
        verdict = "stop"
    return LeakageFinding(
        name,
        total,
        verdict,
        "stays whose text has a word that states the outcome, by section and class; ratio: how "
        "many times as often in one class as in the others",
        {
            "stays_by_section": counts.by_section,
            "stays": counts.matching_stays,
            "asked": counts.total_stays,
            "ratio": round(counts.ratio, 2),
            "lexicon": list(lexicons.OUTCOME_LEXICONS[task_name]),
        },
    )


def _probe_bag_of_words(
    stays: _AuditedCohort, task_name: str, rng: np.random.Generator
) -> tuple[LeakageFinding, LeakageFinding]:
    """A bag-of-words classifier, and the same after training on shuffled labels."""
    train, held_out = (_sample_stays(stays, split, rng) for split in (TRAIN_INDEX, HELD_OUT_INDEX))
    class_indices = words.select_probe_classes(train, held_out)
    features = words.build_word_features(train, held_out) if class_indices else None
    if features is None:
        probe_finding, shuffled_finding = (
            LeakageFinding(
                name,
                None,
                "not measured",
                "too few stays: needed are both labels in train and held_out, and a word in the "
                f"notes of {words.MIN_WORD_SUBJECTS} subjects",
            )
            for name in ("bag_of_words", "shuffled_answers")
        )
        return probe_finding, shuffled_finding
    sizes = {
        SPLIT_NAMES[split]: [len(sample.texts), int((stays.splits == split).sum())]
        for split, sample in ((TRAIN_INDEX, train), (HELD_OUT_INDEX, held_out))
    }
    # The same features for all classes and shuffles; only the labels differ.
    probes = words.probe_classes(features, train, held_out, stays.classes)
    aurocs = words.probe_shuffled_labels(features, train, held_out, class_indices[0], rng)
    n, n_events = probes[0].n, probes[0].n_events
    # AUROC is U / (m n), and without a relation Var(U) = m n (m + n + 1) / 12 (Mann and Whitney
    # 1947, On a test of whether one of two random variables is stochastically larger than the
    # other).
    chance_error = float(np.sqrt((n + 1) / (12 * n_events * (n - n_events))))
    return (
        _report_probes(probes, task_name, sizes),
        _report_shuffled_labels("shuffled_answers", aurocs, chance_error, sizes),
    )


def _sample_stays(stays: _AuditedCohort, split: int, rng: np.random.Generator) -> words.ProbeSample:
    rows = np.flatnonzero(stays.splits == split)
    # Sorted, since texts are read in the order of the file.
    rows = np.sort(rng.choice(rows, min(MAX_PROBED_STAYS, len(rows)), replace=False))
    mask = np.zeros(len(stays.splits), np.bool_)
    mask[rows] = True
    texts = [text for _, batch in stays.iterate_texts(mask) for text in batch.to_pylist()]
    return words.ProbeSample(texts, stays.subjects[rows], stays.label_matrix[rows])


def _report_probes(
    probes: Sequence[words.ProbeResult], task_name: str, probed_stays: Mapping[str, list[int]]
) -> LeakageFinding:
    """Mean AUROC over classes; outcome words among those of largest weight stop."""
    pattern = lexicons.compile_outcome_pattern(task_name)
    # An outcome word among the largest weights says more than the AUROC itself.
    top_words = {word for probe in probes for word, _ in probe.top_words}
    outcome_words = sorted(word for word in top_words if pattern and pattern.search(word))
    value = float(np.mean([probe.auroc for probe in probes]))
    verdict: LeakageVerdict = "look" if value >= SUSPICIOUS_AUROC else "ok"
    classes = {
        probe.name: {
            "auroc": round(probe.auroc, 4),
            "n": probe.n,
            "n_events": probe.n_events,
            "top": [list(pair) for pair in probe.top_words],
        }
        for probe in probes
    }
    return LeakageFinding(
        "bag_of_words",
        round(value, 4),
        "stop" if outcome_words else verdict,
        f"AUROC on held_out of TF-IDF and logistic regression, mean over {len(probes)} classes; a "
        "leak is visible among the words of largest weight (words in the notes of "
        f"{words.MIN_WORD_SUBJECTS} subjects or more)",
        {"classes": classes, "words_that_tell": outcome_words, "stays_probed_of": {**probed_stays}},
    )


def _report_shuffled_labels(
    name: str,
    aurocs: NDArray[np.float64],
    auroc_standard_error: float,
    probed_stays: Mapping[str, list[int]],
) -> LeakageFinding:
    """Whether the mean AUROC is near 0.5.

    Args:
        name: of the finding.
        aurocs: one a shuffle, ``(shuffles,)``.
        auroc_standard_error: of one AUROC of random scores on held_out.
        probed_stays: split -> stays in the probe, and in the split.

    Returns:
        ``ok`` within 0.05 of 0.5, or within three standard errors of one AUROC or of the mean over
        shuffles, where a small held_out makes these larger.
    """
    mean = float(aurocs.mean())
    mean_error = float(aurocs.std(ddof=1) / np.sqrt(len(aurocs)))
    tolerance = max(0.05, 3 * auroc_standard_error, 3 * mean_error)
    return LeakageFinding(
        name,
        round(mean, 4),
        "ok" if abs(mean - 0.5) <= tolerance else "stop",
        "AUROC on held_out after training on shuffled labels, which must be near 0.5: otherwise "
        "the evaluation itself has access to the labels",
        {
            "shuffles": len(aurocs),
            "standard_error": round(mean_error, 4),
            "stays_probed_of": dict(probed_stays),
        },
    )


def _measure_class_names(
    stays: _AuditedCohort, titles: Mapping[str, Sequence[str]]
) -> LeakageFinding:
    """Stays whose text has a title of one of their classes."""
    name, meaning = (
        "class_names_in_text",
        "share of (stay, class) pairs whose text has a name of the class, word for word; a "
        "diagnosis from before the stay is no leak",
    )
    without_titles = LeakageFinding(
        name, None, "not measured", f"no class that applies has a title: {meaning}"
    )
    if not titles:
        return without_titles
    counts = words.count_class_names(
        stays.iterate_texts(),
        stays.label_matrix,
        [titles.get(class_name, ()) for class_name in stays.classes],
    )
    pairs = int(counts.labeled_stays.sum())
    if not pairs:
        return without_titles
    # Over all pairs, so that frequent classes weigh more.
    share = float(counts.named_stays.sum() / counts.labeled_stays.sum())
    verdict: LeakageVerdict = "look" if share >= LOOK_NAMED_FRACTION else "ok"
    order = np.argsort(-counts.named_stays, kind="stable")[: words.TOP_PROBE_WORDS]
    most_named = {
        stays.classes[index]: [int(counts.named_stays[index]), int(counts.labeled_stays[index])]
        for index in order
        if counts.named_stays[index]
    }
    return LeakageFinding(
        name,
        round(share, 4),
        "stop" if share >= STOP_NAMED_FRACTION else verdict,
        meaning,
        {"named_of_answered": most_named, "pairs": pairs},
    )
