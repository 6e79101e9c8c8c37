"""Mechanical ventilation from charted rows: episodes, and which of them are prolonged.

Episodes are those of mimic-code for MIMIC-III and MIMIC-IV (``rules.py`` has the item ids and
values, the ``.sql`` files the rules), in SQL of our own for DuckDB. Charted tables are read once,
as a stream: of 330 million rows one row per ICU stay and charted minute is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from clinpeft.core.database import count_drop_reasons, register_arrow_tables
from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.cohorts.ventilation import rules
from clinpeft.data.cohorts.ventilation.scan import (
    ChartTable,
    create_chart_view,
    execute_sql_file,
    find_chart_file,
    read_sql_file,
)

# One ventilated ICU stay: its hours, and the label of its admission.
PROLONGED_VENTILATION_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("stay_id", pa.int64(), nullable=False),
        pa.field("icu_stay_id", pa.int64(), nullable=False),
        pa.field("hours", pa.float64(), nullable=False),
        pa.field("prolonged", pa.bool_(), nullable=False),
    ]
)

# One excluded ventilated ICU stay, with the first reason that holds.
VENTILATION_EXCLUSION_SCHEMA = pa.schema(
    [*list(PROLONGED_VENTILATION_SCHEMA)[:3], pa.field("reason", pa.string(), nullable=False)]
)


@dataclass(frozen=True)
class EpisodeDerivation:
    """The origin of the table ``episode``.

    Attributes:
        source: ``charted`` (charted rows, the published definition) or ``procedures`` (ventilation
            recorded as procedures with start and end, where the data has no charted rows, as in the
            open demos); the two do not give the same episodes.
        attrition: of the rows, then of the candidate episodes.
    """

    source: Literal["charted", "procedures"]
    attrition: tuple[Attrition, ...]


class ProlongedVentilationDefinition(NamedTuple):
    """What "prolonged" measures.

    Ventilation is prolonged when ``measure`` of each ICU stay, aggregated by ``over_admission``,
    plus ``grace_hours`` reaches seven days.

    Attributes:
        measure: ``span``, from the first start to the last end; ``summed``, without pauses.
        over_admission: aggregate over the ICU stays of an admission.
        grace_hours: added before comparing with seven days.
        min_hours: stays ventilated for less are not in the cohort; None: no stay is excluded.
    """

    measure: Literal["span", "summed"]
    over_admission: Literal["max", "sum"]
    grace_hours: float
    min_hours: float | None


PROLONGED_VENTILATION_HOURS = 7 * 24.0
ADULT_AGE_YEARS = 18.0
PROLONGED_VENTILATION_DEFINITIONS: dict[str, ProlongedVentilationDefinition] = {
    # Huang et al. 2020, arXiv 1912.11975, and its cohort_curation.
    "clinical-xlnet": ProlongedVentilationDefinition(
        "span", "max", grace_hours=6.0, min_hours=2 * 24.0
    ),
    # All hours on the ventilator over the whole admission.
    "summed": ProlongedVentilationDefinition("summed", "sum", grace_hours=0.0, min_hours=None),
}

# Tables and temporary tables of the derivation, dropped at its end.
_WORKING_TABLES = (
    "ventilation_moment",
    "ventilation_extubation",
    "ventilation_interval",
    "ventilation_candidate",
)

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
    """Create the table ``episode`` (``VENTILATION_EPISODE_SCHEMA``) from a MIMIC-III folder.

    A ventilator setting begins or continues an episode. It ends with an extubation, with oxygen
    while no ventilator is charted, or after more than eight hours without a setting; one moment is
    no episode (mimic-code, ``ventilation_durations``). The status is ``ventilated``: CareVue does
    not tell a mask from a tube. Without CHARTEVENTS, procedures 225792 (``ventilated``) and 225794
    (``NonInvasiveVent``) are taken as recorded.

    Args:
        connection: with ``icu_stay``.
        folder: of the data set.

    Raises:
        SourceError: there is no table to derive from, a column is missing, or a file is damaged.
    """
    chart_path = find_chart_file(folder, MIMIC_III_CHARTEVENTS.stem)
    procedure_path = find_chart_file(folder, MIMIC_III_PROCEDUREEVENTS.stem)
    # Extubations are procedures, so that this table is needed with charted rows as well.
    if procedure_path is None:
        raise _create_missing_table_error(folder, MIMIC_III_PROCEDUREEVENTS)
    if chart_path is None:
        return _derive_from_procedures(
            connection, procedure_path, MIMIC_III_PROCEDUREEVENTS, "mimic-iii"
        )
    rule_tables = {
        "ventilation_sign": _build_rule_table(rules.ChartedSign._fields, rules.CHARTED_SIGNS),
        "ventilation_extubation_item": _build_rule_table(
            ("item", "signal"), tuple(rules.EXTUBATION_PROCEDURES.items())
        ),
    }
    with _register_rule_tables(connection, rule_tables):
        with create_chart_view(connection, procedure_path, MIMIC_III_PROCEDUREEVENTS):
            execute_sql_file(connection, "extubations_mimic_iii")
        with create_chart_view(connection, chart_path, MIMIC_III_CHARTEVENTS):
            execute_sql_file(connection, "moments_mimic_iii")
        execute_sql_file(connection, "candidates_mimic_iii")
        execute_sql_file(connection, "episodes")
        return _count_charted_rows(
            connection,
            {
                "charted ventilation rows": "ventilation_moment",
                "extubation procedures": "ventilation_extubation",
            },
        )


def derive_mimic_iv_episodes(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    device_rows: Literal["charted", "with-oxygen-flow"] = "charted",
) -> EpisodeDerivation:
    """Create the table ``episode`` (``VENTILATION_EPISODE_SCHEMA``) from a MIMIC-IV folder.

    Each charted minute has the strongest status of its first device, its ventilator modes, and a
    mask among any of its devices. A change of status or a gap of 14 hours of the clock begins a new
    episode; an episode lasts until the next charted status, unless that is 14 hours later
    (mimic-code, ``ventilation``). Without chartevents, procedures 225792 (``InvasiveVent``) and
    225794 (``NonInvasiveVent``) are taken as recorded.

    Args:
        connection: with ``icu_stay``.
        folder: the one that holds ``icu``, or ``icu`` itself.
        device_rows: ``charted`` uses every charted device. ``with-oxygen-flow`` gives the published
            derived table: it keeps a device only where an oxygen flow is charted in the same
                minute, since its outer join of the two is filtered like an inner one.

    Raises:
        SourceError: there is no table to derive from, a column is missing, or a file is damaged.
    """
    chart_path = find_chart_file(folder, MIMIC_IV_CHARTEVENTS.stem)
    procedure_path = find_chart_file(folder, MIMIC_IV_PROCEDUREEVENTS.stem)
    if chart_path is None and procedure_path is not None:
        return _derive_from_procedures(
            connection, procedure_path, MIMIC_IV_PROCEDUREEVENTS, "mimic-iv"
        )
    if chart_path is None:
        raise _create_missing_table_error(folder, MIMIC_IV_CHARTEVENTS)
    with_flow = device_rows == "with-oxygen-flow"
    mode_items = (rules.VENTILATOR_MODE_ITEM, rules.HAMILTON_MODE_ITEM)
    flow_items = rules.OXYGEN_FLOW_ITEMS if with_flow else ()
    items = (rules.OXYGEN_DEVICE_ITEM, *mode_items, *flow_items)
    rule_tables = {
        "ventilation_item": _build_rule_table(("item",), [(item,) for item in items]),
        "ventilation_status_value": _build_rule_table(
            rules.StatusValue._fields, rules.STATUS_VALUES
        ),
    }
    parameters: dict[str, Any] = {
        "device": rules.OXYGEN_DEVICE_ITEM,
        "mode": rules.VENTILATOR_MODE_ITEM,
        "hamilton_mode": rules.HAMILTON_MODE_ITEM,
        "with_flow": with_flow,
        # A second device cannot be the first in alphabetical order; a mask counts all the same.
        "mask_rank": rules.VENTILATION_STATUSES.index(rules.NON_INVASIVE_STATUS),
    }
    with _register_rule_tables(connection, rule_tables):
        with create_chart_view(connection, chart_path, MIMIC_IV_CHARTEVENTS):
            execute_sql_file(connection, "moments_mimic_iv", **parameters)
        execute_sql_file(connection, "candidates_mimic_iv", **parameters)
        execute_sql_file(connection, "episodes")
        return _count_charted_rows(connection, {"charted ventilation rows": "ventilation_moment"})


def label_prolonged_ventilation(connection: duckdb.DuckDBPyConnection, definition: str) -> pa.Table:
    """Label the ventilated ICU stays of the table ``episode``.

    On MIMIC-IV invasive ventilation and tracheostomy count together, otherwise the prolonged cases
    would be cut short. ``hours`` are those of the ICU stay; ``prolonged`` is the label of the
    admission, equal on all its ICU stays: as in the published labels, one prolonged ICU stay makes
    the admission prolonged. Exclusions are not applied, see ``find_ventilation_exclusions``.

    Args:
        connection: with ``episode``.
        definition: a key of ``PROLONGED_VENTILATION_DEFINITIONS``.

    Returns:
        A table of ``PROLONGED_VENTILATION_SCHEMA``, ordered by subject, stay and ICU stay.

    Raises:
        RecipeError: there is no such definition.
    """
    rule = _get_definition(definition)
    # Column and aggregate come from the definitions above, never from a recipe.
    query = read_sql_file("prolonged").format(
        measure=rule.measure, over_admission=rule.over_admission
    )
    parameters = {
        "counted": list(rules.MECHANICAL_VENTILATION_STATUSES),
        "grace_hours": rule.grace_hours,
        "prolonged_hours": PROLONGED_VENTILATION_HOURS,
    }
    rows = connection.sql(query, params=parameters).to_arrow_table()
    return rows.cast(PROLONGED_VENTILATION_SCHEMA)


def find_ventilation_exclusions(
    connection: duckdb.DuckDBPyConnection, definition: str = "clinical-xlnet"
) -> pa.Table:
    """The ventilated ICU stays that a definition excludes, each with the first reason that holds.

    Reasons in order: age unknown; under 18 years; the diagnoses of ``rules.DIAGNOSIS_EXCLUSIONS``;
    ventilated for less than 2 days (the published cohort begins there, with the 6 hours of grace);
    not the first ICU stay of the admission, among the remaining ones. One ICU stay of an admission
    remains at most.

    Args:
        connection: with ``episode``, ``icu_stay``, ``stay`` (``stay_id``, ``age_years``) and
            ``code``.
        definition: a key of ``PROLONGED_VENTILATION_DEFINITIONS``; ``summed`` excludes no stay.

    Returns:
        A table of ``VENTILATION_EXCLUSION_SCHEMA``.

    Raises:
        RecipeError: there is no such definition.
    """
    rule = _get_definition(definition)
    if rule.min_hours is None:
        return VENTILATION_EXCLUSION_SCHEMA.empty_table()
    exclusions = _build_rule_table(
        (*rules.DiagnosisExclusion._fields, "rank"),
        # Of several diagnoses of a stay the first in the order of the rules is the reason.
        [(*row, rank) for rank, row in enumerate(rules.DIAGNOSIS_EXCLUSIONS)],
    )
    parameters = {
        "counted": list(rules.MECHANICAL_VENTILATION_STATUSES),
        "grace_hours": rule.grace_hours,
        "min_hours": rule.min_hours,
        "adult_years": ADULT_AGE_YEARS,
    }
    with register_arrow_tables(connection, ventilation_diagnosis_exclusion=exclusions):
        rows = connection.sql(read_sql_file("exclusions"), params=parameters).to_arrow_table()
    return rows.cast(VENTILATION_EXCLUSION_SCHEMA)


def _derive_from_procedures(
    connection: duckdb.DuckDBPyConnection, path: Path, table: ChartTable, layout: str
) -> EpisodeDerivation:
    """Episodes from ventilation that is recorded as procedures with start and end."""
    kinds = _build_rule_table(
        ("item", "status", "rank"),
        [
            (item, status, rank)
            for rank, (item, status) in enumerate(rules.VENTILATION_PROCEDURES[layout].items())
        ],
    )
    with _register_rule_tables(connection, {"ventilation_kind": kinds}):
        with create_chart_view(connection, path, table):
            execute_sql_file(connection, "procedures")
        execute_sql_file(connection, "candidates_procedures")
        execute_sql_file(connection, "episodes")
        attrition = count_drop_reasons(
            connection,
            "ventilation procedures",
            "SELECT reason, count(*) FROM ventilation_interval GROUP BY reason",
        )
    return EpisodeDerivation("procedures", (attrition,))


def _get_definition(name: str) -> ProlongedVentilationDefinition:
    if name not in PROLONGED_VENTILATION_DEFINITIONS:
        raise RecipeError(
            f"there is no ventilation definition {name!r}",
            location="task.ventilation",
            hint=f"one of: {', '.join(PROLONGED_VENTILATION_DEFINITIONS)}",
        )
    return PROLONGED_VENTILATION_DEFINITIONS[name]


def _create_missing_table_error(folder: Path, table: ChartTable) -> SourceError:
    return SourceError(
        f"there is no {table.stem}.csv and no {table.stem}.csv.gz, which {table.purpose} needs",
        location=str(folder),
        hint="set source.path to the folder as PhysioNet ships it",
    )


def _count_charted_rows(
    connection: duckdb.DuckDBPyConnection, row_tables: Mapping[str, str]
) -> EpisodeDerivation:
    """The attrition of each step -> table of rows with ``n_rows``, then that of the candidates."""
    queries = {
        step: f"SELECT reason, sum(n_rows)::BIGINT FROM {table} GROUP BY reason"
        for step, table in row_tables.items()
    }
    queries["ventilation episodes"] = (
        "SELECT reason, count(*) FROM ventilation_candidate GROUP BY reason"
    )
    steps = (count_drop_reasons(connection, step, query) for step, query in queries.items())
    return EpisodeDerivation("charted", tuple(steps))


def _build_rule_table(column_names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    return pa.table(
        {name: [row[column] for row in rows] for column, name in enumerate(column_names)}
    )


@contextmanager
def _register_rule_tables(
    connection: duckdb.DuckDBPyConnection, rule_tables: Mapping[str, pa.Table]
) -> Iterator[None]:
    """Rules as tables to join with; they and the working tables are dropped on exit."""
    try:
        with register_arrow_tables(connection, **rule_tables):
            yield
    finally:
        for name in _WORKING_TABLES:
            connection.execute(f"DROP TABLE IF EXISTS {name}")
