"""The Arrow schemas of all that crosses a room.

A table in memory is a ``pyarrow.Table``; a stream larger than memory is a ``pyarrow.RecordBatchReader``; on disk it is Parquet. A null
means "unknown" and never 0. Subjects are ``int64`` and splits carry the names of the MEDS standard (version 0.4).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

SPLIT_NAMES = ("train", "tuning", "held_out")


def _build_schema(**columns: tuple[pa.DataType, bool]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, nullable=nullable) for name, (kind, nullable) in columns.items()]
    )


_TIME_TYPE = pa.timestamp("us")
_SUBGROUP_COLUMNS: dict[str, tuple[pa.DataType, bool]] = {
    "age_years": (pa.float64(), True),
    "sex": (pa.string(), True),
    "race": (pa.string(), True),
    "language": (pa.string(), True),
    "insurance": (pa.string(), True),
    "admission_type": (pa.string(), True),
    "care_unit": (pa.string(), True),
    "year_group": (pa.string(), True),
}

NOTE_SCHEMA = _build_schema(
    note_id=(pa.string(), False),
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), True),
    category=(pa.string(), True),
    description=(pa.string(), True),
    available_at=(_TIME_TYPE, True),
    text=(pa.large_string(), False),
)
"""One document; ``available_at`` is when it could first be read, null when the source does not say."""

CORPUS_SCHEMA = _build_schema(
    note_id=(pa.string(), False),
    subject_id=(pa.int64(), False),
    category=(pa.string(), True),
    split=(pa.string(), False),
    text=(pa.large_string(), False),
)
"""A cleaned note that is kept, with its split."""

PASSAGE_SCHEMA = _build_schema(
    passage_id=(pa.string(), False),
    book=(pa.string(), False),
    chapter=(pa.string(), True),
    heading_path=(pa.list_(pa.string()), False),
    kind=(pa.string(), False),
    section=(pa.string(), False),
    location=(pa.string(), False),
    title=(pa.string(), True),
    text=(pa.large_string(), False),
    names=(pa.list_(pa.string()), False),
    refers_to=(pa.list_(pa.string()), False),
)
"""A piece of a book, in reading order. ``kind`` is ``paragraph``, ``list``, ``table``, ``caption``, ``definition``, ``question``, ``answer``,
``objective``, ``summary`` or ``lead-in``; ``heading_path`` the headings below the chapter; ``section`` the nearest one, for objectives and summaries
the one they are about (``a/b`` lies in ``a``); ``location`` a page or an element; ``title`` the term of a definition, the title of a figure or table;
``names`` what others may refer to it by, within its book, and ``refers_to`` the names in it."""

PAIR_SCHEMA = _build_schema(
    pair_id=(pa.string(), False),
    kind=(pa.string(), False),
    anchor=(pa.large_string(), False),
    positive=(pa.large_string(), False),
    book=(pa.string(), True),
    chapter=(pa.string(), True),
    section=(pa.string(), True),
    anchor_id=(pa.string(), True),
    positive_id=(pa.string(), True),
    split=(pa.string(), False),
)
"""Two texts that belong together, and why (``kind``, a key of ``corpora.pairs.KINDS`` or ``imported``); ``anchor_id`` and ``positive_id`` are the
passages they are from, null for an imported text."""

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
"""One hospital admission. ``year_group`` is the data set's own axis of real time (MIMIC-IV ``anchor_year_group``, MIMIC-III ``DBSOURCE``),
``care_unit`` the first intensive care unit, ``race`` as recorded (MIMIC-III ``ETHNICITY``)."""

ICU_STAY_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    icu_stay_id=(pa.int64(), False),
    care_unit=(pa.string(), True),
    began_at=(_TIME_TYPE, True),
    ended_at=(_TIME_TYPE, True),
)
"""One stay on an intensive care unit, inside the hospital admission ``stay_id``."""

BILLED_CODE_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    kind=(pa.string(), False),
    system=(pa.string(), False),
    code=(pa.string(), False),
    sequence=(pa.int64(), True),
)
"""One billed code: ``kind`` is ``diagnosis`` or ``procedure``, ``system`` ``icd9`` or ``icd10``; ``code`` is text without dots or blanks, leading
zeros kept. A code means something only together with its kind and system."""

VENTILATION_EPISODE_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    icu_stay_id=(pa.int64(), False),
    status=(pa.string(), False),
    began_at=(_TIME_TYPE, False),
    ended_at=(_TIME_TYPE, False),
)
"""One uninterrupted stretch of breathing support; ``status`` is ``ventilated`` (MIMIC-III) or the six states of MIMIC-IV."""

COHORT_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    prediction_time=(_TIME_TYPE, False),
    split=(pa.string(), False),
    label=(pa.int32(), True),
    labels=(pa.list_(pa.int32()), True),
    text=(pa.large_string(), False),
    **_SUBGROUP_COLUMNS,
)
"""One stay that is asked: what may be read (``text``), and the known answer: ``label`` is the index of one class (binary, multiclass), ``labels`` the
indices of all that apply (multilabel); exactly one of the two columns is filled. The columns after it are for subgroups and trivial baselines."""

LIKELIHOOD_SCHEMA = _build_schema(
    note_id=(pa.string(), False),
    subject_id=(pa.int64(), False),
    category=(pa.string(), True),
    split=(pa.string(), False),
    tokens=(pa.int64(), False),
    negative_log_likelihood=(pa.float64(), False),
)
"""What a language model thinks of one note: the number of scored tokens and their summed negative log-likelihood in nats."""

PREDICTION_SCHEMA = _build_schema(
    subject_id=(pa.int64(), False),
    stay_id=(pa.int64(), False),
    prediction_time=(_TIME_TYPE, False),
    split=(pa.string(), False),
    label=(pa.int32(), True),
    labels=(pa.list_(pa.int32()), True),
    logits=(pa.list_(pa.float32()), True),
    probabilities=(pa.list_(pa.float32()), False),
    tokens=(pa.int64(), True),
    tokens_read=(pa.int64(), True),
    **_SUBGROUP_COLUMNS,
)
"""One answer: the truth as in ``COHORT``, and a logit and a probability for each class, in the order of the classes. Where one class of several is
asked the probabilities sum to 1 (two of them for a binary question), where all that apply are asked each stands alone. ``tokens`` is the length of
the text, ``tokens_read`` what of it was read. A baseline that has no logits leaves them null. The schema's metadata holds the ``Question``."""

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
"""A point of a curve: ``calibration`` (predicted against observed) and ``calibration_smooth``, ``net_benefit`` (threshold against net benefit),
``probabilities`` (a histogram for each true class)."""

METRIC_RESULT_SCHEMA = _build_schema(
    name=(pa.string(), False),
    value=(pa.float64(), True),
    low=(pa.float64(), True),
    high=(pa.float64(), True),
    level=(pa.float64(), True),
    n=(pa.int64(), False),
    n_subjects=(pa.int64(), True),
    n_events=(pa.int64(), True),
    split=(pa.string(), False),
    group=(pa.string(), True),
    definition=(pa.string(), False),
    task=(pa.string(), True),
)
"""One metric on one split with its interval; ``group`` names the model state and subgroup, such as ``base`` or ``adapted · Surgery``; ``task`` the
question, where one was asked."""

PAIR_SCORE_SCHEMA = _build_schema(
    pair_id=(pa.string(), False),
    cluster=(pa.string(), True),
    stratum=(pa.string(), False),
    related=(pa.bool_(), False),
    score=(pa.float64(), False),
)
"""How alike a model finds two texts. ``related``: whether they belong together; ``stratum``: how an unrelated pair was drawn (``random``,
``same book``, ``same chapter``, ``mined``, ``negation``); ``cluster``: what is resampled together, such as a chapter, null for a pair on its own."""

QUERY_SCHEMA = _build_schema(
    query_id=(pa.string(), False), cluster=(pa.string(), True), text=(pa.large_string(), False)
)
"""A text that is searched with; ``cluster`` as in ``PAIR_SCORE``."""

CANDIDATE_PASSAGE_SCHEMA = _build_schema(
    passage_id=(pa.string(), False), title=(pa.string(), True), text=(pa.large_string(), False)
)
"""A text that is searched for."""

RELEVANCE_JUDGMENT_SCHEMA = _build_schema(
    query_id=(pa.string(), False), passage_id=(pa.string(), False), grade=(pa.int32(), False)
)
"""How well a passage answers a query, 0 or less for not at all; a pair without a judgement counts as 0."""

RETRIEVED_PASSAGE_SCHEMA = _build_schema(
    query_id=(pa.string(), False),
    cluster=(pa.string(), True),
    passage_id=(pa.string(), False),
    rank=(pa.int32(), False),
    score=(pa.float64(), False),
)
"""What was found for a query, best first (``rank`` 1); of equal scores the passage with the larger id is first."""

ProblemType = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True)
class LabelSpace:
    """What was asked, as it travels with the answers.

    Attributes:
        name: of the task.
        kind: one of two classes, one of several, or all that apply.
        classes: names in the order of their index.
        systems: the code system of each class, empty where it is not a code.
        train_counts: stays of each class in the training split.
        metric: the main one.
    """

    name: str
    kind: ProblemType
    classes: tuple[str, ...]
    systems: tuple[str, ...]
    train_counts: tuple[int, ...]
    metric: str

    def as_json(self) -> dict[str, object]:
        """As it stands in ``head.json`` and in the metadata of predictions."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LabelSpace:
        """What ``as_json`` gave."""
        lists = {name: tuple(document[name]) for name in ("classes", "systems", "train_counts")}
        return cls(**{**document, **lists})


@dataclass
class Attrition:
    """What entered a step, what left it, and why: ``entered == kept + sum(dropped.values())`` always holds.

    ``locations`` holds, for reasons that point at damage, where the first few were found (file and row, never their text).
    """

    step: str
    entered_rows: int = 0
    dropped_rows: Counter[str] = field(default_factory=Counter)
    locations: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept_rows(self) -> int:
        """What went on to the next step."""
        return self.entered_rows - sum(self.dropped_rows.values())

    def drop_rows(self, reason: str, count: int = 1, location: str = "") -> None:
        """Count ``count`` rows out under a named reason; the first five places of a reason are kept."""
        if count:
            self.dropped_rows[reason] += count
        if count and location and len(self.locations.setdefault(reason, [])) < 5:
            self.locations[reason].append(location)

    def as_json(self) -> dict[str, object]:
        """As it stands in ``attrition.json``."""
        counts: dict[str, object] = {
            "step": self.step,
            "entered": self.entered_rows,
            "dropped": dict(sorted(self.dropped_rows.items())),
            "kept": self.kept_rows,
        }
        return (
            {**counts, "places": dict(sorted(self.locations.items()))} if self.locations else counts
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Attrition:
        """What ``as_json`` gave."""
        return cls(
            document["step"],
            document["entered"],
            Counter(document["dropped"]),
            dict(document.get("places", {})),
        )


@dataclass(frozen=True)
class HospitalDatabase:
    """The tables of one hospital, opened in a DuckDB database on disk under these schemas.

    Attributes:
        layout: the data set they were shipped in (``mimic-iii``, ``mimic-iv``, ``omop``, ``files``).
        folder: where it was shipped, for tables that are read in place (charted events).
        connection: holds ``stay``, ``icu_stay`` and ``code``; ``note`` once ``read_notes`` was called.
        attrition: what was left out while reading, a table each.
        missing_tables: of ``icu_stay``, ``diagnosis``, ``procedure`` and ``note``, what is not there, with the file that would hold it.
        read_notes: categories (lower case; empty for all) -> fills ``note``, and says what was left out. The one reading of the note files.
    """

    layout: str
    folder: Path
    connection: duckdb.DuckDBPyConnection
    attrition: tuple[Attrition, ...]
    missing_tables: Mapping[str, str]
    read_notes: Callable[[Sequence[str]], Attrition]


@dataclass(frozen=True)
class RetrievalSet:
    """Questions, the texts that may answer them, and which of them do.

    Attributes:
        queries: of schema ``QUERY``.
        passages: of schema ``CANDIDATE``.
        relevance_judgments: of schema ``JUDGEMENT``, about these queries and passages only.
        attrition: what was left out while reading.
    """

    queries: pa.Table
    passages: pa.Table
    relevance_judgments: pa.Table
    attrition: tuple[Attrition, ...] = ()


def build_arrow_table(schema: pa.Schema, column_values: Mapping[str, object]) -> pa.Table:
    """A table of ``schema`` from columns; a missing nullable column is null, an unknown one is an error of the caller."""
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
