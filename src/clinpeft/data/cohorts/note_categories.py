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
    ATTRITION_FILE,
    COHORT_FILE,
    LABELS_FILE,
    Cohort,
    made,
    write_json,
)
from clinpeft.data.cohorts.selection import refuse_nobody, refuse_other_rows, task_of
from clinpeft.data.cohorts.split import by_hash, by_lists
from clinpeft.data.cohorts.task import Task
from clinpeft.recipe import CohortRecipe

NO_TEXT, NO_CATEGORY, REPEATED = "no text", "no category", "repeats another text"
SEVERAL = "filed under several categories"

_BATCH_TEXTS = 2048
_DATABASE_MEGABYTES = 1024
_FILED = pa.schema(
    [
        ("key", pa.int64()),
        ("subject_id", pa.int64()),
        ("available_at", pa.timestamp("us")),
        ("category", pa.string()),
    ]
)
_TEXTS = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)

# `place` is that of a text's first note, whose subject it keeps. Its time is the first at which any of its notes could be read; 1970-01-01 where none
# says so. A person and a time name one answer (MEDS), so each further text of a person at the same time stands one microsecond later.
_DISTINCT = """
CREATE TABLE asked AS
WITH texts AS (SELECT key, arg_min(subject_id, place) AS subject_id, coalesce(min(available_at), TIMESTAMP '1970-01-01') AS first_at
               FROM filed GROUP BY key)
SELECT key, subject_id, first_at + to_microseconds(row_number() OVER (PARTITION BY subject_id, first_at ORDER BY key) - 1) AS prediction_time
FROM texts;
CREATE TABLE under AS SELECT DISTINCT key, category FROM filed;
"""

_RAREST = """
SELECT key, category FROM under JOIN (SELECT category, count(*) AS texts FROM under GROUP BY category) USING (category)
QUALIFY row_number() OVER (PARTITION BY key ORDER BY texts, category) = 1
"""
_ONLY = "SELECT key, min(category) AS category FROM under GROUP BY key HAVING count(*) = 1"
ANSWERS: Mapping[tuple[str, str], str] = {
    ("multiclass", "rarest"): _RAREST,
    ("multiclass", "drop"): _ONLY,
    ("multilabel", "rarest"): "SELECT key, category FROM under",
    ("multilabel", "drop"): "SELECT key, category FROM under",
}
"""SQL: (kind of the question, ``task.several``) -> the categories that are the answer of each text. The rarest category of a text is the one
with the fewest distinct texts, of equals the first in the alphabet: a text filed under "Surgery" and "Urology" says more as the latter."""


def write(
    recipe: CohortRecipe, notes: pa.RecordBatchReader, read: Attrition, folder: Path
) -> Cohort:
    """The cohort alone: ``cohort.parquet``, ``attrition.json`` and ``labels.json``, in bounded memory.

    Args:
        recipe: the question and the split.
        notes: of schema ``tables.NOTE``; read once.
        read: what reading counts; whole when ``notes`` is read, and the first entry of the attrition.
        folder: where the cohort is written.

    Raises:
        RecipeError: the question is not asked of notes, or the split needs stays.
        SourceError: not one note is left.
    """
    task = task_of(recipe.task)
    refuse_other_rows(task, "notes")
    if recipe.split.by != "subject":
        message = f"notes without stays have no {recipe.split.by}"
        raise RecipeError(
            message, location=f"split.by = {recipe.split.by!r}", hint='split by "subject"'
        )
    made(folder)
    with _working(folder) as (connection, partial):
        levelled = _levelled(connection, notes, partial / "texts.parquet")
        steps = [read, levelled]
        if not levelled.entered_rows:
            raise SourceError(
                "the source gave 0 notes: there is nobody to ask about",
                location="source",
                hint="give a source that holds notes",
            )
        refuse_nobody(steps, recipe.source.name, "note")
        connection.execute(_DISTINCT)
        steps.append(_assign(recipe, connection))
        steps += _answer(task, recipe, connection)
        refuse_nobody(steps, recipe.source.name, "note")
        classes, left_out = _classes(connection)
        _write_rows(connection, task, partial / "texts.parquet", folder / COHORT_FILE)
    write_json(folder / LABELS_FILE, _labels(task, classes, left_out))
    write_json(folder / ATTRITION_FILE, [step.as_json() for step in steps])
    return Cohort(folder, task, tuple(classes), tuple(steps))


@contextlib.contextmanager
def _working(folder: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
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


def _levelled(
    connection: duckdb.DuckDBPyConnection, notes: pa.RecordBatchReader, target: Path
) -> Attrition:
    """The table ``filed``, a row a note that has text and category; and every text once into ``target``."""
    attrition, seen = Attrition("distinct texts"), set[int]()
    connection.execute("""CREATE SEQUENCE places;
        CREATE TABLE filed (place BIGINT DEFAULT nextval('places'), key BIGINT, subject_id BIGINT, available_at TIMESTAMP, category VARCHAR)""")
    with pq.ParquetWriter(target, _TEXTS, compression="zstd") as writer:
        for batch in notes:
            rows = _filed(batch, attrition)
            fresh = []
            for key in rows["key"].to_pylist():
                fresh.append(key not in seen)
                seen.add(key)
            attrition.drop_rows(REPEATED, fresh.count(False))
            connection.register("arriving", rows.select(_FILED.names))
            connection.execute(
                "INSERT INTO filed (key, subject_id, available_at, category) SELECT * FROM arriving"
            )
            connection.unregister("arriving")
            writer.write_table(
                rows.select(_TEXTS.names).filter(pa.array(fresh, pa.bool_())).cast(_TEXTS)
            )
    return attrition


def _filed(batch: pa.RecordBatch, attrition: Attrition) -> pa.Table:
    """The notes of a batch that have text and category, with the key of their text."""
    attrition.entered_rows += batch.num_rows
    texts = [" ".join(text.split()).casefold() for text in batch["text"].to_pylist()]
    categories = pc.utf8_trim_whitespace(batch["category"]).to_pylist()
    reasons = [
        NO_TEXT if not text else NO_CATEGORY if not category else ""
        for text, category in zip(texts, categories, strict=True)
    ]
    for reason in (NO_TEXT, NO_CATEGORY):
        attrition.drop_rows(reason, reasons.count(reason))
    table = pa.Table.from_batches([batch]).select(["subject_id", "available_at", "text"])
    table = table.append_column("key", pa.array(map(_key, texts), pa.int64())).append_column(
        "category", pa.array(categories, pa.string())
    )
    return table.filter(pa.array([not reason for reason in reasons], pa.bool_()))


def _key(levelled: str) -> int:
    """63 bits of SHA-256: the number of the stay that a text stands for."""
    return (
        int.from_bytes(
            hashlib.sha256(levelled.encode("utf-8", "surrogatepass")).digest()[:8], "big"
        )
        >> 1
    )


def _assign(recipe: CohortRecipe, connection: duckdb.DuckDBPyConnection) -> Attrition:
    """The table ``assigned`` (``key``, ``split``)."""
    rows = connection.sql(
        "SELECT key, subject_id FROM asked ORDER BY subject_id, key"
    ).to_arrow_table()
    subjects, spec, lists = rows["subject_id"].to_numpy(), recipe.split, recipe.task.subject_lists
    names = (
        by_lists(subjects, lists)
        if lists is not None
        else by_hash(subjects, (spec.train, spec.tuning, spec.held_out), spec.seed)
    )
    connection.register(
        "arriving", pa.table({"key": rows["key"], "split": pa.array(names.tolist(), pa.string())})
    )
    connection.execute("CREATE TABLE assigned AS SELECT * FROM arriving WHERE split <> ''")
    connection.unregister("arriving")
    attrition = Attrition("split", len(names))
    attrition.drop_rows("subject on no list", int((names == "").sum()))
    return attrition


def _answer(
    task: Task, recipe: CohortRecipe, connection: duckdb.DuckDBPyConnection
) -> list[Attrition]:
    """The tables ``counted`` (every category with its training texts and its index, null where it is left out) and ``labelled``."""
    least = recipe.task.min_label_count
    connection.execute(f"""CREATE TABLE answered AS SELECT a.key, a.category, s.split
        FROM ({ANSWERS[task.kind, recipe.task.several]}) a JOIN assigned s USING (key)""")
    connection.execute(f"""CREATE TABLE counted AS
        SELECT category, train_texts, CASE WHEN kept THEN (count(*) FILTER (WHERE kept) OVER (ORDER BY category)) - 1 END::INTEGER AS place
        FROM (SELECT category, count(*) FILTER (WHERE split = 'train') AS train_texts, train_texts >= {least} AS kept
              FROM answered GROUP BY category)""")
    connection.execute("""CREATE TABLE labelled AS SELECT key, list(place ORDER BY place) AS labels
        FROM answered JOIN counted USING (category) WHERE place IS NOT NULL GROUP BY key""")
    query = "SELECT (SELECT count(*) FROM assigned), (SELECT count(DISTINCT key) FROM answered), (SELECT count(*) FROM labelled)"
    ((assigned, answered, labelled),) = connection.execute(query).fetchall()
    several, rare = Attrition("one category", assigned), Attrition("classes", answered)
    several.drop_rows(SEVERAL, assigned - answered)
    one = {
        "multiclass": f"category with fewer than {least} training notes",
        "multilabel": f"no category with {least} training notes or more",
    }
    rare.drop_rows(one[task.kind], answered - labelled)
    return [several, rare] if task.kind == "multiclass" else [rare]


def _classes(connection: duckdb.DuckDBPyConnection) -> tuple[dict[str, int], dict[str, int]]:
    """Category -> training texts, in the order of the indices; and those that the rare-class rule leaves out."""
    rows = connection.execute(
        "SELECT category, train_texts, place IS NOT NULL FROM counted ORDER BY category"
    ).fetchall()
    return {name: texts for name, texts, kept in rows if kept}, {
        name: texts for name, texts, kept in rows if not kept
    }


def _write_rows(
    connection: duckdb.DuckDBPyConnection, task: Task, texts: Path, target: Path
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
        for batch in connection.sql(query, params={"texts": str(texts)}).to_arrow_reader(
            _BATCH_TEXTS
        ):
            found = {
                name: batch[name]
                if name in batch.schema.names
                else pa.nulls(batch.num_rows, COHORT_SCHEMA.field(name).type)
                for name in COHORT_SCHEMA.names
            }
            writer.write_table(pa.table(found).cast(COHORT_SCHEMA))


def _labels(
    task: Task, classes: Mapping[str, int], left_out: Mapping[str, int]
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
