"""The Arrow schemas of all tables that packages exchange.

A table in memory is a ``pyarrow.Table``, a stream larger than memory is a
``pyarrow.RecordBatchReader``, and on disk it is Parquet. A null means "unknown" and never 0.
Subjects are ``int64``, and splits have the names of the MEDS standard, version 0.4
(https://github.com/Medical-Event-Data-Standard/meds).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pydantic

if TYPE_CHECKING:
    import duckdb

SPLIT_NAMES = ("train", "tuning", "held_out")


def _build_schema(**columns: tuple[pa.DataType, bool]) -> pa.Schema:
    """A schema from (type, nullable) of each column."""
    return pa.schema(
        [pa.field(name, kind, nullable=nullable) for name, (kind, nullable) in columns.items()]
    )


_TIME_TYPE = pa.timestamp("us")  # local time of the hospital, without a zone
# Used by subgroups and trivial baselines, as recorded at admission
_SUBGROUP_COLUMNS: dict[str, tuple[pa.DataType, bool]] = {
    "age_years": (pa.float64(), True),
    "sex": (pa.string(), True),
    "race": (pa.string(), True),  # MIMIC-III: ETHNICITY
    "language": (pa.string(), True),
    "insurance": (pa.string(), True),
    "admission_type": (pa.string(), True),
    "care_unit": (pa.string(), True),  # the first intensive care unit
    # the data set's own axis of real time: MIMIC-IV anchor_year_group, MIMIC-III DBSOURCE
    "year_group": (pa.string(), True),
}

# One document
NOTE_SCHEMA = _build_schema(
    note_id=(pa.string(), False),
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), True),
    category=(pa.string(), True),
    description=(pa.string(), True),
    # when it could first be read; null where the source does not tell
    available_at=(_TIME_TYPE, True),
    text=(pa.large_string(), False),
)

# A cleaned note with its split
CORPUS_SCHEMA = _build_schema(
    note_id=(pa.string(), False),
    subject_id=(pa.int64(), False),
    category=(pa.string(), True),
    split=(pa.string(), False),
    text=(pa.large_string(), False),
)

# A piece of a book, in reading order
PASSAGE_SCHEMA = _build_schema(
    passage_id=(pa.string(), False),
    book=(pa.string(), False),
    chapter=(pa.string(), True),
    heading_path=(pa.list_(pa.string()), False),  # headings below the chapter
    # paragraph, list, table, caption, definition, question, answer, objective, summary or lead-in
    kind=(pa.string(), False),
    # the nearest heading; of objectives and summaries the one they are about; a/b is inside a
    section=(pa.string(), False),
    location=(pa.string(), False),  # a page or an element
    title=(pa.string(), True),  # the term of a definition, the title of a figure or table
    text=(pa.large_string(), False),
    names=(pa.list_(pa.string()), False),  # by which others may refer to it, within its book
    refers_to=(pa.list_(pa.string()), False),  # names that occur in it
)

# Two texts that belong together
PAIR_SCHEMA = _build_schema(
    pair_id=(pa.string(), False),
    kind=(pa.string(), False),  # why: a kind of pairs made from passages, or imported
    anchor=(pa.large_string(), False),
    positive=(pa.large_string(), False),
    book=(pa.string(), True),
    chapter=(pa.string(), True),
    section=(pa.string(), True),
    # the passages that the texts are from, null for an imported text
    anchor_id=(pa.string(), True),
    positive_id=(pa.string(), True),
    split=(pa.string(), False),
)

# One hospital admission
STAY_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    admitted_at=(_TIME_TYPE, True),
    discharged_at=(_TIME_TYPE, True),
    died_at=(_TIME_TYPE, True),
    died_in_hospital=(pa.bool_(), True),
    **_SUBGROUP_COLUMNS,
    site=(pa.string(), True),
)

# One stay on an intensive care unit, inside the hospital admission stay_id
ICU_STAY_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    icu_stay_id=(pa.int64(), False),
    care_unit=(pa.string(), True),
    began_at=(_TIME_TYPE, True),
    ended_at=(_TIME_TYPE, True),
)

# One billed code; a code has a meaning only together with its kind and system
BILLED_CODE_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    kind=(pa.string(), False),  # diagnosis or procedure
    system=(pa.string(), False),  # icd9 or icd10
    code=(pa.string(), False),  # without dots or blanks, leading zeros included
    sequence=(pa.int64(), True),
)

# One uninterrupted stretch of breathing support
VENTILATION_EPISODE_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    icu_stay_id=(pa.int64(), False),
    status=(pa.string(), False),  # ventilated (MIMIC-III), or one of the six states of MIMIC-IV
    began_at=(_TIME_TYPE, False),
    ended_at=(_TIME_TYPE, False),
)

# One stay of a task with its text and its answer; exactly one of label and labels is filled
COHORT_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    prediction_time=(_TIME_TYPE, False),
    split=(pa.string(), False),
    label=(pa.int32(), True),  # index of the class (binary, multiclass)
    labels=(pa.list_(pa.int32()), True),  # indices of all classes that apply (multilabel)
    text=(pa.large_string(), False),  # what may be read at prediction_time
    **_SUBGROUP_COLUMNS,
)

# The likelihood of one note under a language model
LIKELIHOOD_SCHEMA = _build_schema(
    note_id=(pa.string(), False),
    subject_id=(pa.int64(), False),
    category=(pa.string(), True),
    split=(pa.string(), False),
    tokens=(pa.int64(), False),  # tokens that are scored
    negative_log_likelihood=(pa.float64(), False),  # their sum, in nats
)

# One prediction; the metadata of the schema holds the LabelSpace
PREDICTION_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    prediction_time=(_TIME_TYPE, False),
    split=(pa.string(), False),
    # the truth, as in COHORT_SCHEMA
    label=(pa.int32(), True),
    labels=(pa.list_(pa.int32()), True),
    logits=(pa.list_(pa.float32()), True),  # one for each class; null where a baseline has none
    # One for each class: binary and multiclass sum to 1 (two of them for a binary task), those of
    # a multilabel task are independent
    probabilities=(pa.list_(pa.float32()), False),
    tokens=(pa.int64(), True),  # length of the text
    tokens_read=(pa.int64(), True),  # how much of it was given to the model
    **_SUBGROUP_COLUMNS,
)

# A point of a curve: calibration (predicted, observed), calibration_smooth, net_benefit (threshold,
# net benefit), probabilities (a histogram for each true class)
CURVE_POINT_SCHEMA = _build_schema(
    name=(pa.string(), False),
    task=(pa.string(), True),
    group=(pa.string(), True),
    split=(pa.string(), False),
    x=(pa.float64(), False),
    y=(pa.float64(), True),
    low=(pa.float64(), True),
    high=(pa.float64(), True),
    n=(pa.int64(), True),
)

# One metric on one split with its interval
METRIC_RESULT_SCHEMA = _build_schema(
    name=(pa.string(), False),
    value=(pa.float64(), True),
    low=(pa.float64(), True),
    high=(pa.float64(), True),
    level=(pa.float64(), True),  # of the interval
    n=(pa.int64(), False),
    n_subjects=(pa.int64(), True),
    n_events=(pa.int64(), True),
    split=(pa.string(), False),
    group=(pa.string(), True),  # model state and subgroup, such as "base" or "adapted · Surgery"
    definition=(pa.string(), False),
    task=(pa.string(), True),
)

# The similarity of two texts under a model
PAIR_SCORE_SCHEMA = _build_schema(
    pair_id=(pa.string(), False),
    cluster=(pa.string(), True),  # resampled together, such as a chapter; null: alone
    # how an unrelated pair was drawn: random, same book, same chapter, mined, negation
    stratum=(pa.string(), False),
    related=(pa.bool_(), False),
    score=(pa.float64(), False),
)

# A text that is searched with; cluster as in PAIR_SCORE_SCHEMA
QUERY_SCHEMA = _build_schema(
    query_id=(pa.string(), False), cluster=(pa.string(), True), text=(pa.large_string(), False)
)

# A text that is searched for
CANDIDATE_PASSAGE_SCHEMA = _build_schema(
    passage_id=(pa.string(), False), title=(pa.string(), True), text=(pa.large_string(), False)
)

# How well a passage answers a query: 0 or less for not at all; a pair without a judgment is 0
RELEVANCE_JUDGMENT_SCHEMA = _build_schema(
    query_id=(pa.string(), False), passage_id=(pa.string(), False), grade=(pa.int32(), False)
)

# A passage retrieved for a query; of equal scores the passage with the larger id comes first
RETRIEVED_PASSAGE_SCHEMA = _build_schema(
    query_id=(pa.string(), False),
    cluster=(pa.string(), True),
    passage_id=(pa.string(), False),
    rank=(pa.int32(), False),  # 1 is the best
    score=(pa.float64(), False),
)

ProblemType = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True)
class LabelSpace:
    """The task and the classes that predictions are about; stored with them as JSON.

    Attributes:
        name: of the task.
        kind: binary, multiclass or multilabel.
        classes: names in the order of their index.
        systems: the code system of each class, empty where it is not a code.
        train_counts: stays of each class in the training split.
        metric: the main one.
    """

    # A key that is not known may be of a newer version, and then the classes may mean another thing
    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid")

    name: str
    kind: ProblemType
    classes: tuple[str, ...]
    systems: tuple[str, ...]
    train_counts: tuple[int, ...]
    metric: str

    def as_json(self) -> dict[str, object]:
        """As in ``head.json`` and in the metadata of predictions."""
        document: dict[str, object] = LABEL_SPACE_ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> LabelSpace:
        """What ``as_json`` gave."""
        return LABEL_SPACE_ADAPTER.validate_python(document)


@dataclass
class Attrition:
    """What entered a step, what was dropped, and why.

    ``entered_rows == kept_rows + sum(dropped_rows.values())`` always holds. In JSON the fields are
    ``step``, ``entered``, ``dropped``, ``kept`` and, where there are any, ``places``.

    Attributes:
        step: name of the step.
        entered_rows: rows before it.
        dropped_rows: reason -> rows.
        locations: reason -> file and row (never the text) of the first few, for reasons that may be
            damage.
    """

    step: str
    entered_rows: Annotated[int, pydantic.Field(validation_alias="entered")] = 0
    dropped_rows: Annotated[Counter[str], pydantic.Field(validation_alias="dropped")] = field(
        default_factory=Counter
    )
    locations: Annotated[dict[str, list[str]], pydantic.Field(validation_alias="places")] = field(
        default_factory=dict
    )

    @property
    def kept_rows(self) -> int:
        """Rows that enter the next step."""
        return self.entered_rows - sum(self.dropped_rows.values())

    def drop_rows(self, reason: str, count: int = 1, location: str = "") -> None:
        """Count ``count`` rows as dropped; the first five locations of a reason are recorded."""
        if count:
            self.dropped_rows[reason] += count
        if count and location and len(self.locations.setdefault(reason, [])) < 5:
            self.locations[reason].append(location)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _require_counts(cls, document: Any) -> Any:
        # The defaults are for a step that begins, not for a damaged file.
        if isinstance(document, dict) and not {"entered", "dropped"} <= document.keys():
            raise ValueError("a step needs the counts entered and dropped")
        return document

    @pydantic.model_serializer
    def _serialize(self) -> dict[str, object]:
        # Sorted, so that files do not depend on the order in which rows were read
        document: dict[str, object] = {
            "step": self.step,
            "entered": self.entered_rows,
            "dropped": dict(sorted(self.dropped_rows.items())),
            "kept": self.kept_rows,
        }
        if self.locations:
            document["places"] = dict(sorted(self.locations.items()))
        return document

    def as_json(self) -> dict[str, object]:
        """As in ``attrition.json``."""
        document: dict[str, object] = ATTRITION_ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Attrition:
        """What ``as_json`` gave."""
        return ATTRITION_ADAPTER.validate_python(document)


LABEL_SPACE_ADAPTER = pydantic.TypeAdapter(LabelSpace)
"""Reads and writes the JSON of ``head.json`` and of the metadata of predictions."""

ATTRITION_ADAPTER = pydantic.TypeAdapter(Attrition)
"""Reads and writes the JSON of an entry of ``attrition.json``."""


@dataclass(frozen=True)
class HospitalDatabase:
    """The tables of one hospital, in a DuckDB database on disk under the schemas above.

    Attributes:
        layout: of the data set (``mimic-iii``, ``mimic-iv``, ``omop``, ``files``).
        folder: of the data set, for tables that are read in place (charted events).
        connection: has the tables ``stay``, ``icu_stay`` and ``code``, and ``note`` after
            ``read_notes``.
        attrition: what was dropped while reading, one for each table.
        missing_tables: of ``icu_stay``, ``diagnosis``, ``procedure`` and ``note``, those that are
            missing -> the file that would hold them.
        read_notes: categories (lower case; empty for all) -> fills ``note`` and returns what was
            dropped. The note files are read this once.
    """

    layout: str
    folder: Path
    connection: duckdb.DuckDBPyConnection
    attrition: tuple[Attrition, ...]
    missing_tables: Mapping[str, str]
    read_notes: Callable[[Sequence[str]], Attrition]


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, passages, and which passages answer which queries.

    Attributes:
        queries: of ``QUERY_SCHEMA``.
        passages: of ``CANDIDATE_PASSAGE_SCHEMA``.
        relevance_judgments: of ``RELEVANCE_JUDGMENT_SCHEMA``, about these queries and passages.
        attrition: what was dropped while reading.
    """

    queries: pa.Table
    passages: pa.Table
    relevance_judgments: pa.Table
    attrition: tuple[Attrition, ...] = ()


def build_arrow_table(schema: pa.Schema, column_values: Mapping[str, object]) -> pa.Table:
    """Build a table of ``schema`` from columns; a missing column is null.

    Args:
        schema: of the table.
        column_values: name -> values, all of one length.

    Raises:
        KeyError: a column is not in the schema.
    """
    length = len(next(iter(column_values.values())))  # type: ignore[arg-type]
    unknown = set(column_values) - set(schema.names)
    if unknown:
        raise KeyError(f"columns {sorted(unknown)} are not in the schema {schema.names}")
    columns = [
        pa.array(column_values[f.name], f.type)
        if f.name in column_values
        else pa.nulls(length, f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
