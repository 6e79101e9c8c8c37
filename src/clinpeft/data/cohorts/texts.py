"""Notes -> one text a stay: of its notes, mostly the discharge summary and its addenda, what may be read at the prediction time.

Memory: one pass of 64 million characters at a time, in DuckDB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts import sections
from clinpeft.data.cohorts.sections import NoteExtract, SectionStyle
from clinpeft.data.cohorts.selection import apply_exclusion, count_selected_rows
from clinpeft.data.cohorts.task import NoteSelection, ExclusionCriterion

STAY_TEXT_SCHEMA = pa.schema(
    [
        pa.field("stay_id", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
TEXT_BATCH_STAYS = 512
TEXT_BATCH_NOTES = 256
MAX_PASS_CHARACTERS = 64_000_000  # a pass over the notes reads them all, so few of them; a pass is held in memory, so none of them large

_DEDUPLICATION_KEYS = {"stay": "n.stay_id, md5(n.text)", "everywhere": "md5(n.text)"}
_IS_ADDENDUM_SQL = "lower(coalesce(n.category, '')) = 'discharge addendum' OR starts_with(lower(coalesce(n.description, '')), 'addendum')"

# A note is judged before the stays are, so that what leaves here is counted in notes and nothing twice. The last of two equal texts stays;
# equal dates are ordered by file and row, where the published builder leaves it to an unstable sort.
_SELECT_NOTES_SQL = """
CREATE OR REPLACE TABLE chosen_note AS
SELECT n.file, n."row", n.stay_id, n.available_at, length(n.text) AS characters, NOT ({addendum}) AS report,
    CASE WHEN n.stay_id IS NULL THEN 'of no stay'
         WHEN row_number() OVER (PARTITION BY n.stay_id IS NULL, {repeated} ORDER BY n.available_at DESC NULLS LAST, n.file DESC, n."row" DESC) > 1
         THEN 'repeats another text'
         WHEN a.stay_id IS NULL THEN 'of a stay that is not asked'
         WHEN a.subject_id <> n.subject_id THEN 'of another person than its stay'
         WHEN NOT ({available}) THEN 'not available at the prediction time' END AS reason
FROM note n LEFT JOIN asked a ON a.stay_id = n.stay_id
"""
_IS_AVAILABLE_SQL = "coalesce(n.available_at <= a.prediction_time, false)"

# Sorting texts would need all of them in memory at once; so the stays are put in order without their texts, and the texts fetched in passes.
_PLAN_PASSES_SQL = """
CREATE OR REPLACE TABLE reading_pass AS
WITH sized AS (
    SELECT a.stay_id, a.subject_id, a.prediction_time, sum(c.characters) AS characters
    FROM chosen_note c JOIN asked a USING (stay_id) WHERE c.reason IS NULL GROUP BY ALL)
SELECT stay_id, row_number() OVER ordered AS place, ((sum(characters) OVER ordered - characters) // {limit})::INTEGER AS pass
FROM sized WINDOW ordered AS (ORDER BY subject_id, prediction_time, stay_id)
"""
_ORDERED_NOTES_SQL = """
SELECT c.stay_id, n.text FROM note n
JOIN (SELECT c.*, p.place FROM chosen_note c JOIN reading_pass p USING (stay_id) WHERE c.reason IS NULL AND p.pass = {number}) c
    ON n.file = c.file AND n."row" = c."row"
ORDER BY c.place, c.available_at NULLS FIRST, c.file, c."row"
"""


def _require_note(note_selection: NoteSelection) -> ExclusionCriterion:
    missing = "no discharge summary" if note_selection.categories else "no note"
    return ExclusionCriterion(
        "with a note",
        f"""SELECT stay_id, CASE WHEN stay_id IN (SELECT stay_id FROM chosen_note WHERE reason = 'not available at the prediction time')
               THEN 'no note available at the prediction time' ELSE '{missing}' END AS reason
           FROM asked WHERE stay_id NOT IN (SELECT stay_id FROM chosen_note WHERE reason IS NULL)
           UNION ALL
           SELECT stay_id, 'only addenda' FROM chosen_note WHERE reason IS NULL GROUP BY stay_id HAVING NOT bool_or(report)""",
    )


def write_stay_texts(
    hospital: HospitalDatabase,
    note_selection: NoteSelection,
    section_style: SectionStyle,
    target: Path,
) -> list[Attrition]:
    """The texts of the stays ``asked`` into the Parquet file ``target`` (schema ``TEXT``), ordered by subject and prediction time.

    Stays without a text leave ``asked``; where the prediction waits for the last note, ``prediction_time`` becomes that of the note.

    Raises:
        SourceError: there are no notes.
    """
    if "note" in hospital.missing_tables:
        raise SourceError(
            f"there are no notes ({hospital.missing_tables['note']})",
            location=str(hospital.folder),
            hint="put them there: they are what is read",
        )
    connection = hospital.connection
    steps = [hospital.read_notes(note_selection.categories)]
    free = note_selection.is_simulated or note_selection.waits_for_last_note
    chosen = _SELECT_NOTES_SQL.format(
        addendum=_IS_ADDENDUM_SQL,
        repeated=_DEDUPLICATION_KEYS[note_selection.deduplication_scope],
        available="true" if free else _IS_AVAILABLE_SQL,
    )
    connection.execute(chosen)
    steps.append(_count_excluded_notes(hospital))
    steps.append(apply_exclusion(connection, _require_note(note_selection)))
    if note_selection.waits_for_last_note:
        connection.execute("""UPDATE asked SET prediction_time = greatest(asked.prediction_time, l.last_at)
            FROM (SELECT stay_id, max(available_at) AS last_at FROM chosen_note WHERE reason IS NULL GROUP BY stay_id) l
            WHERE l.stay_id = asked.stay_id""")
    steps.append(_write_note_extracts(hospital, note_selection, section_style, target))
    return steps


def _count_excluded_notes(hospital: HospitalDatabase) -> Attrition:
    attrition = Attrition(
        "notes of the stays asked", count_selected_rows(hospital.connection, "chosen_note")
    )
    query = "SELECT reason, count(*) FROM chosen_note WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
    for reason, left in hospital.connection.execute(query).fetchall():
        attrition.drop_rows(reason, left)
    return attrition


def _write_note_extracts(
    hospital: HospitalDatabase,
    note_selection: NoteSelection,
    section_style: SectionStyle,
    target: Path,
) -> Attrition:
    attrition = Attrition("text", count_selected_rows(hospital.connection, "asked"))
    with pq.ParquetWriter(target, STAY_TEXT_SCHEMA, compression="zstd") as writer:
        for stays in _batch_stay_texts(_iterate_stay_texts(hospital)):
            kept: list[tuple[int, str]] = []
            for stay_id, text in stays:
                cut = _extract_text(text, note_selection, section_style)
                if cut.text is None:
                    attrition.drop_rows(cut.reason)
                else:
                    kept.append((stay_id, cut.text))
            if kept:
                writer.write_table(_build_text_table(kept))
    _drop_stays_without_text(hospital, target)
    return attrition


def _iterate_stay_texts(hospital: HospitalDatabase) -> Iterator[tuple[int, str]]:
    """Each stay with all its texts, a blank line between."""
    hospital.connection.execute(_PLAN_PASSES_SQL.format(limit=MAX_PASS_CHARACTERS))
    ((passes,),) = hospital.connection.execute(
        "SELECT coalesce(max(pass) + 1, 0) FROM reading_pass"
    ).fetchall()
    rows = itertools.chain.from_iterable(
        _iterate_pass_notes(hospital, number) for number in range(passes)
    )
    for stay_id, group in itertools.groupby(rows, key=lambda row: row[0]):
        yield stay_id, "\n\n".join(text for _, text in group)


def _iterate_pass_notes(hospital: HospitalDatabase, number: int) -> Iterator[tuple[int, str]]:
    for batch in hospital.connection.sql(_ORDERED_NOTES_SQL.format(number=number)).to_arrow_reader(
        TEXT_BATCH_NOTES
    ):
        yield from zip(batch["stay_id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def _batch_stay_texts(rows: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while batch := list(itertools.islice(rows, TEXT_BATCH_STAYS)):
        yield batch


def _extract_text(
    text: str, note_selection: NoteSelection, section_style: SectionStyle
) -> NoteExtract:
    cut = sections.extract_note_text(text, section_style)
    if cut.text is None or not note_selection.excludes_death_mentions:
        return cut
    cleared = sections.remove_death_phrases(cut.text)
    return (
        NoteExtract(None, "the note mentions the patient's death")
        if sections.mentions_death(cleared)
        else NoteExtract(cleared)
    )


def _build_text_table(rows: list[tuple[int, str]]) -> pa.Table:
    columns: list[Any] = [
        pa.array([row[at] for row in rows], field.type) for at, field in enumerate(STAY_TEXT_SCHEMA)
    ]
    return pa.Table.from_arrays(columns, schema=STAY_TEXT_SCHEMA)


def _drop_stays_without_text(hospital: HospitalDatabase, target: Path) -> None:
    """Only the stays with a text stay among ``asked``."""
    kept = pq.read_table(target, columns=["stay_id"])
    hospital.connection.register("texted", kept)
    hospital.connection.execute(
        "DELETE FROM asked WHERE stay_id NOT IN (SELECT stay_id FROM texted)"
    )
    hospital.connection.unregister("texted")
