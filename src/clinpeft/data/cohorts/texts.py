"""Notes -> one text a stay: what a model may read at the prediction time.

Mostly this is cut from the discharge summary and its addenda. Texts are joined in passes of
``MAX_PASS_CHARACTERS`` characters, so that memory is bounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.database import count_drop_reasons, count_table_rows, register_arrow_tables
from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts import sections
from clinpeft.data.cohorts.sections import NoteExtract, SectionStyle
from clinpeft.data.cohorts.selection import apply_exclusion
from clinpeft.data.cohorts.task import ExclusionCriterion, NoteSelection

STAY_TEXT_SCHEMA = pa.schema(
    [
        pa.field("stay_id", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
TEXT_BATCH_STAYS = 512
TEXT_BATCH_NOTES = 256
# A pass reads all notes, so there should be few; its texts are held in memory, so that none may be
# large.
MAX_PASS_CHARACTERS = 64_000_000

# A note of no stay is compared only with others of no stay, since neither is read.
_DEDUPLICATION_KEYS = {"stay": "n.stay_id, md5(n.text)", "everywhere": "md5(n.text)"}
_IS_ADDENDUM_SQL = """lower(coalesce(n.category, '')) = 'discharge addendum'
    OR starts_with(lower(coalesce(n.description, '')), 'addendum')"""
_IS_AVAILABLE_SQL = "coalesce(n.available_at <= a.prediction_time, false)"

# Notes are dropped before stays are, so that what is dropped here is counted in notes and nothing
# is counted twice. The last of several equal texts remains; equal dates are ordered by file and
# row, which the published builder leaves to an unstable sort.
_SELECT_NOTES_SQL = """
CREATE OR REPLACE TABLE candidate_note AS
SELECT n.file, n."row", n.stay_id, n.available_at, length(n.text) AS characters,
    NOT ({is_addendum}) AS is_summary,
    CASE WHEN n.stay_id IS NULL THEN 'of no stay'
         WHEN row_number() OVER (
             PARTITION BY n.stay_id IS NULL, {deduplication_key}
             ORDER BY n.available_at DESC NULLS LAST, n.file DESC, n."row" DESC) > 1
         THEN 'repeats another text'
         WHEN a.stay_id IS NULL THEN 'of a stay that is not asked'
         WHEN a.subject_id <> n.subject_id THEN 'of another person than its stay'
         WHEN NOT ({is_available}) THEN 'not available at the prediction time' END AS reason
FROM note n LEFT JOIN selected_stay a ON a.stay_id = n.stay_id
"""
_REQUIRED_NOTE_SQL = """
SELECT stay_id,
    CASE WHEN stay_id IN (
             SELECT stay_id FROM candidate_note
             WHERE reason = 'not available at the prediction time')
         THEN 'no note available at the prediction time' ELSE '{missing_note}' END AS reason
FROM selected_stay
WHERE stay_id NOT IN (SELECT stay_id FROM candidate_note WHERE reason IS NULL)
UNION ALL
SELECT stay_id, 'only addenda' FROM candidate_note WHERE reason IS NULL
GROUP BY stay_id HAVING NOT bool_or(is_summary)
"""
_WAIT_FOR_LAST_NOTE_SQL = """
UPDATE selected_stay SET prediction_time = greatest(selected_stay.prediction_time, l.last_at)
FROM (SELECT stay_id, max(available_at) AS last_at FROM candidate_note
      WHERE reason IS NULL GROUP BY stay_id) l
WHERE l.stay_id = selected_stay.stay_id
"""

# Sorting the texts would need all of them in memory; so the stays are sorted without their texts,
# and the texts are read in passes.
_PLAN_PASSES_SQL = """
CREATE OR REPLACE TABLE text_pass AS
WITH sized AS (
    SELECT a.stay_id, a.subject_id, a.prediction_time, sum(c.characters) AS characters
    FROM candidate_note c JOIN selected_stay a USING (stay_id)
    WHERE c.reason IS NULL GROUP BY ALL)
SELECT stay_id, row_number() OVER ordered AS position,
    ((sum(characters) OVER ordered - characters) // {limit})::INTEGER AS pass
FROM sized WINDOW ordered AS (ORDER BY subject_id, prediction_time, stay_id)
"""
_ORDERED_NOTES_SQL = """
SELECT c.stay_id, n.text FROM note n
JOIN (SELECT c.*, p.position FROM candidate_note c JOIN text_pass p USING (stay_id)
      WHERE c.reason IS NULL AND p.pass = {number}) c
    ON n.file = c.file AND n."row" = c."row"
ORDER BY c.position, c.available_at NULLS FIRST, c.file, c."row"
"""


def write_stay_texts(
    hospital: HospitalDatabase,
    note_selection: NoteSelection,
    section_style: SectionStyle,
    target: Path,
) -> list[Attrition]:
    """Write the texts of the stays in ``selected_stay``, ordered by subject and prediction time.

    Stays without a text are deleted from ``selected_stay``. Where the prediction waits for the last
    note, ``prediction_time`` becomes the time of that note.

    Args:
        hospital: with ``selected_stay``.
        note_selection: which notes are read.
        section_style: which sections of them are kept.
        target: Parquet of ``STAY_TEXT_SCHEMA``, written.

    Returns:
        The attrition of reading, of notes, of stays without a note, and of texts.

    Raises:
        SourceError: there are no notes.
    """
    if "note" in hospital.missing_tables:
        raise SourceError(
            f"there are no notes ({hospital.missing_tables['note']})",
            location=str(hospital.folder),
            hint="put them there: their text is the input of every model",
        )
    connection = hospital.connection
    steps = [hospital.read_notes(note_selection.categories)]
    # A simulated note is cut from a summary of later date; a waiting task sets its time by it.
    any_time = note_selection.is_simulated or note_selection.waits_for_last_note
    connection.execute(
        _SELECT_NOTES_SQL.format(
            is_addendum=_IS_ADDENDUM_SQL,
            deduplication_key=_DEDUPLICATION_KEYS[note_selection.deduplication_scope],
            is_available="true" if any_time else _IS_AVAILABLE_SQL,
        )
    )
    reasons = "SELECT reason, count(*) FROM candidate_note GROUP BY reason ORDER BY reason"
    steps.append(count_drop_reasons(connection, "notes of the stays asked", reasons))
    missing_note = "no discharge summary" if note_selection.categories else "no note"
    required_note = _REQUIRED_NOTE_SQL.format(missing_note=missing_note)
    steps.append(apply_exclusion(connection, ExclusionCriterion("with a note", required_note)))
    if note_selection.waits_for_last_note:
        connection.execute(_WAIT_FOR_LAST_NOTE_SQL)
    steps.append(_write_note_extracts(hospital, note_selection, section_style, target))
    return steps


def _write_note_extracts(
    hospital: HospitalDatabase,
    note_selection: NoteSelection,
    section_style: SectionStyle,
    target: Path,
) -> Attrition:
    connection = hospital.connection
    attrition = Attrition("text", count_table_rows(connection, "selected_stay"))
    stay_texts = _iterate_stay_texts(hospital)
    with pq.ParquetWriter(target, STAY_TEXT_SCHEMA, compression="zstd") as writer:
        # Parquet row groups of a few hundred texts keep the memory of the writer small.
        while batch := list(itertools.islice(stay_texts, TEXT_BATCH_STAYS)):
            rows = []
            for stay_id, text in batch:
                extract = sections.extract_note_text(text, section_style)
                if extract.text is not None and note_selection.excludes_death_mentions:
                    # As in the published builder: first remove the phrase, then look for others.
                    cleared = sections.remove_death_phrases(extract.text)
                    extract = (
                        NoteExtract(None, "the note mentions the patient's death")
                        if sections.mentions_death(cleared)
                        else NoteExtract(cleared)
                    )
                if extract.text is None:
                    attrition.drop_rows(extract.reason)
                else:
                    rows.append({"stay_id": stay_id, "text": extract.text})
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=STAY_TEXT_SCHEMA))
    with register_arrow_tables(connection, arrow_rows=pq.read_table(target, columns=["stay_id"])):
        connection.execute(
            "DELETE FROM selected_stay WHERE stay_id NOT IN (SELECT stay_id FROM arrow_rows)"
        )
    return attrition


def _iterate_stay_texts(hospital: HospitalDatabase) -> Iterator[tuple[int, str]]:
    """Each stay with all its texts, separated by a blank line."""
    hospital.connection.execute(_PLAN_PASSES_SQL.format(limit=MAX_PASS_CHARACTERS))
    ((passes,),) = hospital.connection.execute(
        "SELECT coalesce(max(pass) + 1, 0) FROM text_pass"
    ).fetchall()
    for number in range(passes):
        notes = hospital.connection.sql(_ORDERED_NOTES_SQL.format(number=number))
        rows = (
            row
            for batch in notes.to_arrow_reader(TEXT_BATCH_NOTES)
            for row in zip(batch["stay_id"].to_pylist(), batch["text"].to_pylist(), strict=True)
        )
        # The notes of a stay are all in one pass.
        for stay_id, group in itertools.groupby(rows, key=lambda row: row[0]):
            yield stay_id, "\n\n".join(text for _, text in group)
