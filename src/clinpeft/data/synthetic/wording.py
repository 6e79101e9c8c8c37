"""How the synthetic hospital words things: a template language, de-identification marks, phrases.

In a template ``<a|b|c>`` is one of several texts (and may be nested), ``{2-6}`` a whole number,
``{1.2-3.4}`` a decimal with as many digits, ``{name}`` a fact, ``&lt;`` and ``&gt;`` the signs
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from functools import cache

from clinpeft.data.synthetic.files import read_synthetic_data
from clinpeft.data.synthetic.hospital import RandomStream

TemplateFacts = Mapping[str, "str | Callable[[RandomStream], str]"]
TemplatePart = Callable[[RandomStream, TemplateFacts], str]
CompiledTemplate = tuple[str | TemplatePart, ...]

# A placeholder, one of the signs of alternatives, or a run of plain text
_TOKEN_PATTERN = re.compile(r"\{[^{}]+\}|[<>|]|[^<>|{}]+")
# The first number, its digits after the point, the second number
_RANGE_PATTERN = re.compile(r"\{(\d+(?:\.(\d+))?)-(\d+(?:\.\d+)?)\}")


def render_template(template: str, rng: RandomStream, facts: TemplateFacts) -> str:
    """Render a template in one of its ways.

    Args:
        template: in the template language of this module.
        rng: draws alternatives and numbers, in the order of the template.
        facts: name -> text, or a function that draws one each time the name occurs.
    """
    return _render_parts(_compile_template(template), rng, facts)


def render_templates(
    templates: Sequence[str], rng: RandomStream, facts: TemplateFacts, separator: str = " "
) -> str:
    """Render several templates, one after the other."""
    return separator.join([render_template(template, rng, facts) for template in templates])


def join_names(names: Sequence[str]) -> str:
    """Join names as in a sentence: ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _render_parts(parts: CompiledTemplate, rng: RandomStream, facts: TemplateFacts) -> str:
    return "".join([part if isinstance(part, str) else part(rng, facts) for part in parts])


@cache  # a hospital renders the same few thousand templates millions of times
def _compile_template(template: str) -> CompiledTemplate:
    tokens = iter(_TOKEN_PATTERN.findall(template))
    (parts,) = _parse_alternatives(tokens, is_top_level=True)
    return parts


def _parse_alternatives(
    tokens: Iterator[str], is_top_level: bool = False
) -> list[CompiledTemplate]:
    """Parse the alternatives up to the closing ``>``, or the whole template at the top."""
    options: list[list[str | TemplatePart]] = [[]]
    for token in tokens:
        if token == "|" and not is_top_level:
            options.append([])
        elif token == "<":
            # Bound as a default: the loop would change a closed-over name
            inner = _parse_alternatives(tokens)
            options[-1].append(
                lambda rng, facts, inner=inner: _render_parts(rng.choose(inner), rng, facts)
            )
        elif token == ">" and not is_top_level:
            break
        elif token.startswith("{"):
            options[-1].append(_parse_placeholder(token))
        else:
            options[-1].append(token.replace("&lt;", "<").replace("&gt;", ">"))
    return [tuple(option) for option in options]


def _parse_placeholder(token: str) -> TemplatePart:
    """Compile ``{2-6}``, ``{1.2-3.4}`` or ``{name}``."""
    match = _RANGE_PATTERN.fullmatch(token)
    if match is None:
        name = token[1:-1]

        def look_up(rng: RandomStream, facts: TemplateFacts) -> str:
            value = facts[name]
            return value if isinstance(value, str) else value(rng)

        return look_up
    low, high, digits = match.group(1), match.group(3), len(match.group(2) or "")
    if digits:
        return lambda rng, _: f"{rng.draw_float(float(low), float(high)):.{digits}f}"
    return lambda rng, _: str(rng.draw_int(int(low), int(high)))


@dataclass(frozen=True)
class DeidentificationMarks:
    """What replaces a person, a place, an age, a date or a number in de-identified text.

    Each field is a function, of the value or of a random stream, that gives the mark.
    """

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
    """A mark of MIMIC-III; ``#`` is a number, drawn whether or not the template has one."""
    return lambda rng: rng.choose(templates).replace("#", str(rng.draw_int(1, 6000)))


DEIDENTIFICATION_MARKS: dict[str, DeidentificationMarks] = {
    "mimic-iv": DeidentificationMarks(*[_mask_value] * len(fields(DeidentificationMarks))),
    "mimic-iii": DeidentificationMarks(
        # 90 and above is identifying (45 CFR 164.514(b)(2)(i)(C))
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
"""Data set -> its marks: in MIMIC-IV three underscores for anything; in MIMIC-III a kind, often
with a number, in brackets and stars."""

NOTE_PHRASES: dict[str, tuple[str, ...]] = read_synthetic_data("phrases.toml")["lists"]
"""Part of a note -> the phrases that it draws from or goes through."""

NORMAL_EXAM_TEMPLATES: dict[str, str] = read_synthetic_data("phrases.toml")["exam"]
"""Part of the body -> a normal finding, for the physical examination."""

DISPOSITION_TEMPLATES: dict[str, str] = read_synthetic_data("phrases.toml")["disposition"]
"""Destination after discharge, in words -> the text of the section ``Discharge Disposition``."""

SUMMARY_HEADER_TEMPLATES: dict[str, str] = read_synthetic_data("phrases.toml")["header"]
"""Data set -> the first lines of a discharge summary."""

RADIOLOGY_REPORT_TEMPLATES: dict[str, str] = read_synthetic_data("phrases.toml")["report"]
"""Data set -> the layout of a radiology report."""

NEWBORN_SUMMARY_TEMPLATE: str = read_synthetic_data("phrases.toml")["newborn"]["summary"]
"""The discharge summary of a newborn."""

NOTE_LINE_TEMPLATES: dict[str, str] = read_synthetic_data("phrases.toml")["line"]
"""Single lines: a medicine, the vital signs, the opening of a nursing note."""
