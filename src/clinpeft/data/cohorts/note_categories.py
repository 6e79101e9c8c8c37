"""Notes without stays -> a cohort with one row a distinct text, labeled with its category.

MTSamples, for one, files most of its texts under several specialties, each time as a note of its
own: 4,999 rows, 2,376 texts. Texts that are equal but for white space and case are one row here, so
that a text is in one split and counts once.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinpeft.core.database import OFFLINE_DUCKDB_SETTINGS, register_arrow_tables
from clinpeft.core.errors import RecipeError, SourceError, StorageError
from clinpeft.core.schemas import COHORT_SCHEMA, Attrition
from clinpeft.data.cohorts.cohort import Cohort, create_cohort_folder
from clinpeft.data.cohorts.cohort_files import (
    COHORT_FILE,
    LabelsDocument,
    LabelsEntry,
    write_cohort_documents,
)
from clinpeft.data.cohorts.selection import (
    check_prediction_unit,
    check_rows_remain,
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

# ``position`` is the order of reading: a text has the subject of its first note. Its time is the
# first at which any of its notes was available; 1970-01-01 where none has a time. MEDS identifies a
# label by subject and time, so each further text of a subject at the same time is one microsecond
# later.
_DISTINCT_TEXTS_SQL = """
CREATE TABLE distinct_text AS
WITH first_note AS (
    SELECT key, arg_min(subject_id, position) AS subject_id,
        coalesce(min(available_at), TIMESTAMP '1970-01-01') AS first_at
    FROM categorized_note GROUP BY key)
SELECT key, subject_id,
    first_at + to_microseconds(
        row_number() OVER (PARTITION BY subject_id, first_at ORDER BY key) - 1) AS prediction_time
FROM first_note;
CREATE TABLE text_category AS SELECT DISTINCT key, category FROM categorized_note;
"""

_RAREST_CATEGORY_SQL = """
SELECT key, category FROM text_category
JOIN (SELECT category, count(*) AS texts FROM text_category GROUP BY category) USING (category)
QUALIFY row_number() OVER (PARTITION BY key ORDER BY texts, category) = 1
"""
_SINGLE_CATEGORY_SQL = """
SELECT key, min(category) AS category FROM text_category GROUP BY key HAVING count(*) = 1
"""
# (kind of the task, ``task.several``) -> SELECT of the categories that label each text.
#
# The rarest category of a text is the one with the fewest distinct texts, of equals the first in
# alphabetical order: of a text filed under "Surgery" and "Urology" the latter says more.
CATEGORY_LABEL_QUERIES: Mapping[tuple[str, str], str] = {
    ("multiclass", "rarest"): _RAREST_CATEGORY_SQL,
    ("multiclass", "drop"): _SINGLE_CATEGORY_SQL,
    ("multilabel", "rarest"): "SELECT key, category FROM text_category",
    ("multilabel", "drop"): "SELECT key, category FROM text_category",
}

# Categories with ``train_texts`` and ``class_index``, null where the category is rare.
_CATEGORY_COUNT_SQL = """
CREATE TABLE category_count AS
SELECT category, train_texts,
    CASE WHEN is_class THEN (count(*) FILTER (WHERE is_class) OVER (ORDER BY category)) - 1
    END::INTEGER AS class_index
FROM (
    SELECT category, count(*) FILTER (WHERE split = 'train') AS train_texts,
        train_texts >= {min_train_texts} AS is_class
    FROM raw_text_label GROUP BY category)
"""


def write_note_cohort(
    recipe: CohortRecipe, notes: pa.RecordBatchReader, source_attrition: Attrition, folder: Path
) -> Cohort:
    """Write ``cohort.parquet``, ``attrition.json`` and ``labels.json`` in bounded memory.

    Args:
        recipe: the task and the split.
        notes: of ``NOTE_SCHEMA``; read once.
        source_attrition: of reading the notes, complete once ``notes`` is read; the first step.
        folder: of the cohort.

    Raises:
        RecipeError: the task is not about notes, or the split needs stays.
        SourceError: no note remains.
        StorageError: ``folder`` cannot be written.
    """
    task = get_clinical_task(recipe.task)
    check_prediction_unit(task, "notes")
    if recipe.split.by != "subject":
        raise RecipeError(
            f"notes without stays have no {recipe.split.by}",
            location=f"split.by = {recipe.split.by!r}",
            hint='split by "subject"',
        )
    create_cohort_folder(folder)
    with _open_working_database(folder) as (connection, partial):
        distinct = _store_distinct_texts(connection, notes, partial / "texts.parquet")
        steps = [source_attrition, distinct]
        if not distinct.entered_rows:
            raise SourceError(
                "the source has 0 notes",
                location="source",
                hint="give a source that holds notes",
            )
        check_rows_remain(steps, recipe.source.name, "note")
        connection.execute(_DISTINCT_TEXTS_SQL)
        steps.append(_assign_text_splits(recipe, connection))
        labels, label_steps = _create_text_labels(task, recipe, connection)
        steps += label_steps
        check_rows_remain(steps, recipe.source.name, "note")
        _write_text_rows(connection, task, partial / "texts.parquet", folder / COHORT_FILE)
    write_cohort_documents(folder, labels, steps)
    return Cohort(folder, task, tuple(entry.name for entry in labels.classes), tuple(steps))


@contextlib.contextmanager
def _open_working_database(folder: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A database and a folder inside ``folder``; both are removed on exit."""
    partial = folder / "cohort.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        settings = OFFLINE_DUCKDB_SETTINGS | {
            "memory_limit": f"{_DATABASE_MEGABYTES}MB",
            "threads": 1,
        }
        with duckdb.connect(str(partial / "notes.duckdb"), config=settings) as connection:
            yield connection, partial
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        # Only the type of the error is named: DuckDB may quote what it could not write.
        raise StorageError(
            f"the cohort cannot be written: {type(error).__name__}",
            location=str(folder),
            hint="give a folder with space for three times the notes",
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _store_distinct_texts(
    connection: duckdb.DuckDBPyConnection, notes: pa.RecordBatchReader, target: Path
) -> Attrition:
    """Fill ``categorized_note`` with the notes that have text and category, ``target`` with texts.

    ``target`` is Parquet of ``_DISTINCT_TEXT_SCHEMA`` with each text once.
    """
    # 63-bit keys instead of texts in memory; a collision among a million texts has odds of 5e-8.
    attrition, keys = Attrition("distinct texts"), set[int]()
    connection.execute("""CREATE SEQUENCE positions;
        CREATE TABLE categorized_note (
            position BIGINT DEFAULT nextval('positions'), key BIGINT, subject_id BIGINT,
            available_at TIMESTAMP, category VARCHAR)""")
    with pq.ParquetWriter(target, _DISTINCT_TEXT_SCHEMA, compression="zstd") as writer:
        for batch in notes:
            rows = _select_categorized_notes(batch, attrition)
            is_new = []
            for key in rows["key"].to_pylist():
                is_new.append(key not in keys)
                keys.add(key)
            attrition.drop_rows(REPEATED_TEXT_REASON, is_new.count(False))
            arrow_rows = rows.select(_CATEGORIZED_NOTE_SCHEMA.names)
            with register_arrow_tables(connection, arrow_rows=arrow_rows):
                connection.execute("""INSERT INTO categorized_note
                    (key, subject_id, available_at, category) SELECT * FROM arrow_rows""")
            new_rows = rows.select(_DISTINCT_TEXT_SCHEMA.names).filter(pa.array(is_new, pa.bool_()))
            writer.write_table(new_rows.cast(_DISTINCT_TEXT_SCHEMA))
    return attrition


def _select_categorized_notes(batch: pa.RecordBatch, attrition: Attrition) -> pa.Table:
    """The notes of a batch that have text and category, with the key of their text.

    The key, which becomes ``stay_id``, is 63 bits of the SHA-256 of the normalized text.
    """
    attrition.entered_rows += batch.num_rows
    # The normalization that makes two texts equal: white space and case.
    texts = [" ".join(text.split()).casefold() for text in batch["text"].to_pylist()]
    categories = pc.utf8_trim_whitespace(batch["category"]).to_pylist()
    reasons = [
        MISSING_TEXT_REASON if not text else MISSING_CATEGORY_REASON if not category else ""
        for text, category in zip(texts, categories, strict=True)
    ]
    for reason in (MISSING_TEXT_REASON, MISSING_CATEGORY_REASON):
        attrition.drop_rows(reason, reasons.count(reason))
    # ``surrogatepass``: a lone surrogate of a damaged file must not stop the reading.
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    keys = [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]
    table = pa.Table.from_batches([batch]).select(["subject_id", "available_at", "text"])
    table = table.append_column("key", pa.array(keys, pa.int64()))
    table = table.append_column("category", pa.array(categories, pa.string()))
    return table.filter(pa.array([not reason for reason in reasons], pa.bool_()))


def _assign_text_splits(recipe: CohortRecipe, connection: duckdb.DuckDBPyConnection) -> Attrition:
    """Create the table ``text_split`` (``key``, ``split``)."""
    rows = connection.sql(
        "SELECT key, subject_id FROM distinct_text ORDER BY subject_id, key"
    ).to_arrow_table()
    # Notes without stays have no site and no year: by subject or by lists only.
    subjects, spec, lists = rows["subject_id"].to_numpy(), recipe.split, recipe.task.subject_lists
    names = (
        split_subjects_by_lists(subjects, lists)
        if lists is not None
        else split_subjects_by_hash(subjects, (spec.train, spec.tuning, spec.held_out), spec.seed)
    )
    arrow_rows = pa.table({"key": rows["key"], "split": pa.array(names.tolist(), pa.string())})
    with register_arrow_tables(connection, arrow_rows=arrow_rows):
        connection.execute("CREATE TABLE text_split AS SELECT * FROM arrow_rows WHERE split <> ''")
    attrition = Attrition("split", len(names))
    attrition.drop_rows("subject on no list", int((names == "").sum()))
    return attrition


def _create_text_labels(
    task: ClinicalTask, recipe: CohortRecipe, connection: duckdb.DuckDBPyConnection
) -> tuple[LabelsDocument, list[Attrition]]:
    """Create the table ``text_label`` (``key``, ``labels``).

    Returns:
        The label space, and the attrition of texts of several categories and of rare ones.
    """
    min_texts = recipe.task.min_label_count
    connection.execute(f"""CREATE TABLE raw_text_label AS SELECT a.key, a.category, s.split
        FROM ({CATEGORY_LABEL_QUERIES[task.kind, recipe.task.several]}) a
        JOIN text_split s USING (key)""")
    connection.execute(_CATEGORY_COUNT_SQL.format(min_train_texts=min_texts))
    connection.execute("""CREATE TABLE text_label AS
        SELECT key, list(class_index ORDER BY class_index) AS labels
        FROM raw_text_label JOIN category_count USING (category)
        WHERE class_index IS NOT NULL GROUP BY key""")
    ((in_split, with_category, with_class),) = connection.execute(
        """SELECT (SELECT count(*) FROM text_split),
            (SELECT count(DISTINCT key) FROM raw_text_label), (SELECT count(*) FROM text_label)"""
    ).fetchall()
    # Two steps: texts of several categories, where these are dropped, and rare categories.
    several, rare = Attrition("one category", in_split), Attrition("classes", with_category)
    several.drop_rows(SEVERAL_CATEGORIES_REASON, in_split - with_category)
    rare_reasons = {
        "multiclass": f"category with fewer than {min_texts} training notes",
        "multilabel": f"no category with {min_texts} training notes or more",
    }
    rare.drop_rows(rare_reasons[task.kind], with_category - with_class)
    entries = [
        LabelsEntry(index=index, name=name, train_stays=texts)
        for name, texts, index in connection.execute(
            "SELECT category, train_texts, class_index FROM category_count ORDER BY category"
        ).fetchall()
    ]
    labels = LabelsDocument(
        task=task.name,
        question=task.question,
        kind=task.kind,
        metric=task.metric,
        classes=tuple(entry for entry in entries if entry.index is not None),
        left_out=tuple(entry for entry in entries if entry.index is None),
    )
    return labels, [several, rare] if task.kind == "multiclass" else [rare]


def _write_text_rows(
    connection: duckdb.DuckDBPyConnection, task: ClinicalTask, text_path: Path, target: Path
) -> None:
    """Join texts and labels into ``COHORT_SCHEMA``, ordered by subject and prediction time.

    Columns that only a stay has are null.
    """
    label_columns = {
        "multiclass": "l.labels[1] AS label, NULL AS labels",
        "multilabel": "NULL AS label, l.labels",
    }[task.kind]
    query = f"""SELECT a.subject_id, a.key AS stay_id, a.prediction_time, s.split, {label_columns},
            t.text
        FROM distinct_text a JOIN text_split s USING (key) JOIN text_label l USING (key)
        JOIN read_parquet($texts) t USING (key)
        ORDER BY a.subject_id, a.prediction_time"""
    rows = connection.sql(query, params={"texts": str(text_path)})
    with pq.ParquetWriter(target, COHORT_SCHEMA, compression="zstd") as writer:
        for batch in rows.to_arrow_reader(_BATCH_TEXTS):
            columns = {
                name: batch[name]
                if name in batch.schema.names
                else pa.nulls(batch.num_rows, COHORT_SCHEMA.field(name).type)
                for name in COHORT_SCHEMA.names
            }
            writer.write_table(pa.table(columns).cast(COHORT_SCHEMA))
