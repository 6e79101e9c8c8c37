"""The handbook of the synthetic hospital: a textbook in Markdown, for training without a real book.

A chapter is a condition. Its definitions, questions, objectives and summary are those of
``handbook.toml``; presentation, findings, treatment and discharge are worded from
``conditions.toml``, always in the same way. It is invented, and no medical advice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clinpeft.core.errors import StorageError
from clinpeft.data.synthetic.conditions import AdmissionCondition, load_conditions
from clinpeft.data.synthetic.files import create_temporary_folder, read_synthetic_data
from clinpeft.data.synthetic.hospital import RandomStream
from clinpeft.data.synthetic.wording import (
    TemplateFacts,
    join_names,
    render_template,
    render_templates,
)

__all__ = ["HANDBOOK_FILE", "compose_handbook", "fingerprint_handbook", "write_handbook"]

HANDBOOK_FILE = "handbook.md"
HANDBOOK_TITLE = "Handbook of the Invented Hospital"
HANDBOOK_SEED = 2511  # fixed: the handbook has no arguments

HANDBOOK_PRONOUNS = (
    {"he": "he", "He": "He", "his": "his", "His": "His", "him": "him"},
    {"he": "she", "He": "She", "his": "her", "His": "Her", "him": "her"},
)
"""Of the patient in a chapter, in turn."""


@dataclass(frozen=True)
class HandbookChapter:
    """The part of a chapter that is not worded from its condition.

    Attributes:
        condition: its name in ``conditions.toml``.
        title: of the chapter.
        introduction: paragraphs on what the condition is.
        terms: term -> definition.
        review_questions: (question, answer).
        learning_objectives: the first is about treatment, the second about discharge.
        summary: of the whole chapter.
    """

    condition: str
    title: str
    introduction: tuple[str, ...]
    terms: Mapping[str, str]
    review_questions: tuple[tuple[str, str], ...]
    learning_objectives: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class HandbookChapterWriter:
    """Writes one chapter; every method draws from ``rng``, so their order matters.

    Attributes:
        number: of the chapter, from 1.
        chapter: its own texts.
        condition: what it is about.
        rng: of this chapter alone, so that its words do not depend on other chapters.
        facts: what templates may name.
    """

    number: int
    chapter: HandbookChapter
    condition: AdmissionCondition
    rng: RandomStream
    facts: TemplateFacts

    def render(self, templates: tuple[str, ...]) -> str:
        """Render several templates, one after the other."""
        return render_templates(templates, self.rng, self.facts)

    def write_chapter(self) -> Iterator[str]:
        """Yield the paragraphs of the chapter, headings included."""
        chapter, condition = self.chapter, self.condition
        yield f"# {chapter.title}"
        yield "## What it is"
        yield from chapter.introduction
        yield "## How people come to us"
        yield f"People come with {join_names(condition.complaints)}."
        yield self.render(condition.story)
        yield "## What is found"
        yield from self.write_findings()
        yield "## Treatment"
        yield self.render(condition.hospital_course)
        complications = join_names(condition.complications)
        yield f"{self.render(condition.severe)} Watch for {complications}."
        yield "### Learning objectives"
        yield chapter.learning_objectives[0]
        yield "## On the ward"
        yield render_templates(condition.nursing, self.rng, self.facts, ". ") + "."
        yield "## Going home"
        yield self.render(condition.instructions)
        yield f"Medicines at the door: {'; '.join(condition.drugs)}."
        yield "### Learning objectives"
        yield chapter.learning_objectives[1]
        yield "## Review questions"
        yield from self.write_review_questions()
        yield "## Key terms"
        yield "\n".join(f"- **{term}**: {meaning}" for term, meaning in chapter.terms.items())
        yield "## Summary"
        yield chapter.summary

    def write_findings(self) -> Iterator[str]:
        """Yield examination, imaging, and a captioned table of laboratory values."""
        condition, labs = self.condition, join_names(tuple(self.condition.labs))
        yield " ".join(
            f"{part}: {render_template(finding, self.rng, self.facts)}."
            for part, finding in condition.examination.items()
        )
        yield " ".join(
            f"{study.examination}: {self.render(study.findings)} {self.render(study.impression)}"
            for study in condition.studies
        )
        yield f"On arrival {labs} are drawn; what to expect is in table {self.number}."
        yield f"Table {self.number}. {labs} in mild and in severe {self.chapter.title.lower()}."
        rows = [
            f"| {name} | {_format_expected_value(mild)} | {_format_expected_value(severe)} |"
            for name, (mild, severe) in condition.labs.items()
        ]
        yield "\n".join(["| | mild | severe |", "|---|---|---|", *rows])

    def write_review_questions(self) -> Iterator[str]:
        """Yield questions and answers in turn: the chapter's own, then three from its condition."""
        title, condition = self.chapter.title.lower(), self.condition
        procedures = tuple(
            render_template(name, self.rng, self.facts)
            for name in condition.procedures
            if name != "None"
        )
        questions = [
            *self.chapter.review_questions,
            (
                f"What do people with {title} usually deny?",
                f"They rarely report {join_names(condition.denies)}.",
            ),
        ]
        if procedures:
            answer = f"In some cases {join_names(procedures)}."
            questions.append((f"Which procedures belong to {title}?", answer))
        answer = f"In this house it was {join_names(condition.complications)}."
        questions.append((f"What may complicate {title}?", answer))
        for question, answer in questions:
            yield f"Question: {question}"
            yield f"Answer: {answer}"


def write_handbook(folder: Path) -> Path:
    """Write the handbook to ``handbook.md`` in a folder, whole or not at all.

    It has the same bytes every time.

    Returns:
        The path of the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    path, content = folder / HANDBOOK_FILE, compose_handbook().encode()
    try:
        if path.is_file() and path.read_bytes() == content:
            return path
        with create_temporary_folder(path) as temporary:
            (temporary / HANDBOOK_FILE).write_bytes(content)
            (temporary / HANDBOOK_FILE).replace(path)
    except OSError as error:
        raise StorageError(
            f"this folder cannot be written: {error.strerror}",
            location=str(folder),
            hint="check its permissions and the free disk space",
        ) from error
    return path


def fingerprint_handbook() -> str:
    """Compute the SHA-256 of the text, in hexadecimal."""
    return hashlib.sha256(compose_handbook().encode()).hexdigest()


@cache
def compose_handbook() -> str:
    """Compose the whole book in Markdown."""
    conditions = {condition.name: condition for condition in load_conditions()}
    parts = [
        f'---\ntitle: "{HANDBOOK_TITLE}"\n---',
        "# About this book",
        "Nothing here comes from a real hospital, and nothing here is advice: "
        "it was invented so that programs can be tried out.",
    ]
    for number, entry in enumerate(read_synthetic_data("handbook.toml")["chapter"], start=1):
        chapter = HandbookChapter(**entry)
        condition = conditions[chapter.condition]
        facts = {
            **HANDBOOK_PRONOUNS[number % 2],
            "complaint": condition.complaints[0],
            "day": "the second day",
            "hospital": "The hospital's",
        }
        for name, (mild, severe) in condition.labs.items():
            # A chapter tells of no patient in particular: a value between mild and severe
            facts[name] = _format_expected_value((mild + severe) / 2)
        # Words of one chapter do not change when another one does
        rng = RandomStream(HANDBOOK_SEED, number)
        parts += HandbookChapterWriter(number, chapter, condition, rng, facts).write_chapter()
    return "\n\n".join(parts) + "\n"


def _format_expected_value(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
