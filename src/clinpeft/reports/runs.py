"""The tables about runs: what one is, what all are, two side by side, and the paper's Table 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import pyarrow as pa

from clinpeft.recipe import AdaptRecipe, Recipe
from clinpeft.registry import Comparison, Listing, Run
from clinpeft.reports.formats import MISSING, count, duration, number, share
from clinpeft.reports.tables import Column, Estimate, Table, Value, printed
from clinpeft.tables import Attrition

Key = tuple[str, str, str]  # name, split, group

TRAIN, TEST = "train", "held_out"


@dataclass(frozen=True)
class Entry:
    """One cell of a grid, for a table of results.

    Attributes:
        name: its row's.
        run: None where there is none, because the cell failed before one was opened.
        problem: why there is none.
        published: what was printed for it: ``trained``, ``share``, ``train_perplexity``, ``test_perplexity``, ``time``.
    """

    name: str
    run: Run | None
    problem: str = ""
    published: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)


_MEASURED = (
    Column("method", is_text=True),
    Column("trained", count),
    Column("share", share),
    Column("train perplexity"),
    Column("test perplexity", is_estimate=True),
    Column("time", duration),
    Column("tokens/s", count),
)

_PUBLISHED = {
    "trained": Column("published trained", count, under="trained"),
    "share": Column("published share", share, under="share"),
    "train_perplexity": Column("published train perplexity", under="train perplexity"),
    "test_perplexity": Column("published test perplexity", under="test perplexity"),
    "time": Column("published time", duration, under="time"),
}

_REMARK = Column("remark", is_text=True, under="method")


def adaptation_table(entries: Sequence[Entry], title: str, notes: Sequence[str] = ()) -> Table:
    """Table 2 of the paper (arXiv 2307.03042): a row a cell with trained parameters, share, perplexities and time, beside the published values.

    Above the cells stand what they must beat: the unigram model, where a run measured one, and each base model as it comes. A cell that failed,
    or has not ended, says so in its row.
    """
    runs = [entry.run for entry in entries if entry.run is not None]
    above = [*_baselines(runs, "unigram", None, lambda _: "unigram model"), *_baselines(runs, "base", 0, lambda run: f"{_base(run)}, not adapted")]
    published = [key for key in _PUBLISHED if any(key in entry.published for entry in entries)]
    rows = [(*row, *(None for _ in published), "") for row in above]
    rows += [(*_measured(entry), *(entry.published.get(key) for key in published), _remark(entry)) for entry in entries]
    columns = (*_MEASURED, *(_PUBLISHED[key] for key in published), _REMARK)
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(title, columns, tuple(rows), (*_reading_notes(runs), *notes))


def run_summary(run: Run) -> Table:
    """What one run is, a line a fact; facts that are not known have no line."""
    rows = tuple((label, text) for label, text in _facts(run) if text)
    return Table(f"Run {run.id}", (Column("fact", is_text=True), Column("value", is_text=True)), rows)


def run_results(run: Run) -> Table:
    """Every number of one run, with its interval and what it counts."""
    return _results(f"Results of run {run.id}", run.results)


def run_attrition(run: Run) -> Table:
    """What left at which step of a run, for which reason."""
    return attrition_table(f"What run {run.id} read, dropped and kept", run.attrition)


def attrition_table(title: str, steps: Sequence[Attrition]) -> Table:
    """What entered, what left for which reason and what was kept, step by step; below, where the first damaged rows stand."""
    rows = [(step.step, word, n) for step in steps for word, n in _counted(step.entered, step.dropped, step.kept)]
    places = tuple(f"{step.step}, {reason}: {'; '.join(found)}" for step in steps for reason, found in step.places.items())
    return Table(title, (Column("step", is_text=True), Column("what", is_text=True), Column("n", count)), tuple(rows), places)


def runs_list(listing: Listing) -> Table:
    """All runs of a home, oldest first, and what of it could not be read."""
    words = [Column(title, is_text=True, is_unbroken=title == "id") for title in ("id", "name", "kind", "state", "created", "base", "adapters")]
    numbers = [Column("trained", count), Column("test perplexity"), Column("time", duration)]
    rows: list[tuple[Value, ...]] = [_listed(run) for run in listing.runs]
    rows += [(Path(error.place).parent.name, "", "", "unreadable", *(None for _ in range(6))) for error in listing.unreadable]
    notes = tuple(f"{error.place}: {error.problem}" for error in listing.unreadable)
    return Table("Runs", (*words, *numbers), tuple(rows), notes)


def comparison(found: Comparison, paired: pa.Table | None = None, reason: str = "") -> tuple[Table, ...]:
    """Two runs side by side: what differs between them, their results, and the paired ratio of their perplexities.

    Args:
        found: as ``registry.compare`` gives it.
        paired: ``evaluation.difference`` of their likelihoods, of schema ``tables.RESULT``; None where they cannot be compared.
        reason: why they cannot, when not ``found`` but their likelihoods show it.
    """
    ids = (found.first.id, found.second.id)
    asked = tuple((d.key, *(MISSING if value is None else str(value) for value in (d.first, d.second))) for d in found.differences)
    differences = Table("What differs", (Column("key", is_text=True), *(Column(name, is_text=True) for name in ids)), asked)
    first, second = _estimates(found.first), _estimates(found.second)
    keys = [*first, *(key for key in second if key not in first)]
    rows = tuple((name, split, group, first.get((name, split, group)), second.get((name, split, group))) for name, split, group in keys)
    words = [Column(title, is_text=True) for title in ("metric", "split", "model")]
    why = found.incomparable or reason
    notes = (f"Not comparable on perplexity: {why}.",) if why else ()
    results = Table("Results", (*words, *(Column(name, is_estimate=True) for name in ids)), rows, notes)
    return (differences, results) if paired is None else (differences, results, _results("Paired, on the same tokens", paired))


def _results(title: str, results: pa.Table) -> Table:
    words = [Column(title, is_text=True) for title in ("metric", "split", "model")]
    numbers = [Column("value", number, is_estimate=True), Column("n", count), Column("subjects", count), Column("events", count)]
    rows = tuple((r["name"], r["split"], r["group"], _estimate(r), r["n"], r["n_subjects"], r["n_events"]) for r in results.to_pylist())
    notes = dict.fromkeys(f"{r['name']}: {r['definition']}." for r in results.to_pylist())
    return Table(title, (*words, *numbers), rows, tuple(notes))


def _measured(entry: Entry) -> tuple[Value, ...]:
    if entry.run is None:
        return (entry.name, *(None for _ in _MEASURED[1:]))
    record, found = entry.run.record, _estimates(entry.run)
    train, test = found.get(("perplexity", TRAIN, "adapted")), found.get(("perplexity", TEST, "adapted"))
    return (entry.name, record.trained_parameters, record.share, _value(train), test, record.training_seconds, _tokens_a_second(entry.run))


def _baselines(runs: Sequence[Run], group: str, trained: int | None, name: Callable[[Run], str]) -> list[tuple[Value, ...]]:
    """One row for each different measurement of a model that was not adapted."""
    rows = []
    for run in runs:
        found = _estimates(run)
        train, test = found.get(("perplexity", TRAIN, group)), found.get(("perplexity", TEST, group))
        if train or test:
            rows.append((name(run), trained, None if trained is None else 0.0, _value(train), test, None, None))
    shown = {(row[0], row[3], _value(row[4])): row for row in reversed(rows)}  # the first of each; intervals of equal values differ by chance
    return list(reversed(shown.values()))


def _remark(entry: Entry) -> str:
    if entry.run is None:
        return f"failed: {entry.problem}" if entry.problem else "no run"
    if entry.run.state == "finished":
        return ""
    error = entry.run.record.error
    return f"{entry.run.state}: {error.problem}" if error and error.problem else entry.run.state


def _reading_notes(runs: Sequence[Run]) -> Iterator[str]:
    """How to read the perplexities, from the rows themselves."""
    levels = sorted({row["level"] for run in runs for row in run.results.to_pylist() if row["level"] is not None})
    interval = f"; in brackets the {' and '.join(f'{100 * level:g}' for level in levels)} % interval, subjects resampled" if levels else ""
    yield f"Perplexity per token over all scored tokens; train is split {TRAIN}, test is split {TEST}{interval}."


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    record = run.record
    yield from (("id", run.id), ("name", record.name), ("kind", record.kind), ("state", run.state))
    if record.error:
        yield "error", record.error.problem
        yield "where", record.error.place
        yield "way out", record.error.way_out
    yield from (("source", run.recipe.source.name), ("base", _base(run)), ("adapters", _adapters(run.recipe)))
    yield from (("trained", _trained(run)), ("precision", record.precision_reason or record.precision or ""))
    yield from _perplexities(_estimates(run))
    yield "tokens seen", _shown(record.tokens_seen, count)
    yield "training time", _shown(record.training_seconds, duration)
    yield "tokens/s", _shown(_tokens_a_second(run), count)
    yield "total time", _shown(record.total_seconds, duration)
    yield "hardware", f"{record.hardware.devices} x {record.hardware.device}" if record.hardware else ""
    yield "created", f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    yield from (("notice", notice) for notice in record.notices)
    yield "folder", str(run.folder)


def _perplexities(found: Mapping[Key, Estimate]) -> Iterator[tuple[str, str]]:
    """``14.214 before, 9.810 (9.512–10.103) after, 0.690 (0.672–0.709) times``, a line a split."""
    for split, word in ((TRAIN, "train"), ("tuning", "tuning"), (TEST, "test")):
        before, after, times = (
            found.get((name, split, group))
            for name, group in (("perplexity", "base"), ("perplexity", "adapted"), ("perplexity_ratio", "adapted / base"))
        )
        parts = [(_shown(before, number), "before"), (_shown(after, number), "after"), (_shown(times, number), "times")]
        yield f"{word} perplexity", ", ".join(f"{text} {when}" for text, when in parts if text)


def _listed(run: Run) -> tuple[Value, ...]:
    record = run.record
    created = f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M}"
    words = (run.id, record.name, record.kind, run.state, created, _base(run), _adapters(run.recipe))
    test = _estimates(run).get(("perplexity", TEST, "adapted"))
    return (*words, record.trained_parameters, _value(test), record.training_seconds)


def _counted(entered: int, dropped: Mapping[str, int], kept: int) -> Iterator[tuple[str, int]]:
    yield "entered", entered
    yield from ((f"dropped: {reason}", dropped[reason]) for reason in sorted(dropped))
    yield "kept", kept


def _base(run: Run) -> str:
    return run.recipe.base.path.name if isinstance(run.recipe, AdaptRecipe) else ""


def _adapters(recipe: Recipe) -> str:
    """``lora (frozen) + prefix``."""
    specs = recipe.adapters if isinstance(recipe, AdaptRecipe) else ()
    return " + ".join(spec.method + ("" if spec.trainable else " (frozen)") for spec in specs)


def _trained(run: Run) -> str:
    record = run.record
    if record.trained_parameters is None:
        return ""
    of = f" of {count(record.base_parameters)}" if record.base_parameters else ""
    return f"{count(record.trained_parameters)}{of} parameters" + (f" ({share(record.share)})" if record.share is not None else "")


def _tokens_a_second(run: Run) -> float | None:
    tokens, seconds = run.record.tokens_seen, run.record.training_seconds
    return tokens / seconds if tokens is not None and seconds else None


def _estimates(run: Run) -> dict[Key, Estimate]:
    return {(row["name"], row["split"], row["group"] or ""): _estimate(row) for row in run.results.to_pylist()}


def _estimate(row: Mapping[str, float | None]) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def _value(estimate: Value) -> float | None:
    return estimate.value if isinstance(estimate, Estimate) else None


def _shown(value: Value, show: Callable[[float], str]) -> str:
    """Empty, and not a dash, where nothing is known."""
    known = value.value if isinstance(value, Estimate) else value
    return "" if known is None else printed(value, show)
