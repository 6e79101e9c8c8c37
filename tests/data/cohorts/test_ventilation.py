"""Ventilation: what was charted, as a table that a clinician can read, against the episodes that
must come out; hours are counted by hand.

A line is: ICU stay, day and time, item, value. A value in quotes ends where the quote ends:
``"Trach mask "`` has a blank that matters.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.data.cohorts import ventilation
from clinpeft.data.cohorts.ventilation import rules

Episodes = list[tuple[int, str, str, str, float]]

CHARTEVENTS_III = [
    *("ROW_ID", "SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "ITEMID", "CHARTTIME", "STORETIME", "CGID"),
    *("VALUE", "VALUENUM", "VALUEUOM", "WARNING", "ERROR", "RESULTSTATUS", "STOPPED"),
]
PROCEDUREEVENTS_III = (
    "ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,STARTTIME,ENDTIME,ITEMID,VALUE,STATUSDESCRIPTION".split(
        ","
    )
)
CHARTEVENTS_IV = [
    *("subject_id", "hadm_id", "stay_id", "caregiver_id", "charttime", "storetime", "itemid"),
    *("value", "valuenum", "valueuom", "warning"),
]
PROCEDUREEVENTS_IV = (
    "subject_id,hadm_id,stay_id,starttime,endtime,itemid,value,statusdescription".split(",")
)


def moment(text: str) -> str:
    """``2 08:30`` is half past eight on the second day."""
    day, clock = text.split()
    hours, minutes = clock.split(":")
    return str(
        datetime(2150, 1, 1) + timedelta(days=int(day) - 1, hours=int(hours), minutes=int(minutes))
    )


def lines(table: str) -> Iterator[list[str]]:
    for line in filter(str.strip, table.splitlines()):
        cells = [cell.strip() for cell in line.split("|")]
        yield [cell[1:-1] if cell.startswith('"') else cell for cell in cells]


def write(path: Path, header: list[str], rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)


def charted_iii(folder: Path, table: str, extubations: str = "") -> Path:
    rows = [
        {
            "ICUSTAY_ID": stay,
            "CHARTTIME": moment(at),
            "ITEMID": item,
            "VALUE": value,
            "ERROR": error[0] if error else "",
        }
        for stay, at, item, value, *error in lines(table)
    ]
    starts = (
        [
            {"ICUSTAY_ID": stay, "STARTTIME": moment(at), "ITEMID": item}
            for stay, at, item in lines(extubations)
        ]
        if extubations
        else []
    )
    write(folder / "CHARTEVENTS.csv", CHARTEVENTS_III, rows)
    write(folder / "PROCEDUREEVENTS_MV.csv", PROCEDUREEVENTS_III, starts)
    return folder


def charted_iv(folder: Path, table: str) -> Path:
    rows = [
        {"stay_id": stay, "charttime": moment(at), "itemid": item, "value": value}
        for stay, at, item, value in lines(table)
    ]
    write(folder / "icu" / "chartevents.csv", CHARTEVENTS_IV, rows)
    return folder


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """ICU stays 101 to 140 and 201 to 240, one an admission: stay 101 is admission 1101 of subject
    11."""
    with duckdb.connect() as opened:
        opened.execute("""
            CREATE TABLE icu_stay AS
            SELECT icu_stay_id // 10 + 1 AS subject_id, icu_stay_id + 1000 AS stay_id, icu_stay_id
            FROM (SELECT unnest(range(101, 141) || range(201, 241)) AS icu_stay_id)
        """)
        yield opened


def episodes(connection: duckdb.DuckDBPyConnection) -> Episodes:
    rows = connection.execute(
        "SELECT icu_stay_id, status, began_at, ended_at FROM episode ORDER BY icu_stay_id, began_at"
    ).fetchall()
    first = datetime(2150, 1, 1)
    return [
        (
            stay,
            status,
            *(f"{(at - first).days + 1} {at:%H:%M}" for at in (began, ended)),
            (ended - began) / timedelta(hours=1),
        )
        for stay, status, began, ended in rows
    ]


def dropped(derived: ventilation.EpisodeDerivation) -> dict[str, dict[str, int]]:
    return {
        attrition.step: dict(attrition.dropped_rows)
        for attrition in derived.attrition
        if attrition.dropped_rows
    }


# ---- MIMIC-III

SETTINGS_III = """
101 | 1 00:00 | 223849 | CMV/ASSIST
101 | 1 04:00 | 224687 | 9.1
101 | 1 12:00 | 220339 | 5
102 | 1 00:00 | 445    | 8.8
102 | 1 08:00 | 445    | 8.8
102 | 1 16:01 | 445    | 8.8
102 | 1 18:00 | 445    | 8.8
103 | 1 00:00 | 720    | Assist Control
103 | 1 06:00 | 720    | CPAP+PS
103 | 1 10:00 | 640    | Extubated
103 | 1 12:00 | 720    | Assist Control
103 | 1 14:00 | 720    | Assist Control
104 | 1 00:00 | 543    | 20
104 | 1 08:00 | 543    | 20
104 | 1 11:00 | 543    | 20
104 | 1 12:00 | 543    | 20
105 | 1 00:00 | 224685 | 480
105 | 1 04:00 | 224685 | 480
105 | 1 05:00 | 226732 | Nasal cannula
105 | 1 06:00 | 224685 | 480
105 | 1 07:00 | 224685 | 480
106 | 1 00:00 | 224685 | 480
106 | 1 04:00 | 224685 | 480
106 | 1 05:00 | 226732 | "Trach mask"
106 | 1 06:00 | 224685 | 480
107 | 1 00:00 | 224685 | 480
107 | 1 04:00 | 224685 | 480
107 | 1 05:00 | 226732 | "Trach mask "
107 | 1 06:00 | 224685 | 480
107 | 1 07:00 | 224685 | 480
108 | 1 00:00 | 224685 | 480
108 | 1 02:00 | 467    | T-piece
108 | 1 04:00 | 224685 | 480
108 | 1 05:00 | 226732 | T-piece
108 | 1 06:00 | 224685 | 480
108 | 1 07:00 | 224685 | 480
109 | 1 00:00 | 682    | 500
109 | 1 04:00 | 682    | 500
109 | 1 04:00 | 467    | Nasal Cannula
109 | 1 08:00 | 682    | 500
110 | 1 00:00 | 459    | -30
110 | 1 04:00 | 459    | -30
111 | 1 00:00 | 224701 | 10
112 | 1 00:00 | 501    | 15
112 | 1 06:00 | 501    | 15 | 1
112 | 1 12:00 | 501    | 15 | 0
113 | 1 00:00 | 467    | Ventilator
113 | 1 01:00 | 467    | None
113 | 1 03:00 | 467    | Ventilator
113 | 1 05:00 | 720    | Other/Remarks
113 | 1 06:00 | 223848 | Other
114 | 1 00:00 | 640    | Extubated
114 | 1 05:00 | 226732 | Face tent
115 | 1 00:00 | 223848 | Drager
115 | 1 02:00 | 640    | Self Extubation
115 | 1 02:00 | 226732 | "Venti mask "
116 | 1 00:00 | 672    | 3
116 | 1 02:00 | 672    | 3
116 | 1 02:00 | 640    | Extubated
116 | 1 03:00 | 672    | 3
116 | 1 04:00 | 672    | 3
117 | 1 00:00 | 672    | 3
117 | 1 01:00 | 640    | Intubated
117 | 1 02:00 | 672    | 3
118 | 1 00:00 | 672    | 3
118 | 1 02:00 | 640    | Extubated
120 | 1 00:00 | 672    | 3
120 | 1 01:00 | 672    | 3
120 | 1 02:00 | 640    | Self Extubation
"""

EXTUBATIONS_III = """
104 | 1 09:00 | 227194
118 | 1 02:00 | 227194
118 | 1 02:00 | 225477
120 | 1 02:00 | 227194
"""

EXPECTED_III = [
    (101, "ventilated", "1 00:00", "1 12:00", 12.0),
    (
        102,
        "ventilated",
        "1 00:00",
        "1 08:00",
        8.0,
    ),  # eight hours of silence go on, a minute more does not
    (102, "ventilated", "1 16:01", "1 18:00", 1 + 59 / 60),
    (103, "ventilated", "1 00:00", "1 10:00", 10.0),  # the extubation is the end
    (103, "ventilated", "1 12:00", "1 14:00", 2.0),
    (104, "ventilated", "1 00:00", "1 09:00", 9.0),
    (104, "ventilated", "1 11:00", "1 12:00", 1.0),
    (105, "ventilated", "1 00:00", "1 04:00", 4.0),  # oxygen ends it, its own time is not counted
    (105, "ventilated", "1 06:00", "1 07:00", 1.0),
    (106, "ventilated", "1 00:00", "1 06:00", 6.0),  # no blank, no mask
    (107, "ventilated", "1 00:00", "1 04:00", 4.0),
    (107, "ventilated", "1 06:00", "1 07:00", 1.0),
    (108, "ventilated", "1 00:00", "1 04:00", 4.0),  # item 467 spells it T-Piece
    (108, "ventilated", "1 06:00", "1 07:00", 1.0),
    (109, "ventilated", "1 00:00", "1 08:00", 8.0),  # oxygen beside a ventilator
    (113, "ventilated", "1 00:00", "1 03:00", 3.0),
    (116, "ventilated", "1 00:00", "1 02:00", 2.0),
    (116, "ventilated", "1 03:00", "1 04:00", 1.0),
    (117, "ventilated", "1 00:00", "1 02:00", 2.0),
    (118, "ventilated", "1 00:00", "1 02:00", 2.0),  # told three times in the same words
    (
        120,
        "ventilated",
        "1 00:00",
        "1 01:00",
        1.0,
    ),  # told in two ways: mimic-code takes the second for an extubation after the end
]


def test_charted_settings_of_mimic_iii_become_the_episodes_counted_by_hand(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    derived = ventilation.derive_mimic_iii_episodes(
        connection, charted_iii(tmp_path, SETTINGS_III, EXTUBATIONS_III)
    )
    assert episodes(connection) == EXPECTED_III
    assert derived.source == "charted"


def test_every_row_and_every_candidate_of_mimic_iii_is_kept_or_counted(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    more = """
119 | 1 00:00 | 445 | ""
119 | 1 01:00 | 445 |  | 1
999 | 1 00:00 | 445 | 8
    """
    folder = charted_iii(tmp_path, SETTINGS_III + more, EXTUBATIONS_III + "999 | 1 00:00 | 227194")
    with (folder / "CHARTEVENTS.csv").open("a") as file:
        file.write(
            "1,,,101,445,yesterday,,,8,8,,,,,\n2,,,101,445,,,,8,8,,,,,\n"
            "3,,,,445,2150-01-01 00:00:00,,,8,8,,,,,\n"
        )
    derived = ventilation.derive_mimic_iii_episodes(connection, folder)
    assert dropped(derived) == {
        "charted ventilation rows": {
            "marked as an error": 2,
            "value missing": 1,
            "chart time missing or not a time": 2,
            "no known ICU stay": 2,
        },
        "extubation procedures": {"no known ICU stay": 1},
        # 111, the two lonely moments of 112, 115 and its extubation at an oxygen row; 114; 120's
        "ventilation episodes": {"charted at one moment only": 4, "no ventilator row": 3},
    }
    rows, procedures, candidates = derived.attrition
    written = [line for line in lines(SETTINGS_III) if line[2] != "459"]
    assert (rows.entered_rows, procedures.entered_rows, procedures.kept_rows) == (
        len(written) + 3 + 3,
        5,
        4,
    )
    assert (
        candidates.kept_rows
        == len(EXPECTED_III)
        == connection.execute("SELECT count(*) FROM episode").fetchall()[0][0]
    )


def test_the_episode_table_carries_the_names_of_the_stay(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    ventilation.derive_mimic_iii_episodes(
        connection, charted_iii(tmp_path, "101 | 1 00:00 | 445 | 8\n101 | 1 01:00 | 445 | 8")
    )
    assert connection.execute(
        "SELECT subject_id, stay_id, icu_stay_id FROM episode"
    ).fetchall() == [(11, 1101, 101)]
    assert connection.execute("SHOW TABLES").fetchall() == [("episode",), ("icu_stay",)], (
        "what is built on the way is gone"
    )


def test_an_item_of_mimic_iii_with_a_value_says_one_thing_only() -> None:
    listed = [(sign.item, sign.value) for sign in rules.CHARTED_SIGNS]
    assert len(listed) == len(set(listed))
    unconditional = {sign.item for sign in rules.CHARTED_SIGNS if sign.value is None}
    assert unconditional.isdisjoint(
        sign.item for sign in rules.CHARTED_SIGNS if sign.value is not None
    )
    assert unconditional.isdisjoint(map(str, rules.UNUSED_SETTING_ITEMS)), (
        "item 459 is in mimic-code's rule and not among the items that it reads"
    )


# ---- MIMIC-IV

SETTINGS_IV = """
201 | 1 00:00 | 223849 | CMV/ASSIST
201 | 1 08:00 | 223849 | CMV/ASSIST
201 | 1 10:00 | 226732 | Nasal cannula
201 | 1 12:00 | 226732 | Nasal cannula
202 | 1 00:00 | 223849 | CMV
202 | 1 13:59 | 223849 | CMV
203 | 1 00:00 | 223849 | CMV
203 | 1 01:00 | 223849 | CMV
203 | 1 15:00 | 223849 | CMV
203 | 1 16:00 | 223849 | CMV
204 | 1 00:00 | 223849 | CMV
204 | 1 00:30 | 223849 | CMV
204 | 1 14:29 | 223849 | CMV
204 | 1 15:00 | 223849 | CMV
205 | 1 00:00 | 226732 | Endotracheal tube
205 | 1 04:00 | 223849 | CPAP/PSV
205 | 1 08:00 | 226732 | Tracheostomy tube
205 | 1 08:00 | 223849 | CPAP/PSV
205 | 2 00:00 | 223849 | Standby
205 | 1 20:00 | 226732 | "Trach mask "
206 | 1 00:00 | 223849 | CPAP/PSV
206 | 1 03:00 | 223849 | CPAP/PSV
207 | 1 00:00 | 226732 | Aerosol-cool
207 | 1 00:00 | 226732 | "Bipap mask "
207 | 1 02:00 | 226732 | "CPAP mask "
207 | 1 04:00 | 226732 | Aerosol-cool
207 | 1 04:00 | 226732 | High flow nasal cannula
207 | 1 06:00 | 226732 | Aerosol-cool
207 | 1 06:00 | 226732 | Tracheostomy tube
208 | 1 00:00 | 226732 | "CPAP mask"
208 | 1 02:00 | 226732 | "Trach mask"
208 | 1 04:00 | 226732 | T-piece
209 | 1 00:00 | 229314 | NIV-ST
209 | 1 02:00 | 229314 | NIV
209 | 1 03:00 | 229314 | NIV
209 | 1 03:00 | 223849 | SIMV/PSV
209 | 1 05:00 | 229314 | ASV
209 | 1 06:00 | 226732 | High flow nasal cannula
209 | 1 07:00 | 226732 | High flow nasal cannula
209 | 1 08:00 | 226732 | None
209 | 1 09:00 | 226732 | None
210 | 1 00:00 | 223849 | CMV
210 | 1 02:00 | 226732 | Nasal cannula
210 | 1 03:00 | 223849 | CMV
210 | 1 05:00 | 223849 | CMV
211 | 1 00:00 | 223849 | CMV
211 | 1 04:00 | 226732 | T-piece
211 | 1 13:00 | 223849 | CMV
"""

EXPECTED_IV = [
    (201, "InvasiveVent", "1 00:00", "1 10:00", 10.0),  # until the next charted status
    (201, "SupplementalOxygen", "1 10:00", "1 12:00", 2.0),
    (202, "InvasiveVent", "1 00:00", "1 13:59", 13 + 59 / 60),
    (203, "InvasiveVent", "1 00:00", "1 01:00", 1.0),  # fourteen hours of silence
    (203, "InvasiveVent", "1 15:00", "1 16:00", 1.0),
    (
        204,
        "InvasiveVent",
        "1 00:00",
        "1 00:30",
        0.5,
    ),  # 13 h 59 min that pass fourteen full hours of the clock
    (204, "InvasiveVent", "1 14:29", "1 15:00", 31 / 60),
    (205, "InvasiveVent", "1 00:00", "1 08:00", 8.0),
    (205, "Tracheostomy", "1 08:00", "1 20:00", 12.0),  # ventilated or not
    (206, "InvasiveVent", "1 00:00", "1 03:00", 3.0),
    (
        207,
        "NonInvasiveVent",
        "1 00:00",
        "1 04:00",
        4.0,
    ),  # a mask in any slot, other devices in the first only
    (207, "SupplementalOxygen", "1 04:00", "1 06:00", 2.0),
    (209, "NonInvasiveVent", "1 00:00", "1 03:00", 3.0),
    (209, "InvasiveVent", "1 03:00", "1 06:00", 3.0),
    (209, "HFNC", "1 06:00", "1 08:00", 2.0),
    (209, "None", "1 08:00", "1 09:00", 1.0),
    (
        210,
        "InvasiveVent",
        "1 03:00",
        "1 05:00",
        2.0,
    ),  # the first, at one moment, is none, though its next status comes two hours later
    (211, "InvasiveVent", "1 00:00", "1 13:00", 13.0),  # a T-piece says nothing
]


def test_charted_settings_of_mimic_iv_become_the_episodes_counted_by_hand(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    # 210 begins with one moment of ventilation and one of oxygen; by mimic-code's rule min(time) =
    # max(time) is no episode
    derived = ventilation.derive_mimic_iv_episodes(connection, charted_iv(tmp_path, SETTINGS_IV))
    assert episodes(connection) == EXPECTED_IV
    assert derived.source == "charted"
    assert dropped(derived) == {"ventilation episodes": {"charted at one moment only": 2}}
    assert (
        derived.attrition[0].entered_rows
        == derived.attrition[0].kept_rows
        == len(list(lines(SETTINGS_IV)))
    )


def test_the_published_table_keeps_a_device_only_beside_an_oxygen_flow(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    folder = charted_iv(
        tmp_path,
        """
    201 | 1 00:00 | 226732 | Endotracheal tube
    201 | 1 02:00 | 226732 | Endotracheal tube
    202 | 1 00:00 | 226732 | Nasal cannula
    202 | 1 00:00 | 223834 | 2
    202 | 1 02:00 | 226732 | Nasal cannula
    202 | 1 02:00 | 227287 | 2
    203 | 1 00:00 | 223849 | CMV
    203 | 1 01:00 | 223849 | CMV
    """,
    )
    ventilation.derive_mimic_iv_episodes(connection, folder, device_rows="with-oxygen-flow")
    assert [row[:2] for row in episodes(connection)] == [
        (202, "SupplementalOxygen"),
        (203, "InvasiveVent"),
    ]
    ventilation.derive_mimic_iv_episodes(connection, folder)
    assert [row[:2] for row in episodes(connection)] == [
        (201, "InvasiveVent"),
        (202, "SupplementalOxygen"),
        (203, "InvasiveVent"),
    ]


def test_the_lists_of_mimic_iv_are_complete_and_keep_their_blanks() -> None:
    by_item = {
        item: [reading for reading in rules.STATUS_VALUES if reading.item == item]
        for item in (rules.OXYGEN_DEVICE_ITEM, rules.VENTILATOR_MODE_ITEM, rules.HAMILTON_MODE_ITEM)
    }
    assert [len(readings) for readings in by_item.values()] == [17, 37, 13]
    assert len({(reading.item, reading.value) for reading in rules.STATUS_VALUES}) == 67
    assert {reading.value for reading in rules.STATUS_VALUES if reading.value.endswith(" ")} == {
        "Trach mask ",
        "Bipap mask ",
        "CPAP mask ",
        "Venti mask ",
        "Medium conc mask ",
    }
    assert "CPAP/PSV" in {reading.value for reading in by_item[rules.VENTILATOR_MODE_ITEM]}


# ---- procedures, where charted rows are missing


def test_procedures_stand_in_for_charted_rows_and_the_source_says_so(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    performed = [
        ("201", "1 00:00", "1 10:00", "225792", "FinishedRunning"),
        (
            "201",
            "1 08:00",
            "1 12:00",
            "225792",
            "FinishedRunning",
        ),  # overlaps the first: one stretch
        ("202", "1 00:00", "1 10:00", "225794", "FinishedRunning"),
        ("202", "1 04:00", "1 06:00", "225792", "Stopped"),  # a tube in the middle of a mask
        ("203", "1 00:00", "1 04:00", "225792", "Rewritten"),
        ("203", "1 05:00", "1 05:00", "225792", "FinishedRunning"),
        ("999", "1 00:00", "1 04:00", "225792", "FinishedRunning"),
        ("204", "1 00:00", "1 04:00", "224385", "FinishedRunning"),  # intubation: not ventilation
    ]
    names = ("stay_id", "starttime", "endtime", "itemid", "statusdescription")
    rows = [
        dict(zip(names, (stay, moment(began), moment(ended), *rest), strict=True))
        for stay, began, ended, *rest in performed
    ]
    write(tmp_path / "icu" / "procedureevents.csv", PROCEDUREEVENTS_IV, rows)
    derived = ventilation.derive_mimic_iv_episodes(connection, tmp_path)
    assert episodes(connection) == [
        (201, "InvasiveVent", "1 00:00", "1 12:00", 12.0),
        (202, "NonInvasiveVent", "1 00:00", "1 04:00", 4.0),
        (202, "InvasiveVent", "1 04:00", "1 06:00", 2.0),
        (202, "NonInvasiveVent", "1 06:00", "1 10:00", 4.0),
    ]
    assert derived.source == "procedures"
    assert dropped(derived) == {
        "ventilation procedures": {"rewritten": 1, "end not after start": 1, "no known ICU stay": 1}
    }
    assert derived.attrition[0].entered_rows == 7


def test_a_mask_of_mimic_iii_procedures_is_not_mechanical_ventilation(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    rows = [
        {
            "ICUSTAY_ID": stay,
            "STARTTIME": moment("1 00:00"),
            "ENDTIME": moment("9 00:00"),
            "ITEMID": item,
            "STATUSDESCRIPTION": "FinishedRunning",
        }
        for stay, item in (("101", "225792"), ("102", "225794"))
    ]
    write(tmp_path / "PROCEDUREEVENTS_MV.csv", PROCEDUREEVENTS_III, rows)
    assert ventilation.derive_mimic_iii_episodes(connection, tmp_path).source == "procedures"
    assert ventilation.label_prolonged_ventilation(connection, "summed").to_pydict() == {
        "subject_id": [11],
        "stay_id": [1101],
        "icu_stay_id": [101],
        "hours": [192.0],
        "prolonged": [True],
    }


# ---- the label

EPISODES = """
1 | 10 | 101 | ventilated      | 1 00:00 | 7 18:00 | 162 h and 6 h of grace are just 7 days
2 | 20 | 102 | ventilated      | 1 00:00 | 7 17:59 | a minute short
3 | 30 | 103 | ventilated      | 1 00:00 | 3 00:00 | 48 h
3 | 30 | 103 | ventilated      | 8 00:00 | 9 00:00 | 24 h, and a span of 192 h
4 | 40 | 104 | InvasiveVent    | 1 00:00 | 4 00:00 | 72 h by mouth
4 | 40 | 104 | Tracheostomy    | 4 00:00 | 8 00:00 | 96 h through the neck: together 168 h
5 | 50 | 105 | NonInvasiveVent | 1 00:00 | 9 00:00 | a mask only
6 | 60 | 106 | ventilated      | 1 00:00 | 4 00:00 | 72 h, an admission with two ICU stays
6 | 60 | 107 | ventilated      | 5 00:00 | 12 00:00 | 168 h
7 | 70 | 108 | ventilated      | 1 00:00 | 5 00:00 | 96 h
7 | 70 | 109 | ventilated      | 6 00:00 | 10 00:00 | 96 h: neither is long, both together are
"""


@pytest.fixture
def ventilated(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    rows = [
        (*map(int, line[:3]), line[3], moment(line[4]), moment(line[5])) for line in lines(EPISODES)
    ]
    connection.execute(
        "CREATE TABLE episode (subject_id BIGINT, stay_id BIGINT, icu_stay_id BIGINT, "
        "status VARCHAR, began_at TIMESTAMP, ended_at TIMESTAMP)"
    )
    connection.executemany("INSERT INTO episode VALUES (?, ?, ?, ?, ?, ?)", rows)
    return connection


def answers(
    connection: duckdb.DuckDBPyConnection, definition: str
) -> dict[int, tuple[float, bool]]:
    table: list[dict[str, Any]] = ventilation.label_prolonged_ventilation(
        connection, definition
    ).to_pylist()
    return {row["icu_stay_id"]: (round(row["hours"], 2), row["prolonged"]) for row in table}


def test_clinical_xlnet_measures_from_the_first_start_to_the_last_end_with_six_hours_of_grace(
    ventilated: duckdb.DuckDBPyConnection,
) -> None:
    assert answers(ventilated, "clinical-xlnet") == {
        101: (162.0, True),
        102: (161.98, False),
        103: (192.0, True),
        104: (168.0, True),
        106: (72.0, True),  # the admission's answer, from its second ICU stay
        107: (168.0, True),
        108: (96.0, False),  # the span never crosses ICU stays
        109: (96.0, False),
    }


def test_summed_counts_the_hours_on_the_ventilator_over_the_admission(
    ventilated: duckdb.DuckDBPyConnection,
) -> None:
    assert answers(ventilated, "summed") == {
        101: (162.0, False),
        102: (161.98, False),
        103: (72.0, False),
        104: (168.0, True),
        106: (72.0, True),
        107: (168.0, True),
        108: (96.0, True),
        109: (96.0, True),
    }


def test_without_tracheostomy_a_prolonged_case_would_be_cut_short(
    ventilated: duckdb.DuckDBPyConnection,
) -> None:
    ventilated.execute("DELETE FROM episode WHERE status = 'Tracheostomy'")
    assert answers(ventilated, "clinical-xlnet")[104] == (72.0, False)


def test_an_unknown_definition_names_the_known_ones(ventilated: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(RecipeError, match="clinical-xlnet, summed"):
        ventilation.label_prolonged_ventilation(ventilated, "longest")


def test_who_leaves_leaves_for_the_first_reason_that_holds(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    people = [  # stay, age, diagnosis
        (1, 17.9, "9100"),
        (2, None, ""),
        (3, 40.0, "1419"),
        (4, 40.0, "35801"),
        (5, 40.0, "35800"),  # myasthenia without exacerbation stays
        (6, 40.0, "94830"),
        (7, 40.0, "94820"),  # a burn of less than 30 % stays
        (8, 40.0, "V594"),
        (9, 40.0, "C029"),
        (10, 16.0, "V594"),  # the age comes first
        (11, 18.0, ""),
        (12, 40.0, "14"),  # a code cut short is no code of cancer
    ]
    connection.execute("CREATE OR REPLACE TABLE icu_stay (icu_stay_id BIGINT, began_at TIMESTAMP)")
    connection.execute("CREATE TABLE stay (stay_id BIGINT, age_years DOUBLE)")
    connection.execute(
        "CREATE TABLE code (stay_id BIGINT, kind VARCHAR, system VARCHAR, code VARCHAR)"
    )
    connection.execute(
        "CREATE TABLE episode (subject_id BIGINT, stay_id BIGINT, icu_stay_id BIGINT, "
        "status VARCHAR, began_at TIMESTAMP, ended_at TIMESTAMP)"
    )
    for stay, age, diagnosis in people:
        connection.execute("INSERT INTO stay VALUES (?, ?)", [stay, age])
        connection.execute(
            "INSERT INTO code VALUES (?, 'diagnosis', ?, ?)",
            [stay, "icd10" if diagnosis.startswith("C") else "icd9", diagnosis],
        )
    connection.execute(
        "INSERT INTO code VALUES (11, 'procedure', 'icd9', '1419'), (11, 'diagnosis', "
        "'icd10', '1419')"
    )  # codes of other systems
    for icu_stay, stay, began, hours in [
        *((stay * 10, stay, 1, 48) for stay, *_ in people),
        (111, 11, 5, 48),
        (112, 11, 4, 41),
        (113, 11, 3, 42),
    ]:
        start = datetime(2150, 1, began)
        connection.execute("INSERT INTO icu_stay VALUES (?, ?)", [icu_stay, start])
        connection.execute(
            "INSERT INTO episode VALUES (0, ?, ?, 'ventilated', ?, ?)",
            [stay, icu_stay, start, start + timedelta(hours=hours)],
        )
    reasons = {
        row["icu_stay_id"]: row["reason"]
        for row in ventilation.find_ventilation_exclusions(connection).to_pylist()
    }
    assert reasons == {
        10: "under 18 years",
        20: "age unknown",
        30: "head, face or neck cancer",
        40: "neuromuscular disease",
        60: "burns of head, face or neck, or of 30 % of the body or more",
        80: "organ or tissue donor",
        90: "head, face or neck cancer",
        100: "under 18 years",
        111: "not the first ICU stay of the admission",
        112: "ventilated for less than 2 days",
        113: "not the first ICU stay of the admission",
    }
    assert ventilation.find_ventilation_exclusions(connection, "summed").num_rows == 0


# ---- files as they come


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
@pytest.mark.parametrize("lower", [False, True])
def test_gzipped_or_not_and_in_either_case_the_episodes_are_the_same(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, ending: str, lower: bool
) -> None:
    charted_iii(tmp_path, SETTINGS_III, EXTUBATIONS_III)
    for path in list(tmp_path.iterdir()):
        text = path.read_text()
        text = text.split("\n", 1)[0].lower() + "\n" + text.split("\n", 1)[1] if lower else text
        path.unlink()
        target = path.with_suffix("." + ending)
        target.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    ventilation.derive_mimic_iii_episodes(connection, tmp_path)
    assert episodes(connection) == EXPECTED_III


def test_a_missing_table_is_named_with_what_it_is_needed_for(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"PROCEDUREEVENTS_MV.* extubation") as error:
        ventilation.derive_mimic_iii_episodes(connection, tmp_path)
    assert error.value.location == str(tmp_path)
    with pytest.raises(SourceError, match=r"chartevents\.csv"):
        ventilation.derive_mimic_iv_episodes(connection, tmp_path)


def test_a_missing_column_is_named_with_what_it_is_needed_for(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    charted_iii(tmp_path, SETTINGS_III)
    write(tmp_path / "CHARTEVENTS.csv", [name for name in CHARTEVENTS_III if name != "ERROR"], [])
    with pytest.raises(SourceError, match="column ERROR"):
        ventilation.derive_mimic_iii_episodes(connection, tmp_path)


HEAD_IV = b"stay_id,charttime,itemid,value\n"
GOOD_IV = b"201,2150-01-01 00:00:00,223849,CMV\n"
DAMAGED = {
    "it is cut off": (
        "chartevents.csv.gz",
        gzip.compress(
            HEAD_IV + b"".join(b"%d,2150-01-01 00:00:00,223849,CMV\n" % at for at in range(50_000))
        )[:-4000],
    ),
    "a quote is never closed": (
        "chartevents.csv",
        HEAD_IV + GOOD_IV + b'201,2150-01-01 04:00:00,223849,"secret\n' + GOOD_IV,
    ),
    "a row does not fit the header": (
        "chartevents.csv",
        HEAD_IV + GOOD_IV + b"201,2150-01-01 04:00:00,223849,secret,and,more\n" + GOOD_IV,
    ),
    "it is not gzipped": ("chartevents.csv.gz", HEAD_IV + GOOD_IV),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_stops_with_its_place_and_none_of_its_contents(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, damage: str
) -> None:
    name, contents = DAMAGED[damage]
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(SourceError, match=damage) as error:
        ventilation.derive_mimic_iv_episodes(connection, tmp_path)
    assert name in error.value.location
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None
    assert connection.execute("SHOW TABLES").fetchall() == [("icu_stay",)]


# ---- the open demos, which come without charted rows


def stays_of(connection: duckdb.DuckDBPyConnection, file: Path, icu_stay: str) -> None:
    columns = f"subject_id, hadm_id AS stay_id, {icu_stay} AS icu_stay_id"
    connection.execute(
        f"CREATE OR REPLACE TABLE icu_stay AS SELECT {columns} FROM read_csv('{file}')"
    )


DEMOS = {
    "mimic-iii": (
        "mimic3_demo_1.4",
        "ICUSTAYS.csv",
        "PROCEDUREEVENTS_MV.csv",
        "icustay_id",
        ventilation.derive_mimic_iii_episodes,
    ),
    "mimic-iv": (
        "mimic4_demo_2.2",
        "icu/icustays.csv.gz",
        "icu/procedureevents.csv.gz",
        "stay_id",
        ventilation.derive_mimic_iv_episodes,
    ),
}


@pytest.mark.parametrize("demo", DEMOS)
def test_the_open_demos_give_what_plain_sql_counts(
    connection: duckdb.DuckDBPyConnection, shared_data: Path, demo: str
) -> None:
    name, stays, procedures, icu_stay, derive = DEMOS[demo]
    folder = shared_data / name
    stays_of(connection, folder / stays, icu_stay)
    assert derive(connection, folder).source == "procedures"
    invasive = (
        f"SELECT {icu_stay} AS id, starttime, endtime FROM read_csv('{folder / procedures}') "
        "WHERE itemid = 225792"
    )
    by_hand = connection.execute(
        "SELECT id, date_diff('minute', min(starttime), max(endtime)) / 60, "
        "sum(date_diff('minute', starttime, endtime)) / 60"
        f" FROM ({invasive}) GROUP BY id ORDER BY id"
    ).fetchall()
    spans, sums = answers(connection, "clinical-xlnet"), answers(connection, "summed")
    assert [(stay, spans[stay][0], sums[stay][0]) for stay in sorted(spans)] == [
        (stay, round(span, 2), round(total, 2)) for stay, span, total in by_hand
    ]
    assert len(by_hand) == {"mimic-iii": 21, "mimic-iv": 60}[demo]
    assert (
        sum(prolonged for _, prolonged in spans.values())
        == sum(span + 6 >= 168 for _, span, _ in by_hand)
        == {"mimic-iii": 7, "mimic-iv": 10}[demo]
    )
