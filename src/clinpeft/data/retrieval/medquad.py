"""MedQuAD (Ben Abacha and Demner-Fushman 2019) as retrieval sets: questions with their own answers, and the answers that physicians graded.

The collection is read from JSON lines, one question and answer each: ``source``, ``qid``, ``focus``, ``question``, ``answer``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import (
    CANDIDATE_PASSAGE_SCHEMA,
    QUERY_SCHEMA,
    Attrition,
    RetrievalSet,
    build_arrow_table,
)
from clinpeft.data.formats import delimited, json_lines
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.retrieval import beir

LIVEQA_ANSWERS_FILE = "liveqa_answers_open_subset.jsonl"
LIVEQA_JUDGMENTS_FILE = "liveqa_qrels_open_subset.tsv"

_LIVEQA_GRADES = {"1-Incorrect": 0, "2-Related": 1, "3-Incomplete": 2, "4-Excellent": 3}
_ANSWER_PATTERN = re.compile(
    r"Question: (?P<question>.*?)\nURL: .*?\nAnswer: (?P<answer>.*)", re.DOTALL
)
_QUESTION_TAGS = (
    "Paraphrase",
    "NIST-PARAPHRASE",
)  # what the judges of TREC read; the name differs between releases


def read_medquad(collection: Path, query_collection: Path | None = None) -> RetrievalSet:
    """Questions, and all answers of the collection: relevant are the answers that the collection gives to this question (grade 1).

    Questions of equal text are one query (white space and case levelled), with the answers of all of them; answers of equal text are one passage.
    Both are counted. The cluster of a query is its focus, the disease it is about.

    Args:
        collection: all questions and answers.
        query_collection: a part of it whose questions are to be queries, such as the cardiac ones; None: all are.

    Raises:
        SourceError: a file is missing or damaged, a key is missing, or no question of ``query_collection`` is in the collection.
    """
    answers, questions = Attrition("answers"), Attrition("questions")
    passages: dict[str, dict[str, object]] = {}
    given: dict[str, dict[str, None]] = {}  # question -> passage ids, in order
    used: set[str] = set()
    for location, row in _read_rows(collection):
        answers.entered_rows += 1
        if row["answer"] in passages:
            answers.drop_rows("the text of another answer")
        else:
            passages[row["answer"]] = {
                "passage_id": _create_unique_id(row, used, location),
                "title": None,
                "text": row["answer"],
            }
        given.setdefault(_normalize_question(row["question"]), {})[
            str(passages[row["answer"]]["passage_id"])
        ] = None
    queries = _read_queries(query_collection or collection, given, questions)
    grades = {
        (str(query["query_id"]), passage): 1
        for key, query in queries.items()
        for passage in given[key]
    }
    return RetrievalSet(
        build_arrow_table(
            QUERY_SCHEMA,
            {name: [query[name] for query in queries.values()] for name in QUERY_SCHEMA.names},
        ),
        build_arrow_table(
            CANDIDATE_PASSAGE_SCHEMA,
            {
                name: [passage[name] for passage in passages.values()]
                for name in CANDIDATE_PASSAGE_SCHEMA.names
            },
        ),
        beir.build_relevance_judgments(grades),
        (answers, questions),
    )


def read_medquad_liveqa(folder: Path, questions: Path) -> RetrievalSet:
    """The answers that were graded for the medical questions of TREC 2017 LiveQA: 1-Incorrect is grade 0, 4-Excellent grade 3.

    The title of a passage is the question that the collection has for it. Where the file grades an answer twice for one question the higher grade is
    kept and the other counted.

    Args:
        folder: with ``ANSWERS`` and ``JUDGEMENTS``.
        questions: the test questions, which do not come with MedQuAD: the XML of the LiveQA task (the paraphrase that the judges read), or JSON
            lines with ``question_id`` and ``text``; ``TQ7`` and ``7`` are one id.

    Raises:
        SourceError: a file is missing or damaged, or a judgement is none of the four.
    """
    answers, judged = Attrition("answers"), Attrition("judgements")
    passages: dict[str, dict[str, object]] = {}
    for location, row in json_lines.read_json_objects(folder / LIVEQA_ANSWERS_FILE):
        answers.entered_rows += 1
        name, whole = (
            json_lines.get_text_value(row, "AnswerID", location),
            json_lines.get_text_value(row, "Answer", location),
        )
        if name in passages:
            answers.drop_rows("the id of another answer")
            continue
        parts = _ANSWER_PATTERN.match(whole)
        title, body = (
            (parts["question"].strip(), parts["answer"].strip()) if parts else (None, whole)
        )
        passages[name] = {"passage_id": name, "title": title, "text": body}
    asked = _read_questions(questions)
    grades = _read_grades(folder / LIVEQA_JUDGMENTS_FILE, asked, passages, judged)
    found = {query: asked[query] for query in dict.fromkeys(query for query, _ in grades)}
    columns = {
        "query_id": list(found),
        "cluster": [None] * len(found),
        "text": list(found.values()),
    }
    kept = {
        name: [passage[name] for passage in passages.values()]
        for name in CANDIDATE_PASSAGE_SCHEMA.names
    }
    return RetrievalSet(
        build_arrow_table(QUERY_SCHEMA, columns),
        build_arrow_table(CANDIDATE_PASSAGE_SCHEMA, kept),
        beir.build_relevance_judgments(grades),
        (answers, judged),
    )


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for location, row in json_lines.read_json_objects(path):
        yield (
            location,
            {
                key: json_lines.get_text_value(row, key, location)
                for key in ("source", "qid", "focus", "question", "answer")
            },
        )


def _read_queries(
    path: Path, answer_ids: Mapping[str, object], attrition: Attrition
) -> dict[str, dict[str, object]]:
    queries: dict[str, dict[str, object]] = {}
    used: set[str] = set()
    for location, row in _read_rows(path):
        attrition.entered_rows += 1
        key = _normalize_question(row["question"])
        if key in queries:
            attrition.drop_rows("the text of another question")
        elif key not in answer_ids:
            attrition.drop_rows("a question that is not in the collection", location=location)
        else:
            queries[key] = {
                "query_id": _create_unique_id(row, used, location),
                "cluster": row["focus"].casefold(),
                "text": row["question"],
            }
    if not queries:
        raise SourceError(
            "no question of the collection is asked",
            location=str(path),
            hint="give a part of the collection as the questions",
        )
    return queries


def _create_unique_id(row: Mapping[str, str], used_ids: set[str], location: str) -> str:
    """The collection's id; where it was used before, followed by its place."""
    name = f"{row['source']}/{row['qid']}"
    name = f"{name}#{location.rpartition(' ')[2]}" if name in used_ids else name
    used_ids.add(name)
    return name


def _normalize_question(text: str) -> str:
    return " ".join(text.casefold().split())


def _read_grades(
    path: Path, queries: Mapping[str, str], passages: Mapping[str, object], attrition: Attrition
) -> dict[tuple[str, str], int]:
    sheet = delimited.open_delimited_table(path, "\t")
    at = delimited.find_column_positions(
        sheet.header,
        dict.fromkeys(("question_id", "judgment", "answer_id"), "judgements"),
        str(path),
        "\t",
    )
    grades: dict[tuple[str, str], int] = {}
    for row in sheet.rows:
        grade = (
            None
            if isinstance(row, RejectedRow)
            else _LIVEQA_GRADES.get(row.values[at["judgment"]].strip())
        )
        if grade is None or isinstance(row, RejectedRow):
            hint = f"the judgements are: {', '.join(_LIVEQA_GRADES)}"
            raise SourceError(
                "this row holds no judgement", location=f"{path.parent}: {row.location}", hint=hint
            )
        attrition.entered_rows += 1
        pair = row.values[at["question_id"]].strip(), row.values[at["answer_id"]].strip()
        if pair[0] not in queries or pair[1] not in passages:
            attrition.drop_rows(
                "a question without a text"
                if pair[0] not in queries
                else "an answer without a text",
                location=row.location,
            )
            continue
        if pair in grades:
            attrition.drop_rows("graded twice: the higher grade is kept", location=row.location)
        grades[pair] = max(grade, grades.get(pair, 0))
    return grades


def _read_questions(path: Path) -> dict[str, str]:
    read = _read_xml_questions if path.name.endswith(".xml") else _read_json_lines_questions
    return {name.removeprefix("TQ"): text for name, text in read(path) if text}


def _read_json_lines_questions(path: Path) -> Iterator[tuple[str, str]]:
    for location, row in json_lines.read_json_objects(path):
        yield (
            json_lines.get_text_value(row, "question_id", location),
            json_lines.get_text_value(row, "text", location),
        )


def _read_xml_questions(path: Path) -> Iterator[tuple[str, str]]:
    written = "".join(delimited.read_text_lines(path))
    if "<!DOCTYPE" in written or "<!ENTITY" in written:
        raise SourceError(
            "this XML declares entities",
            location=str(path),
            hint="remove its DOCTYPE; the LiveQA files have none",
        )
    try:
        root = ET.fromstring(written.encode(errors="replace"))
    except ET.ParseError as error:
        raise SourceError(
            f"this is not XML from line {error.position[0]} on",
            location=str(path),
            hint="download it again",
        ) from None
    for question in root.iter("NLM-QUESTION"):
        texts = [
            " ".join(found.split()) for tag in _QUESTION_TAGS if (found := question.findtext(tag))
        ]
        yield question.get("qid", ""), next(iter(texts), "")
