"""The handbook of the invented hospital: a book in Markdown that can be learned from without any book at hand.

A chapter is a condition. Its headings, definitions, questions, objectives and summary are those of ``handbook.toml``; how people come, what is found,
what is done and what is said at the door are worded from ``conditions.toml``, always in the same way. It is invented, and no advice for anybody.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from clinpeft.core.errors import StorageError
from clinpeft.data.synthetic.files import create_temporary_folder
from clinpeft.data.synthetic.hospital import AdmissionCondition, RandomStream, load_conditions
from clinpeft.data.synthetic.wording import TemplateFacts, render_template, render_templates

__all__ = ["HANDBOOK_FILE", "fingerprint_handbook", "compose_handbook", "write_handbook"]

HANDBOOK_FILE = "handbook.md"
HANDBOOK_TITLE = "Handbook of the Invented Hospital"
HANDBOOK_SEED = 2511

HANDBOOK_PRONOUNS = (
    {"he": "he", "He": "He", "his": "his", "His": "His", "him": "him"},
    {"he": "she", "He": "She", "his": "her", "His": "Her", "him": "her"},
)
"""Of the person that a chapter tells of, in turn."""


@dataclass(frozen=True)
class HandbookChapter:
    """What a chapter says beside the words of its condition.

    Attributes:
        condition: its name in ``conditions.toml``.
        title: of the chapter.
        introduction: paragraphs on what it is.
        terms: term -> what it means.
        review_questions: (question, answer).
        learning_objectives: what a reader should be able to do, the first of them about treatment, the second about the way home.
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
class ChapterContext:
    """What the sections of a chapter are written from; the dice are the chapter's own, so that its words do not depend on other chapters."""

    number: int
    chapter: HandbookChapter
    condition: AdmissionCondition
    rng: RandomStream
    facts: TemplateFacts

    def render_templates(self, templates: tuple[str, ...]) -> str:
        """Each template in one of its ways."""
        return render_templates(templates, self.rng, self.facts)


def write_handbook(folder: Path) -> Path:
    """Write the handbook to ``handbook.md`` in a folder, whole or not at all, and say where it is; always the same bytes.

    Raises:
        StorageError: the folder cannot be written.
    """
    path, whole = folder / HANDBOOK_FILE, compose_handbook()
    try:
        if path.is_file() and path.read_bytes() == whole.encode():
            return path
        with create_temporary_folder(path) as temporary:
            (temporary / HANDBOOK_FILE).write_bytes(whole.encode())
            (temporary / HANDBOOK_FILE).replace(path)
    except OSError as error:
        hint = "check its rights and the space left"
        raise StorageError(
            f"this folder cannot be written: {error.strerror}", location=str(folder), hint=hint
        ) from error
    return path


def fingerprint_handbook() -> str:
    """SHA-256 in hexadecimal of the text."""
    return hashlib.sha256(compose_handbook().encode()).hexdigest()


@cache
def compose_handbook() -> str:
    """The whole book."""
    known = {condition.name: condition for condition in load_conditions()}
    parts = [f'---\ntitle: "{HANDBOOK_TITLE}"\n---']
    parts += [
        "# About this book",
        "Nothing here comes from a real hospital, and nothing here is advice: it was invented so that programs can be tried out.",
    ]
    for number, chapter in enumerate(_load_chapters(), start=1):
        parts += _write_chapter(_build_chapter_context(number, chapter, known[chapter.condition]))
    return "\n\n".join(parts) + "\n"


@cache
def _load_chapters() -> tuple[HandbookChapter, ...]:
    document = tomllib.loads(
        resources.files(__package__).joinpath("handbook.toml").read_text(encoding="utf-8")
    )
    return tuple(
        HandbookChapter(
            condition=entry["condition"],
            title=entry["title"],
            introduction=tuple(entry["about"]),
            terms=entry["terms"],
            review_questions=tuple((question, answer) for question, answer in entry["asked"]),
            learning_objectives=tuple(entry["learn"]),
            summary=entry["summary"],
        )
        for entry in document["chapter"]
    )


def _build_chapter_context(
    number: int, chapter: HandbookChapter, condition: AdmissionCondition
) -> ChapterContext:
    facts = {
        **HANDBOOK_PRONOUNS[number % 2],
        "complaint": condition.complaints[0],
        "day": "the second day",
        "hospital": "The hospital's",
        **{
            name: _format_number((mild + severe) / 2)
            for name, (mild, severe) in condition.labs.items()
        },
    }
    return ChapterContext(number, chapter, condition, RandomStream(HANDBOOK_SEED, number), facts)


def _write_chapter(context: ChapterContext) -> Iterator[str]:
    yield f"# {context.chapter.title}"
    for title, section in HANDBOOK_SECTIONS.items():
        yield f"## {title}"
        yield from section(context)


def _write_introduction(context: ChapterContext) -> Iterator[str]:
    yield from context.chapter.introduction


def _write_presentation(context: ChapterContext) -> Iterator[str]:
    story = context.condition.story
    yield f"People come with {_join_names(context.condition.complaints)}."
    yield context.render_templates(story)


def _write_findings(context: ChapterContext) -> Iterator[str]:
    condition, number = context.condition, context.number
    yield " ".join(
        f"{part}: {render_template(finding, context.rng, context.facts)}."
        for part, finding in condition.exam.items()
    )
    yield " ".join(
        f"{study.exam}: {context.render_templates(study.findings)} {context.render_templates(study.impression)}"
        for study in condition.studies
    )
    yield f"On arrival {_join_names(tuple(condition.labs))} are drawn; what to expect is in table {number}."
    yield f"Table {number}. {_join_names(tuple(condition.labs))} in mild and in severe {context.chapter.title.lower()}."
    yield "\n".join(
        [
            "| | mild | severe |",
            "|---|---|---|",
            *(
                f"| {name} | {_format_number(low)} | {_format_number(high)} |"
                for name, (low, high) in condition.labs.items()
            ),
        ]
    )


def _write_treatment(context: ChapterContext) -> Iterator[str]:
    yield context.render_templates(context.condition.course)
    yield f"{context.render_templates(context.condition.severe)} Watch for {_join_names(context.condition.complications)}."
    yield "### Learning objectives"
    yield context.chapter.learning_objectives[0]


def _write_nursing(context: ChapterContext) -> Iterator[str]:
    yield (
        ". ".join(
            render_template(line, context.rng, context.facts) for line in context.condition.nursing
        )
        + "."
    )


def _write_discharge(context: ChapterContext) -> Iterator[str]:
    yield context.render_templates(context.condition.instructions)
    yield f"Medicines at the door: {'; '.join(context.condition.drugs)}."
    yield "### Learning objectives"
    yield context.chapter.learning_objectives[1]


def _write_review_questions(context: ChapterContext) -> Iterator[str]:
    title = context.chapter.title.lower()
    procedures = tuple(
        render_template(name, context.rng, context.facts)
        for name in context.condition.procedures
        if name != "None"
    )
    answered = [
        *context.chapter.review_questions,
        (
            f"What do people with {title} usually deny?",
            f"They rarely report {_join_names(context.condition.denies)}.",
        ),
        *(
            [(f"Which procedures belong to {title}?", f"In some cases {_join_names(procedures)}.")]
            if procedures
            else []
        ),
        (
            f"What may complicate {title}?",
            f"In this house it was {_join_names(context.condition.complications)}.",
        ),
    ]
    for question, answer in answered:
        yield f"Question: {question}"
        yield f"Answer: {answer}"


def _write_key_terms(context: ChapterContext) -> Iterator[str]:
    yield "\n".join(f"- **{term}**: {meaning}" for term, meaning in context.chapter.terms.items())


def _write_summary(context: ChapterContext) -> Iterator[str]:
    yield context.chapter.summary


HANDBOOK_SECTIONS: dict[str, Callable[[ChapterContext], Iterator[str]]] = {
    "What it is": _write_introduction,
    "How people come to us": _write_presentation,
    "What is found": _write_findings,
    "Treatment": _write_treatment,
    "On the ward": _write_nursing,
    "Going home": _write_discharge,
    "Review questions": _write_review_questions,
    "Key terms": _write_key_terms,
    "Summary": _write_summary,
}
"""The sections of every chapter: heading -> what stands below it."""


def _join_names(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _format_number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
