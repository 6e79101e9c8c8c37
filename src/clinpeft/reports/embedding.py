"""Tables of embeddings: how a grid of backbones separates and retrieves, and tables 1 to 5 of the study (arXiv 2511.19739) with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clinpeft.reports.encoders import (
    ADAPTED,
    HELD_OUT,
    LEXICAL,
    RANDOM_WEIGHTS,
    SHUFFLED,
    STUDY,
    THRESHOLD,
    ZERO_SHOT,
    Encoder,
    Grid,
    gain,
    grid,
)
from clinpeft.reports.facts import SUBGROUP, Entry, remark, value
from clinpeft.reports.formats import count, duration, number, share
from clinpeft.reports.tables import Column, Estimate, Table, Value, mean

Cells = dict[str, Value]

DIFFERENCE, SEEDS = "{}, adapted less zero-shot", "{}, SD and range over seeds"


@dataclass(frozen=True)
class _Measure:
    """A column: which metric of which task, against which unrelated pairs (empty where there are none)."""

    title: str
    metric: str
    task: str
    stratum: str = ""

    def group(self, state: str) -> str:
        return f"{state}{SUBGROUP}{self.stratum}" if self.stratum else state


def embedding_table(entries: Sequence[Entry], title: str, notes: Sequence[str] = ()) -> Table:
    """A grid in one table: a row a backbone and a state of it, a column a measure on what was held out.

    Cells whose names differ only in their seed are one row: the mean is shown, with the mean of their intervals, which is sampling error; what the
    seeds change stands beside. An adapted row has the paired difference to its zero-shot row, and never a ratio: a zero-shot separation near 0
    makes any gain look large. Controls stand above: words alone (BM25, TF-IDF), the same backbone with random weights, and shuffled pairs, which
    have to be at chance. A row that is worse than zero-shot, or cannot be told from it, says so, as does a cell that failed or has not ended.
    """
    made = grid(entries)
    measures = _measures(made)
    rows = list(_rows(made, measures))
    notes = [
        *(note for measure in measures if (note := _definition(made, measure))),
        *_seed_note(made),
        *notes,
    ]
    return _table(title, list(_columns(measures)), rows, notes)


def study_tables(
    entries: Sequence[Entry], licences: Mapping[str, str] | None = None
) -> tuple[Table, ...]:
    """Tables 1 to 5 of the study from the runs of a grid, the published values beside: separation, efficiency, zero-shot against adapted, the
    ablation where the grid has one, licences.

    Args:
        entries: cells with what was published for them (``encoders.PUBLISHED``).
        licences: name on the hub -> licence, in place of ``encoders.KNOWN``.
    """
    made = grid(entries)
    tables = [_separation(made), _efficiency(made), _gains(made)]
    return (*tables, *([_ablation(made)] if ablated(made) else []), _licences(made, licences or {}))


@dataclass(frozen=True)
class Point:
    """A row of an ablation.

    Attributes:
        pairs_share: of the pairs that any row on this backbone learned from; None where the runs do not say.
        objective: of training.
        rank: of the low-rank update; None for other adapters.
        row: its numbers.
    """

    pairs_share: float | None
    objective: str
    rank: int | None
    row: Encoder


def ablated(made: Grid) -> tuple[Point, ...]:
    """Rows on one backbone that differ in the share of pairs, the objective or the rank; empty where none do. The first such backbone counts."""
    for model in dict.fromkeys(row.model for row in made.rows):
        points = _points([row for row in made.rows if row.model == model])
        if len({(point.pairs_share, point.objective, point.rank) for point in points}) > 1:
            return tuple(
                sorted(
                    points,
                    key=lambda point: (point.pairs_share or 0, point.objective, point.rank or 0),
                )
            )
    return ()


def _points(rows: Sequence[Encoder]) -> list[Point]:
    learned = {
        id(row): max((run.record.counts.get("pairs.train", 0) for run in row.runs), default=0)
        for row in rows
    }
    most = max(learned.values(), default=0)
    points = []
    for row in rows:
        recipe = row.recipe
        if recipe is not None and recipe.adapters:
            rank = next(
                (known for spec in recipe.adapters if (known := getattr(spec, "rank", None))), None
            )
            part = round(learned[id(row)] / most, 2) if most and learned[id(row)] else None
            points.append(Point(part, recipe.training.objective, rank, row))
    return points


# The main table.


def _measures(made: Grid) -> list[_Measure]:
    """Pairs in the two hardest strata, separation, and every search, in the order of the results."""
    pairs = [
        _Measure(f"AUROC, {stratum}", "auroc", HELD_OUT, stratum)
        for stratum in ("mined", "same chapter")
    ]
    pairs.append(_Measure("separation", "separation", made.task, made.stratum))
    searched = dict.fromkeys(
        task
        for row in made.rows
        for found in row.found
        for name, _, task in found
        if name == "ndcg_at_10"
    )
    return [*pairs, *(_Measure(f"nDCG@10, {task}", "ndcg_at_10", task) for task in searched)]


def _columns(measures: Sequence[_Measure]) -> Iterator[Column]:
    yield from (Column("model", is_text=True), Column("state", is_text=True))
    for measure in measures:
        yield Column(measure.title, is_estimate=True)
        yield Column(
            DIFFERENCE.format(measure.title),
            under=measure.title,
            mark="difference ",
            is_estimate=True,
        )
        yield Column(
            SEEDS.format(measure.title), under=measure.title, mark="seeds SD ", is_estimate=True
        )
        if measure.metric == "separation":
            yield Column("published separation", under=measure.title, mark="published ")
    yield from (Column("trained", count), Column("share", share), Column("time", duration))
    yield Column("remark", is_text=True, under="state")


def _rows(made: Grid, measures: Sequence[_Measure]) -> Iterator[Cells]:
    yield from (_control("words alone", state, made.rows, measures) for state in LEXICAL)
    for model in dict.fromkeys(row.model for row in made.rows):
        rows = [row for row in made.rows if row.model == model]
        yield from (_control(model, state, rows, measures) for state in (RANDOM_WEIGHTS, SHUFFLED))
        published = {
            "published separation": next(
                (
                    known
                    for row in rows
                    if (known := row.printed("zero_shot_separation")) is not None
                ),
                None,
            )
        }
        yield _control(model, ZERO_SHOT, rows, measures) | published
        yield from (_adapted(row, measures) for row in rows)


def _control(
    model: str, state: str, rows: Sequence[Encoder], measures: Sequence[_Measure]
) -> Cells:
    """What is the same in every run that measured it: of each number the first that there is."""
    found: Cells = {"model": model, "state": state}
    for measure in measures:
        numbers = (row.number(measure.metric, measure.group(state), measure.task) for row in rows)
        found[measure.title] = next((known for known in numbers if known), None)
    return found


def _adapted(row: Encoder, measures: Sequence[_Measure]) -> Cells:
    found: Cells = {
        "model": row.model,
        "state": row.state,
        "remark": "; ".join(_remarks(row, measures)),
    }
    for measure in measures:
        name = (measure.metric, measure.group(ADAPTED), measure.task)
        found[measure.title], found[SEEDS.format(measure.title)] = (
            row.number(*name),
            row.spread(*name),
        )
        found[DIFFERENCE.format(measure.title)] = gain(
            row, measure.metric, measure.task, measure.stratum
        )
    found["published separation"] = row.printed("separation")
    found |= {
        "trained": _recorded(row, "trained_parameters"),
        "share": _recorded(row, "trained_fraction"),
        "time": _recorded(row, "training_seconds"),
    }
    return found


def _recorded(row: Encoder, field: str) -> float | None:
    """A number of the record, the mean over seeds."""
    known = [
        Estimate(float(found))
        for run in row.runs
        if (found := getattr(run.record, field)) is not None
    ]
    return value(mean(known))


def _remarks(row: Encoder, measures: Sequence[_Measure]) -> Iterator[str]:
    """What did not end well, and where adapting did harm or nothing that could be seen."""
    yield from dict.fromkeys(text for entry in row.entries if (text := remark(entry)))
    gains = {
        measure.title: gain(row, measure.metric, measure.task, measure.stratum)
        for measure in measures
    }
    ends = {title: (known.low, known.high) for title, known in gains.items() if known}
    worse = [title for title, (_, high) in ends.items() if high is not None and high < 0]
    unclear = [
        title
        for title, (low, high) in ends.items()
        if low is not None and high is not None and low <= 0 <= high
    ]
    if worse:
        yield f"worse than zero-shot: {', '.join(worse)}"
    if unclear:
        yield f"not told from zero-shot: {', '.join(unclear)}"


def _definition(made: Grid, measure: _Measure) -> str:
    """``nDCG@10, other books: n = 812: <its definition>``, from the results themselves."""
    for row in (
        row for encoder in made.rows for run in encoder.runs for row in run.results.to_pylist()
    ):
        if (row["name"], row["task"]) == (measure.metric, measure.task) and row["group"] in (
            measure.group(ADAPTED),
            measure.group(ZERO_SHOT),
        ):
            level = f", {100 * row['level']:g} % interval in brackets" if row["level"] else ""
            where = f" ({made.said})" if measure.metric == "separation" else ""
            return f"{measure.title}{where}: n = {count(row['n'])}{level}; {row['definition'].rstrip('.')}."
    return ""


def _seed_note(made: Grid) -> Iterator[str]:
    seeds = max((len(row.runs) for row in made.rows), default=0)
    if seeds > 1:
        interval = "the interval is the mean of theirs (sampling error alone), and what the seeds change stands beside: standard deviation, range"
        yield f"A value is the mean over up to {seeds} seeds: {interval}."


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[Cells], notes: Sequence[str]
) -> Table:
    """Without columns and rows that hold nothing."""
    held = [
        row
        for row in rows
        if _is_adapted(row)
        or any(known is not None for name, known in row.items() if name not in ("model", "state"))
    ]
    shown = [
        column for column in columns if any(row.get(column.title) not in (None, "") for row in held)
    ]
    texts = tuple(
        tuple(row.get(column.title, "" if column.is_text else None) for column in shown)
        for row in held
    )
    return Table(title, tuple(shown), texts, tuple(dict.fromkeys(notes)))


def _is_adapted(row: Cells) -> bool:
    return "remark" in row


# The tables of the study.


def _beside(title: str, show: Callable[[float], str] = number) -> Column:
    """The published value of a column."""
    return Column(f"published {title}", show, under=title, mark="published ")


def _named(made: Grid) -> list[tuple[Encoder, Cells]]:
    return [
        (
            row,
            {
                "model": row.model,
                "state": row.state,
                "remark": "; ".join(filter(None, map(remark, row.entries))),
            },
        )
        for row in made.rows
    ]


_WORDS = (Column("model", is_text=True), Column("state", is_text=True))
_REMARK = Column("remark", is_text=True, under="state")


def _separation(made: Grid) -> Table:
    """Table 1."""
    words = {"similar": "mean_related", "different": "mean_unrelated", "separation": "separation"}
    more = {"Cohen's d": "cohens_d", "AUROC": "auroc"}
    columns = [*_WORDS]
    for title in words:
        columns += [Column(title, is_estimate=True), _beside(title)]
    columns += [
        Column(SEEDS.format("separation"), under="separation", mark="seeds SD ", is_estimate=True)
    ]
    columns += [*(Column(title, is_estimate=True) for title in more), _REMARK]
    rows = []
    for row, cells in _named(made):
        cells |= {title: made.pairs(row, metric) for title, metric in {**words, **more}.items()}
        cells |= {f"published {title}": row.printed(title) for title in words}
        cells[SEEDS.format("separation")] = row.spread(
            "separation", f"{ADAPTED}{SUBGROUP}{made.stratum}", made.task
        )
        rows.append(cells)
    above = [
        row.model for row in made.rows if (value(made.pairs(row, "separation")) or 0) > THRESHOLD
    ]
    notes = [
        f"Measured on {made.said}; separation is the mean cosine of similar less that of different pairs, and depends on the spread of all cosines, "
        "which the AUROC does not.",
        f"Above {THRESHOLD}, which the study calls clinically useful without data for it: {len(above)} of {len(made.rows)}.",
        "Published intervals were simulated from means and standard deviations; those here resample pairs or chapters.",
    ]
    if made.task != STUDY:
        notes.append(
            "The published values stand on 50 pairs by hand, and these do not: compare orders, not numbers."
        )
    return _table(
        "Table 1: separation of the adapted backbones", columns, rows, [*notes, *_seed_note(made)]
    )


_PROFILED = {
    "embeddings/s": ("embeddings_per_second", "embeddings_per_second"),
    "tokens/s": ("tokens_per_second", ""),
    "latency p50, ms": ("latency_ms_p50", "latency_ms"),
    "latency p95, ms": ("latency_ms_p95", "latency_ms_p95"),
    "memory, GB": ("", "memory_gb"),
    "load, s": ("load_seconds", ""),
    "parameters": ("", "parameters"),
    "dimension": ("", "dimension"),
}
"""Column -> name in the profile, key of what was published."""


def _one_decimal(value: float) -> str:
    return f"{value:,.1f}"


_SHOWN = {
    "tokens/s": count,
    "parameters": count,
    "dimension": count,
    "embeddings/s": _one_decimal,
    "load, s": _one_decimal,
    "memory, GB": number,
}


def _efficiency(made: Grid) -> Table:
    """Table 2."""
    columns = [*_WORDS]
    for title in _PROFILED:
        show = _SHOWN.get(title, _one_decimal)
        columns += [Column(title, show), _beside(title, show)]
    rows = []
    for row, cells in _named(made):
        cells |= {title: row.profiled(name) for title, (name, _) in _PROFILED.items() if name}
        cells |= {
            "memory, GB": row.memory_gb,
            "parameters": row.parameters,
            "dimension": row.dimension,
        }
        cells |= {
            f"published {title}": row.printed(key) for title, (_, key) in _PROFILED.items() if key
        }
        rows.append(cells)
    notes = [
        "Measured on one machine, by the protocol that the profile of each run states; the published numbers are of another machine, on texts of "
        "unknown length, and their memory fits float32 only.",
        "GB: 10⁹ bytes at the peak. Published latency is the mean.",
    ]
    return _table("Table 2: speed and memory", [*columns, _REMARK], rows, notes)


def _gains(made: Grid) -> Table:
    """Table 3."""
    columns = [*_WORDS]
    for title in (ZERO_SHOT, ADAPTED, "difference"):
        columns += [Column(title, is_estimate=True), _beside(title)]
    mined = "difference of AUROC, mined"
    columns += [Column(mined, is_estimate=True), _REMARK]
    rows = []
    for row, cells in _named(made):
        before, after = row.printed("zero_shot_separation"), row.printed("separation")
        cells |= {
            ZERO_SHOT: made.pairs(row, "separation", ZERO_SHOT),
            ADAPTED: made.pairs(row, "separation"),
            "difference": made.gain(row),
        }
        cells |= {f"published {ZERO_SHOT}": before, f"published {ADAPTED}": after}
        cells |= {
            "published difference": None if before is None or after is None else after - before
        }
        cells |= {mined: gain(row, "auroc", HELD_OUT, "mined")}
        rows.append(cells)
    notes = [
        f"Separation on {made.said}; the difference is adapted less zero-shot on the same pairs.",
        "No gain is given in percent: where a zero-shot separation is near 0, a ratio to it says how near.",
    ]
    return _table("Table 3: zero-shot against adapted", columns, rows, notes)


def _ablation(made: Grid) -> Table:
    """Table 4."""
    points = ablated(made)
    columns = [
        Column("pairs", lambda part: f"{part:.0%}"),
        Column("loss", is_text=True),
        Column("rank", count),
    ]
    columns += [Column("separation", is_estimate=True), _beside("separation")]
    columns += [
        Column(SEEDS.format("separation"), under="separation", mark="seeds SD ", is_estimate=True)
    ]
    columns += [Column("AUROC, mined", is_estimate=True), Column("trained", count)]
    rows: list[Cells] = [
        {
            "pairs": point.pairs_share,
            "loss": point.objective,
            "rank": point.rank,
            "separation": made.pairs(point.row, "separation"),
            "published separation": point.row.printed("separation"),
            SEEDS.format("separation"): point.row.spread(
                "separation", f"{ADAPTED}{SUBGROUP}{made.stratum}", made.task
            ),
            "AUROC, mined": point.row.number("auroc", f"{ADAPTED}{SUBGROUP}mined", HELD_OUT),
            "trained": _recorded(point.row, "trained_parameters"),
        }
        for point in points
    ]
    said = f"{points[0].row.model}; separation on {made.said}. Pairs: of those that any of these runs learned from."
    return _table("Table 4: ablation", columns, rows, [said, *_seed_note(made)])


def _licences(made: Grid, licences: Mapping[str, str]) -> Table:
    """Table 5."""
    columns = [
        Column(title, is_text=True)
        for title in ("model", "backbone", "architecture", "licence", "note")
    ]
    rows: dict[str, Cells] = {}
    for row in made.rows:
        licence = licences.get(row.hub_name, row.known.licence) or "unknown"
        known = {
            "backbone": row.hub_name,
            "architecture": row.known.architecture,
            "licence": licence,
            "note": row.known.note,
        }
        rows.setdefault(row.model, {"model": row.model, **known})
    notes = [
        "Of the weights, as their pages give it; an adapter adds the terms of the books that it learned from."
    ]
    return _table("Table 5: licences", columns, list(rows.values()), notes)
