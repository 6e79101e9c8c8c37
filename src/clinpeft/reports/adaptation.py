"""The paper's Table 2: how well each adapter learned the language of notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from clinpeft.reports.facts import (
    TEST,
    TRAIN,
    Entry,
    Key,
    base_name,
    estimates,
    remark,
    tokens_a_second,
    value,
)
from clinpeft.reports.formats import count, duration, share
from clinpeft.reports.tables import Column, Table, Value
from clinpeft.runs import Run

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
    above = _baselines(runs, "unigram", None, lambda _: "unigram model")
    above += _baselines(runs, "base", 0, lambda run: f"{base_name(run.recipe)}, not adapted")
    published = [key for key in _PUBLISHED if any(key in entry.published for entry in entries)]
    rows = [(*row, *(None for _ in published), "") for row in above]
    rows += [
        (*_measured(entry), *(entry.published.get(key) for key in published), remark(entry))
        for entry in entries
    ]
    columns = (*_MEASURED, *(_PUBLISHED[key] for key in published), _REMARK)
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(title, columns, tuple(rows), (*_reading_notes(runs), *notes))


def _measured(entry: Entry) -> tuple[Value, ...]:
    if entry.run is None:
        return (entry.name, *(None for _ in _MEASURED[1:]))
    record, found = entry.run.record, estimates(entry.run)
    train, test = (
        found.get(Key("perplexity", TRAIN, "adapted")),
        found.get(Key("perplexity", TEST, "adapted")),
    )
    return (
        entry.name,
        record.trained_parameters,
        record.trained_fraction,
        value(train),
        test,
        record.training_seconds,
        tokens_a_second(entry.run),
    )


def _baselines(
    runs: Sequence[Run], group: str, trained: int | None, name: Callable[[Run], str]
) -> list[tuple[Value, ...]]:
    """One row for each different measurement of a model that was not adapted."""
    rows = []
    for run in runs:
        found = estimates(run)
        train, test = (
            found.get(Key("perplexity", TRAIN, group)),
            found.get(Key("perplexity", TEST, group)),
        )
        if train or test:
            rows.append(
                (
                    name(run),
                    trained,
                    None if trained is None else 0.0,
                    value(train),
                    test,
                    None,
                    None,
                )
            )
    shown = {
        (row[0], row[3], value(row[4])): row for row in reversed(rows)
    }  # the first of each; intervals of equal values differ by chance
    return list(reversed(shown.values()))


def _reading_notes(runs: Sequence[Run]) -> Iterator[str]:
    """How to read the perplexities, from the rows themselves."""
    levels = sorted(
        {
            row["level"]
            for run in runs
            for row in run.results.to_pylist()
            if row["level"] is not None
        }
    )
    interval = (
        f"; in brackets the {' and '.join(f'{100 * level:g}' for level in levels)} % interval, subjects resampled"
        if levels
        else ""
    )
    yield f"Perplexity per token over all scored tokens; train is split {TRAIN}, test is split {TEST}{interval}."
