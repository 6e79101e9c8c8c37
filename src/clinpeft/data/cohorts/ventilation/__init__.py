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
from clinpeft.data.cohorts.ventilation.scan import (
    ChartTable,
    find_chart_file,
    execute_sql_file,
    read_sql_file,
    create_chart_view,
)

PROLONGED_VENTILATION_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("stay_id", pa.int64(), nullable=False),
        pa.field("icu_stay_id", pa.int64(), nullable=False),
        pa.field("hours", pa.float64(), nullable=False),
        pa.field("prolonged", pa.bool_(), nullable=False),
    ]
)
"""One ventilated ICU stay: the hours of this ICU stay, and the answer of its admission."""

VENTILATION_EXCLUSION_SCHEMA = pa.schema(
    [*list(PROLONGED_VENTILATION_SCHEMA)[:3], pa.field("reason", pa.string(), nullable=False)]
)
"""One ventilated ICU stay that leaves, with the first reason that holds."""


@dataclass(frozen=True)
class EpisodeDerivation:
    """Where the table ``episode`` came from.

    Attributes:
        source: ``charted`` (charted rows, the published definition) or ``procedures`` (ventilation documented as procedures with start and end,
            where the data comes without charted rows, as the open demos do): the two do not give the same episodes.
        attrition: the rows read and why some were left out, then the candidate episodes and why some are none.
    """

    source: Literal["charted", "procedures"]
    attrition: tuple[Attrition, ...]


class ProlongedVentilationDefinition(NamedTuple):
    """What "prolonged" measures: ``measure`` of each ICU stay, taken ``over_admission``, plus ``grace_hours``, reaches seven days."""

    measure: Literal["span", "summed"]
    over_admission: Literal["max", "sum"]
    grace_hours: float
    min_hours: float | None


PROLONGED_VENTILATION_HOURS = 7 * 24.0
ADULT_AGE_YEARS = 18.0
PROLONGED_VENTILATION_DEFINITIONS: dict[str, ProlongedVentilationDefinition] = {
    "clinical-xlnet": ProlongedVentilationDefinition(
        "span", "max", grace_hours=6.0, min_hours=2 * 24.0
    ),
    "summed": ProlongedVentilationDefinition("summed", "sum", grace_hours=0.0, min_hours=None),
}
"""``clinical-xlnet``: from the first start to the last end of one ICU stay, pauses included. ``summed``: all hours on the ventilator over the whole
admission, pauses left out. ``least_hours``: who is ventilated for less is not in the published cohort; None: this definition excludes nobody."""

_CHARTED_COLUMNS = {
    "icu_stay_id": "STAY_ID",
    "charted_at": "CHARTTIME",
    "item": "ITEMID",
    "value": "VALUE",
}
_PROCEDURE_COLUMNS = {
    "icu_stay_id": "STAY_ID",
    "began_at": "STARTTIME",
    "ended_at": "ENDTIME",
    "item": "ITEMID",
    "state": "STATUSDESCRIPTION",
}
_MIMIC_III_COLUMNS = {"icu_stay_id": "ICUSTAY_ID"}
MIMIC_III_CHARTEVENTS = ChartTable(
    "CHARTEVENTS",
    "ventilation_charted",
    {**_CHARTED_COLUMNS, **_MIMIC_III_COLUMNS, "error": "ERROR"},
    "ventilation from charted settings",
)
MIMIC_III_PROCEDUREEVENTS = ChartTable(
    "PROCEDUREEVENTS_MV",
    "ventilation_procedure",
    {**_PROCEDURE_COLUMNS, **_MIMIC_III_COLUMNS},
    "extubation and ventilation as procedures",
)
MIMIC_IV_CHARTEVENTS = ChartTable(
    "chartevents", "ventilation_charted", _CHARTED_COLUMNS, "ventilation from charted settings"
)
MIMIC_IV_PROCEDUREEVENTS = ChartTable(
    "procedureevents", "ventilation_procedure", _PROCEDURE_COLUMNS, "ventilation as procedures"
)


def derive_mimic_iii_episodes(
    connection: duckdb.DuckDBPyConnection, folder: Path
) -> EpisodeDerivation:
    """Create the table ``episode`` (``tables.EPISODE``) from a MIMIC-III folder and the relation ``icu_stay`` (``tables.ICU_STAY``).

    A ventilator setting begins or continues an episode; it ends with an extubation, with oxygen while no ventilator is charted, or after more
    than eight hours without a setting; one moment is no episode. Status ``ventilated``: CareVue cannot tell a mask from a tube. Without
    CHARTEVENTS, procedures 225792 (``ventilated``) and 225794 (``NonInvasiveVent``) are taken as they are documented.

    Raises:
        SourceError: no table to derive from, a missing column, a damaged file.
    """
    charted, performed = (
        find_chart_file(folder, MIMIC_III_CHARTEVENTS.stem),
        find_chart_file(folder, MIMIC_III_PROCEDUREEVENTS.stem),
    )
    if performed is None:
        raise _create_missing_table_error(folder, MIMIC_III_PROCEDUREEVENTS)
    if charted is None:
        return _derive_from_procedures(
            connection,
            performed,
            MIMIC_III_PROCEDUREEVENTS,
            rules.VENTILATION_PROCEDURES["mimic-iii"],
        )
    signs = _build_rule_table(rules.ChartedSign._fields, rules.CHARTED_SIGNS)
    items = _build_rule_table(("item", "signal"), tuple(rules.EXTUBATION_PROCEDURES.items()))
    with _register_rule_tables(
        connection, ventilation_sign=signs, ventilation_extubation_item=items
    ):
        with create_chart_view(connection, performed, MIMIC_III_PROCEDUREEVENTS):
            execute_sql_file(connection, "extubations_mimic_iii")
        with create_chart_view(connection, charted, MIMIC_III_CHARTEVENTS):
            execute_sql_file(connection, "moments_mimic_iii")
        execute_sql_file(connection, "candidates_mimic_iii")
        execute_sql_file(connection, "episodes")
        steps = {
            "charted ventilation rows": "ventilation_moment",
            "extubation procedures": "ventilation_extubation",
        }
        return EpisodeDerivation("charted", tuple(_count_episode_rows(connection, steps)))


def derive_mimic_iv_episodes(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    device_rows: Literal["charted", "with-oxygen-flow"] = "charted",
) -> EpisodeDerivation:
    """Create the table ``episode`` (``tables.EPISODE``) from a MIMIC-IV folder and the relation ``icu_stay`` (``tables.ICU_STAY``).

    Each charted minute takes the strongest status of its first device, its ventilator modes, and a mask among any of its devices. A change of
    status or a gap of 14 hours of the clock begins a new episode; an episode lasts until the next charted status, unless that is 14 hours away.
    Without chartevents, procedures 225792 (``InvasiveVent``) and 225794 (``NonInvasiveVent``) are taken as they are documented.

    Args:
        connection: with the relation ``icu_stay``.
        folder: the one that holds ``icu``, or ``icu`` itself.
        device_rows: ``charted`` uses every charted device. ``with-oxygen-flow`` gives the published derived table: it keeps a device only where an
            oxygen flow is charted in the same minute, since its outer join of the two is filtered like an inner one.

    Raises:
        SourceError: no table to derive from, a missing column, a damaged file.
    """
    charted, performed = (
        find_chart_file(folder, MIMIC_IV_CHARTEVENTS.stem),
        find_chart_file(folder, MIMIC_IV_PROCEDUREEVENTS.stem),
    )
    if charted is None and performed is None:
        raise _create_missing_table_error(folder, MIMIC_IV_CHARTEVENTS)
    if charted is None:
        assert performed is not None
        return _derive_from_procedures(
            connection,
            performed,
            MIMIC_IV_PROCEDUREEVENTS,
            rules.VENTILATION_PROCEDURES["mimic-iv"],
        )
    with_flow = device_rows == "with-oxygen-flow"
    read = (
        rules.OXYGEN_DEVICE_ITEM,
        rules.VENTILATOR_MODE_ITEM,
        rules.HAMILTON_MODE_ITEM,
        *(rules.OXYGEN_FLOW_ITEMS if with_flow else ()),
    )
    items, readings = (
        _build_rule_table(("item",), [(item,) for item in read]),
        _build_rule_table(rules.StatusValue._fields, rules.STATUS_VALUES),
    )
    named = {
        "device": rules.OXYGEN_DEVICE_ITEM,
        "mode": rules.VENTILATOR_MODE_ITEM,
        "hamilton_mode": rules.HAMILTON_MODE_ITEM,
        "with_flow": with_flow,
    }
    named["mask_rank"] = rules.VENTILATION_STATUSES.index(rules.NON_INVASIVE_STATUS)
    with _register_rule_tables(connection, ventilation_item=items, ventilation_reading=readings):
        with create_chart_view(connection, charted, MIMIC_IV_CHARTEVENTS):
            execute_sql_file(connection, "moments_mimic_iv", **named)
        execute_sql_file(connection, "candidates_mimic_iv", **named)
        execute_sql_file(connection, "episodes")
        return EpisodeDerivation(
            "charted",
            tuple(
                _count_episode_rows(connection, {"charted ventilation rows": "ventilation_moment"})
            ),
        )


def label_prolonged_ventilation(connection: duckdb.DuckDBPyConnection, definition: str) -> pa.Table:
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
    chosen = _get_definition(definition)
    text = read_sql_file("prolonged").format(
        measure=chosen.measure, over_admission=chosen.over_admission
    )
    values = {
        "counted": list(rules.MECHANICAL_VENTILATION_STATUSES),
        "grace_hours": chosen.grace_hours,
        "prolonged_hours": PROLONGED_VENTILATION_HOURS,
    }
    return connection.sql(text, params=values).to_arrow_table().cast(PROLONGED_VENTILATION_SCHEMA)


def find_ventilation_exclusions(
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
    chosen = _get_definition(definition)
    if chosen.min_hours is None:
        return VENTILATION_EXCLUSION_SCHEMA.empty_table()
    excluded = _build_rule_table(
        (*rules.DiagnosisExclusion._fields, "rank"),
        [(*row, rank) for rank, row in enumerate(rules.DIAGNOSIS_EXCLUSIONS)],
    )
    values = {
        "counted": list(rules.MECHANICAL_VENTILATION_STATUSES),
        "grace_hours": chosen.grace_hours,
        "least_hours": chosen.min_hours,
        "adult_years": ADULT_AGE_YEARS,
    }
    with _register_rule_tables(connection, ventilation_excluded=excluded):
        return (
            connection.sql(read_sql_file("exclusions"), params=values)
            .to_arrow_table()
            .cast(VENTILATION_EXCLUSION_SCHEMA)
        )


def _derive_from_procedures(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    table: ChartTable,
    status_by_item: dict[str, str],
) -> EpisodeDerivation:
    known = _build_rule_table(
        ("item", "status", "rank"),
        [(item, status, rank) for rank, (item, status) in enumerate(status_by_item.items())],
    )
    with _register_rule_tables(connection, ventilation_kind=known):
        with create_chart_view(connection, path, table):
            execute_sql_file(connection, "procedures")
        execute_sql_file(connection, "candidates_procedures")
        execute_sql_file(connection, "episodes")
        rows = _count_by_reason(
            connection,
            "ventilation procedures",
            "SELECT reason, count(*) FROM ventilation_interval GROUP BY reason",
        )
        return EpisodeDerivation("procedures", (rows,))


def _get_definition(name: str) -> ProlongedVentilationDefinition:
    if name not in PROLONGED_VENTILATION_DEFINITIONS:
        raise RecipeError(
            f"there is no ventilation definition {name!r}",
            location="task.ventilation",
            hint=f"one of: {', '.join(PROLONGED_VENTILATION_DEFINITIONS)}",
        )
    return PROLONGED_VENTILATION_DEFINITIONS[name]


def _create_missing_table_error(folder: Path, table: ChartTable) -> SourceError:
    message = (
        f"there is no {table.stem}.csv and no {table.stem}.csv.gz, which {table.purpose} needs"
    )
    return SourceError(
        message, location=str(folder), hint="point source.path at the folder as PhysioNet ships it"
    )


def _count_episode_rows(
    connection: duckdb.DuckDBPyConnection, steps: dict[str, str]
) -> Iterator[Attrition]:
    for step, table in steps.items():
        yield _count_by_reason(
            connection, step, f"SELECT reason, sum(n_rows)::BIGINT FROM {table} GROUP BY reason"
        )
    yield _count_by_reason(
        connection,
        "ventilation episodes",
        "SELECT reason, count(*) FROM ventilation_candidate GROUP BY reason",
    )


def _count_by_reason(connection: duckdb.DuckDBPyConnection, step: str, query: str) -> Attrition:
    counts: dict[str | None, int] = dict(connection.execute(query).fetchall())
    attrition = Attrition(step, entered_rows=sum(counts.values()))
    for reason, count in counts.items():
        if reason is not None:
            attrition.drop_rows(reason, count)
    return attrition


def _build_rule_table(column_names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(column_names)})


@contextmanager
def _register_rule_tables(
    connection: duckdb.DuckDBPyConnection, **rule_tables: pa.Table
) -> Iterator[None]:
    """The rules as tables to join with; they and what is built on the way are gone at the end, however it ends."""
    for name, rows in rule_tables.items():
        connection.register(name, rows)
    try:
        yield
    finally:
        for name in rule_tables:
            connection.unregister(name)
        for name in (
            "ventilation_moment",
            "ventilation_extubation",
            "ventilation_interval",
            "ventilation_candidate",
        ):
            connection.execute(f"DROP TABLE IF EXISTS {name}")
