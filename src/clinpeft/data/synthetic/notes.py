"""The notes of one person's stays, with what makes real notes hard to learn from.

There are addenda, notes saved twice word for word, notes saved again after a small edit, and
copied text: past history and medicines go from each discharge summary into the next, sometimes the
physical examination too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clinpeft.data.synthetic.hospital import RandomStream, Stay
from clinpeft.data.synthetic.rates import SyntheticRates
from clinpeft.data.synthetic.wording import (
    DEIDENTIFICATION_MARKS,
    DISPOSITION_TEMPLATES,
    NEWBORN_SUMMARY_TEMPLATE,
    NORMAL_EXAM_TEMPLATES,
    NOTE_LINE_TEMPLATES,
    NOTE_PHRASES,
    RADIOLOGY_REPORT_TEMPLATES,
    SUMMARY_HEADER_TEMPLATES,
    TemplateFacts,
    build_stay_facts,
    format_lab_value,
    render_template,
    render_templates,
)

# Of a discharge summary whose physical examination is that of the previous stay
EXAM_COPY_PROBABILITY = 0.3
SECTION_BREAKS = {"mimic-iv": "\n \n", "mimic-iii": "\n\n"}
"""Between two sections; the lines that look empty in MIMIC-IV hold a blank."""
DEATH_MENTION_PARTS = ("story", "exam")
DEFECT_PHRASES = {
    "quoted": "quoted",
    "bereaved": "bereaved",
    "death told in the story": "death_in_history",
    "death told in the exam": "death_in_exam",
}
"""Defect of the text, as counted -> the list of phrases that states it."""
ADDENDUM_TEMPLATES: Mapping[str, Sequence[str]] = {
    "discharge": NOTE_PHRASES["addendum"],
    "radiology": NOTE_PHRASES["radiology_addendum"],
}
# The longest run of up to 77 characters before a blank, where at least 78 follow
_LONG_LINE_PATTERN = re.compile(r"(?=.{78})(.{1,77}) ")


@dataclass(frozen=True)
class SyntheticNote:
    """One note.

    Attributes:
        stay: the admission it belongs to.
        kind: a key of the writers' layouts, such as ``discharge`` or ``radiology addendum``.
        description: the examination of a radiology report, else ``Report`` or ``Addendum``.
        charted_at: when it was written for.
        stored_at: when it was saved.
        text: as in the data set.
        defects: what was planted: a copy, an addendum, a text with quotation marks.
    """

    stay: Stay
    kind: str
    description: str
    charted_at: datetime
    stored_at: datetime
    text: str
    defects: tuple[str, ...] = ()


@dataclass(frozen=True)
class CopiedText:
    """What is copied from one discharge summary of a person into the next, word for word."""

    allergies: str
    social: str
    family: str
    history: tuple[str, ...]
    examination: str = ""


def generate_patient_notes(
    stays: Sequence[Stay], seed: int, shape: str, rates: SyntheticRates
) -> Iterator[SyntheticNote]:
    """Generate all notes of one person, in the order in which they were written.

    Args:
        stays: of the person, in order of admission.
        seed: of the hospital.
        shape: data set whose layout the notes have: ``mimic-iii`` or ``mimic-iv``.
        rates: how often defects are planted.
    """
    # 1: a stream apart from that of the stays, so that notes do not change what happens
    rng = RandomStream(seed, stays[0].patient.subject_id, 1)
    copied_text: CopiedText | None = None
    for stay in stays:
        facts = build_stay_facts(stay, DEIDENTIFICATION_MARKS[shape])
        writer = StayNoteWriter(stay, shape, rates, rng, facts)
        copied_text = writer.update_copied_text(copied_text)
        if stay.defects.has_no_notes:
            continue
        if stay.patient.is_newborn:
            notes = list(writer.write_newborn_notes())
            summary = writer.write_newborn_summary()
        else:
            notes = [note for write in NOTE_WRITERS[shape] for note in write(writer)]
            summary = writer.write_discharge_summary(copied_text)
        # Stable, so that notes of one minute keep their order; the summary is always last
        for note in [*sorted(notes, key=lambda note: note.charted_at), summary]:
            yield from writer.add_copies(note)


@dataclass(frozen=True)
class StayNoteWriter:
    """Writes the notes of one stay; every method draws from ``rng``, so their order matters.

    Attributes:
        stay: the admission.
        shape: data set whose layout the notes have.
        rates: how often defects are planted.
        rng: the person's random stream for notes.
        facts: what templates may name.
    """

    stay: Stay
    shape: str
    rates: SyntheticRates
    rng: RandomStream
    facts: TemplateFacts

    def render(self, template: str, /, **facts: str) -> str:
        """Render a template with the stay's facts and some more."""
        return render_template(template, self.rng, {**self.facts, **facts})

    def render_all(self, templates: Sequence[str], separator: str = " ") -> str:
        """Render several templates, one after the other."""
        return render_templates(templates, self.rng, self.facts, separator)

    def render_phrase(self, part: str, /, **facts: str) -> str:
        """Render one of the phrases for a part of a note, each equally likely."""
        return self.render(self.rng.choose(NOTE_PHRASES[part]), **facts)

    def draw_note_time(self) -> datetime:
        """Draw a time between admission and the day before discharge."""
        minutes = 24 * 60 * max(self.stay.days - 1, 1)
        return self.stay.admitted_at + timedelta(minutes=self.rng.draw_int(0, minutes))

    def update_copied_text(self, previous: CopiedText | None) -> CopiedText:
        """Compose the text for this stay's summary from that of the previous one.

        The history grows by the reason for this stay, and the examination is sometimes copied
        too. Without a previous stay a first version is drawn.
        """
        # The findings of the condition replace the normal ones
        parts = {**NORMAL_EXAM_TEMPLATES, **self.stay.condition.examination}
        lines = [self.render(NOTE_LINE_TEMPLATES["vitals"])]
        lines += [f"{part}: {self.render(template)}" for part, template in parts.items()]
        examination = "\n".join(lines)
        if previous is not None:
            entry = self.render(f"- {self.stay.condition.short} in {{past}}")
            copies_examination = self.rng.draw_bool(EXAM_COPY_PROBABILITY)
            return replace(
                previous,
                history=(*previous.history, entry),
                examination=previous.examination if copies_examination else examination,
            )
        history = tuple(
            f"- {self.rng.choose((chronic.name, f'{chronic.name} ({chronic.short})'))}"
            for chronic in self.stay.patient.history
        )
        family = self.render_phrase("family")
        allergies = self.rng.choose(NOTE_PHRASES["allergies"])
        social = self.render_all(NOTE_PHRASES["social"])
        return CopiedText(allergies, social, family, history or ("- None",), examination)

    def write_discharge_summary(self, copied_text: CopiedText) -> SyntheticNote:
        """Write the discharge summary: the sections of a real one, in its order."""
        stay, rng = self.stay, self.rng
        destination = rng.choose(tuple(DISPOSITION_TEMPLATES))
        facts = {**self.facts, "allergies": copied_text.allergies, "left_for": destination}
        writer = replace(self, facts=facts)
        header = writer.render(SUMMARY_HEADER_TEMPLATES[self.shape])
        # The death mentioned is the patient's own; the bereaved have lost somebody else.
        planted = {
            "quoted": rng.draw_bool(self.rates.quoted_summaries),
            "bereaved": rng.draw_bool(self.rates.other_deaths_mentioned),
        }
        for part in DEATH_MENTION_PARTS:
            planted[f"death told in the {part}"] = stay.defects.death_mention == part
        defects = {
            name: writer.render_phrase(DEFECT_PHRASES[name])
            for name, is_planted in planted.items()
            if is_planted
        }
        sections = {
            **writer._write_admission_sections(copied_text, defects),
            **writer._write_course_sections(),
            **writer._write_discharge_sections(destination),
        }
        body = SECTION_BREAKS[self.shape].join(f"{title}:\n{t}" for title, t in sections.items())
        stored_at = stay.discharged_at + timedelta(
            hours=rng.draw_int(1, 90), minutes=rng.draw_int(0, 59)
        )
        return SyntheticNote(
            stay,
            "discharge",
            "Report",
            stay.discharged_at,
            stored_at,
            f"{header}{body}\n",
            tuple(defects),
        )

    def _write_admission_sections(
        self, copied_text: CopiedText, defects: Mapping[str, str]
    ) -> dict[str, str]:
        """Write what is known at admission.

        Every sign of the stay is stated in one of its ways: all that decides the outcomes
        (``outcome_model.py``).
        """
        stay, rng = self.stay, self.rng
        # Signs stand among other sentences, in a place that tells nothing
        story = [
            rng.choose(NOTE_PHRASES["opening"]),
            *rng.sample(stay.condition.story, 3),
            rng.choose(NOTE_PHRASES["arrival"]),
            *(rng.choose(sign.says) for sign in stay.signs if sign.part == "story"),
            rng.choose(NOTE_PHRASES["review"]),
        ]
        findings = [
            _wrap_lines(self.render(rng.choose(sign.says)))
            for sign in stay.signs
            if sign.part == "exam"
        ]

        def select_defects(*names: str) -> list[str]:
            return [defects[name] for name in names if name in defects]

        history = " ".join(
            [self.render_all(story), *select_defects("quoted", "death told in the story")]
        )
        examination = [copied_text.examination, *findings]
        return {
            "Chief Complaint": stay.complaint,
            "Major Surgical or Invasive Procedure": self.render(stay.procedure),
            "History of Present Illness": "\n".join(map(_wrap_lines, history.split("\n"))),
            "Past Medical History": "\n".join(copied_text.history),
            "Social History": _wrap_lines(
                " ".join([copied_text.social, *select_defects("bereaved")])
            ),
            "Family History": _wrap_lines(copied_text.family),
            "Physical Exam": "\n".join([*examination, *select_defects("death told in the exam")]),
        }

    def _write_course_sections(self) -> dict[str, str]:
        """Write the hospital course, and the results that stand before it."""
        stay, condition, rng = self.stay, self.stay.condition, self.rng
        treatment = [*condition.hospital_course, *(condition.severe if stay.severity == 2 else ())]
        lines = [f"# {condition.name}: {self.render_all(treatment)}"]
        lines += [
            f"# {complication.capitalize()}: {self.render_phrase('complication')}"
            for complication in stay.complications
        ]
        for chronic in rng.sample(stay.patient.history, 3):
            drug = next(
                (drug for drug in stay.drugs_before if drug in chronic.drugs), "home regimen"
            )
            drug = drug.split(" ")[0].lower()
            lines.append(self.render_phrase("chronic_plan", name=chronic.short, drug=drug))
        lines.append(self.render_phrase("died" if stay.died_in_hospital else "left"))
        first, last = (
            " ".join(f"{name}-{format_lab_value(values[i])}" for name, values in stay.labs.items())
            for i in (0, 1)
        )
        cultures = self.render_all(rng.sample(condition.micro, 2), "\n")
        study = rng.choose(condition.studies)
        image = f"{study.examination}: {self.render_all(study.impression)}"
        results = [f"ADMISSION LABS:\n{first}", f"DISCHARGE LABS:\n{last}", cultures]
        return {
            "Pertinent Results": "\n".join(filter(None, [*results, _wrap_lines(image)])),
            "Brief Hospital Course": "\n\n".join(_wrap_lines(line) for line in lines),
        }

    def _write_discharge_sections(self, destination: str) -> dict[str, str]:
        """Write medicines and diagnoses, and instructions for those who leave alive."""
        stay, rng = self.stay, self.rng
        chronic = [illness.short for illness in stay.patient.history[:3]]
        diagnoses = [stay.condition.name, *stay.complications, *chronic]
        opening = "The Preadmission Medication list is accurate and complete.\n"
        medicines = {"Medications on Admission": self._number_drugs(stay.drugs_before, opening)}
        if stay.died_in_hospital:  # below admission, where no reader of it gets to
            return {
                **medicines,
                "Discharge Medications": "n/a",
                "Discharge Disposition": "Expired",
                "Discharge Diagnosis": "\n".join(diagnoses),
            }
        instructions = [rng.choose(NOTE_PHRASES["greeting"]), *stay.condition.instructions]
        return {
            **medicines,
            "Discharge Medications": self._number_drugs(stay.drugs_after),
            "Discharge Disposition": self.render(DISPOSITION_TEMPLATES[destination]),
            "Discharge Diagnosis": "\n".join(
                ["Primary:", diagnoses[0], "Secondary:", *diagnoses[1:]]
            ),
            "Discharge Condition": self.render_phrase("condition_at_discharge"),
            "Discharge Instructions": _wrap_lines(self.render_all(instructions)),
            "Followup Instructions": _wrap_lines(
                self.render_all(rng.sample(NOTE_PHRASES["follow_up"], rng.draw_int(1, 3)))
            ),
        }

    def _number_drugs(self, drugs: Sequence[str], opening: str = "") -> str:
        lines = [
            f"{number}. {self.render(NOTE_LINE_TEMPLATES['medicine'], medicine=drug)}"
            for number, drug in enumerate(drugs, start=1)
        ]
        return opening * self.rng.draw_bool(0.5) + ("\n".join(lines) or "None")

    def write_radiology_reports(self) -> Iterator[SyntheticNote]:
        """Write the reports of imaging studies, more of them for severe stays."""
        for _ in range(self.rng.draw_int(1, 2 + 2 * self.stay.severity)):
            study, moment = self.rng.choose(self.stay.condition.studies), self.draw_note_time()
            text = self.render(
                RADIOLOGY_REPORT_TEMPLATES[self.shape],
                **{
                    "exam": study.examination,
                    "technique": study.technique,
                    "findings": _wrap_lines(self.render_all(study.findings)),
                    "impression": _wrap_lines(self.render_all(study.impression)),
                },
            )
            stored_at = moment + timedelta(minutes=self.rng.draw_int(15, 600))
            yield SyntheticNote(self.stay, "radiology", study.examination, moment, stored_at, text)

    def write_nursing_notes(self) -> Iterator[SyntheticNote]:
        """Write one note a day on the ward, two in intensive care, times ``nursing_notes``.

        The older of the two charting systems calls them ``Nursing/other``.
        """
        stay, rng, rates = self.stay, self.rng, self.rates
        # One charting system for a whole stay
        kind = rng.choose(("nursing", "nursing/other"))
        phrases = NOTE_PHRASES["nursing"]
        shifts = min(stay.days, rates.max_nursing_days) * (2 if stay.needed_icu else 1)
        for number in range(shifts * rates.nursing_notes):
            general = rng.sample(phrases, rng.draw_int(4, len(phrases)))
            lines = [
                self.render(NOTE_LINE_TEMPLATES["nursing_opening"]),
                *map(self.render, general),
                self.render_all(stay.condition.nursing, ". ") + ".",
            ]
            moment = stay.admitted_at + timedelta(
                hours=12 * number // rates.nursing_notes + rng.draw_int(6, 11),
                minutes=rng.draw_int(0, 59),
            )
            stored_at = moment + timedelta(minutes=rng.draw_int(1, 90))
            text = "\n".join(map(_wrap_lines, lines)) + "\n"
            yield SyntheticNote(stay, kind, "Report", moment, stored_at, text)

    def write_respiratory_notes(self) -> Iterator[SyntheticNote]:
        """Write notes of respiratory therapists, of ventilated patients."""
        for _ in range(self.rng.draw_int(1, 4) if self.stay.was_ventilated else 0):
            moment = self.draw_note_time()
            stored_at = moment + timedelta(minutes=self.rng.draw_int(1, 40))
            text = _wrap_lines(self.render_all(NOTE_PHRASES["respiratory"]))
            yield SyntheticNote(self.stay, "respiratory", "Report", moment, stored_at, text)

    def write_physician_notes(self) -> Iterator[SyntheticNote]:
        """Write progress notes of intensive care."""
        description = "Physician Resident Progress Note"
        for _ in range(self.rng.draw_int(1, 3) if self.stay.needed_icu else 0):
            moment = self.draw_note_time()
            lines = self.render_all(NOTE_PHRASES["progress"], "\n").split("\n")
            text = "\n".join(map(_wrap_lines, lines))
            stored_at = moment + timedelta(minutes=self.rng.draw_int(20, 300))
            yield SyntheticNote(self.stay, "physician", description, moment, stored_at, text)

    def write_ecg_reports(self) -> Iterator[SyntheticNote]:
        """Write the report of an electrocardiogram, where there was one."""
        if self.rng.draw_bool(0.6):
            moment = self.draw_note_time()
            text = _wrap_lines(self.render_all(NOTE_PHRASES["ecg"]))
            stored_at = moment + timedelta(days=1)
            yield SyntheticNote(self.stay, "ecg", "Report", moment, stored_at, text)

    def write_newborn_notes(self) -> Iterator[SyntheticNote]:
        """Write the nursing notes of a newborn, one a day."""
        stay, rng = self.stay, self.rng
        for day in range(min(stay.days, self.rates.max_nursing_days)):
            moment = stay.admitted_at + timedelta(
                hours=12 * day + rng.draw_int(6, 11), minutes=rng.draw_int(0, 59)
            )
            text = _wrap_lines(self.render_all(NOTE_PHRASES["newborn"])) + "\n"
            stored_at = moment + timedelta(minutes=rng.draw_int(1, 90))
            yield SyntheticNote(stay, "nursing/other", "Report", moment, stored_at, text)

    def write_newborn_summary(self) -> SyntheticNote:
        """Write the discharge summary of a newborn."""
        discharged_at = self.stay.discharged_at
        stored_at = discharged_at + timedelta(hours=self.rng.draw_int(1, 90))
        text = self.render(NEWBORN_SUMMARY_TEMPLATE)
        return SyntheticNote(self.stay, "discharge", "Report", discharged_at, stored_at, text)

    def add_copies(self, note: SyntheticNote) -> Iterator[SyntheticNote]:
        """Yield the note, perhaps its addendum, perhaps itself again: word for word, or edited."""
        rng = self.rng
        yield note
        copy = replace(note, stored_at=note.stored_at + timedelta(minutes=rng.draw_int(2, 240)))
        if note.kind in ADDENDUM_TEMPLATES and rng.draw_bool(self.rates.addenda):
            yield replace(
                copy,
                kind=f"{note.kind} addendum",
                description="Addendum",
                text=_wrap_lines(self.render(rng.choose(ADDENDUM_TEMPLATES[note.kind]))),
                defects=("addenda",),
            )
        if rng.draw_bool(self.rates.exact_duplicates):
            yield replace(copy, defects=("exact duplicates",))
        if rng.draw_bool(self.rates.near_duplicates):
            lines = note.text.split("\n")
            # Numbers inside de-identification marks stay: a changed mark would be another person.
            numbered = [
                i
                for i, line in enumerate(lines)
                if "[**" not in line and any(map(str.isdigit, line))
            ]
            if numbered:
                i = rng.choose(numbered)
                lines[i] = re.sub(r"\d+", lambda m: str(int(m.group()) + 1), lines[i], count=1)
            lines.append(self.render_phrase("edits"))
            yield replace(copy, text="\n".join(lines), defects=("near duplicates",))


def _wrap_lines(text: str) -> str:
    """Wrap at 77 characters as the hospitals' systems do: at the last space that fits."""
    return _LONG_LINE_PATTERN.sub(r"\1\n", text)


NOTE_WRITERS: dict[str, tuple[Callable[[StayNoteWriter], Iterator[SyntheticNote]], ...]] = {
    "mimic-iv": (StayNoteWriter.write_radiology_reports,),
    "mimic-iii": (
        StayNoteWriter.write_radiology_reports,
        StayNoteWriter.write_nursing_notes,
        StayNoteWriter.write_respiratory_notes,
        StayNoteWriter.write_physician_notes,
        StayNoteWriter.write_ecg_reports,
    ),
}
"""Data set -> what it holds besides discharge summaries."""
