"""What happened, written down: the documents of one person's stays, with all that makes real notes hard to learn from.

Addenda, notes saved twice word for word, notes saved again after a small edit, and text copied forward: past history and medicines go from
each discharge summary into the next, sometimes the physical exam too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clinpeft.data.synthetic import wording
from clinpeft.data.synthetic.hospital import Dice, Stay, Study
from clinpeft.data.synthetic.rates import Rates
from clinpeft.data.synthetic.wording import Facts, Marks, say, say_all

EXAM_COPIED = 0.3
_LONG_LINE = re.compile(r"(?=.{78})(.{1,77}) ")


@dataclass(frozen=True)
class Document:
    """One note: ``kind`` is a key of the writers' layouts, ``description`` the exam of a report, else ``Report`` or ``Addendum``.

    ``planted`` names the trap that the note is: a copy, an addendum, a text with quotation marks.
    """

    stay: Stay
    kind: str
    description: str
    charted: datetime
    stored: datetime
    text: str
    planted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Carried:
    """What goes from one discharge summary of a person into the next, word for word."""

    allergies: str
    social: str
    family: str
    history: tuple[str, ...]
    exam: str = ""


def documents(stays: Sequence[Stay], seed: int, shape: str, rates: Rates) -> Iterator[Document]:
    """All notes of one person, in the layout of a data set and in the order they were written."""
    dice = Dice(
        seed, stays[0].patient.subject_id, 1
    )  # 1: a stream apart from the one that made the stays
    marks = wording.MARKS[shape]
    carried: _Carried | None = None
    for stay in stays:
        facts = _facts(stay, marks)
        carried = _carried(stay, facts, carried, dice)
        if stay.traps.without_notes:
            continue
        kinds = (_newborn,) if stay.patient.newborn else KINDS[shape]
        written = [document for kind in kinds for document in kind(stay, facts, shape, rates, dice)]
        last = (
            _birth(stay, facts, dice)
            if stay.patient.newborn
            else _summary(stay, facts, carried, shape, rates, dice)
        )
        for document in [*sorted(written, key=lambda each: each.charted), last]:
            yield from _with_copies(document, facts, rates, dice)


def _facts(stay: Stay, marks: Marks) -> Facts:
    """The facts that templates may name; those that change within a note are drawn each time they are named."""
    male, illnesses = (
        stay.patient.sex == "M",
        [chronic.short for chronic in stay.patient.history[:4]],
    )

    def day(first: int, last: int) -> Callable[[Dice], str]:
        return lambda dice: marks.month_and_day(
            stay.admitted + timedelta(days=dice.whole(first, last))
        )

    def plan(dice: Dice) -> str:
        return say(dice.pick(stay.condition.course), dice, facts)

    facts: Facts = {
        "age": marks.age(stay.age),
        "sex": stay.patient.sex,
        "title": "Mr" if male else "Ms",
        "sex_word": lambda dice: dice.pick(
            ("man", "gentleman", "male") if male else ("woman", "lady", "female")
        ),
        "he": "he" if male else "she",
        "He": "He" if male else "She",
        "him": "him" if male else "her",
        "his": "his" if male else "her",
        "His": "His" if male else "Her",
        "complaint": stay.complaint,
        "condition": stay.condition.short,
        "service": stay.condition.service,
        "history": _listed(illnesses) if illnesses else "no significant PMH",
        "patient": marks.patient,
        "doctor": marks.doctor,
        "hospital": marks.hospital,
        "place": marks.location,
        "phone": marks.phone,
        "number": marks.number,
        "born": marks.day(stay.admitted.date() - timedelta(days=365 * stay.age + 120)),
        "admitted": marks.day(stay.admitted.date()),
        "discharged": marks.day(stay.discharged.date()),
        "day": day(0, stay.days),
        "past": lambda dice: marks.day(stay.admitted.date() - timedelta(days=dice.whole(2, 700))),
        "later": lambda dice: marks.day(stay.discharged.date() + timedelta(days=dice.whole(4, 40))),
        "drug": lambda dice: dice.pick(stay.drugs_after).split(" ")[0].lower(),
        "denied": lambda dice: ", ".join(dice.some(stay.condition.denies, dice.whole(2, 5))),
        "lab": lambda dice: ", ".join(
            f"{name} {_number(stay.labs[name][0])}" for name in dice.some(list(stay.labs), 2)
        ),
        "plan": plan,
        **{name: _number(values[0]) for name, values in stay.labs.items()},
    }
    return facts


def _carried(stay: Stay, facts: Facts, before: _Carried | None, dice: Dice) -> _Carried:
    """What the last summary hands on, with this stay's reason added to the history, or else a first version."""
    exam = _exam(stay, facts, dice)
    if before is None:
        history = tuple(
            f"- {dice.pick((chronic.name, f'{chronic.name} ({chronic.short})'))}"
            for chronic in stay.patient.history
        )
        family = say(dice.pick(wording.PHRASES["family"]), dice, facts)
        return _Carried(
            dice.pick(wording.PHRASES["allergies"]),
            say_all(wording.PHRASES["social"], dice, facts),
            family,
            history or ("- None",),
            exam,
        )
    since = say(f"- {stay.condition.short} in {{past}}", dice, facts)
    return replace(
        before,
        history=(*before.history, since),
        exam=before.exam if dice.chance(EXAM_COPIED) else exam,
    )


def _exam(stay: Stay, facts: Facts, dice: Dice) -> str:
    wording_of = {**wording.EXAM, **stay.condition.exam}
    vitals = say(wording.LINE["vitals"], dice, facts)
    return "\n".join(
        [
            vitals,
            *(f"{part}: {say(template, dice, facts)}" for part, template in wording_of.items()),
        ]
    )


def _summary(
    stay: Stay, facts: Facts, carried: _Carried, shape: str, rates: Rates, dice: Dice
) -> Document:
    """The discharge summary: the sections of a real one, in its order."""
    facts = {
        **facts,
        "allergies": carried.allergies,
        "left_for": dice.pick(tuple(wording.DISPOSITION)),
    }
    header = say(wording.HEADER[shape], dice, facts)
    extras = _extras(stay, facts, rates, dice)
    sections = {
        **_before(stay, facts, carried, extras, dice),
        **_course(stay, facts, dice),
        **_end(stay, facts, dice),
    }
    text = (
        header + BREAKS[shape].join(f"{title}:\n{body}" for title, body in sections.items()) + "\n"
    )
    stored = stay.discharged + timedelta(hours=dice.whole(1, 90), minutes=dice.whole(0, 59))
    return Document(stay, "discharge", "Report", stay.discharged, stored, text, tuple(extras))


def _extras(stay: Stay, facts: Facts, rates: Rates, dice: Dice) -> dict[str, str]:
    """What is planted in the text, by name, as it is said; deaths told are of this patient, the bereaved have lost somebody else."""
    chances = {"quoted": dice.chance(rates.quoted), "bereaved": dice.chance(rates.bereaved)}
    told = {f"death told in the {part}": stay.traps.death_told == part for part in TOLD}
    names = [name for name, planted in {**chances, **told}.items() if planted]
    return {name: say(dice.pick(wording.PHRASES[PLANTED[name]]), dice, facts) for name in names}


def _before(
    stay: Stay, facts: Facts, carried: _Carried, extras: Mapping[str, str], dice: Dice
) -> dict[str, str]:
    """What was known at admission, every sign of the stay in one of its ways: all that decides what comes (``rule.py``)."""
    story = [
        dice.pick(wording.PHRASES["opening"]),
        *dice.some(stay.condition.story, 3),
        dice.pick(wording.PHRASES["arrival"]),
        *(dice.pick(sign.says) for sign in stay.signs if sign.part == "story"),
        dice.pick(wording.PHRASES["review"]),
    ]
    found = [
        _wrapped(say(dice.pick(sign.says), dice, facts))
        for sign in stay.signs
        if sign.part == "exam"
    ]
    told = [extras[name] for name in ("quoted", f"death told in the {TOLD[0]}") if name in extras]
    history = " ".join([say_all(story, dice, facts), *told])
    return {
        "Chief Complaint": stay.complaint,
        "Major Surgical or Invasive Procedure": say(stay.procedure, dice, facts),
        "History of Present Illness": "\n".join(map(_wrapped, history.split("\n"))),
        "Past Medical History": "\n".join(carried.history),
        "Social History": _wrapped(
            " ".join([carried.social, *([extras["bereaved"]] if "bereaved" in extras else [])])
        ),
        "Family History": _wrapped(carried.family),
        "Physical Exam": "\n".join(
            [
                carried.exam,
                *found,
                *(extras[name] for name in (f"death told in the {TOLD[1]}",) if name in extras),
            ]
        ),
    }


def _course(stay: Stay, facts: Facts, dice: Dice) -> dict[str, str]:
    course = [*stay.condition.course, *(stay.condition.severe if stay.severity == 2 else ())]
    lines = [f"# {stay.condition.name}: {say_all(course, dice, facts)}"]
    lines += [
        f"# {complication.capitalize()}: {say(dice.pick(wording.PHRASES['complication']), dice, facts)}"
        for complication in stay.complications
    ]
    for chronic in dice.some(stay.patient.history, 3):
        taken = next((drug for drug in stay.drugs_before if drug in chronic.drugs), "home regimen")
        known = {**facts, "name": chronic.short, "drug": taken.split(" ")[0].lower()}
        lines.append(say(dice.pick(wording.PHRASES["chronic_plan"]), dice, known))
    lines.append(
        say(
            dice.pick(wording.PHRASES["died"] if stay.died else wording.PHRASES["left"]),
            dice,
            facts,
        )
    )
    return {
        "Pertinent Results": _results(stay, facts, dice),
        "Brief Hospital Course": "\n\n".join(_wrapped(line) for line in lines),
    }


def _results(stay: Stay, facts: Facts, dice: Dice) -> str:
    first = " ".join(f"{name}-{_number(values[0])}" for name, values in stay.labs.items())
    last = " ".join(f"{name}-{_number(values[1])}" for name, values in stay.labs.items())
    extra = say_all(dice.some(stay.condition.micro, 2), dice, facts, "\n")
    study = dice.pick(stay.condition.studies)
    image = f"{study.exam}: {say_all(study.impression, dice, facts)}"
    return "\n".join(
        filter(
            None, [f"ADMISSION LABS:\n{first}", f"DISCHARGE LABS:\n{last}", extra, _wrapped(image)]
        )
    )


def _end(stay: Stay, facts: Facts, dice: Dice) -> dict[str, str]:
    diagnoses = [
        stay.condition.name,
        *stay.complications,
        *(chronic.short for chronic in stay.patient.history[:3]),
    ]
    medicines = {
        "Medications on Admission": _numbered(
            stay.drugs_before,
            facts,
            dice,
            "The Preadmission Medication list is accurate and complete.\n",
        )
    }
    if stay.died:
        return {
            **medicines,
            "Discharge Medications": "n/a",
            "Discharge Disposition": "Expired",
            "Discharge Diagnosis": "\n".join(diagnoses),
        }
    instructions = [dice.pick(wording.PHRASES["greeting"]), *stay.condition.instructions]
    return {
        **medicines,
        "Discharge Medications": _numbered(stay.drugs_after, facts, dice),
        "Discharge Disposition": say(wording.DISPOSITION[str(facts["left_for"])], dice, facts),
        "Discharge Diagnosis": "\n".join(["Primary:", diagnoses[0], "Secondary:", *diagnoses[1:]]),
        "Discharge Condition": say(
            dice.pick(wording.PHRASES["condition_at_discharge"]), dice, facts
        ),
        "Discharge Instructions": _wrapped(say_all(instructions, dice, facts)),
        "Followup Instructions": _wrapped(
            say_all(dice.some(wording.PHRASES["follow_up"], dice.whole(1, 3)), dice, facts)
        ),
    }


def _numbered(drugs: Sequence[str], facts: Facts, dice: Dice, opening: str = "") -> str:
    lines = [
        f"{number}. {say(wording.LINE['medicine'], dice, {**facts, 'medicine': drug})}"
        for number, drug in enumerate(drugs, start=1)
    ]
    return opening * dice.chance(0.5) + ("\n".join(lines) or "None")


def _radiology(
    stay: Stay, facts: Facts, shape: str, rates: Rates, dice: Dice
) -> Iterator[Document]:
    del rates
    for _ in range(dice.whole(1, 2 + 2 * stay.severity)):
        study, moment = dice.pick(stay.condition.studies), _moment(stay, dice)
        text = say(wording.REPORT[shape], dice, {**facts, **_reported(study, facts, dice)})
        stored = moment + timedelta(minutes=dice.whole(15, 600))
        yield Document(stay, "radiology", study.exam, moment, stored, text)


def _reported(study: Study, facts: Facts, dice: Dice) -> dict[str, str]:
    return {
        "exam": study.exam,
        "technique": study.technique,
        "findings": _wrapped(say_all(study.findings, dice, facts)),
        "impression": _wrapped(say_all(study.impression, dice, facts)),
    }


def _nursing(stay: Stay, facts: Facts, shape: str, rates: Rates, dice: Dice) -> Iterator[Document]:
    """One a day on the ward, two in intensive care; the older system calls them ``Nursing/other``."""
    del shape
    kind = dice.pick(("nursing", "nursing/other"))
    for number in range(
        min(stay.days, rates.charted_days) * (2 if stay.needed_icu else 1) * rates.nursing_notes
    ):
        general = dice.some(
            wording.PHRASES["nursing"], dice.whole(4, len(wording.PHRASES["nursing"]))
        )
        lines = [
            say(wording.LINE["nursing_opening"], dice, facts),
            *(say(line, dice, facts) for line in general),
        ]
        lines.append(say_all(stay.condition.nursing, dice, facts, ". ") + ".")
        moment = stay.admitted + timedelta(
            hours=12 * number // rates.nursing_notes + dice.whole(6, 11), minutes=dice.whole(0, 59)
        )
        yield Document(
            stay,
            kind,
            "Report",
            moment,
            moment + timedelta(minutes=dice.whole(1, 90)),
            "\n".join(map(_wrapped, lines)) + "\n",
        )


def _newborn(stay: Stay, facts: Facts, shape: str, rates: Rates, dice: Dice) -> Iterator[Document]:
    del shape
    for day in range(min(stay.days, rates.charted_days)):
        moment = stay.admitted + timedelta(
            hours=12 * day + dice.whole(6, 11), minutes=dice.whole(0, 59)
        )
        text = _wrapped(say_all(wording.PHRASES["newborn"], dice, facts)) + "\n"
        yield Document(
            stay,
            "nursing/other",
            "Report",
            moment,
            moment + timedelta(minutes=dice.whole(1, 90)),
            text,
        )


def _birth(stay: Stay, facts: Facts, dice: Dice) -> Document:
    """The discharge summary of a newborn."""
    stored = stay.discharged + timedelta(hours=dice.whole(1, 90))
    return Document(
        stay, "discharge", "Report", stay.discharged, stored, say(wording.NEWBORN, dice, facts)
    )


def _respiratory(
    stay: Stay, facts: Facts, shape: str, rates: Rates, dice: Dice
) -> Iterator[Document]:
    del shape, rates
    for _ in range(dice.whole(1, 4) if stay.ventilated else 0):
        moment = _moment(stay, dice)
        yield Document(
            stay,
            "respiratory",
            "Report",
            moment,
            moment + timedelta(minutes=dice.whole(1, 40)),
            _wrapped(say_all(wording.PHRASES["respiratory"], dice, facts)),
        )


def _physician(
    stay: Stay, facts: Facts, shape: str, rates: Rates, dice: Dice
) -> Iterator[Document]:
    del shape, rates
    for _ in range(dice.whole(1, 3) if stay.needed_icu else 0):
        moment = _moment(stay, dice)
        text = "\n".join(
            _wrapped(line)
            for line in say_all(wording.PHRASES["progress"], dice, facts, "\n").split("\n")
        )
        yield Document(
            stay,
            "physician",
            "Physician Resident Progress Note",
            moment,
            moment + timedelta(minutes=dice.whole(20, 300)),
            text,
        )


def _ecg(stay: Stay, facts: Facts, shape: str, rates: Rates, dice: Dice) -> Iterator[Document]:
    del shape, rates
    if dice.chance(0.6):
        moment = _moment(stay, dice)
        yield Document(
            stay,
            "ecg",
            "Report",
            moment,
            moment + timedelta(days=1),
            _wrapped(say_all(wording.PHRASES["ecg"], dice, facts)),
        )


def _moment(stay: Stay, dice: Dice) -> datetime:
    return stay.admitted + timedelta(minutes=dice.whole(0, 24 * 60 * max(stay.days - 1, 1)))


def _with_copies(document: Document, facts: Facts, rates: Rates, dice: Dice) -> Iterator[Document]:
    """The note, perhaps its addendum, perhaps itself again: word for word, or after an edit."""
    yield document
    later = document.stored + timedelta(minutes=dice.whole(2, 240))
    if document.kind in ADDENDA and dice.chance(rates.addenda):
        text = _wrapped(say(dice.pick(ADDENDA[document.kind]), dice, facts))
        yield replace(
            document,
            kind=f"{document.kind} addendum",
            description="Addendum",
            stored=later,
            text=text,
            planted=("addenda",),
        )
    if dice.chance(rates.saved_twice):
        yield replace(document, stored=later, planted=("exact duplicates",))
    if dice.chance(rates.saved_again):
        yield replace(
            document,
            stored=later,
            text=_edited(document.text, facts, dice),
            planted=("near duplicates",),
        )


def _edited(text: str, facts: Facts, dice: Dice) -> str:
    """A number of one line changed (outside de-identification marks) and a line added at the end."""
    lines = text.split("\n")
    numbered = [
        i for i, line in enumerate(lines) if "[**" not in line and any(map(str.isdigit, line))
    ]
    if numbered:
        at = dice.pick(numbered)
        lines[at] = re.sub(r"\d+", lambda found: str(int(found.group()) + 1), lines[at], count=1)
    return "\n".join([*lines, say(dice.pick(wording.PHRASES["edits"]), dice, facts)])


def _wrapped(text: str) -> str:
    """Broken into lines as the hospital's system does: at the last space that fits, where more than a line is left."""
    return _LONG_LINE.sub(r"\1\n", text)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


ADDENDA: Mapping[str, Sequence[str]] = {
    "discharge": wording.PHRASES["addendum"],
    "radiology": wording.PHRASES["radiology_addendum"],
}

BREAKS = {"mimic-iv": "\n \n", "mimic-iii": "\n\n"}
"""Between two sections: the lines that look empty in MIMIC-IV hold a blank."""
TOLD = ("story", "exam")
PLANTED = {
    "quoted": "quoted",
    "bereaved": "bereaved",
    "death told in the story": "death_in_history",
    "death told in the exam": "death_in_exam",
}

Kind = Callable[[Stay, Facts, str, Rates, Dice], Iterator[Document]]
KINDS: dict[str, tuple[Kind, ...]] = {
    "mimic-iv": (_radiology,),
    "mimic-iii": (_radiology, _nursing, _respiratory, _physician, _ecg),
}
"""What each data set has beside discharge summaries."""
