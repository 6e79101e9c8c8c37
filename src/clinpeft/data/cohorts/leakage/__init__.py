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

__all__ = ["Audit", "Finding", "run"]

Verdict = Literal["not measured", "ok", "look", "stop"]
Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]

VERDICTS: tuple[Verdict, ...] = ("not measured", "ok", "look", "stop")  # from the mildest
TRAIN, TUNING, HELD_OUT = range(3)

PROBED_STAYS = 20_000  # a side, drawn at random, so that time and memory stay bounded; the finding says of how many
_MANY_COPIES = 0.01  # of the notes asked: more than that moves a metric
_MANY_TIMES = 10.0  # as often in one group as elsewhere: the words are the answer
_FEW_STAYS = 10
_KNOWING = 0.95  # published AUROC of the best models on these tasks stay below 0.9
_OFTEN_NAMED, _MOSTLY_NAMED = 0.05, 0.5


@dataclass(frozen=True)
class Finding:
    """One measurement and what it means; ``value`` is None when it was not measured."""

    name: str
    value: float | None
    verdict: Verdict
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
class Audit:
    """All findings on one cohort."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of any finding."""
        return max((finding.verdict for finding in self.findings), key=VERDICTS.index)

    def finding(self, name: str) -> Finding:
        """The finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def as_json(self) -> dict[str, object]:
        """As it stands in ``leakage.json``."""
        return {
            "verdict": self.verdict,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(frozen=True)
class _Stays:
    """A cohort without its texts: where it is, and the subject, split, answers and group of every row."""

    path: Path
    classes: tuple[str, ...]
    subjects: Int64
    splits: Int64
    answers: sp.csr_array
    groups: list[str]

    def texts(self, chosen: Bool) -> overlap.Texts:
        return cohort_files.texts(self.path, chosen)


def run(
    cohort: Path,
    classes: Sequence[str],
    kind: ProblemType,
    folder: Path,
    seed: int,
    adaptation_corpus: Path | None = None,
    *,
    task: str = "",
    titles: Mapping[str, Sequence[str]] | None = None,
) -> Audit:
    """Measure every known way in which a cohort can leak, and write ``leakage.json``.

    Args:
        cohort: Parquet of schema ``tables.COHORT``.
        classes: the name of every class, in the order of its index.
        kind: what ``label`` and ``labels`` of the cohort hold.
        folder: where ``leakage.json`` goes.
        seed: of the stays that are probed, where there are many, and of the shuffled answers.
        adaptation_corpus: Parquet of schema ``tables.CORPUS`` that the base was, or will be, adapted on.
        task: a key of ``lexicons.LEXICONS``: which words tell the answer.
        titles: class -> its names in words, to look for in the text.

    Raises:
        InputError: a file without the columns of its schema, a split or a class that is none.
        StorageError: the folder cannot be written to.
    """
    stays = _read(cohort, classes, kind)
    generator = np.random.default_rng(seed)
    findings = (
        _subject_overlap(stays),
        *_copies(stays),
        *_adaptation(stays, adaptation_corpus),
        _outcome_words(stays, task),
        *_bag_of_words(stays, task, generator),
        _titles(stays, titles or {}),
    )
    audit = Audit(findings)
    _write(audit, folder / "leakage.json")
    return audit


def _read(cohort: Path, classes: Sequence[str], kind: ProblemType) -> _Stays:
    table = cohort_files.without_text(cohort)
    answers = cohort_files.answers(table, kind, classes, cohort)
    one_each = kind != "multilabel"
    groups = (
        [classes[location] for location in answers.indices.tolist()]
        if one_each
        else ["all stays"] * table.num_rows
    )
    return _Stays(
        cohort,
        tuple(classes),
        table["subject_id"].to_numpy(),
        cohort_files.split_numbers(table, cohort),
        answers,
        groups,
    )


def _write(audit: Audit, path: Path) -> None:
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


def _subject_overlap(stays: _Stays) -> Finding:
    pairs = np.unique(np.stack([stays.subjects, stays.splits]), axis=1)
    _, counts = np.unique(pairs[0], return_counts=True)
    straddling = int((counts > 1).sum())
    meaning = "people with stays in more than one split: what is learned about a person is asked about the same person"
    return Finding(
        "subjects_in_several_splits",
        straddling,
        "stop" if straddling else "ok",
        meaning,
        {"subjects": len(counts)},
    )


def _graded(copies: int, asked: int) -> Verdict:
    if not asked:
        return "not measured"
    return "ok" if not copies else "stop" if copies >= _MANY_COPIES * asked else "look"


def _copies(stays: _Stays) -> tuple[Finding, Finding]:
    """Notes of tuning and held_out that stand in an earlier split: as they are, and by half or more."""
    asked = int((stays.splits != TRAIN).sum())
    equal = _equal(stays)
    tuning, held_out = (
        overlap.sketched(stays.texts(stays.splits == split)) for split in (TUNING, HELD_OUT)
    )
    near = int(overlap.contained(tuning, stays.texts(stays.splits == TRAIN)).sum())
    near += int(overlap.contained(held_out, stays.texts(stays.splits != HELD_OUT)).sum())
    comparable = int(tuning.comparable.sum() + held_out.comparable.sum())
    detail = {
        "stays_asked": asked,
        "long_enough": comparable,
        "contained_from": overlap.CONTAINED,
        "words": overlap.SHINGLE_WORDS,
    }
    meaning = "stays of tuning and held_out whose text, de-identification marks aside, "
    return (
        Finding(
            "equal_notes_across_splits",
            equal,
            _graded(equal, asked),
            meaning + "equals one of an earlier split",
            {"stays_asked": asked},
        ),
        Finding(
            "near_notes_across_splits",
            near if comparable else None,
            _graded(near, comparable),
            meaning + "stands by half or more in one of an earlier split",
            detail,
        ),
    )


def _equal(stays: _Stays) -> int:
    earliest: dict[bytes, int] = {}
    rows, found = [], []
    for row, batch in stays.texts(np.ones(len(stays.splits), np.bool_)):
        rows.append(row)
        found += overlap.digests(overlap.words(batch))
    splits = stays.splits[np.concatenate(rows)].tolist() if rows else []
    for digest, split in zip(found, splits, strict=True):
        earliest[digest] = min(split, earliest.get(digest, split))
    return sum(
        bool(digest) and earliest[digest] < split
        for digest, split in zip(found, splits, strict=True)
    )


def _adaptation(stays: _Stays, corpus: Path | None) -> tuple[Finding, Finding]:
    """Whether held-out people and notes were read during adaptation."""
    names = ("held_out_subjects_in_adaptation", "held_out_notes_in_adaptation")
    meanings = (
        "held-out people whose notes the base was adapted on; ids of two data sets do not meet, so that 0 says little across data sets",
        "held-out stays whose text, de-identification marks aside, stands by half or more in one note that the base was adapted on",
    )
    if corpus is None:
        missing = "no adaptation corpus was given: "
        return Finding(names[0], None, "not measured", missing + meanings[0]), Finding(
            names[1], None, "not measured", missing + meanings[1]
        )
    cohort_files.checked(corpus, CORPUS_SCHEMA).close()
    subjects, learned = _learned_from(corpus)
    asked = np.unique(stays.subjects[stays.splits == HELD_OUT])
    known = int(np.isin(asked, subjects).sum())
    held_out = overlap.sketched(stays.texts(stays.splits == HELD_OUT))
    near, comparable = (
        int(overlap.contained(held_out, cohort_files.texts(corpus, learned)).sum()),
        int(held_out.comparable.sum()),
    )
    detail = {
        "stays_asked": len(held_out.rows),
        "long_enough": comparable,
        "contained_from": overlap.CONTAINED,
    }
    return (
        Finding(names[0], known, _graded(known, len(asked)), meanings[0], {"subjects": len(asked)}),
        Finding(
            names[1], near if comparable else None, _graded(near, comparable), meanings[1], detail
        ),
    )


def _learned_from(corpus: Path) -> tuple[Int64, Bool]:
    """The people of the corpus' train split, and which rows they are."""
    with cohort_files.checked(corpus, CORPUS_SCHEMA) as file:
        table = file.read(columns=["subject_id", "split"])
    learned = pc.equal(table["split"], SPLIT_NAMES[TRAIN]).to_numpy()
    return np.unique(table["subject_id"].to_numpy()[learned]), learned


def _outcome_words(stays: _Stays, task: str) -> Finding:
    name, outcome = "outcome_words", lexicons.pattern(task)
    if outcome is None:
        return Finding(
            name,
            None,
            "not measured",
            f"no lexicon for the task {task!r}; data/cohorts/leakage/lexicons.py has {', '.join(lexicons.LEXICONS)}",
        )
    found = words.mentions(stays.texts(np.ones(len(stays.splits), np.bool_)), stays.groups, outcome)
    detail = {
        "stays_by_section": found.by_section,
        "stays": found.stays,
        "asked": found.asked,
        "ratio": round(found.ratio, 2),
    }
    meaning = "stays whose text has a word that tells the outcome, by section and class; ratio: how many times as often in one class as elsewhere"
    total = sum(found.stays.values())
    return Finding(
        name,
        total,
        _told(total, found.ratio),
        meaning,
        {**detail, "lexicon": list(lexicons.LEXICONS[task])},
    )


def _told(total: int, ratio: float) -> Verdict:
    if not total:
        return "ok"
    return "stop" if ratio >= _MANY_TIMES and total >= _FEW_STAYS else "look"


def _bag_of_words(
    stays: _Stays, task: str, generator: np.random.Generator
) -> tuple[Finding, Finding]:
    """The probe, and the same on shuffled answers."""
    names = ("bag_of_words", "shuffled_answers")
    train, held_out = (_sampled(stays, split, generator) for split in (TRAIN, HELD_OUT))
    bag = words.bags(train, held_out) if words.answerable(train, held_out) else None
    if bag is None:
        missing = f"too few stays: both answers in train and held_out, and a word in the notes of {words.FEWEST_SUBJECTS} people, are needed"
        return Finding(names[0], None, "not measured", missing), Finding(
            names[1], None, "not measured", missing
        )
    probes = words.probed(bag, train, held_out, stays.classes)
    control = words.shuffled(bag, train, held_out, words.answerable(train, held_out)[0], generator)
    n, n_events = probes[0].n, probes[0].n_events
    by_chance = float(
        np.sqrt((n + 1) / (12 * n_events * (n - n_events)))
    )  # of the Mann-Whitney statistic
    sizes = {
        SPLIT_NAMES[split]: [len(side.texts), int((stays.splits == split).sum())]
        for split, side in ((TRAIN, train), (HELD_OUT, held_out))
    }
    return _leaning(names[0], probes, task, sizes), _chance(names[1], control, by_chance, sizes)


def _sampled(stays: _Stays, split: int, generator: np.random.Generator) -> words.Sample:
    rows = np.flatnonzero(stays.splits == split)
    rows = np.sort(generator.choice(rows, min(PROBED_STAYS, len(rows)), replace=False))
    chosen = np.zeros(len(stays.splits), np.bool_)
    chosen[rows] = True
    texts = [text for _, batch in stays.texts(chosen) for text in batch.to_pylist()]
    return words.Sample(texts, stays.subjects[rows], stays.answers[rows])


def _leaning(
    name: str, probes: Sequence[words.Probe], task: str, sizes: Mapping[str, list[int]]
) -> Finding:
    outcome = lexicons.pattern(task)
    telling = sorted(
        {word for probe in probes for word, _ in probe.top if outcome and outcome.search(word)}
    )
    value = float(np.mean([probe.auroc for probe in probes]))
    verdict: Verdict = "stop" if telling else "look" if value >= _KNOWING else "ok"
    classes = {
        p.name: {
            "auroc": round(p.auroc, 4),
            "n": p.n,
            "n_events": p.n_events,
            "top": [list(pair) for pair in p.top],
        }
        for p in probes
    }
    meaning = (
        f"AUROC on held_out of TF-IDF and logistic regression, mean over {len(probes)} classes; a leak shows among the words of largest weight "
        f"(words in the notes of {words.FEWEST_SUBJECTS} people or more)"
    )
    return Finding(
        name,
        round(value, 4),
        verdict,
        meaning,
        {"classes": classes, "words_that_tell": telling, "stays_probed_of": dict(sizes)},
    )


def _chance(
    name: str, aurocs: NDArray[np.float64], by_chance: float, sizes: Mapping[str, list[int]]
) -> Finding:
    """Near 0.5: within 0.05, or three standard errors where a small held_out (``by_chance``: of one AUROC) or the shuffles scatter more."""
    mean, spread = float(aurocs.mean()), float(aurocs.std(ddof=1) / np.sqrt(len(aurocs)))
    verdict: Verdict = "ok" if abs(mean - 0.5) <= max(0.05, 3 * by_chance, 3 * spread) else "stop"
    meaning = "AUROC on held_out after training on shuffled answers, which must be near 0.5: else the evaluation itself knows the answers"
    return Finding(
        name,
        round(mean, 4),
        verdict,
        meaning,
        {
            "shuffles": len(aurocs),
            "standard_error": round(spread, 4),
            "stays_probed_of": dict(sizes),
        },
    )


def _titles(stays: _Stays, titles: Mapping[str, Sequence[str]]) -> Finding:
    name, meaning = (
        "class_names_in_text",
        "share of (stay, class) pairs whose text has a name of the class, word for word; a known diagnosis is no leak",
    )
    found = (
        words.named(
            stays.texts(np.ones(len(stays.splits), np.bool_)),
            stays.answers,
            words.as_titles(titles, stays.classes),
        )
        if titles
        else None
    )
    if found is None or not found.answered.sum():
        return Finding(name, None, "not measured", f"no class that applies has a title: {meaning}")
    share = float(found.named.sum() / found.answered.sum())
    verdict: Verdict = (
        "stop" if share >= _MOSTLY_NAMED else "look" if share >= _OFTEN_NAMED else "ok"
    )
    order = np.argsort(-found.named, kind="stable")[: words.TOP_WORDS]
    most = {
        stays.classes[at]: [int(found.named[at]), int(found.answered[at])]
        for at in order
        if found.named[at]
    }
    return Finding(
        name,
        round(share, 4),
        verdict,
        meaning,
        {"named_of_answered": most, "pairs": int(found.answered.sum())},
    )
