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
from clinpeft.data.cohorts.sections import Cut, Style
from clinpeft.data.cohorts.selection import apply, count
from clinpeft.data.cohorts.task import Reading, Rule

TEXT = pa.schema(
    [
        pa.field("stay_id", pa.int64(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)
BATCH_STAYS = 512
BATCH_NOTES = 256
PASS_CHARACTERS = 64_000_000  # a pass over the notes reads them all, so few of them; a pass is held in memory, so none of them large

_REPEATED = {"stay": "n.stay_id, md5(n.text)", "everywhere": "md5(n.text)"}
_ADDENDUM = "lower(coalesce(n.category, '')) = 'discharge addendum' OR starts_with(lower(coalesce(n.description, '')), 'addendum')"

# A note is judged before the stays are, so that what leaves here is counted in notes and nothing twice. The last of two equal texts stays;
# equal dates are ordered by file and row, where the published builder leaves it to an unstable sort.
_CHOSEN = """
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
_AVAILABLE = "coalesce(n.available_at <= a.prediction_time, false)"

# Sorting texts would need all of them in memory at once; so the stays are put in order without their texts, and the texts fetched in passes.
_PASSES = """
CREATE OR REPLACE TABLE reading_pass AS
WITH sized AS (
    SELECT a.stay_id, a.subject_id, a.prediction_time, sum(c.characters) AS characters
    FROM chosen_note c JOIN asked a USING (stay_id) WHERE c.reason IS NULL GROUP BY ALL)
SELECT stay_id, row_number() OVER ordered AS place, ((sum(characters) OVER ordered - characters) // {limit})::INTEGER AS pass
FROM sized WINDOW ordered AS (ORDER BY subject_id, prediction_time, stay_id)
"""
_ORDERED = """
SELECT c.stay_id, n.text FROM note n
JOIN (SELECT c.*, p.place FROM chosen_note c JOIN reading_pass p USING (stay_id) WHERE c.reason IS NULL AND p.pass = {number}) c
    ON n.file = c.file AND n."row" = c."row"
ORDER BY c.place, c.available_at NULLS FIRST, c.file, c."row"
"""


def _with_a_note(reading: Reading) -> Rule:
    missing = "no discharge summary" if reading.categories else "no note"
    return Rule(
        "with a note",
        f"""SELECT stay_id, CASE WHEN stay_id IN (SELECT stay_id FROM chosen_note WHERE reason = 'not available at the prediction time')
               THEN 'no note available at the prediction time' ELSE '{missing}' END AS reason
           FROM asked WHERE stay_id NOT IN (SELECT stay_id FROM chosen_note WHERE reason IS NULL)
           UNION ALL
           SELECT stay_id, 'only addenda' FROM chosen_note WHERE reason IS NULL GROUP BY stay_id HAVING NOT bool_or(report)""",
    )


def read(
    hospital: HospitalDatabase, reading: Reading, style: Style, target: Path
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
    steps = [hospital.read_notes(reading.categories)]
    free = reading.simulated or reading.waits
    chosen = _CHOSEN.format(
        addendum=_ADDENDUM,
        repeated=_REPEATED[reading.repeated],
        available="true" if free else _AVAILABLE,
    )
    connection.execute(chosen)
    steps.append(_noted(hospital))
    steps.append(apply(connection, _with_a_note(reading)))
    if reading.waits:
        connection.execute("""UPDATE asked SET prediction_time = greatest(asked.prediction_time, l.last_at)
            FROM (SELECT stay_id, max(available_at) AS last_at FROM chosen_note WHERE reason IS NULL GROUP BY stay_id) l
            WHERE l.stay_id = asked.stay_id""")
    steps.append(_cut(hospital, reading, style, target))
    return steps


def _noted(hospital: HospitalDatabase) -> Attrition:
    attrition = Attrition("notes of the stays asked", count(hospital.connection, "chosen_note"))
    query = "SELECT reason, count(*) FROM chosen_note WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
    for reason, left in hospital.connection.execute(query).fetchall():
        attrition.drop_rows(reason, left)
    return attrition


def _cut(hospital: HospitalDatabase, reading: Reading, style: Style, target: Path) -> Attrition:
    attrition = Attrition("text", count(hospital.connection, "asked"))
    with pq.ParquetWriter(target, TEXT, compression="zstd") as writer:
        for stays in _batched(_stays(hospital)):
            kept: list[tuple[int, str]] = []
            for stay_id, text in stays:
                cut = _read(text, reading, style)
                if cut.text is None:
                    attrition.drop_rows(cut.reason)
                else:
                    kept.append((stay_id, cut.text))
            if kept:
                writer.write_table(_table(kept))
    _keep(hospital, target)
    return attrition


def _stays(hospital: HospitalDatabase) -> Iterator[tuple[int, str]]:
    """Each stay with all its texts, a blank line between."""
    hospital.connection.execute(_PASSES.format(limit=PASS_CHARACTERS))
    ((passes,),) = hospital.connection.execute(
        "SELECT coalesce(max(pass) + 1, 0) FROM reading_pass"
    ).fetchall()
    rows = itertools.chain.from_iterable(_pass(hospital, number) for number in range(passes))
    for stay_id, group in itertools.groupby(rows, key=lambda row: row[0]):
        yield stay_id, "\n\n".join(text for _, text in group)


def _pass(hospital: HospitalDatabase, number: int) -> Iterator[tuple[int, str]]:
    for batch in hospital.connection.sql(_ORDERED.format(number=number)).to_arrow_reader(
        BATCH_NOTES
    ):
        yield from zip(batch["stay_id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def _batched(rows: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while batch := list(itertools.islice(rows, BATCH_STAYS)):
        yield batch


def _read(text: str, reading: Reading, style: Style) -> Cut:
    cut = sections.admission_note(text, style)
    if cut.text is None or not reading.without_deaths:
        return cut
    cleared = sections.without_death_phrase(cut.text)
    return (
        Cut(None, "the note mentions the patient's death")
        if sections.death_mention(cleared)
        else Cut(cleared)
    )


def _table(rows: list[tuple[int, str]]) -> pa.Table:
    columns: list[Any] = [
        pa.array([row[at] for row in rows], field.type) for at, field in enumerate(TEXT)
    ]
    return pa.Table.from_arrays(columns, schema=TEXT)


def _keep(hospital: HospitalDatabase, target: Path) -> None:
    """Only the stays with a text stay among ``asked``."""
    kept = pq.read_table(target, columns=["stay_id"])
    hospital.connection.register("texted", kept)
    hospital.connection.execute(
        "DELETE FROM asked WHERE stay_id NOT IN (SELECT stay_id FROM texted)"
    )
    hospital.connection.unregister("texted")
