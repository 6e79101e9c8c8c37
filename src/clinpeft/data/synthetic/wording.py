"""How the synthetic hospital words things: a template language, de-identification marks, phrases.

In a template ``<a|b|c>`` is one of several texts (and may be nested), ``{2-6}`` a whole number,
``{1.2-3.4}`` a decimal with as many digits, ``{name}`` a fact, ``&lt;`` and ``&gt;`` the signs
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from functools import cache, partial

from clinpeft.data.synthetic.files import read_synthetic_data
from clinpeft.data.synthetic.hospital import RandomStream, Stay

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


def _render_alternative(
    options: Sequence[CompiledTemplate], rng: RandomStream, facts: TemplateFacts
) -> str:
    return _render_parts(rng.choose(options), rng, facts)


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
            options[-1].append(partial(_render_alternative, _parse_alternatives(tokens)))
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


def build_stay_facts(stay: Stay, marks: DeidentificationMarks) -> TemplateFacts:
    """Build the facts that templates may name.

    Those that vary within a note are functions, which draw each time they are named.
    """
    is_male = stay.patient.sex == "M"
    illnesses = [chronic.short for chronic in stay.patient.history[:4]]
    admitted_on, discharged_on = stay.admitted_at.date(), stay.discharged_at.date()
    # Words that vary within a note are functions; all else is fixed for the stay
    nouns = ("man", "gentleman", "male") if is_male else ("woman", "lady", "female")

    def draw_lab_values(rng: RandomStream) -> str:
        names = rng.sample(list(stay.labs), 2)
        return ", ".join(f"{name} {format_lab_value(stay.labs[name][0])}" for name in names)

    facts: TemplateFacts = {
        "age": marks.age(stay.age),
        "sex": stay.patient.sex,
        "title": "Mr" if is_male else "Ms",
        "sex_word": lambda rng: rng.choose(nouns),
        "he": "he" if is_male else "she",
        "He": "He" if is_male else "She",
        "him": "him" if is_male else "her",
        "his": "his" if is_male else "her",
        "His": "His" if is_male else "Her",
        "complaint": stay.complaint,
        "condition": stay.condition.short,
        "service": stay.condition.service,
        "history": join_names(illnesses) if illnesses else "no significant PMH",
        "patient": marks.patient,
        "doctor": marks.doctor,
        "hospital": marks.hospital,
        "place": marks.location,
        "phone": marks.phone,
        "number": marks.number,
        "born": marks.day(admitted_on - timedelta(days=365 * stay.age + 120)),
        "admitted": marks.day(admitted_on),
        "discharged": marks.day(discharged_on),
        "day": lambda rng: marks.month_and_day(
            stay.admitted_at + timedelta(days=rng.draw_int(0, stay.days))
        ),
        "past": lambda rng: marks.day(admitted_on - timedelta(days=rng.draw_int(2, 700))),
        "later": lambda rng: marks.day(discharged_on + timedelta(days=rng.draw_int(4, 40))),
        "drug": lambda rng: rng.choose(stay.drugs_after).split(" ")[0].lower(),
        "denied": lambda rng: ", ".join(rng.sample(stay.condition.denies, rng.draw_int(2, 5))),
        "lab": draw_lab_values,
        "plan": lambda rng: render_template(rng.choose(stay.condition.hospital_course), rng, facts),
        **{name: format_lab_value(at_admission) for name, (at_admission, _) in stay.labs.items()},
    }
    return facts


def format_lab_value(value: float) -> str:
    """Format a laboratory value with fewer decimals the larger it is."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"
