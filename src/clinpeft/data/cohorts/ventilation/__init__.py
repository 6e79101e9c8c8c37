"""Mechanical ventilation from the tables: who breathed with what help, from when to when, and whether that was long.

Episodes follow mimic-code's definitions for MIMIC-III and MIMIC-IV (``rules.py`` has the item ids and values, the ``.sql`` files the rules), in
SQL of our own for DuckDB. Charted tables are read once, as a stream: 330 million rows pass through, what stays is one row per ICU stay and
charted minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.cohorts.ventilation import rules
from clinpeft.data.cohorts.ventilation.scan import Raw, find, run, statement, view

PROLONGED = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("stay_id", pa.int64(), nullable=False),
        pa.field("icu_stay_id", pa.int64(), nullable=False),
        pa.field("hours", pa.float64(), nullable=False),
        pa.field("prolonged", pa.bool_(), nullable=False),
    ]
)
"""One ventilated ICU stay: the hours of this ICU stay, and the answer of its admission."""

EXCLUSION = pa.schema([*list(PROLONGED)[:3], pa.field("reason", pa.string(), nullable=False)])
"""One ventilated ICU stay that leaves, with the first reason that holds."""


@dataclass(frozen=True)
class Derived:
    """Where the table ``episode`` came from.

    Attributes:
        source: ``charted`` (charted rows, the published definition) or ``procedures`` (ventilation documented as procedures with start and end,
            where the data comes without charted rows, as the open demos do): the two do not give the same episodes.
        attrition: the rows read and why some were left out, then the candidate episodes and why some are none.
    """

    source: Literal["charted", "procedures"]
    attrition: tuple[Attrition, ...]


class Definition(NamedTuple):
    """What "prolonged" measures: ``measure`` of each ICU stay, taken ``over_admission``, plus ``grace_hours``, reaches seven days."""

    measure: Literal["span", "summed"]
    over_admission: Literal["max", "sum"]
    grace_hours: float
    least_hours: float | None


PROLONGED_HOURS = 7 * 24.0
ADULT_YEARS = 18.0
DEFINITIONS: dict[str, Definition] = {
    "clinical-xlnet": Definition("span", "max", grace_hours=6.0, least_hours=2 * 24.0),
    "summed": Definition("summed", "sum", grace_hours=0.0, least_hours=None),
}
"""``clinical-xlnet``: from the first start to the last end of one ICU stay, pauses included. ``summed``: all hours on the ventilator over the whole
admission, pauses left out. ``least_hours``: who is ventilated for less is not in the published cohort; None: this definition excludes nobody."""

_CHARTED = {"icu_stay_id": "STAY_ID", "charted_at": "CHARTTIME", "item": "ITEMID", "value": "VALUE"}
_PERFORMED = {
    "icu_stay_id": "STAY_ID",
    "began_at": "STARTTIME",
    "ended_at": "ENDTIME",
    "item": "ITEMID",
    "state": "STATUSDESCRIPTION",
}
_III = {"icu_stay_id": "ICUSTAY_ID"}
CHARTEVENTS_III = Raw(
    "CHARTEVENTS",
    "ventilation_charted",
    {**_CHARTED, **_III, "error": "ERROR"},
    "ventilation from charted settings",
)
PROCEDUREEVENTS_III = Raw(
    "PROCEDUREEVENTS_MV",
    "ventilation_procedure",
    {**_PERFORMED, **_III},
    "extubation and ventilation as procedures",
)
CHARTEVENTS_IV = Raw(
    "chartevents", "ventilation_charted", _CHARTED, "ventilation from charted settings"
)
PROCEDUREEVENTS_IV = Raw(
    "procedureevents", "ventilation_procedure", _PERFORMED, "ventilation as procedures"
)


def episodes_mimic_iii(connection: duckdb.DuckDBPyConnection, folder: Path) -> Derived:
    """Create the table ``episode`` (``tables.EPISODE``) from a MIMIC-III folder and the relation ``icu_stay`` (``tables.ICU_STAY``).

    A ventilator setting begins or continues an episode; it ends with an extubation, with oxygen while no ventilator is charted, or after more
    than eight hours without a setting; one moment is no episode. Status ``ventilated``: CareVue cannot tell a mask from a tube. Without
    CHARTEVENTS, procedures 225792 (``ventilated``) and 225794 (``NonInvasiveVent``) are taken as they are documented.

    Raises:
        SourceError: no table to derive from, a missing column, a damaged file.
    """
    charted, performed = find(folder, CHARTEVENTS_III.stem), find(folder, PROCEDUREEVENTS_III.stem)
    if performed is None:
        raise _missing(folder, PROCEDUREEVENTS_III)
    if charted is None:
        return _from_procedures(
            connection, performed, PROCEDUREEVENTS_III, rules.PROCEDURES["mimic-iii"]
        )
    signs = _table(rules.Sign._fields, rules.SIGNS)
    items = _table(("item", "signal"), tuple(rules.EXTUBATIONS.items()))
    with _work(connection, ventilation_sign=signs, ventilation_extubation_item=items):
        with view(connection, performed, PROCEDUREEVENTS_III):
            run(connection, "extubations_mimic_iii")
        with view(connection, charted, CHARTEVENTS_III):
            run(connection, "moments_mimic_iii")
        run(connection, "candidates_mimic_iii")
        run(connection, "episodes")
        steps = {
            "charted ventilation rows": "ventilation_moment",
            "extubation procedures": "ventilation_extubation",
        }
        return Derived("charted", tuple(_counted(connection, steps)))


def episodes_mimic_iv(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    devices: Literal["charted", "with-oxygen-flow"] = "charted",
) -> Derived:
    """Create the table ``episode`` (``tables.EPISODE``) from a MIMIC-IV folder and the relation ``icu_stay`` (``tables.ICU_STAY``).

    Each charted minute takes the strongest status of its first device, its ventilator modes, and a mask among any of its devices. A change of
    status or a gap of 14 hours of the clock begins a new episode; an episode lasts until the next charted status, unless that is 14 hours away.
    Without chartevents, procedures 225792 (``InvasiveVent``) and 225794 (``NonInvasiveVent``) are taken as they are documented.

    Args:
        connection: with the relation ``icu_stay``.
        folder: the one that holds ``icu``, or ``icu`` itself.
        devices: ``charted`` uses every charted device. ``with-oxygen-flow`` gives the published derived table: it keeps a device only where an
            oxygen flow is charted in the same minute, since its outer join of the two is filtered like an inner one.

    Raises:
        SourceError: no table to derive from, a missing column, a damaged file.
    """
    charted, performed = find(folder, CHARTEVENTS_IV.stem), find(folder, PROCEDUREEVENTS_IV.stem)
    if charted is None and performed is None:
        raise _missing(folder, CHARTEVENTS_IV)
    if charted is None:
        assert performed is not None
        return _from_procedures(
            connection, performed, PROCEDUREEVENTS_IV, rules.PROCEDURES["mimic-iv"]
        )
    with_flow = devices == "with-oxygen-flow"
    read = (
        rules.DEVICE,
        rules.MODE,
        rules.HAMILTON_MODE,
        *(rules.OXYGEN_FLOWS if with_flow else ()),
    )
    items, readings = (
        _table(("item",), [(item,) for item in read]),
        _table(rules.Reading._fields, rules.READINGS),
    )
    named = {
        "device": rules.DEVICE,
        "mode": rules.MODE,
        "hamilton_mode": rules.HAMILTON_MODE,
        "with_flow": with_flow,
    }
    named["mask_rank"] = rules.STATUSES.index(rules.NON_INVASIVE)
    with _work(connection, ventilation_item=items, ventilation_reading=readings):
        with view(connection, charted, CHARTEVENTS_IV):
            run(connection, "moments_mimic_iv", **named)
        run(connection, "candidates_mimic_iv", **named)
        run(connection, "episodes")
        return Derived(
            "charted",
            tuple(_counted(connection, {"charted ventilation rows": "ventilation_moment"})),
        )


def prolonged(connection: duckdb.DuckDBPyConnection, definition: str) -> pa.Table:
    """The ventilated ICU stays of the table ``episode`` (schema ``PROLONGED``), ordered by subject, stay and ICU stay.

    On MIMIC-IV invasive ventilation and tracheostomy count together, else exactly the prolonged cases would be cut short. ``hours`` are those of
    the ICU stay; ``prolonged`` is the answer of the admission and the same on all of its ICU stays, as in the published labels, where one
    prolonged ICU stay makes the admission prolonged. Exclusions are not applied: see ``exclusions``.

    Args:
        connection: with the table ``episode``.
        definition: a key of ``DEFINITIONS``.

    Raises:
        RecipeError: there is no such definition.
    """
    chosen = _definition(definition)
    text = statement("prolonged").format(
        measure=chosen.measure, over_admission=chosen.over_admission
    )
    values = {
        "counted": list(rules.COUNTED),
        "grace_hours": chosen.grace_hours,
        "prolonged_hours": PROLONGED_HOURS,
    }
    return connection.sql(text, params=values).to_arrow_table().cast(PROLONGED)


def exclusions(
    connection: duckdb.DuckDBPyConnection, definition: str = "clinical-xlnet"
) -> pa.Table:
    """The ventilated ICU stays that ``definition`` does not ask about (schema ``EXCLUSION``), each with the first reason that holds.

    Reasons in order: age unknown; under 18 years; the diagnoses of ``rules.EXCLUDED``; ventilated for less than 2 days (the published cohort
    begins there, the 6 hours of grace included); not the first ICU stay of the admission, among those left. The rest is what ``prolonged`` is
    asked about: one ICU stay an admission.

    Args:
        connection: with ``episode``, ``icu_stay``, ``stay`` (``stay_id``, ``age_years``) and ``code``.
        definition: a key of ``DEFINITIONS``; ``summed`` excludes nobody.

    Raises:
        RecipeError: there is no such definition.
    """
    chosen = _definition(definition)
    if chosen.least_hours is None:
        return EXCLUSION.empty_table()
    excluded = _table(
        (*rules.Excluded._fields, "rank"), [(*row, rank) for rank, row in enumerate(rules.EXCLUDED)]
    )
    values = {
        "counted": list(rules.COUNTED),
        "grace_hours": chosen.grace_hours,
        "least_hours": chosen.least_hours,
        "adult_years": ADULT_YEARS,
    }
    with _work(connection, ventilation_excluded=excluded):
        return (
            connection.sql(statement("exclusions"), params=values).to_arrow_table().cast(EXCLUSION)
        )


def _from_procedures(
    connection: duckdb.DuckDBPyConnection, path: Path, raw: Raw, kinds: dict[str, str]
) -> Derived:
    known = _table(
        ("item", "status", "rank"),
        [(item, status, rank) for rank, (item, status) in enumerate(kinds.items())],
    )
    with _work(connection, ventilation_kind=known):
        with view(connection, path, raw):
            run(connection, "procedures")
        run(connection, "candidates_procedures")
        run(connection, "episodes")
        rows = _tally(
            connection,
            "ventilation procedures",
            "SELECT reason, count(*) FROM ventilation_interval GROUP BY reason",
        )
        return Derived("procedures", (rows,))


def _definition(name: str) -> Definition:
    if name not in DEFINITIONS:
        raise RecipeError(
            f"there is no ventilation definition {name!r}",
            location="task.ventilation",
            hint=f"one of: {', '.join(DEFINITIONS)}",
        )
    return DEFINITIONS[name]


def _missing(folder: Path, raw: Raw) -> SourceError:
    message = f"there is no {raw.stem}.csv and no {raw.stem}.csv.gz, which {raw.purpose} needs"
    return SourceError(
        message, location=str(folder), hint="point source.path at the folder as PhysioNet ships it"
    )


def _counted(connection: duckdb.DuckDBPyConnection, steps: dict[str, str]) -> Iterator[Attrition]:
    for step, table in steps.items():
        yield _tally(
            connection, step, f"SELECT reason, sum(n_rows)::BIGINT FROM {table} GROUP BY reason"
        )
    yield _tally(
        connection,
        "ventilation episodes",
        "SELECT reason, count(*) FROM ventilation_candidate GROUP BY reason",
    )


def _tally(connection: duckdb.DuckDBPyConnection, step: str, query: str) -> Attrition:
    counts: dict[str | None, int] = dict(connection.execute(query).fetchall())
    attrition = Attrition(step, entered_rows=sum(counts.values()))
    for reason, count in counts.items():
        if reason is not None:
            attrition.drop_rows(reason, count)
    return attrition


def _table(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)})


@contextmanager
def _work(connection: duckdb.DuckDBPyConnection, **lists: pa.Table) -> Iterator[None]:
    """The rules as tables to join with; they and what is built on the way are gone at the end, however it ends."""
    for name, rows in lists.items():
        connection.register(name, rows)
    try:
        yield
    finally:
        for name in lists:
            connection.unregister(name)
        for name in (
            "ventilation_moment",
            "ventilation_extubation",
            "ventilation_interval",
            "ventilation_candidate",
        ):
            connection.execute(f"DROP TABLE IF EXISTS {name}")
