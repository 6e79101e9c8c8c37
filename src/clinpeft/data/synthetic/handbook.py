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
from clinpeft.data.synthetic.files import making
from clinpeft.data.synthetic.hospital import Condition, Dice, conditions
from clinpeft.data.synthetic.wording import Facts, say, say_all

__all__ = ["NAME", "fingerprint", "text", "write"]

NAME = "handbook.md"
TITLE = "Handbook of the Invented Hospital"
SEED = 2511

PRONOUNS = (
    {"he": "he", "He": "He", "his": "his", "His": "His", "him": "him"},
    {"he": "she", "He": "She", "his": "her", "His": "Her", "him": "her"},
)
"""Of the person that a chapter tells of, in turn."""


@dataclass(frozen=True)
class Chapter:
    """What a chapter says beside the words of its condition.

    Attributes:
        condition: its name in ``conditions.toml``.
        title: of the chapter.
        about: paragraphs on what it is.
        terms: term -> what it means.
        asked: (question, answer).
        learn: what a reader should be able to do, the first of them about treatment, the second about the way home.
        summary: of the whole chapter.
    """

    condition: str
    title: str
    about: tuple[str, ...]
    terms: Mapping[str, str]
    asked: tuple[tuple[str, str], ...]
    learn: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class Telling:
    """What the sections of a chapter are written from; the dice are the chapter's own, so that its words do not depend on other chapters."""

    number: int
    chapter: Chapter
    condition: Condition
    dice: Dice
    facts: Facts

    def said(self, templates: tuple[str, ...]) -> str:
        """Each template in one of its ways."""
        return say_all(templates, self.dice, self.facts)


def write(folder: Path) -> Path:
    """Write the handbook to ``handbook.md`` in a folder, whole or not at all, and say where it is; always the same bytes.

    Raises:
        StorageError: the folder cannot be written.
    """
    path, whole = folder / NAME, text()
    try:
        if path.is_file() and path.read_bytes() == whole.encode():
            return path
        with making(path) as temporary:
            (temporary / NAME).write_bytes(whole.encode())
            (temporary / NAME).replace(path)
    except OSError as error:
        hint = "check its rights and the space left"
        raise StorageError(
            f"this folder cannot be written: {error.strerror}", location=str(folder), hint=hint
        ) from error
    return path


def fingerprint() -> str:
    """SHA-256 in hexadecimal of the text."""
    return hashlib.sha256(text().encode()).hexdigest()


@cache
def text() -> str:
    """The whole book."""
    known = {condition.name: condition for condition in conditions()}
    parts = [f'---\ntitle: "{TITLE}"\n---']
    parts += [
        "# About this book",
        "Nothing here comes from a real hospital, and nothing here is advice: it was invented so that programs can be tried out.",
    ]
    for number, chapter in enumerate(_chapters(), start=1):
        parts += _chapter(_telling(number, chapter, known[chapter.condition]))
    return "\n\n".join(parts) + "\n"


@cache
def _chapters() -> tuple[Chapter, ...]:
    document = tomllib.loads(
        resources.files(__package__).joinpath("handbook.toml").read_text(encoding="utf-8")
    )
    return tuple(
        Chapter(
            condition=entry["condition"],
            title=entry["title"],
            about=tuple(entry["about"]),
            terms=entry["terms"],
            asked=tuple((question, answer) for question, answer in entry["asked"]),
            learn=tuple(entry["learn"]),
            summary=entry["summary"],
        )
        for entry in document["chapter"]
    )


def _telling(number: int, chapter: Chapter, condition: Condition) -> Telling:
    facts = {
        **PRONOUNS[number % 2],
        "complaint": condition.complaints[0],
        "day": "the second day",
        "hospital": "The hospital's",
        **{name: _number((mild + severe) / 2) for name, (mild, severe) in condition.labs.items()},
    }
    return Telling(number, chapter, condition, Dice(SEED, number), facts)


def _chapter(told: Telling) -> Iterator[str]:
    yield f"# {told.chapter.title}"
    for title, section in SECTIONS.items():
        yield f"## {title}"
        yield from section(told)


def _about(told: Telling) -> Iterator[str]:
    yield from told.chapter.about


def _coming(told: Telling) -> Iterator[str]:
    story = told.condition.story
    yield f"People come with {_listed(told.condition.complaints)}."
    yield told.said(story)


def _found(told: Telling) -> Iterator[str]:
    condition, number = told.condition, told.number
    yield " ".join(
        f"{part}: {say(finding, told.dice, told.facts)}."
        for part, finding in condition.exam.items()
    )
    yield " ".join(
        f"{study.exam}: {told.said(study.findings)} {told.said(study.impression)}"
        for study in condition.studies
    )
    yield f"On arrival {_listed(tuple(condition.labs))} are drawn; what to expect is in table {number}."
    yield f"Table {number}. {_listed(tuple(condition.labs))} in mild and in severe {told.chapter.title.lower()}."
    yield "\n".join(
        [
            "| | mild | severe |",
            "|---|---|---|",
            *(
                f"| {name} | {_number(low)} | {_number(high)} |"
                for name, (low, high) in condition.labs.items()
            ),
        ]
    )


def _treated(told: Telling) -> Iterator[str]:
    yield told.said(told.condition.course)
    yield f"{told.said(told.condition.severe)} Watch for {_listed(told.condition.complications)}."
    yield "### Learning objectives"
    yield told.chapter.learn[0]


def _nursed(told: Telling) -> Iterator[str]:
    yield ". ".join(say(line, told.dice, told.facts) for line in told.condition.nursing) + "."


def _going_home(told: Telling) -> Iterator[str]:
    yield told.said(told.condition.instructions)
    yield f"Medicines at the door: {'; '.join(told.condition.drugs)}."
    yield "### Learning objectives"
    yield told.chapter.learn[1]


def _asked(told: Telling) -> Iterator[str]:
    title = told.chapter.title.lower()
    procedures = tuple(
        say(name, told.dice, told.facts) for name in told.condition.procedures if name != "None"
    )
    answered = [
        *told.chapter.asked,
        (
            f"What do people with {title} usually deny?",
            f"They rarely report {_listed(told.condition.denies)}.",
        ),
        *(
            [(f"Which procedures belong to {title}?", f"In some cases {_listed(procedures)}.")]
            if procedures
            else []
        ),
        (
            f"What may complicate {title}?",
            f"In this house it was {_listed(told.condition.complications)}.",
        ),
    ]
    for question, answer in answered:
        yield f"Question: {question}"
        yield f"Answer: {answer}"


def _terms(told: Telling) -> Iterator[str]:
    yield "\n".join(f"- **{term}**: {meaning}" for term, meaning in told.chapter.terms.items())


def _summary(told: Telling) -> Iterator[str]:
    yield told.chapter.summary


SECTIONS: dict[str, Callable[[Telling], Iterator[str]]] = {
    "What it is": _about,
    "How people come to us": _coming,
    "What is found": _found,
    "Treatment": _treated,
    "On the ward": _nursed,
    "Going home": _going_home,
    "Review questions": _asked,
    "Key terms": _terms,
    "Summary": _summary,
}
"""The sections of every chapter: heading -> what stands below it."""


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
