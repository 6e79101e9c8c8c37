"""The SQL against a slow second telling of the same rules in plain Python, on random charts; and
what holds for any chart."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pytest

from clinpeft.data.cohorts import ventilation

START = datetime(2150, 1, 1, 6, 17)
HOUR = timedelta(hours=1)
STAYS = range(1, 61)


class Row(NamedTuple):
    stay: int
    at: datetime
    item: str
    value: str
    error: bool = False


Episode = tuple[int, str, datetime, datetime]

# what a chart may hold, with what it says by the definition: v ventilated, o oxygen, x extubated, s
# by the patient, - nothing
SIGNS_III = {
    ("223849", "CMV"): "v",
    ("720", "Assist Control"): "v",
    ("720", "Other/Remarks"): "-",
    ("223848", "Other"): "-",
    ("467", "Ventilator"): "v",
    ("467", "Nasal Cannula"): "o",
    ("467", "Nasal cannula"): "-",
    ("226732", "Trach mask "): "o",
    ("226732", "Trach mask"): "-",
    ("459", "-30"): "-",
    ("640", "Extubated"): "x",
    ("640", "Self Extubation"): "s",
    ("640", "Intubated"): "-",
    ("227194", ""): "x",
    ("225468", ""): "s",
}
PERFORMED = ("227194", "225468")
LIKELY_III = np.array([8, 4, 1, 1, 2, 1, 1, 1, 1, 2, 1, 1, 1]) / 25

RANKS_IV = {
    ("226732", "Tracheostomy tube"): 0,
    ("226732", "Trach mask "): 0,
    ("226732", "Endotracheal tube"): 1,
    ("226732", "Bipap mask "): 2,
    ("226732", "High flow nasal cannula"): 3,
    ("226732", "Aerosol-cool"): 4,
    ("226732", "None"): 5,
    ("226732", "T-piece"): 9,
    ("223849", "CPAP/PSV"): 1,
    ("223849", "Standby"): 9,
    ("229314", "NIV"): 2,
    ("229314", "ASV"): 1,
}
STATUSES_IV = (
    "Tracheostomy",
    "InvasiveVent",
    "NonInvasiveVent",
    "HFNC",
    "SupplementalOxygen",
    "None",
)


def charts(
    generator: np.random.Generator,
    choices: Sequence[tuple[str, str]],
    likely: np.ndarray | None = None,
) -> list[Row]:
    """Sixty stays of up to 25 moments; gaps fall often on and around 8 and 14 hours, and one moment
    may hold several rows."""
    rows: list[Row] = []
    for stay in STAYS:
        at = START
        for _ in range(generator.integers(1, 25)):
            gap = generator.choice(
                [0, 0, 60, 60, 180, 479, 480, 481, 839, 840, 841, int(generator.integers(1, 1000))]
            )
            at += timedelta(minutes=int(gap))
            item, value = choices[generator.choice(len(choices), p=likely)]
            rows.append(Row(stay, at, item, value, error=bool(generator.random() < 0.03)))
    return rows


def by_moment(rows: Sequence[Row]) -> dict[int, dict[datetime, list[Row]]]:
    stays: dict[int, dict[datetime, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        stays[row.stay][row.at].append(row)
    return stays


def read_signs(rows: Sequence[Row]) -> list[str]:
    """What one minute says: once by its charted rows together, and once by each way of documenting
    an extubation that says something else."""
    charted = "".join(
        sorted({SIGNS_III[row.item, row.value] for row in rows if row.item not in PERFORMED})
    )
    procedures = {SIGNS_III[row.item, row.value] for row in rows if row.item in PERFORMED}
    if "s" in charted and set(charted) <= {"s", "x", "-"}:
        procedures.discard("s")
    elif set(charted) <= {"x", "-"} and "x" in charted:
        procedures.discard("x")
    # what is no extubation comes first
    return sorted([charted, *procedures], key=lambda sign: "x" in sign or "s" in sign)


def slow_iii(rows: Sequence[Row], extubations: Sequence[Row]) -> Iterator[Episode]:
    """Walks through each stay minute by minute, with the state of the bed in two variables."""
    used_rows = [row for row in rows if not row.error and row.item != "459"]
    for stay, minutes in sorted(by_moment([*used_rows, *extubations]).items()):
        groups: list[list[tuple[datetime, bool]]] = [[]]
        after_extubation, last_ventilated = False, datetime.max
        for at in sorted(minutes):
            new, relevant = False, []
            for sign in read_signs(minutes[at]):
                ventilated, extubated = "v" in sign, "x" in sign or "s" in sign
                new |= "o" in sign and not ventilated
                new |= ventilated and at > last_ventilated and at - last_ventilated > 8 * HOUR
                if ventilated or extubated:
                    new |= after_extubation
                    after_extubation = extubated
                    relevant.append((at, ventilated))
                last_ventilated = at if ventilated else last_ventilated
            groups += [[]] if new else []
            groups[-1] += relevant
        for group in groups:
            if any(ventilated for _, ventilated in group) and group[0][0] != group[-1][0]:
                yield stay, "ventilated", group[0][0], group[-1][0]


def slow_status(rows: Sequence[Row]) -> int:
    devices = sorted(row.value for row in rows if row.item == "226732")
    ranks = [RANKS_IV["226732", devices[0]]] if devices else []
    ranks += [2] if any(RANKS_IV["226732", device] == 2 for device in devices) else []
    for item in ("223849", "229314"):
        modes = sorted(row.value for row in rows if row.item == item)
        ranks += [RANKS_IV[item, modes[-1]]] if modes else []
    return min(ranks, default=9)


def clock_hours(earlier: datetime, later: datetime) -> int:
    return int((later.replace(minute=0) - earlier.replace(minute=0)) / HOUR)


def slow_iv(rows: Sequence[Row]) -> Iterator[Episode]:
    for stay, minutes in sorted(by_moment(rows).items()):
        moments = [(at, rank) for at in sorted(minutes) if (rank := slow_status(minutes[at])) < 9]
        group: list[datetime] = []
        for position, (at, rank) in enumerate(moments):
            following = moments[position + 1] if position + 1 < len(moments) else None
            group.append(at)
            far = following is None or clock_hours(at, following[0]) >= 14
            if following is None or following[1] != rank or far:
                if group[0] != at:
                    yield (
                        stay,
                        STATUSES_IV[rank],
                        group[0],
                        at if following is None or far else following[0],
                    )
                group = []


def write_iii(folder: Path, rows: Sequence[Row], extubations: Sequence[Row]) -> None:
    with (folder / "CHARTEVENTS.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ICUSTAY_ID", "ITEMID", "CHARTTIME", "VALUE", "ERROR"]])
        csv.writer(file).writerows(
            [row.stay, row.item, row.at, row.value, int(row.error)] for row in rows
        )
    with (folder / "PROCEDUREEVENTS_MV.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["ICUSTAY_ID", "ITEMID", "STARTTIME", "ENDTIME", "STATUSDESCRIPTION"]]
        )
        csv.writer(file).writerows(
            [row.stay, row.item, row.at, row.at, "FinishedRunning"] for row in extubations
        )


def write_iv(folder: Path, rows: Sequence[Row]) -> None:
    with (folder / "chartevents.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["stay_id", "itemid", "charttime", "value"]])
        csv.writer(file).writerows([row.stay, row.item, row.at, row.value] for row in rows)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        opened.execute(
            "CREATE TABLE icu_stay AS SELECT id AS subject_id, id AS stay_id, id AS "
            f"icu_stay_id FROM range({len(STAYS) + 1}) AS stay(id)"
        )
        yield opened


def found(connection: duckdb.DuckDBPyConnection) -> list[Episode]:
    rows = connection.execute(
        "SELECT icu_stay_id, status, began_at, ended_at FROM episode ORDER BY icu_stay_id, began_at"
    ).fetchall()
    return [(stay, status, began, ended) for stay, status, began, ended in rows]


def hold_what_always_holds(
    episodes: Sequence[Episode], derived: ventilation.EpisodeDerivation
) -> None:
    assert all(began < ended for _, _, began, ended in episodes)
    for (stay, _, _, ended), (next_stay, _, began, _) in pairwise(episodes):
        assert stay != next_stay or ended <= began, "episodes of a stay never overlap"
    assert all(
        attrition.entered_rows == attrition.kept_rows + sum(attrition.dropped_rows.values())
        for attrition in derived.attrition
    )


@pytest.mark.parametrize("seed", range(6))
def test_mimic_iii_episodes_agree_with_a_slow_walk_through_random_charts(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = charts(generator, [sign for sign in SIGNS_III if sign[0] not in PERFORMED], LIKELY_III)
    # half of the procedures in a minute that is charted too
    extubations = [
        Row(
            row.stay,
            row.at + int(generator.integers(0, 2)) * HOUR,
            PERFORMED[generator.integers(2)],
            "",
        )
        for row in rows
        if generator.random() < 0.1
    ]
    write_iii(tmp_path, rows, extubations)
    derived = ventilation.derive_mimic_iii_episodes(connection, tmp_path)
    episodes = found(connection)
    assert episodes == list(slow_iii(rows, extubations))
    assert len(episodes) > 50
    hold_what_always_holds(episodes, derived)


@pytest.mark.parametrize("seed", range(6))
def test_mimic_iv_episodes_agree_with_a_slow_walk_through_random_charts(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, seed: int
) -> None:
    rows = charts(np.random.default_rng(seed), list(RANKS_IV))
    write_iv(tmp_path, rows)
    derived = ventilation.derive_mimic_iv_episodes(connection, tmp_path)
    episodes = found(connection)
    assert episodes == list(slow_iv(rows))
    assert len({status for _, status, _, _ in episodes}) >= 5
    hold_what_always_holds(episodes, derived)


@pytest.mark.parametrize("seed", range(4))
def test_procedures_in_any_tangle_become_stretches_that_never_overlap(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    stays, starts, lengths = (
        generator.choice(10, 60),
        generator.integers(0, 60, 60),
        generator.integers(1, 20, 60),
    )
    items = generator.choice(["225792", "225794"], 60)
    intervals = [
        (int(stays[at]), int(starts[at]), int(starts[at] + lengths[at]), str(items[at]))
        for at in range(60)
    ]
    with (tmp_path / "procedureevents.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["stay_id", "itemid", "starttime", "endtime", "statusdescription"]]
        )
        csv.writer(file).writerows(
            [stay, item, START + began * HOUR, START + ended * HOUR, "Stopped"]
            for stay, began, ended, item in intervals
        )
    derived = ventilation.derive_mimic_iv_episodes(connection, tmp_path)
    episodes = found(connection)
    hold_what_always_holds(episodes, derived)
    hours: dict[tuple[int, str], set[int]] = defaultdict(
        set
    )  # hour by hour: the tube wins over the mask
    for stay, began, ended, item in intervals:
        hours[stay, item] |= set(range(began, ended))
    for stay in range(10):
        tube, mask = hours[stay, "225792"], hours[stay, "225794"]
        for status, expected in (("InvasiveVent", tube), ("NonInvasiveVent", mask - tube)):
            ours = [
                (began, ended)
                for at, name, began, ended in episodes
                if (at, name) == (stay, status)
            ]
            assert {
                hour
                for began, ended in ours
                for hour in range(int((began - START) / HOUR), int((ended - START) / HOUR))
            } == expected
            assert all(ended < began for (_, ended), (began, _) in pairwise(ours)), (
                "what touches is one stretch"
            )
