"""Retrieval sets in the layout of BEIR (Thakur et al. 2021, arXiv 2104.08663).

```
corpus.jsonl      {"_id": "p1", "title": "Heart", "text": "..."}
queries.jsonl     {"_id": "q1", "text": "...", "metadata": {"cluster": "..."}}
qrels/test.tsv    query-id  corpus-id  score        with tabs and this header
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft.core.errors import SourceError, StorageError
from clinpeft.core.schemas import (
    CANDIDATE_PASSAGE_SCHEMA,
    QUERY_SCHEMA,
    RELEVANCE_JUDGMENT_SCHEMA,
    Attrition,
    RetrievalSet,
    build_arrow_table,
)
from clinpeft.data.formats import delimited, json_lines
from clinpeft.data.formats.rows import RejectedRow

_QRELS_COLUMNS = ("query-id", "corpus-id", "score")

RelevanceGrades = dict[tuple[str, str], int]
"""(query id, passage id) -> grade."""


def read_beir(folder: Path, split: str = "test") -> RetrievalSet:
    """Reads the queries judged in a split, all passages, and the relevance judgments.

    Left out and counted: passages and queries without text, queries that this split does not judge,
    judgments of unknown queries or passages, and repeated judgments. ``metadata.cluster`` of a
    query becomes its cluster.

    Args:
        folder: in the layout of this module; each file may be gzipped under its plain name.
        split: name of the file in ``qrels``.

    Raises:
        SourceError: a file is missing or damaged, an id is used twice, a grade is not a whole
            number, a pair has two grades, or nothing remains.
    """
    passage_attrition, query_attrition = Attrition("passages"), Attrition("queries")
    judgment_attrition = Attrition("judgements")
    passages = _read_records(folder / "corpus.jsonl", passage_attrition, _build_passage)
    queries = _read_records(folder / "queries.jsonl", query_attrition, _build_query)
    grades = _read_grades(folder / "qrels" / f"{split}.tsv", queries, passages, judgment_attrition)
    # The queries of all splits are in one file; only those judged here are evaluated.
    judged_queries = {query for query, _ in grades}
    query_attrition.drop_rows(f"not judged in {split}", len(queries) - len(judged_queries))
    if not judged_queries:
        raise SourceError(
            "no judgment is about a query and a passage of this set",
            location=str(folder),
            hint="check that qrels uses the ids of queries.jsonl and corpus.jsonl",
        )
    return RetrievalSet(
        build_table_from_rows(
            QUERY_SCHEMA, [row for name, row in queries.items() if name in judged_queries]
        ),
        build_table_from_rows(CANDIDATE_PASSAGE_SCHEMA, passages.values()),
        build_relevance_judgments(grades),
        (passage_attrition, query_attrition, judgment_attrition),
    )


def write_beir(retrieval_set: RetrievalSet, folder: Path, split: str = "test") -> None:
    """Writes a retrieval set in the layout of this module, which other programs read too.

    Raises:
        StorageError: the folder cannot be written.
    """
    records: dict[str, list[dict[str, Any]]] = {
        "corpus": [
            {"_id": row["passage_id"], "title": row["title"] or "", "text": row["text"]}
            for row in retrieval_set.passages.to_pylist()
        ],
        "queries": [
            {
                "_id": row["query_id"],
                "text": row["text"],
                "metadata": {} if row["cluster"] is None else {"cluster": row["cluster"]},
            }
            for row in retrieval_set.queries.to_pylist()
        ],
    }
    judgments = [
        f"{row['query_id']}\t{row['passage_id']}\t{row['grade']}\n"
        for row in retrieval_set.relevance_judgments.to_pylist()
    ]
    try:
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, rows in records.items():
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                # Readable in an editor: BEIR's own files are not escaped either.
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        header = "\t".join(_QRELS_COLUMNS) + "\n"
        (folder / "qrels" / f"{split}.tsv").write_text(
            header + "".join(judgments), encoding="utf-8"
        )
    except OSError as error:
        raise StorageError(
            f"the retrieval set cannot be written: {error.strerror}",
            location=str(folder),
            hint="check the folder and its permissions",
        ) from None


def join_titles_and_texts(passages: pa.Table) -> list[str]:
    """Joins title and text of each passage by a space, as BEIR gives them to a model."""
    rows = zip(passages["title"].to_pylist(), passages["text"].to_pylist(), strict=True)
    # strip(): a passage without a title gets no leading space.
    return [f"{title or ''} {text}".strip() for title, text in rows]


def build_relevance_judgments(grades: RelevanceGrades) -> pa.Table:
    """Builds a table of ``RELEVANCE_JUDGMENT_SCHEMA`` from (query, passage) -> grade."""
    # Also for no grades, which zip(*grades) could not split into columns.
    columns = [
        [query for query, _ in grades],
        [passage for _, passage in grades],
        list(grades.values()),
    ]
    return build_arrow_table(
        RELEVANCE_JUDGMENT_SCHEMA, dict(zip(RELEVANCE_JUDGMENT_SCHEMA.names, columns, strict=True))
    )


def build_table_from_rows(schema: pa.Schema, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Builds a table of ``schema`` from rows with a value for every column."""
    records = list(rows)
    return build_arrow_table(
        schema, {name: [row[name] for row in records] for name in schema.names}
    )


def _build_passage(row: dict[str, Any], name: str, text: str) -> dict[str, Any] | None:
    """Returns a row of ``CANDIDATE_PASSAGE_SCHEMA``; None without title and text."""
    title = str(row.get("title") or "").strip()
    if not title and not text:
        return None
    return {"passage_id": name, "title": title or None, "text": text}


def _build_query(row: dict[str, Any], name: str, text: str) -> dict[str, Any] | None:
    """Returns a row of ``QUERY_SCHEMA``; None without text."""
    metadata = row.get("metadata")
    cluster = metadata.get("cluster") if isinstance(metadata, dict) else None
    if not text:
        return None
    return {"query_id": name, "cluster": None if cluster is None else str(cluster), "text": text}


def _read_records(
    path: Path,
    attrition: Attrition,
    build_record: Callable[[dict[str, Any], str, str], dict[str, Any] | None],
) -> dict[str, dict[str, Any]]:
    """Returns id -> record of a file, in its order."""
    records: dict[str, dict[str, Any]] = {}
    for location, row in json_lines.read_json_objects(path):
        name = json_lines.get_text_value(row, "_id", location)
        # Judgments refer to ids: with two texts of one id, they would be ambiguous.
        if name in records:
            raise SourceError(
                f"the id {name!r} is used twice",
                location=f"{path.parent}: {location}",
                hint="give every line its own _id",
            )
        record = build_record(row, name, json_lines.get_text_value(row, "text", location))
        attrition.entered_rows += 1
        if record is None:
            attrition.drop_rows("no text", location=location)
        else:
            records[name] = record
    return records


def _read_grades(
    path: Path, queries: Mapping[str, object], passages: Mapping[str, object], attrition: Attrition
) -> RelevanceGrades:
    """Returns the grades of a qrels file about these queries and passages."""
    table = delimited.open_delimited_table(path, "\t")
    positions = delimited.find_column_positions(
        table.header, dict.fromkeys(_QRELS_COLUMNS, "relevance judgments"), str(path), "\t"
    )
    grades: RelevanceGrades = {}
    for row in table.rows:
        location = f"{path.parent}: {row.location}"
        score, message = "", "this row does not have three columns"
        if not isinstance(row, RejectedRow):
            query, passage, score = (row.values[positions[name]].strip() for name in _QRELS_COLUMNS)
            message = f"the score {score!r} is not a whole number"
        # Negative grades occur in TREC collections.
        if not score.removeprefix("-").isdecimal():
            raise SourceError(
                message,
                location=location,
                hint="write query-id, corpus-id and a whole number, separated by tabs",
            )
        attrition.entered_rows += 1
        # A filtered set may keep the qrels of the whole, so unknown ids are no error.
        if query not in queries:
            attrition.drop_rows("a query that is not there", location=row.location)
        elif passage not in passages:
            attrition.drop_rows("a passage that is not there", location=row.location)
        elif (query, passage) not in grades:
            grades[query, passage] = int(score)
        elif grades[query, passage] == int(score):
            attrition.drop_rows("judged before", location=row.location)
        else:
            raise SourceError(
                f"query {query!r} and passage {passage!r} have grades "
                f"{grades[query, passage]} and {int(score)}",
                location=location,
                hint="keep one of them",
            )
    return grades
