"""How the invented hospital words things: a small template language, the two kinds of de-identification marks, and phrases for every note.

``<a|b|c>`` is one of several (and may be nested), ``{2-6}`` a whole number, ``{1.2-3.4}`` a decimal with as many places,
``{name}`` a fact, ``&lt;`` and ``&gt;`` the signs themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from clinpeft.data.synthetic.hospital import RandomStream

TemplateFacts = Mapping[str, "str | Callable[[RandomStream], str]"]
TemplatePart = Callable[[RandomStream, TemplateFacts], str]

_TOKEN_PATTERN = re.compile(r"\{[^{}]+\}|[<>|]|[^<>|{}]+")
_RANGE_PATTERN = re.compile(r"\{(\d+(?:\.(\d+))?)-(\d+(?:\.\d+)?)\}")


def render_template(template: str, rng: RandomStream, facts: TemplateFacts) -> str:
    """One way to say ``template``."""
    return "".join(
        [
            part if isinstance(part, str) else part(rng, facts)
            for part in _compile_template(template)
        ]
    )


def render_templates(
    templates: Sequence[str], rng: RandomStream, facts: TemplateFacts, separator: str = " "
) -> str:
    """Each of ``templates`` said in turn."""
    return separator.join([render_template(template, rng, facts) for template in templates])


@cache
def _compile_template(template: str) -> tuple[str | TemplatePart, ...]:
    tokens = iter(_TOKEN_PATTERN.findall(template))
    (parts,) = _parse_alternatives(tokens, is_top_level=True)
    return parts


def _parse_alternatives(
    tokens: Iterator[str], is_top_level: bool = False
) -> list[tuple[str | TemplatePart, ...]]:
    """The alternatives up to the closing ``>``, or the whole template at the top."""
    options: list[list[str | TemplatePart]] = [[]]
    for token in tokens:
        if token == "|" and not is_top_level:
            options.append([])
        elif token == "<":
            options[-1].append(_build_alternative(_parse_alternatives(tokens)))
        elif token == ">" and not is_top_level:
            break
        else:
            options[-1].append(
                _parse_placeholder(token)
                if token.startswith("{")
                else token.replace("&lt;", "<").replace("&gt;", ">")
            )
    return [tuple(option) for option in options]


def _build_alternative(options: Sequence[tuple[str | TemplatePart, ...]]) -> TemplatePart:
    def chosen(dice: RandomStream, facts: TemplateFacts) -> str:
        return "".join(
            [part if isinstance(part, str) else part(dice, facts) for part in dice.choose(options)]
        )

    return chosen


def _parse_placeholder(token: str) -> TemplatePart:
    found = _RANGE_PATTERN.fullmatch(token)
    if not found:
        return _build_fact_lookup(token[1:-1])
    low, high, places = found.group(1), found.group(3), len(found.group(2) or "")
    if places:
        return lambda dice, _: f"{dice.draw_float(float(low), float(high)):.{places}f}"
    return lambda dice, _: str(dice.draw_int(int(low), int(high)))


def _build_fact_lookup(name: str) -> TemplatePart:
    def looked_up(dice: RandomStream, facts: TemplateFacts) -> str:
        value = facts[name]
        return value if isinstance(value, str) else value(dice)

    return looked_up


@dataclass(frozen=True)
class DeidentificationMarks:
    """What stands where a person, a place, an age, a date or a number was taken out."""

    age: Callable[[int], str]
    patient: Callable[[RandomStream], str]
    doctor: Callable[[RandomStream], str]
    hospital: Callable[[RandomStream], str]
    location: Callable[[RandomStream], str]
    phone: Callable[[RandomStream], str]
    number: Callable[[RandomStream], str]
    day: Callable[[date], str]
    month_and_day: Callable[[date], str]


def _mask_value(_: object) -> str:
    return "___"


def _build_mark(*templates: str) -> Callable[[RandomStream], str]:
    def mark(dice: RandomStream) -> str:
        return dice.choose(templates).replace("#", str(dice.draw_int(1, 6000)))

    return mark


DEIDENTIFICATION_MARKS: dict[str, DeidentificationMarks] = {
    "mimic-iv": DeidentificationMarks(
        _mask_value,
        _mask_value,
        _mask_value,
        _mask_value,
        _mask_value,
        _mask_value,
        _mask_value,
        _mask_value,
        _mask_value,
    ),
    "mimic-iii": DeidentificationMarks(
        age=lambda age: str(age) if age < 90 else "[**Age over 90 **]",
        patient=_build_mark(
            "[**Known lastname #**]",
            "[**Known firstname #**] [**Known lastname #**]",
            "[**Name (NI) #**]",
        ),
        doctor=_build_mark(
            "[**Last Name (STitle) #**]",
            "[**First Name (Titles) #**] [**Last Name (Titles) #**]",
            "[**Name (MD) #**]",
            "[**Doctor Last Name **]",
        ),
        hospital=_build_mark(
            "[**Hospital1 #**]",
            "[**Hospital #**]",
            "[**Hospital3 #**] Hospital",
            "[**Hospital Ward Name #**]",
        ),
        location=_build_mark(
            "[**Location (un) #**]", "[**Location #**]", "[**State #**]", "[**Country #**]"
        ),
        phone=_build_mark(
            "[**Telephone/Fax (1) #**]", "[**Pager number #**]", "[**Telephone/Fax (3) #**]"
        ),
        number=_build_mark(
            "[**Numeric Identifier #**]", "[**MD Number(1) #**]", "[**Clip Number (Radiology) #**]"
        ),
        day=lambda day: f"[**{day.year}-{day.month}-{day.day}**]",
        month_and_day=lambda day: f"[**{day.month}-{day.day}**]",
    ),
}
"""The marks of MIMIC-IV (three underscores for anything) and of MIMIC-III (a kind, often a number, in brackets and stars)."""


def _read_phrases_file() -> dict[str, Any]:
    return tomllib.loads(
        resources.files(__package__).joinpath("phrases.toml").read_text(encoding="utf-8")
    )


NOTE_PHRASES: dict[str, tuple[str, ...]] = {
    name: tuple(phrases) for name, phrases in _read_phrases_file()["lists"].items()
}
"""What a note picks from or goes through, by the part of the note it is for."""

NORMAL_EXAM_TEMPLATES: dict[str, str] = _read_phrases_file()["exam"]
"""The normal physical exam, a part of the body a line."""

DISPOSITION_TEMPLATES: dict[str, str] = _read_phrases_file()["disposition"]
"""Where somebody is discharged to: in words -> as the section of that name has it."""

SUMMARY_HEADER_TEMPLATES: dict[str, str] = _read_phrases_file()["header"]
RADIOLOGY_REPORT_TEMPLATES: dict[str, str] = _read_phrases_file()["report"]
"""How discharge summaries begin and radiology reports look, by data set."""

NEWBORN_SUMMARY_TEMPLATE: str = _read_phrases_file()["newborn"]["summary"]
"""The discharge summary of somebody who was born here."""

NOTE_LINE_TEMPLATES: dict[str, str] = _read_phrases_file()["line"]
"""Single lines: a medicine, the vital signs, the opening of a nursing note."""
