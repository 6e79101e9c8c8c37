"""Retrieval sets in the layout of BEIR (Thakur et al. 2021): ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

```
corpus.jsonl      {"_id": "p1", "title": "Heart", "text": "..."}
queries.jsonl     {"_id": "q1", "text": "...", "metadata": {"cluster": "..."}}
qrels/test.tsv    query-id  corpus-id  score        with tabs and this header
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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


def read_beir(folder: Path, split: str = "test") -> RetrievalSet:
    """The queries that are judged in a split, all passages, and the judgements.

    Left out and counted: passages and queries without text, queries that this split does not judge, judgements of what is not there, and the same
    judgement once more. ``metadata.cluster`` of a query becomes its cluster.

    Args:
        folder: in the layout above; each file may be gzipped under its plain name.
        split: the name of the file in ``qrels``.

    Raises:
        SourceError: a file is missing or damaged, an id is used twice, a grade is no whole number, a pair is judged in two ways, or nothing is left.
    """
    passages, queries, judged = Attrition("passages"), Attrition("queries"), Attrition("judgements")
    corpus, asked = (
        _read_corpus(folder / "corpus.jsonl", passages),
        _read_queries(folder / "queries.jsonl", queries),
    )
    grades = _read_grades(folder / "qrels" / f"{split}.tsv", asked, corpus, judged)
    kept = {query for query, _ in grades}
    queries.drop_rows(f"not judged in {split}", len(asked) - len(kept))
    if not kept:
        raise SourceError(
            "no judgement of a query and a passage that are there",
            location=str(folder),
            hint="check that the ids are the same",
        )
    return RetrievalSet(
        build_arrow_table(
            QUERY_SCHEMA,
            _collect_columns(QUERY_SCHEMA, [row for name, row in asked.items() if name in kept]),
        ),
        build_arrow_table(
            CANDIDATE_PASSAGE_SCHEMA,
            _collect_columns(CANDIDATE_PASSAGE_SCHEMA, list(corpus.values())),
        ),
        build_relevance_judgments(grades),
        (passages, queries, judged),
    )


def write_beir(retrieval_set: RetrievalSet, folder: Path, split: str = "test") -> None:
    """A retrieval set in the layout above, which other programs read too.

    Raises:
        StorageError: the folder cannot be written.
    """
    corpus = (
        {"_id": row["passage_id"], "title": row["title"] or "", "text": row["text"]}
        for row in retrieval_set.passages.to_pylist()
    )
    queries = (
        {"_id": row["query_id"], "text": row["text"], "metadata": _build_metadata(row["cluster"])}
        for row in retrieval_set.queries.to_pylist()
    )
    judged = "".join(
        f"{row['query_id']}\t{row['passage_id']}\t{row['grade']}\n"
        for row in retrieval_set.relevance_judgments.to_pylist()
    )
    try:
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, rows in (("corpus", corpus), ("queries", queries)):
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "qrels" / f"{split}.tsv").write_text(
            "\t".join(_QRELS_COLUMNS) + "\n" + judged, encoding="utf-8"
        )
    except OSError as error:
        raise StorageError(
            f"the set cannot be written: {error.strerror}",
            location=str(folder),
            hint="check the folder and its rights",
        ) from None


def join_titles_and_texts(passages: pa.Table) -> list[str]:
    """Title and text of each passage in one, as BEIR gives them to a model."""
    rows = zip(passages["title"].to_pylist(), passages["text"].to_pylist(), strict=True)
    return [f"{title or ''} {text}".strip() for title, text in rows]


def build_relevance_judgments(grades: dict[tuple[str, str], int]) -> pa.Table:
    """(query, passage) -> grade, as a table of schema ``tables.JUDGEMENT``."""
    columns = [
        list(column)
        for column in zip(
            *((query, passage, grade) for (query, passage), grade in grades.items()), strict=True
        )
    ]
    return build_arrow_table(
        RELEVANCE_JUDGMENT_SCHEMA,
        dict(zip(RELEVANCE_JUDGMENT_SCHEMA.names, columns or [[], [], []], strict=True)),
    )


def _read_corpus(path: Path, attrition: Attrition) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for location, row in json_lines.read_json_objects(path):
        name = _read_unique_id(row, found, path, location)
        title, body = (
            str(row.get("title") or "").strip(),
            json_lines.get_text_value(row, "text", location),
        )
        attrition.entered_rows += 1
        if title or body:
            found[name] = {"passage_id": name, "title": title or None, "text": body}
        else:
            attrition.drop_rows("no text", location=location)
    return found


def _read_queries(path: Path, attrition: Attrition) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for location, row in json_lines.read_json_objects(path):
        name = _read_unique_id(row, found, path, location)
        attrition.entered_rows += 1
        metadata = row.get("metadata")
        cluster = metadata.get("cluster") if isinstance(metadata, dict) else None
        body = json_lines.get_text_value(row, "text", location)
        if body:
            found[name] = {
                "query_id": name,
                "cluster": None if cluster is None else str(cluster),
                "text": body,
            }
        else:
            attrition.drop_rows("no text", location=location)
    return found


def _read_unique_id(
    row: dict[str, Any], rows_by_id: dict[str, dict[str, Any]], path: Path, location: str
) -> str:
    name = json_lines.get_text_value(row, "_id", location)
    if name in rows_by_id:
        raise SourceError(
            f"the id {name!r} is used twice",
            location=f"{path.parent}: {location}",
            hint="give every line its own _id",
        )
    return name


def _read_grades(
    path: Path, queries: dict[str, Any], passages: dict[str, Any], attrition: Attrition
) -> dict[tuple[str, str], int]:
    grades: dict[tuple[str, str], int] = {}
    for location, query, passage, grade in _read_judgments(path):
        attrition.entered_rows += 1
        if query not in queries or passage not in passages:
            attrition.drop_rows(
                "a query that is not there"
                if query not in queries
                else "a passage that is not there",
                location=location,
            )
        elif grades.setdefault((query, passage), grade) != grade:
            message = f"query {query!r} and passage {passage!r} have grades {grades[query, passage]} and {grade}"
            raise SourceError(
                message, location=f"{path.parent}: {location}", hint="keep one of them"
            )
        elif len(grades) + sum(attrition.dropped_rows.values()) < attrition.entered_rows:
            attrition.drop_rows("judged before", location=location)
    return grades


def _read_judgments(path: Path) -> Iterator[tuple[str, str, str, int]]:
    sheet = delimited.open_delimited_table(path, "\t")
    at = delimited.find_column_positions(
        sheet.header, dict.fromkeys(_QRELS_COLUMNS, "judgements"), str(path), "\t"
    )
    for row in sheet.rows:
        values = (
            []
            if isinstance(row, RejectedRow)
            else [row.values[at[name]].strip() for name in _QRELS_COLUMNS]
        )
        if not values or not _is_whole_number(values[2]):
            message = (
                f"the score {values[2]!r} is not a whole number"
                if values
                else "this row has not three columns"
            )
            raise SourceError(
                message,
                location=f"{path.parent}: {row.location}",
                hint="write query-id, corpus-id and a whole number, with tabs between",
            )
        yield row.location, values[0], values[1], int(values[2])


def _is_whole_number(value: str) -> bool:
    return value.removeprefix("-").isdecimal()


def _build_metadata(cluster: str | None) -> dict[str, str]:
    return {} if cluster is None else {"cluster": cluster}


def _collect_columns(schema: pa.Schema, rows: list[dict[str, Any]]) -> dict[str, object]:
    return {name: [row[name] for row in rows] for name in schema.names}
