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

from clinpeft.data.synthetic.hospital import Dice

Facts = Mapping[str, "str | Callable[[Dice], str]"]
Part = Callable[[Dice, Facts], str]

_TOKEN = re.compile(r"\{[^{}]+\}|[<>|]|[^<>|{}]+")
_RANGE = re.compile(r"\{(\d+(?:\.(\d+))?)-(\d+(?:\.\d+)?)\}")


def say(template: str, dice: Dice, facts: Facts) -> str:
    """One way to say ``template``."""
    return "".join(
        [part if isinstance(part, str) else part(dice, facts) for part in _compiled(template)]
    )


def say_all(templates: Sequence[str], dice: Dice, facts: Facts, separator: str = " ") -> str:
    """Each of ``templates`` said in turn."""
    return separator.join([say(template, dice, facts) for template in templates])


@cache
def _compiled(template: str) -> tuple[str | Part, ...]:
    tokens = iter(_TOKEN.findall(template))
    (parts,) = _options(tokens, top=True)
    return parts


def _options(tokens: Iterator[str], top: bool = False) -> list[tuple[str | Part, ...]]:
    """The alternatives up to the closing ``>``, or the whole template at the top."""
    options: list[list[str | Part]] = [[]]
    for token in tokens:
        if token == "|" and not top:
            options.append([])
        elif token == "<":
            options[-1].append(_one_of(_options(tokens)))
        elif token == ">" and not top:
            break
        else:
            options[-1].append(
                _fact(token)
                if token.startswith("{")
                else token.replace("&lt;", "<").replace("&gt;", ">")
            )
    return [tuple(option) for option in options]


def _one_of(options: Sequence[tuple[str | Part, ...]]) -> Part:
    def chosen(dice: Dice, facts: Facts) -> str:
        return "".join(
            [part if isinstance(part, str) else part(dice, facts) for part in dice.pick(options)]
        )

    return chosen


def _fact(token: str) -> Part:
    found = _RANGE.fullmatch(token)
    if not found:
        return _named(token[1:-1])
    low, high, places = found.group(1), found.group(3), len(found.group(2) or "")
    if places:
        return lambda dice, _: f"{dice.between(float(low), float(high)):.{places}f}"
    return lambda dice, _: str(dice.whole(int(low), int(high)))


def _named(name: str) -> Part:
    def looked_up(dice: Dice, facts: Facts) -> str:
        value = facts[name]
        return value if isinstance(value, str) else value(dice)

    return looked_up


@dataclass(frozen=True)
class Marks:
    """What stands where a person, a place, an age, a date or a number was taken out."""

    age: Callable[[int], str]
    patient: Callable[[Dice], str]
    doctor: Callable[[Dice], str]
    hospital: Callable[[Dice], str]
    location: Callable[[Dice], str]
    phone: Callable[[Dice], str]
    number: Callable[[Dice], str]
    day: Callable[[date], str]
    month_and_day: Callable[[date], str]


def _blank(_: object) -> str:
    return "___"


def _one(*templates: str) -> Callable[[Dice], str]:
    def mark(dice: Dice) -> str:
        return dice.pick(templates).replace("#", str(dice.whole(1, 6000)))

    return mark


MARKS: dict[str, Marks] = {
    "mimic-iv": Marks(_blank, _blank, _blank, _blank, _blank, _blank, _blank, _blank, _blank),
    "mimic-iii": Marks(
        age=lambda age: str(age) if age < 90 else "[**Age over 90 **]",
        patient=_one(
            "[**Known lastname #**]",
            "[**Known firstname #**] [**Known lastname #**]",
            "[**Name (NI) #**]",
        ),
        doctor=_one(
            "[**Last Name (STitle) #**]",
            "[**First Name (Titles) #**] [**Last Name (Titles) #**]",
            "[**Name (MD) #**]",
            "[**Doctor Last Name **]",
        ),
        hospital=_one(
            "[**Hospital1 #**]",
            "[**Hospital #**]",
            "[**Hospital3 #**] Hospital",
            "[**Hospital Ward Name #**]",
        ),
        location=_one(
            "[**Location (un) #**]", "[**Location #**]", "[**State #**]", "[**Country #**]"
        ),
        phone=_one(
            "[**Telephone/Fax (1) #**]", "[**Pager number #**]", "[**Telephone/Fax (3) #**]"
        ),
        number=_one(
            "[**Numeric Identifier #**]", "[**MD Number(1) #**]", "[**Clip Number (Radiology) #**]"
        ),
        day=lambda day: f"[**{day.year}-{day.month}-{day.day}**]",
        month_and_day=lambda day: f"[**{day.month}-{day.day}**]",
    ),
}
"""The marks of MIMIC-IV (three underscores for anything) and of MIMIC-III (a kind, often a number, in brackets and stars)."""


def _document() -> dict[str, Any]:
    return tomllib.loads(
        resources.files(__package__).joinpath("phrases.toml").read_text(encoding="utf-8")
    )


PHRASES: dict[str, tuple[str, ...]] = {
    name: tuple(phrases) for name, phrases in _document()["lists"].items()
}
"""What a note picks from or goes through, by the part of the note it is for."""

EXAM: dict[str, str] = _document()["exam"]
"""The normal physical exam, a part of the body a line."""

DISPOSITION: dict[str, str] = _document()["disposition"]
"""Where somebody is discharged to: in words -> as the section of that name has it."""

HEADER: dict[str, str] = _document()["header"]
REPORT: dict[str, str] = _document()["report"]
"""How discharge summaries begin and radiology reports look, by data set."""

NEWBORN: str = _document()["newborn"]["summary"]
"""The discharge summary of somebody who was born here."""

LINE: dict[str, str] = _document()["line"]
"""Single lines: a medicine, the vital signs, the opening of a nursing note."""
