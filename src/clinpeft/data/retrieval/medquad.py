"""MedQuAD (Ben Abacha and Demner-Fushman 2019, arXiv 1901.08079) as retrieval sets.

Two sets: questions with their own answers, and the answers that physicians graded for TREC LiveQA.
The collection is read from JSON lines with the keys ``source``, ``qid``, ``focus``, ``question``
and ``answer``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import CANDIDATE_PASSAGE_SCHEMA, QUERY_SCHEMA, Attrition, RetrievalSet
from clinpeft.data.formats import delimited, json_lines
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.retrieval import beir

LIVEQA_ANSWERS_FILE = "liveqa_answers_open_subset.jsonl"
LIVEQA_JUDGMENTS_FILE = "liveqa_qrels_open_subset.tsv"

_MEDQUAD_KEYS = ("source", "qid", "focus", "question", "answer")
_LIVEQA_GRADES = {"1-Incorrect": 0, "2-Related": 1, "3-Incomplete": 2, "4-Excellent": 3}
_ANSWER_PATTERN = re.compile(
    r"Question: (?P<question>.*?)\nURL: .*?\nAnswer: (?P<answer>.*)", re.DOTALL
)
# The paraphrase that the assessors of TREC read; the tag differs between releases.
_QUESTION_TAGS = ("Paraphrase", "NIST-PARAPHRASE")


def read_medquad(collection: Path, query_collection: Path | None = None) -> RetrievalSet:
    """Reads questions, and all answers of the collection, as a retrieval set.

    The answers that the collection gives to a question are relevant (grade 1). Questions of equal
    text (white space and case normalized) are one query, with the answers of all of them; answers
    of equal text are one passage. Both are counted. The cluster of a query is its focus, the
    disease it is about.

    Args:
        collection: all questions and answers.
        query_collection: a part of it whose questions are the queries, such as the cardiac ones;
            None: all of them.

    Raises:
        SourceError: a file is missing or damaged, a key is missing, or no question of
            ``query_collection`` is in the collection.
    """
    answer_attrition, question_attrition = Attrition("answers"), Attrition("questions")
    passages: dict[str, dict[str, object]] = {}  # by text
    # question -> ids of its answers; a dictionary without values keeps their order
    answer_ids: dict[str, dict[str, None]] = {}
    used_ids: set[str] = set()
    for location, row in _read_rows(collection):
        answer_attrition.entered_rows += 1
        # Equal passages would compete with each other for one rank.
        text = row["answer"]
        if text in passages:
            answer_attrition.drop_rows("the text of another answer")
        else:
            name = _create_unique_id(row, used_ids, location)
            passages[text] = {"passage_id": name, "title": None, "text": text}
        passage_id = str(passages[text]["passage_id"])
        answer_ids.setdefault(_normalize_question(row["question"]), {})[passage_id] = None
    queries = _select_queries(query_collection or collection, answer_ids, question_attrition)
    grades = {
        (str(query["query_id"]), passage_id): 1
        for key, query in queries.items()
        for passage_id in answer_ids[key]
    }
    return RetrievalSet(
        beir.build_table_from_rows(QUERY_SCHEMA, queries.values()),
        beir.build_table_from_rows(CANDIDATE_PASSAGE_SCHEMA, passages.values()),
        beir.build_relevance_judgments(grades),
        (answer_attrition, question_attrition),
    )


def read_medquad_liveqa(folder: Path, questions: Path) -> RetrievalSet:
    """Reads the answers that were graded for the medical questions of TREC 2017 LiveQA.

    1-Incorrect is grade 0, 4-Excellent grade 3. The title of a passage is its question in the
    collection. Where the file grades an answer twice for one question, the higher grade is kept
    and the other counted.

    Args:
        folder: with ``LIVEQA_ANSWERS_FILE`` and ``LIVEQA_JUDGMENTS_FILE``.
        questions: the test questions, which do not come with MedQuAD: the XML of the LiveQA task
            (the paraphrase that the assessors read), or JSON lines with ``question_id`` and
            ``text``; ``TQ7`` and ``7`` are one id.

    Raises:
        SourceError: a file is missing or damaged, or a judgment is none of the four.
    """
    answer_attrition, judgment_attrition = Attrition("answers"), Attrition("judgements")
    passages: dict[str, dict[str, object]] = {}
    for location, row in json_lines.read_json_objects(folder / LIVEQA_ANSWERS_FILE):
        answer_attrition.entered_rows += 1
        name = json_lines.get_text_value(row, "AnswerID", location)
        body, title = json_lines.get_text_value(row, "Answer", location), None
        if name in passages:
            answer_attrition.drop_rows("the id of another answer")
            continue
        # The text of an answer begins with its question and address.
        if match := _ANSWER_PATTERN.match(body):
            title, body = match["question"].strip(), match["answer"].strip()
        passages[name] = {"passage_id": name, "title": title, "text": body}
    read_questions = read_liveqa_xml if questions.name.endswith(".xml") else read_liveqa_json
    # The judgments have bare numbers, the XML of the task "TQ7".
    texts = {name.removeprefix("TQ"): text for name, text in read_questions(questions) if text}
    grades = _read_grades(folder / LIVEQA_JUDGMENTS_FILE, texts, passages, judgment_attrition)
    # Questions without a judgment cannot be evaluated.
    # In the order of the judgments, each question once.
    queries = [
        {"query_id": query, "cluster": None, "text": texts[query]}
        for query in dict.fromkeys(query for query, _ in grades)
    ]
    return RetrievalSet(
        beir.build_table_from_rows(QUERY_SCHEMA, queries),
        beir.build_table_from_rows(CANDIDATE_PASSAGE_SCHEMA, passages.values()),
        beir.build_relevance_judgments(grades),
        (answer_attrition, judgment_attrition),
    )


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for location, row in json_lines.read_json_objects(path):
        values = {key: json_lines.get_text_value(row, key, location) for key in _MEDQUAD_KEYS}
        yield location, values


def _select_queries(
    path: Path, answer_ids: Mapping[str, object], attrition: Attrition
) -> dict[str, dict[str, object]]:
    """Returns normalized question -> query, for the questions of a file that have answers."""
    queries: dict[str, dict[str, object]] = {}  # by normalized text
    used_ids: set[str] = set()
    for location, row in _read_rows(path):
        attrition.entered_rows += 1
        key = _normalize_question(row["question"])
        if key in queries:
            attrition.drop_rows("the text of another question")
        elif key not in answer_ids:
            attrition.drop_rows("a question that is not in the collection", location=location)
        else:
            queries[key] = {
                "query_id": _create_unique_id(row, used_ids, location),
                "cluster": row["focus"].casefold(),
                "text": row["question"],
            }
    if not queries:
        raise SourceError(
            "no question of this file is in the collection",
            location=str(path),
            hint="give a part of the collection as the queries",
        )
    return queries


def _create_unique_id(row: Mapping[str, str], used_ids: set[str], location: str) -> str:
    """Returns the collection's id, followed by the row number where it was used before."""
    # The ids of MedQuAD are unique within a source only.
    name = f"{row['source']}/{row['qid']}"
    if name in used_ids:
        name = f"{name}#{location.rpartition(' ')[2]}"
    used_ids.add(name)
    return name


def _normalize_question(text: str) -> str:
    return " ".join(text.casefold().split())


def _read_grades(
    path: Path, queries: Mapping[str, str], passages: Mapping[str, object], attrition: Attrition
) -> beir.RelevanceGrades:
    """Returns the grades about these queries and passages."""
    table = delimited.open_delimited_table(path, "\t")
    columns = dict.fromkeys(("question_id", "judgment", "answer_id"), "relevance judgments")
    positions = delimited.find_column_positions(table.header, columns, str(path), "\t")
    grades: beir.RelevanceGrades = {}
    for row in table.rows:
        grade = None
        if not isinstance(row, RejectedRow):
            query, label, passage = (row.values[positions[name]].strip() for name in columns)
            grade = _LIVEQA_GRADES.get(label)
        if grade is None:
            raise SourceError(
                "this row holds no judgment",
                location=f"{path.parent}: {row.location}",
                hint=f"the judgments are: {', '.join(_LIVEQA_GRADES)}",
            )
        attrition.entered_rows += 1
        if query not in queries:
            attrition.drop_rows("a question without a text", location=row.location)
        elif passage not in passages:
            attrition.drop_rows("an answer without a text", location=row.location)
        else:
            if (query, passage) in grades:
                attrition.drop_rows("graded twice: the higher grade is kept", location=row.location)
            grades[query, passage] = max(grade, grades.get((query, passage), 0))
    return grades


def read_liveqa_json(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of the questions in JSON lines.

    Raises:
        SourceError: a key is missing, or the file is damaged.
    """
    for location, row in json_lines.read_json_objects(path):
        yield (
            json_lines.get_text_value(row, "question_id", location),
            json_lines.get_text_value(row, "text", location),
        )


def read_liveqa_xml(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (id, paraphrase) of the questions in the XML of the LiveQA task.

    Raises:
        SourceError: the file is not well formed or declares entities.
    """
    document = "".join(delimited.read_text_lines(path))
    # ElementTree expands entities, and a few nested ones fill the memory ("billion laughs").
    if "<!DOCTYPE" in document or "<!ENTITY" in document:
        raise SourceError(
            "this XML declares entities",
            location=str(path),
            hint="remove its DOCTYPE; the LiveQA files have none",
        )
    try:
        # Lone surrogates, bytes that were not UTF-8, cannot be encoded.
        root = ET.fromstring(document.encode(errors="replace"))
    except ET.ParseError as error:
        raise SourceError(
            f"this is not valid XML: line {error.position[0]}",
            location=str(path),
            hint="download it again",
        ) from None
    for question in root.iter("NLM-QUESTION"):
        texts = [" ".join((question.findtext(tag) or "").split()) for tag in _QUESTION_TAGS]
        yield question.get("qid", ""), next((text for text in texts if text), "")
