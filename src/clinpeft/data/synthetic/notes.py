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
from clinpeft.data.synthetic.hospital import ImagingStudy, RandomStream, Stay
from clinpeft.data.synthetic.rates import SyntheticRates
from clinpeft.data.synthetic.wording import (
    DeidentificationMarks,
    TemplateFacts,
    render_template,
    render_templates,
)

EXAM_COPY_PROBABILITY = 0.3
_LONG_LINE_PATTERN = re.compile(r"(?=.{78})(.{1,77}) ")


@dataclass(frozen=True)
class SyntheticNote:
    """One note: ``kind`` is a key of the writers' layouts, ``description`` the exam of a report, else ``Report`` or ``Addendum``.

    ``defects`` names the trap that the note is: a copy, an addendum, a text with quotation marks.
    """

    stay: Stay
    kind: str
    description: str
    charted_at: datetime
    stored_at: datetime
    text: str
    defects: tuple[str, ...] = ()


@dataclass(frozen=True)
class _CopiedText:
    """What goes from one discharge summary of a person into the next, word for word."""

    allergies: str
    social: str
    family: str
    history: tuple[str, ...]
    exam: str = ""


def generate_patient_notes(
    stays: Sequence[Stay], seed: int, shape: str, rates: SyntheticRates
) -> Iterator[SyntheticNote]:
    """All notes of one person, in the layout of a data set and in the order they were written."""
    dice = RandomStream(
        seed, stays[0].patient.subject_id, 1
    )  # 1: a stream apart from the one that made the stays
    marks = wording.DEIDENTIFICATION_MARKS[shape]
    carried: _CopiedText | None = None
    for stay in stays:
        facts = _build_facts(stay, marks)
        carried = _update_copied_text(stay, facts, carried, dice)
        if stay.defects.has_no_notes:
            continue
        kinds = (_write_newborn_notes,) if stay.patient.is_newborn else NOTE_WRITERS[shape]
        written = [document for kind in kinds for document in kind(stay, facts, shape, rates, dice)]
        last = (
            _write_newborn_summary(stay, facts, dice)
            if stay.patient.is_newborn
            else _write_discharge_summary(stay, facts, carried, shape, rates, dice)
        )
        for document in [*sorted(written, key=lambda each: each.charted_at), last]:
            yield from _add_copies(document, facts, rates, dice)


def _build_facts(stay: Stay, marks: DeidentificationMarks) -> TemplateFacts:
    """The facts that templates may name; those that change within a note are drawn each time they are named."""
    male, illnesses = (
        stay.patient.sex == "M",
        [chronic.short for chronic in stay.patient.history[:4]],
    )

    def day(first: int, last: int) -> Callable[[RandomStream], str]:
        return lambda dice: marks.month_and_day(
            stay.admitted_at + timedelta(days=dice.draw_int(first, last))
        )

    def plan(dice: RandomStream) -> str:
        return render_template(dice.choose(stay.condition.course), dice, facts)

    facts: TemplateFacts = {
        "age": marks.age(stay.age),
        "sex": stay.patient.sex,
        "title": "Mr" if male else "Ms",
        "sex_word": lambda dice: dice.choose(
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
        "history": _join_names(illnesses) if illnesses else "no significant PMH",
        "patient": marks.patient,
        "doctor": marks.doctor,
        "hospital": marks.hospital,
        "place": marks.location,
        "phone": marks.phone,
        "number": marks.number,
        "born": marks.day(stay.admitted_at.date() - timedelta(days=365 * stay.age + 120)),
        "admitted": marks.day(stay.admitted_at.date()),
        "discharged": marks.day(stay.discharged_at.date()),
        "day": day(0, stay.days),
        "past": lambda dice: marks.day(
            stay.admitted_at.date() - timedelta(days=dice.draw_int(2, 700))
        ),
        "later": lambda dice: marks.day(
            stay.discharged_at.date() + timedelta(days=dice.draw_int(4, 40))
        ),
        "drug": lambda dice: dice.choose(stay.drugs_after).split(" ")[0].lower(),
        "denied": lambda dice: ", ".join(dice.sample(stay.condition.denies, dice.draw_int(2, 5))),
        "lab": lambda dice: ", ".join(
            f"{name} {_format_number(stay.labs[name][0])}"
            for name in dice.sample(list(stay.labs), 2)
        ),
        "plan": plan,
        **{name: _format_number(values[0]) for name, values in stay.labs.items()},
    }
    return facts


def _update_copied_text(
    stay: Stay, facts: TemplateFacts, previous_text: _CopiedText | None, rng: RandomStream
) -> _CopiedText:
    """What the last summary hands on, with this stay's reason added to the history, or else a first version."""
    exam = _write_exam(stay, facts, rng)
    if previous_text is None:
        history = tuple(
            f"- {rng.choose((chronic.name, f'{chronic.name} ({chronic.short})'))}"
            for chronic in stay.patient.history
        )
        family = render_template(rng.choose(wording.NOTE_PHRASES["family"]), rng, facts)
        return _CopiedText(
            rng.choose(wording.NOTE_PHRASES["allergies"]),
            render_templates(wording.NOTE_PHRASES["social"], rng, facts),
            family,
            history or ("- None",),
            exam,
        )
    since = render_template(f"- {stay.condition.short} in {{past}}", rng, facts)
    return replace(
        previous_text,
        history=(*previous_text.history, since),
        exam=previous_text.exam if rng.draw_bool(EXAM_COPY_PROBABILITY) else exam,
    )


def _write_exam(stay: Stay, facts: TemplateFacts, rng: RandomStream) -> str:
    wording_of = {**wording.NORMAL_EXAM_TEMPLATES, **stay.condition.exam}
    vitals = render_template(wording.NOTE_LINE_TEMPLATES["vitals"], rng, facts)
    return "\n".join(
        [
            vitals,
            *(
                f"{part}: {render_template(template, rng, facts)}"
                for part, template in wording_of.items()
            ),
        ]
    )


def _write_discharge_summary(
    stay: Stay,
    facts: TemplateFacts,
    copied_text: _CopiedText,
    shape: str,
    rates: SyntheticRates,
    rng: RandomStream,
) -> SyntheticNote:
    """The discharge summary: the sections of a real one, in its order."""
    facts = {
        **facts,
        "allergies": copied_text.allergies,
        "left_for": rng.choose(tuple(wording.DISPOSITION_TEMPLATES)),
    }
    header = render_template(wording.SUMMARY_HEADER_TEMPLATES[shape], rng, facts)
    extras = _render_text_defects(stay, facts, rates, rng)
    sections = {
        **_write_admission_sections(stay, facts, copied_text, extras, rng),
        **_write_course_sections(stay, facts, rng),
        **_write_discharge_sections(stay, facts, rng),
    }
    text = (
        header
        + SECTION_BREAKS[shape].join(f"{title}:\n{body}" for title, body in sections.items())
        + "\n"
    )
    stored = stay.discharged_at + timedelta(hours=rng.draw_int(1, 90), minutes=rng.draw_int(0, 59))
    return SyntheticNote(
        stay, "discharge", "Report", stay.discharged_at, stored, text, tuple(extras)
    )


def _render_text_defects(
    stay: Stay, facts: TemplateFacts, rates: SyntheticRates, rng: RandomStream
) -> dict[str, str]:
    """What is planted in the text, by name, as it is said; deaths told are of this patient, the bereaved have lost somebody else."""
    chances = {
        "quoted": rng.draw_bool(rates.quoted_summaries),
        "bereaved": rng.draw_bool(rates.other_deaths_mentioned),
    }
    told = {
        f"death told in the {part}": stay.defects.death_mention == part
        for part in DEATH_MENTION_PARTS
    }
    names = [name for name, planted in {**chances, **told}.items() if planted]
    return {
        name: render_template(rng.choose(wording.NOTE_PHRASES[DEFECT_PHRASES[name]]), rng, facts)
        for name in names
    }


def _write_admission_sections(
    stay: Stay,
    facts: TemplateFacts,
    copied_text: _CopiedText,
    text_defects: Mapping[str, str],
    rng: RandomStream,
) -> dict[str, str]:
    """What was known at admission, every sign of the stay in one of its ways: all that decides what comes (``rule.py``)."""
    story = [
        rng.choose(wording.NOTE_PHRASES["opening"]),
        *rng.sample(stay.condition.story, 3),
        rng.choose(wording.NOTE_PHRASES["arrival"]),
        *(rng.choose(sign.says) for sign in stay.signs if sign.part == "story"),
        rng.choose(wording.NOTE_PHRASES["review"]),
    ]
    found = [
        _wrap_lines(render_template(rng.choose(sign.says), rng, facts))
        for sign in stay.signs
        if sign.part == "exam"
    ]
    told = [
        text_defects[name]
        for name in ("quoted", f"death told in the {DEATH_MENTION_PARTS[0]}")
        if name in text_defects
    ]
    history = " ".join([render_templates(story, rng, facts), *told])
    return {
        "Chief Complaint": stay.complaint,
        "Major Surgical or Invasive Procedure": render_template(stay.procedure, rng, facts),
        "History of Present Illness": "\n".join(map(_wrap_lines, history.split("\n"))),
        "Past Medical History": "\n".join(copied_text.history),
        "Social History": _wrap_lines(
            " ".join(
                [
                    copied_text.social,
                    *([text_defects["bereaved"]] if "bereaved" in text_defects else []),
                ]
            )
        ),
        "Family History": _wrap_lines(copied_text.family),
        "Physical Exam": "\n".join(
            [
                copied_text.exam,
                *found,
                *(
                    text_defects[name]
                    for name in (f"death told in the {DEATH_MENTION_PARTS[1]}",)
                    if name in text_defects
                ),
            ]
        ),
    }


def _write_course_sections(stay: Stay, facts: TemplateFacts, rng: RandomStream) -> dict[str, str]:
    course = [*stay.condition.course, *(stay.condition.severe if stay.severity == 2 else ())]
    lines = [f"# {stay.condition.name}: {render_templates(course, rng, facts)}"]
    lines += [
        f"# {complication.capitalize()}: {render_template(rng.choose(wording.NOTE_PHRASES['complication']), rng, facts)}"
        for complication in stay.complications
    ]
    for chronic in rng.sample(stay.patient.history, 3):
        taken = next((drug for drug in stay.drugs_before if drug in chronic.drugs), "home regimen")
        known = {**facts, "name": chronic.short, "drug": taken.split(" ")[0].lower()}
        lines.append(render_template(rng.choose(wording.NOTE_PHRASES["chronic_plan"]), rng, known))
    lines.append(
        render_template(
            rng.choose(
                wording.NOTE_PHRASES["died"]
                if stay.died_in_hospital
                else wording.NOTE_PHRASES["left"]
            ),
            rng,
            facts,
        )
    )
    return {
        "Pertinent Results": _write_results(stay, facts, rng),
        "Brief Hospital Course": "\n\n".join(_wrap_lines(line) for line in lines),
    }


def _write_results(stay: Stay, facts: TemplateFacts, rng: RandomStream) -> str:
    first = " ".join(f"{name}-{_format_number(values[0])}" for name, values in stay.labs.items())
    last = " ".join(f"{name}-{_format_number(values[1])}" for name, values in stay.labs.items())
    extra = render_templates(rng.sample(stay.condition.micro, 2), rng, facts, "\n")
    study = rng.choose(stay.condition.studies)
    image = f"{study.exam}: {render_templates(study.impression, rng, facts)}"
    return "\n".join(
        filter(
            None,
            [f"ADMISSION LABS:\n{first}", f"DISCHARGE LABS:\n{last}", extra, _wrap_lines(image)],
        )
    )


def _write_discharge_sections(
    stay: Stay, facts: TemplateFacts, rng: RandomStream
) -> dict[str, str]:
    diagnoses = [
        stay.condition.name,
        *stay.complications,
        *(chronic.short for chronic in stay.patient.history[:3]),
    ]
    medicines = {
        "Medications on Admission": _number_drugs(
            stay.drugs_before,
            facts,
            rng,
            "The Preadmission Medication list is accurate and complete.\n",
        )
    }
    if stay.died_in_hospital:
        return {
            **medicines,
            "Discharge Medications": "n/a",
            "Discharge Disposition": "Expired",
            "Discharge Diagnosis": "\n".join(diagnoses),
        }
    instructions = [rng.choose(wording.NOTE_PHRASES["greeting"]), *stay.condition.instructions]
    return {
        **medicines,
        "Discharge Medications": _number_drugs(stay.drugs_after, facts, rng),
        "Discharge Disposition": render_template(
            wording.DISPOSITION_TEMPLATES[str(facts["left_for"])], rng, facts
        ),
        "Discharge Diagnosis": "\n".join(["Primary:", diagnoses[0], "Secondary:", *diagnoses[1:]]),
        "Discharge Condition": render_template(
            rng.choose(wording.NOTE_PHRASES["condition_at_discharge"]), rng, facts
        ),
        "Discharge Instructions": _wrap_lines(render_templates(instructions, rng, facts)),
        "Followup Instructions": _wrap_lines(
            render_templates(
                rng.sample(wording.NOTE_PHRASES["follow_up"], rng.draw_int(1, 3)), rng, facts
            )
        ),
    }


def _number_drugs(
    drugs: Sequence[str], facts: TemplateFacts, rng: RandomStream, opening: str = ""
) -> str:
    lines = [
        f"{number}. {render_template(wording.NOTE_LINE_TEMPLATES['medicine'], rng, {**facts, 'medicine': drug})}"
        for number, drug in enumerate(drugs, start=1)
    ]
    return opening * rng.draw_bool(0.5) + ("\n".join(lines) or "None")


def _write_radiology_reports(
    stay: Stay, facts: TemplateFacts, shape: str, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    del rates
    for _ in range(rng.draw_int(1, 2 + 2 * stay.severity)):
        study, moment = rng.choose(stay.condition.studies), _draw_note_time(stay, rng)
        text = render_template(
            wording.RADIOLOGY_REPORT_TEMPLATES[shape],
            rng,
            {**facts, **_render_study(study, facts, rng)},
        )
        stored = moment + timedelta(minutes=rng.draw_int(15, 600))
        yield SyntheticNote(stay, "radiology", study.exam, moment, stored, text)


def _render_study(study: ImagingStudy, facts: TemplateFacts, rng: RandomStream) -> dict[str, str]:
    return {
        "exam": study.exam,
        "technique": study.technique,
        "findings": _wrap_lines(render_templates(study.findings, rng, facts)),
        "impression": _wrap_lines(render_templates(study.impression, rng, facts)),
    }


def _write_nursing_notes(
    stay: Stay, facts: TemplateFacts, shape: str, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    """One a day on the ward, two in intensive care; the older system calls them ``Nursing/other``."""
    del shape
    kind = rng.choose(("nursing", "nursing/other"))
    for number in range(
        min(stay.days, rates.max_nursing_days) * (2 if stay.needed_icu else 1) * rates.nursing_notes
    ):
        general = rng.sample(
            wording.NOTE_PHRASES["nursing"], rng.draw_int(4, len(wording.NOTE_PHRASES["nursing"]))
        )
        lines = [
            render_template(wording.NOTE_LINE_TEMPLATES["nursing_opening"], rng, facts),
            *(render_template(line, rng, facts) for line in general),
        ]
        lines.append(render_templates(stay.condition.nursing, rng, facts, ". ") + ".")
        moment = stay.admitted_at + timedelta(
            hours=12 * number // rates.nursing_notes + rng.draw_int(6, 11),
            minutes=rng.draw_int(0, 59),
        )
        yield SyntheticNote(
            stay,
            kind,
            "Report",
            moment,
            moment + timedelta(minutes=rng.draw_int(1, 90)),
            "\n".join(map(_wrap_lines, lines)) + "\n",
        )


def _write_newborn_notes(
    stay: Stay, facts: TemplateFacts, shape: str, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    del shape
    for day in range(min(stay.days, rates.max_nursing_days)):
        moment = stay.admitted_at + timedelta(
            hours=12 * day + rng.draw_int(6, 11), minutes=rng.draw_int(0, 59)
        )
        text = _wrap_lines(render_templates(wording.NOTE_PHRASES["newborn"], rng, facts)) + "\n"
        yield SyntheticNote(
            stay,
            "nursing/other",
            "Report",
            moment,
            moment + timedelta(minutes=rng.draw_int(1, 90)),
            text,
        )


def _write_newborn_summary(stay: Stay, facts: TemplateFacts, rng: RandomStream) -> SyntheticNote:
    """The discharge summary of a newborn."""
    stored = stay.discharged_at + timedelta(hours=rng.draw_int(1, 90))
    return SyntheticNote(
        stay,
        "discharge",
        "Report",
        stay.discharged_at,
        stored,
        render_template(wording.NEWBORN_SUMMARY_TEMPLATE, rng, facts),
    )


def _write_respiratory_notes(
    stay: Stay, facts: TemplateFacts, shape: str, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    del shape, rates
    for _ in range(rng.draw_int(1, 4) if stay.was_ventilated else 0):
        moment = _draw_note_time(stay, rng)
        yield SyntheticNote(
            stay,
            "respiratory",
            "Report",
            moment,
            moment + timedelta(minutes=rng.draw_int(1, 40)),
            _wrap_lines(render_templates(wording.NOTE_PHRASES["respiratory"], rng, facts)),
        )


def _write_physician_notes(
    stay: Stay, facts: TemplateFacts, shape: str, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    del shape, rates
    for _ in range(rng.draw_int(1, 3) if stay.needed_icu else 0):
        moment = _draw_note_time(stay, rng)
        text = "\n".join(
            _wrap_lines(line)
            for line in render_templates(wording.NOTE_PHRASES["progress"], rng, facts, "\n").split(
                "\n"
            )
        )
        yield SyntheticNote(
            stay,
            "physician",
            "Physician Resident Progress Note",
            moment,
            moment + timedelta(minutes=rng.draw_int(20, 300)),
            text,
        )


def _write_ecg_reports(
    stay: Stay, facts: TemplateFacts, shape: str, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    del shape, rates
    if rng.draw_bool(0.6):
        moment = _draw_note_time(stay, rng)
        yield SyntheticNote(
            stay,
            "ecg",
            "Report",
            moment,
            moment + timedelta(days=1),
            _wrap_lines(render_templates(wording.NOTE_PHRASES["ecg"], rng, facts)),
        )


def _draw_note_time(stay: Stay, rng: RandomStream) -> datetime:
    return stay.admitted_at + timedelta(minutes=rng.draw_int(0, 24 * 60 * max(stay.days - 1, 1)))


def _add_copies(
    document: SyntheticNote, facts: TemplateFacts, rates: SyntheticRates, rng: RandomStream
) -> Iterator[SyntheticNote]:
    """The note, perhaps its addendum, perhaps itself again: word for word, or after an edit."""
    yield document
    later = document.stored_at + timedelta(minutes=rng.draw_int(2, 240))
    if document.kind in ADDENDUM_TEMPLATES and rng.draw_bool(rates.addenda):
        text = _wrap_lines(
            render_template(rng.choose(ADDENDUM_TEMPLATES[document.kind]), rng, facts)
        )
        yield replace(
            document,
            kind=f"{document.kind} addendum",
            description="Addendum",
            stored_at=later,
            text=text,
            defects=("addenda",),
        )
    if rng.draw_bool(rates.exact_duplicates):
        yield replace(document, stored_at=later, defects=("exact duplicates",))
    if rng.draw_bool(rates.near_duplicates):
        yield replace(
            document,
            stored_at=later,
            text=_edit_text(document.text, facts, rng),
            defects=("near duplicates",),
        )


def _edit_text(text: str, facts: TemplateFacts, rng: RandomStream) -> str:
    """A number of one line changed (outside de-identification marks) and a line added at the end."""
    lines = text.split("\n")
    numbered = [
        i for i, line in enumerate(lines) if "[**" not in line and any(map(str.isdigit, line))
    ]
    if numbered:
        at = rng.choose(numbered)
        lines[at] = re.sub(r"\d+", lambda found: str(int(found.group()) + 1), lines[at], count=1)
    return "\n".join(
        [*lines, render_template(rng.choose(wording.NOTE_PHRASES["edits"]), rng, facts)]
    )


def _wrap_lines(text: str) -> str:
    """Broken into lines as the hospital's system does: at the last space that fits, where more than a line is left."""
    return _LONG_LINE_PATTERN.sub(r"\1\n", text)


def _join_names(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _format_number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


ADDENDUM_TEMPLATES: Mapping[str, Sequence[str]] = {
    "discharge": wording.NOTE_PHRASES["addendum"],
    "radiology": wording.NOTE_PHRASES["radiology_addendum"],
}

SECTION_BREAKS = {"mimic-iv": "\n \n", "mimic-iii": "\n\n"}
"""Between two sections: the lines that look empty in MIMIC-IV hold a blank."""
DEATH_MENTION_PARTS = ("story", "exam")
DEFECT_PHRASES = {
    "quoted": "quoted",
    "bereaved": "bereaved",
    "death told in the story": "death_in_history",
    "death told in the exam": "death_in_exam",
}

NoteWriter = Callable[
    [Stay, TemplateFacts, str, SyntheticRates, RandomStream], Iterator[SyntheticNote]
]
NOTE_WRITERS: dict[str, tuple[NoteWriter, ...]] = {
    "mimic-iv": (_write_radiology_reports,),
    "mimic-iii": (
        _write_radiology_reports,
        _write_nursing_notes,
        _write_respiratory_notes,
        _write_physician_notes,
        _write_ecg_reports,
    ),
}
"""What each data set has beside discharge summaries."""
