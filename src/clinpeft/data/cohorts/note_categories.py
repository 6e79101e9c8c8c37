"""Notes without stays -> one row a distinct text, asked under which category it is filed.

MTSamples, for one, files most of its texts under several specialties, each time as a note of its own: 4,999 rows, 2,376 texts. What is levelled
alike, white space and case aside, is one text here, so that it stands in one split and is counted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinpeft.core.errors import RecipeError, SourceError, StorageError
from clinpeft.core.schemas import COHORT_SCHEMA, Attrition
from clinpeft.data.cohorts.cohort import (
    COHORT_ATTRITION_FILE,
    COHORT_FILE,
    COHORT_LABELS_FILE,
    Cohort,
    create_cohort_folder,
    write_cohort_json,
)
from clinpeft.data.cohorts.selection import (
    check_rows_remain,
    check_prediction_unit,
    get_clinical_task,
)
from clinpeft.data.cohorts.split import split_subjects_by_hash, split_subjects_by_lists
from clinpeft.data.cohorts.task import ClinicalTask
from clinpeft.recipe import CohortRecipe

MISSING_TEXT_REASON, MISSING_CATEGORY_REASON, REPEATED_TEXT_REASON = (
    "no text",
    "no category",
    "repeats another text",
)
SEVERAL_CATEGORIES_REASON = "filed under several categories"

_BATCH_TEXTS = 2048
_DATABASE_MEGABYTES = 1024
_CATEGORIZED_NOTE_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("subject_id", pa.int64()),
        ("available_at", pa.timestamp("us")),
        ("category", pa.string()),
    ]
)
_DISTINCT_TEXT_SCHEMA = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)

# `place` is that of a text's first note, whose subject it keeps. Its time is the first at which any of its notes could be read; 1970-01-01 where none
# says so. A person and a time name one answer (MEDS), so each further text of a person at the same time stands one microsecond later.
_DISTINCT_TEXTS_SQL = """
CREATE TABLE asked AS
WITH texts AS (SELECT key, arg_min(subject_id, place) AS subject_id, coalesce(min(available_at), TIMESTAMP '1970-01-01') AS first_at
               FROM filed GROUP BY key)
SELECT key, subject_id, first_at + to_microseconds(row_number() OVER (PARTITION BY subject_id, first_at ORDER BY key) - 1) AS prediction_time
FROM texts;
CREATE TABLE under AS SELECT DISTINCT key, category FROM filed;
"""

_RAREST_CATEGORY_SQL = """
SELECT key, category FROM under JOIN (SELECT category, count(*) AS texts FROM under GROUP BY category) USING (category)
QUALIFY row_number() OVER (PARTITION BY key ORDER BY texts, category) = 1
"""
_SINGLE_CATEGORY_SQL = (
    "SELECT key, min(category) AS category FROM under GROUP BY key HAVING count(*) = 1"
)
CATEGORY_LABEL_QUERIES: Mapping[tuple[str, str], str] = {
    ("multiclass", "rarest"): _RAREST_CATEGORY_SQL,
    ("multiclass", "drop"): _SINGLE_CATEGORY_SQL,
    ("multilabel", "rarest"): "SELECT key, category FROM under",
    ("multilabel", "drop"): "SELECT key, category FROM under",
}
"""SQL: (kind of the question, ``task.several``) -> the categories that are the answer of each text. The rarest category of a text is the one
with the fewest distinct texts, of equals the first in the alphabet: a text filed under "Surgery" and "Urology" says more as the latter."""


def write_note_cohort(
    recipe: CohortRecipe, notes: pa.RecordBatchReader, source_attrition: Attrition, folder: Path
) -> Cohort:
    """The cohort alone: ``cohort.parquet``, ``attrition.json`` and ``labels.json``, in bounded memory.

    Args:
        recipe: the question and the split.
        notes: of schema ``tables.NOTE``; read once.
        source_attrition: what reading counts; whole when ``notes`` is read, and the first entry of the attrition.
        folder: where the cohort is written.

    Raises:
        RecipeError: the question is not asked of notes, or the split needs stays.
        SourceError: not one note is left.
    """
    task = get_clinical_task(recipe.task)
    check_prediction_unit(task, "notes")
    if recipe.split.by != "subject":
        message = f"notes without stays have no {recipe.split.by}"
        raise RecipeError(
            message, location=f"split.by = {recipe.split.by!r}", hint='split by "subject"'
        )
    create_cohort_folder(folder)
    with _open_working_database(folder) as (connection, partial):
        levelled = _store_distinct_texts(connection, notes, partial / "texts.parquet")
        steps = [source_attrition, levelled]
        if not levelled.entered_rows:
            raise SourceError(
                "the source gave 0 notes: there is nobody to ask about",
                location="source",
                hint="give a source that holds notes",
            )
        check_rows_remain(steps, recipe.source.name, "note")
        connection.execute(_DISTINCT_TEXTS_SQL)
        steps.append(_assign_splits(recipe, connection))
        steps += _create_label_tables(task, recipe, connection)
        check_rows_remain(steps, recipe.source.name, "note")
        classes, left_out = _read_classes(connection)
        _write_rows(connection, task, partial / "texts.parquet", folder / COHORT_FILE)
    write_cohort_json(folder / COHORT_LABELS_FILE, _describe_labels(task, classes, left_out))
    write_cohort_json(folder / COHORT_ATTRITION_FILE, [step.as_json() for step in steps])
    return Cohort(folder, task, tuple(classes), tuple(steps))


@contextlib.contextmanager
def _open_working_database(folder: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A database and a folder inside ``folder``, gone afterwards whatever happens."""
    partial = folder / "cohort.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        settings = {
            "memory_limit": f"{_DATABASE_MEGABYTES}MB",
            "threads": 1,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with duckdb.connect(str(partial / "notes.duckdb"), config=settings) as connection:
            yield connection, partial
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        # only the kind of error is named: a database may quote what it could not write
        message = f"the cohort cannot be written: {type(error).__name__}"
        raise StorageError(
            message,
            location=str(folder),
            hint="give a folder with space, three times that of the notes",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _store_distinct_texts(
    connection: duckdb.DuckDBPyConnection, notes: pa.RecordBatchReader, target: Path
) -> Attrition:
    """The table ``filed``, a row a note that has text and category; and every text once into ``target``."""
    attrition, seen = Attrition("distinct texts"), set[int]()
    connection.execute("""CREATE SEQUENCE places;
        CREATE TABLE filed (place BIGINT DEFAULT nextval('places'), key BIGINT, subject_id BIGINT, available_at TIMESTAMP, category VARCHAR)""")
    with pq.ParquetWriter(target, _DISTINCT_TEXT_SCHEMA, compression="zstd") as writer:
        for batch in notes:
            rows = _select_categorized_notes(batch, attrition)
            fresh = []
            for key in rows["key"].to_pylist():
                fresh.append(key not in seen)
                seen.add(key)
            attrition.drop_rows(REPEATED_TEXT_REASON, fresh.count(False))
            connection.register("arriving", rows.select(_CATEGORIZED_NOTE_SCHEMA.names))
            connection.execute(
                "INSERT INTO filed (key, subject_id, available_at, category) SELECT * FROM arriving"
            )
            connection.unregister("arriving")
            writer.write_table(
                rows.select(_DISTINCT_TEXT_SCHEMA.names)
                .filter(pa.array(fresh, pa.bool_()))
                .cast(_DISTINCT_TEXT_SCHEMA)
            )
    return attrition


def _select_categorized_notes(batch: pa.RecordBatch, attrition: Attrition) -> pa.Table:
    """The notes of a batch that have text and category, with the key of their text."""
    attrition.entered_rows += batch.num_rows
    texts = [" ".join(text.split()).casefold() for text in batch["text"].to_pylist()]
    categories = pc.utf8_trim_whitespace(batch["category"]).to_pylist()
    reasons = [
        MISSING_TEXT_REASON if not text else MISSING_CATEGORY_REASON if not category else ""
        for text, category in zip(texts, categories, strict=True)
    ]
    for reason in (MISSING_TEXT_REASON, MISSING_CATEGORY_REASON):
        attrition.drop_rows(reason, reasons.count(reason))
    table = pa.Table.from_batches([batch]).select(["subject_id", "available_at", "text"])
    table = table.append_column("key", pa.array(map(_hash_text, texts), pa.int64())).append_column(
        "category", pa.array(categories, pa.string())
    )
    return table.filter(pa.array([not reason for reason in reasons], pa.bool_()))


def _hash_text(normalized_text: str) -> int:
    """63 bits of SHA-256: the number of the stay that a text stands for."""
    return (
        int.from_bytes(
            hashlib.sha256(normalized_text.encode("utf-8", "surrogatepass")).digest()[:8], "big"
        )
        >> 1
    )


def _assign_splits(recipe: CohortRecipe, connection: duckdb.DuckDBPyConnection) -> Attrition:
    """The table ``assigned`` (``key``, ``split``)."""
    rows = connection.sql(
        "SELECT key, subject_id FROM asked ORDER BY subject_id, key"
    ).to_arrow_table()
    subjects, spec, lists = rows["subject_id"].to_numpy(), recipe.split, recipe.task.subject_lists
    names = (
        split_subjects_by_lists(subjects, lists)
        if lists is not None
        else split_subjects_by_hash(subjects, (spec.train, spec.tuning, spec.held_out), spec.seed)
    )
    connection.register(
        "arriving", pa.table({"key": rows["key"], "split": pa.array(names.tolist(), pa.string())})
    )
    connection.execute("CREATE TABLE assigned AS SELECT * FROM arriving WHERE split <> ''")
    connection.unregister("arriving")
    attrition = Attrition("split", len(names))
    attrition.drop_rows("subject on no list", int((names == "").sum()))
    return attrition


def _create_label_tables(
    task: ClinicalTask, recipe: CohortRecipe, connection: duckdb.DuckDBPyConnection
) -> list[Attrition]:
    """The tables ``counted`` (every category with its training texts and its index, null where it is left out) and ``labelled``."""
    least = recipe.task.min_label_count
    connection.execute(f"""CREATE TABLE answered AS SELECT a.key, a.category, s.split
        FROM ({CATEGORY_LABEL_QUERIES[task.kind, recipe.task.several]}) a JOIN assigned s USING (key)""")
    connection.execute(f"""CREATE TABLE counted AS
        SELECT category, train_texts, CASE WHEN kept THEN (count(*) FILTER (WHERE kept) OVER (ORDER BY category)) - 1 END::INTEGER AS place
        FROM (SELECT category, count(*) FILTER (WHERE split = 'train') AS train_texts, train_texts >= {least} AS kept
              FROM answered GROUP BY category)""")
    connection.execute("""CREATE TABLE labelled AS SELECT key, list(place ORDER BY place) AS labels
        FROM answered JOIN counted USING (category) WHERE place IS NOT NULL GROUP BY key""")
    query = "SELECT (SELECT count(*) FROM assigned), (SELECT count(DISTINCT key) FROM answered), (SELECT count(*) FROM labelled)"
    ((assigned, answered, labelled),) = connection.execute(query).fetchall()
    several, rare = Attrition("one category", assigned), Attrition("classes", answered)
    several.drop_rows(SEVERAL_CATEGORIES_REASON, assigned - answered)
    one = {
        "multiclass": f"category with fewer than {least} training notes",
        "multilabel": f"no category with {least} training notes or more",
    }
    rare.drop_rows(one[task.kind], answered - labelled)
    return [several, rare] if task.kind == "multiclass" else [rare]


def _read_classes(connection: duckdb.DuckDBPyConnection) -> tuple[dict[str, int], dict[str, int]]:
    """Category -> training texts, in the order of the indices; and those that the rare-class rule leaves out."""
    rows = connection.execute(
        "SELECT category, train_texts, place IS NOT NULL FROM counted ORDER BY category"
    ).fetchall()
    return {name: texts for name, texts, kept in rows if kept}, {
        name: texts for name, texts, kept in rows if not kept
    }


def _write_rows(
    connection: duckdb.DuckDBPyConnection, task: ClinicalTask, text_path: Path, target: Path
) -> None:
    """Texts and answers joined into ``tables.COHORT``, ordered by subject and prediction time; what only a stay has is null."""
    answer = {
        "multiclass": "l.labels[1] AS label, NULL AS labels",
        "multilabel": "NULL AS label, l.labels",
    }[task.kind]
    query = f"""SELECT a.subject_id, a.key AS stay_id, a.prediction_time, s.split, {answer}, t.text
        FROM asked a JOIN assigned s USING (key) JOIN labelled l USING (key) JOIN read_parquet($texts) t USING (key)
        ORDER BY a.subject_id, a.prediction_time"""
    with pq.ParquetWriter(target, COHORT_SCHEMA, compression="zstd") as writer:
        for batch in connection.sql(query, params={"texts": str(text_path)}).to_arrow_reader(
            _BATCH_TEXTS
        ):
            found = {
                name: batch[name]
                if name in batch.schema.names
                else pa.nulls(batch.num_rows, COHORT_SCHEMA.field(name).type)
                for name in COHORT_SCHEMA.names
            }
            writer.write_table(pa.table(found).cast(COHORT_SCHEMA))


def _describe_labels(
    task: ClinicalTask, classes: Mapping[str, int], left_out: Mapping[str, int]
) -> Mapping[str, object]:
    """As it stands in ``labels.json``; what is counted are texts, one a stay elsewhere."""
    entries: Sequence[object] = [
        {"index": at, "name": name, "train_stays": texts}
        for at, (name, texts) in enumerate(classes.items())
    ]
    told: dict[str, object] = {
        "task": task.name,
        "question": task.question,
        "kind": task.kind,
        "metric": task.metric,
        "classes": entries,
    }
    return told | {
        "left_out": [{"name": name, "train_stays": texts} for name, texts in left_out.items()]
    }
