"""The headings of a discharge summary, as data: which open a section known at admission.

Spellings are those of MIMIC-III (dictated, upper case, abbreviated) and MIMIC-IV (one template,
with the exams at admission and at discharge under one heading). A heading is written as
``normalize_section_heading`` makes it: lower case, single blanks, no numbering, brackets or rules
around it. The eight sections are those of van Aken et al. 2021, arXiv 2102.04110, section 3.1;
their spellings were collected for this package.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

HOSPITAL_COURSE_SECTION, DISCHARGE_SECTION, RESULTS_SECTION, TESTS_SECTION, OTHER_SECTION = (
    "HOSPITAL COURSE",
    "DISCHARGE",
    "RESULTS",
    "TESTS",
    "OTHER",
)


@dataclass(frozen=True)
class AdmissionSection:
    """A section known at admission.

    Attributes:
        title: in the extract.
        headings: those that open it anywhere.
        headings_before_course: those that open it only before the hospital course; after it,
            ``Physical Exam`` is the exam at discharge and ``Medications`` are those at discharge.
        inner_headings: headings, or words of headings, that are part of it and do not end it.
    """

    title: str
    headings_before_course: frozenset[str]
    headings: frozenset[str] = frozenset()
    inner_headings: frozenset[str] = frozenset()


def _split_headings(text: str) -> frozenset[str]:
    return frozenset(" ".join(part.split()) for part in text.split(","))


ADMISSION_SECTIONS: tuple[AdmissionSection, ...] = (
    AdmissionSection(
        "CHIEF COMPLAINT",
        headings_before_course=_split_headings(
            """
            chief complaint, chief complaints, cc, presenting complaint, primary complaint,
            admitting complaint, reason for admission, reason for hospitalization, reason for this
            admission, cheif complaint, complaint
            """
        ),
    ),
    AdmissionSection(
        "PRESENT ILLNESS",
        headings_before_course=_split_headings(
            """
            history of present illness, history of the present illness, present illness, history of
            presenting illness, hpi, history of present ilness, history present illness, brief
            history of present illness, brief hpi, history of current illness, cc hpi, chief
            complaint hpi, hpi cc, history of present illness hpi, history and reason for
            hospitalization, history and reason for admission, brief history, interval history,
            source hpi
            """
        ),
        inner_headings=_split_headings(
            """
            arrival, clinic, consults, ct, currently, cxr, ecg, echo, ed, ekg, emergency, er, exam,
            floor, given, imaging, interventions, lab, labs, meds, micro, mri, notable, onc,
            oncologic, osh, outside, patient, pe, received, review of system, review of systems,
            ros, studies, symptoms, timeline, transfer, treatment, ua, vital signs, vitals, vs
            """
        ),
    ),
    AdmissionSection(
        "MEDICAL HISTORY",
        headings_before_course=_split_headings(
            """
            past medical history, medical history, pmh, pmhx, past medical hx, past history,
            previous medical history, pmhx pshx, prior medical history, past medical and surgical
            history, past medical history past surgical history, pmh psh, pmh pshx, past medical
            surgical history, past surgical history, surgical history, psh, pshx, past surgical hx,
            past medicial history, past oncologic history, past oncological history, past
            psychiatric history, psychiatric history, past obstetric history, past ob history, past
            gyn history, past cardiac history, cardiac history, oncologic history, oncology history,
            problem list
            """
        ),
        inner_headings=_split_headings(
            """
            cabg, cardiac, gyn, history, medical, ob, oncologic, oncology, other, pacing, past,
            percutaneous, pmh, psh, psychiatric, risk, surgical
            """
        ),
    ),
    AdmissionSection(
        "MEDICATION ON ADMISSION",
        headings=_split_headings(
            """
            medications on admission, medication on admission, admission medications, medications
            prior to admission, home medications, preadmission medications, pre admission
            medications, preadmission medication list, the preadmission medication list, home meds,
            medications at home, outpatient medications, meds on admission, admission meds,
            medications upon admission, medications at the time of admission, medications before
            admission, medications on presentation, admitting medications, medications at admission,
            medications on transfer to hospital, prior to admission medications, current medications
            at home
            """
        ),
        headings_before_course=_split_headings(
            """
            medications, current medications, meds, medication, current meds, outpatient meds
            """
        ),
        inner_headings=_split_headings(
            """
            active, home, inhaled, outpatient, preadmission, previously, prn
            """
        ),
    ),
    AdmissionSection(
        "ALLERGIES",
        headings_before_course=_split_headings(
            """
            allergies, allergy, drug allergies, medication allergies, allergies and adverse
            reactions, allergies to medications, known allergies, allergies adverse drug reactions,
            adverse drug reactions
            """
        ),
    ),
    AdmissionSection(
        "PHYSICAL EXAM",
        headings_before_course=_split_headings(
            """
            physical exam, physical examination, pe, exam, examination, physical exam on admission,
            physical examination on admission, admission physical exam, admission physical
            examination, admission exam, admission pe, pe on admission, exam on admission, physical
            exam upon admission, physical examination upon admission, physical exam at admission,
            initial physical, initial physical exam, initial exam, initial physical examination,
            pex, px, on admission, physical exam on presentation, admission physical, physical exam
            on arrival, physical exam on transfer to icu, exam upon admission, physical exam vs,
            physical
            """
        ),
        inner_headings=_split_headings(
            """
            abd, abdomen, abdominal, access, admission, appearance, back, breasts, card, cardiac,
            cardio, cardiovascular, chest, constitutional, coordination, cor, cranial, cv, derm,
            ears, exam, ext, extremities, extremity, eyes, gait, gen, general, gi, gu, head, heart,
            heent, i, language, lines, lung, lungs, lymph, mental, motor, mouth, msk,
            musculoskeletal, neck, nerves, neuro, neurologic, neurological, neurology, nodes, o,
            orientation, oropharynx, pelvic, psych, pulm, pulmonary, pulses, rectal, reflexes, resp,
            respiratory, sensation, sensory, skin, speech, status, strength, thorax, tone, vascular,
            vital, vitals, vs, weight, wound
            """
        ),
    ),
    AdmissionSection(
        "FAMILY HISTORY",
        headings_before_course=_split_headings(
            """
            family history, fh, fhx, family hx, family medical history, fam hx, family history of
            """
        ),
        inner_headings=_split_headings(
            """
            brother, children, father, maternal, mother, paternal, siblings, sister
            """
        ),
    ),
    AdmissionSection(
        "SOCIAL HISTORY",
        headings_before_course=_split_headings(
            """
            social history, sh, shx, social hx, soc hx, personal and social history, social history
            and habits, habits, social
            """
        ),
        inner_headings=_split_headings(
            """
            alcohol, drugs, employment, etoh, illicits, lives, living, occupation, smoking,
            substance, tobacco
            """
        ),
    ),
)

NON_ADMISSION_HEADINGS: dict[str, frozenset[str]] = {
    HOSPITAL_COURSE_SECTION: _split_headings(
        """
        hospital course, brief hospital course, summary of hospital course, hospital course by
        systems, hospital course by problem, concise summary of hospital course by issue system,
        brief summary of hospital course, hospital course by system, icu course, micu course, sicu
        course, ccu course, floor course, course in hospital, hospitalization course, clinical
        course, course, hospital course by issue, hpi hospital course, assessment and plan, a p,
        assessment, impression and plan, active issues, acute issues, chronic issues, transitional
        issues, issues, post operative course, postoperative course, operative course, brief course,
        events, addendum, interim summary, hospital summary, inpatient course, course and treatment
        """
    ),
    DISCHARGE_SECTION: _split_headings(
        """
        discharge, discharge date, discharge medications, medications on discharge, discharge meds,
        discharge disposition, discharge diagnosis, discharge diagnoses, final diagnosis, final
        diagnoses, discharge condition, condition on discharge, condition at discharge, discharge
        instructions, followup instructions, follow up instructions, followup, follow up, discharge
        exam, discharge physical exam, exam on discharge, physical exam on discharge, physical exam
        at discharge, discharge physical examination, on discharge, at discharge, upon discharge,
        discharge labs, discharge vitals, disposition, dispo, facility, condition, medications at
        the time of discharge, medications upon discharge, follow up plans, medications at
        discharge, diagnosis, diagnoses, primary diagnosis, principal diagnosis, secondary
        diagnosis, code status, secondary diagnoses, primary diagnoses, principal diagnoses, status,
        completed by, dictated by, discharge status, expired, cause of death, time of death, date of
        death, death summary, discharge plan, discharge followup, transfer medications
        """
    ),
    RESULTS_SECTION: _split_headings(
        """
        pertinent results, results, pertinent laboratory data, laboratory data, laboratory values,
        laboratory results, lab data, pertinent labs, pertinent laboratories, laboratories,
        laboratory studies, radiology, labs on admission, admission labs, laboratory data on
        admission, laboratories on admission, laboratory, radiologic studies, diagnostic studies,
        data, microbiology, pathology, cardiology report, relevant laboratory data, pertinent
        studies, imaging studies, labs and studies, pertinent laboratory values, pertinent
        laboratory studies, radiology data, reports, laboratory findings, relevant studies,
        admission laboratory data, pertinent results on admission, preliminary laboratory data,
        operative findings, findings
        """
    ),
    TESTS_SECTION: _split_headings(
        """
        labs, lab, imaging, studies, ekg, ecg, cxr, chest x ray, electrocardiogram, echo,
        echocardiogram, ct, mri, micro, ua, urinalysis, cath, cardiac catheterization, chest xray,
        tte, tee, eeg, ct head, head ct, ultrasound
        """
    ),
    OTHER_SECTION: _split_headings(
        """
        admission date, date of birth, sex, service, attending, name, unit no, medical record
        number, dictated, admitted, major surgical or invasive procedure, major surgical and
        invasive procedures, procedures, procedure, operations, operation, principal procedure,
        surgical procedures, procedures performed, operative procedures, operative procedure,
        invasive procedures, review of systems, ros, review of symptoms, vaccinations,
        immunizations, admission diagnosis, admission diagnoses, consults, admitting diagnosis,
        consultations, primary care physician, pcp, health care proxy, hcp, communication, contact,
        plan
        """
    ),
}

# A heading that the tables do not have is recognized by a phrase in it; the first that fits counts.
SECTION_PHRASES: tuple[tuple[str, str], ...] = (
    ("hospital course", HOSPITAL_COURSE_SECTION),
    ("icu course", HOSPITAL_COURSE_SECTION),
    ("course by", HOSPITAL_COURSE_SECTION),
    ("discharge", DISCHARGE_SECTION),
    ("follow up", DISCHARGE_SECTION),
    ("followup", DISCHARGE_SECTION),
    ("pertinent", RESULTS_SECTION),
    ("laborator", RESULTS_SECTION),
)
MAX_SECTION_HEADING_WORDS = 7  # of a heading by its phrase; a longer line is a sentence

ADMISSION_SECTIONS_BY_TITLE: dict[str, AdmissionSection] = {
    section.title: section for section in ADMISSION_SECTIONS
}
HEADINGS_AFTER_COURSE: dict[str, str] = {
    heading: section.title for section in ADMISSION_SECTIONS for heading in section.headings
}
SECTION_NAMES_BY_HEADING: dict[str, str] = {
    **{heading: name for name, headings in NON_ADMISSION_HEADINGS.items() for heading in headings},
    **{
        heading: section.title
        for section in ADMISSION_SECTIONS
        for heading in (*section.headings_before_course, *section.headings)
    },
}

_PARENTHESES = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|[(\[{].*$")
_NUMBERING = re.compile(r"^\s*\(?\d{1,2}[.)]\s*")
_EDGE_CHARACTERS = " \t*#=_-•>·.,+|\"'`~"


# Notes repeat the same few hundred headings.
@functools.lru_cache(maxsize=16384)
def normalize_section_heading(heading: str) -> str:
    """A heading as in the tables above.

    ``2. PAST MEDICAL HISTORY (per OMR)`` becomes ``past medical history``.
    """
    plain = _PARENTHESES.sub(" ", _NUMBERING.sub("", heading.casefold()))
    for sign, spelled in (("&", " and "), ("/", " "), ("-", " ")):
        plain = plain.replace(sign, spelled)
    return " ".join(plain.strip(_EDGE_CHARACTERS).split())
