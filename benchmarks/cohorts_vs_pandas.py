"""The memory of the published way to build the mortality cohort, with pandas, beside ours on the same files.

The steps are those of the published builder of arXiv 2102.04110, written anew: read NOTEEVENTS and ADMISSIONS whole, keep discharge summaries, sort
by date, drop repeated texts, join the texts of each stay, cut the eight sections of an admission note, join the answers. Each builder runs in a
process of its own; both write Parquet. pandas is no dependency of clinpeft: ``pip install pandas`` for this script.

    pip install pandas
    python benchmarks/cohorts_vs_pandas.py --folder /a/disk --fraction 0.1

``--folder`` and ``--fraction`` are those of ``cohorts_scale.py``, whose tables are used, or written.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cohorts_tables

HEADINGS = {
    "CHIEF COMPLAINT": "chief complaint:",
    "PRESENT ILLNESS": "present illness:",
    "MEDICAL HISTORY": "medical history:",
    "MEDICATION ON ADMISSION": "medications on admission:",
    "ALLERGIES": "allergies:",
    "PHYSICAL EXAM": "physical exam:",
    "FAMILY HISTORY": "family history:",
    "SOCIAL HISTORY": "social history:",
}
HISTORY = ["CHIEF COMPLAINT", "PRESENT ILLNESS", "MEDICAL HISTORY"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument(
        "--builder",
        choices=sorted(BUILDERS),
        help="(used by itself) build once and print what it took",
    )
    asked = parser.parse_args()
    hospital = asked.folder / f"mimic-iii-{asked.fraction:g}"
    if asked.builder:
        print(json.dumps(measured(BUILDERS[asked.builder], hospital)))
        return
    cohorts_tables.write(hospital, cohorts_tables.Sizes().scaled(asked.fraction))
    print(f"NOTEEVENTS.csv: {(hospital / 'NOTEEVENTS.csv').stat().st_size / 1e9:.2f} GB")
    for builder in BUILDERS:
        command = [
            sys.executable,
            __file__,
            "--builder",
            builder,
            "--folder",
            str(asked.folder),
            "--fraction",
            str(asked.fraction),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["killed"]
            print(f"{builder:10} did not finish (exit {done.returncode}): {last[0]}", flush=True)
            continue
        found = json.loads(done.stdout)
        print(
            f"{builder:10} {found['stays']:>8,} stays {found['seconds']:>8,.0f} s, peak {found['peak'] / 1e9:.2f} GB",
            flush=True,
        )


def measured(build: Callable[[Path, Path], int], hospital: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=hospital.parent) as work:
        began = time.perf_counter()
        stays = build(hospital, Path(work))
        seconds = time.perf_counter() - began
    return {
        "stays": stays,
        "seconds": seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # Linux counts in KiB


def with_pandas(hospital: Path, work: Path) -> int:
    import pandas as pd

    notes = pd.read_csv(
        hospital / "NOTEEVENTS.csv",
        usecols=["SUBJECT_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "DESCRIPTION", "TEXT"],
    )
    admissions = pd.read_csv(hospital / "ADMISSIONS.csv")
    notes = notes[notes.TEXT.notnull() & notes.HADM_ID.notnull()]
    notes = notes[notes.CATEGORY == "Discharge summary"]
    notes = notes.sort_values("CHARTDATE").drop_duplicates("TEXT", keep="last")
    texts = notes.groupby("HADM_ID").TEXT.agg("\n\n".join).rename("text")
    reports = notes[notes.DESCRIPTION == "Report"].drop_duplicates("HADM_ID", keep="last")
    found = reports[["SUBJECT_ID", "HADM_ID"]].merge(texts, left_on="HADM_ID", right_index=True)
    found = found.merge(
        admissions[admissions.ADMISSION_TYPE != "NEWBORN"], on="HADM_ID", how="inner"
    )
    for title, heading in HEADINGS.items():
        pattern = re.compile(rf"(?is){heading}(.+?)\n\n[^(\\|\d.\n]+?:")
        found[title] = (
            found.text.str.extract(pattern, expand=False)
            .fillna("")
            .str.replace("\n", " ")
            .str.strip()
        )
    found = found[(found[HISTORY] != "").any(axis=1)]
    found["text"] = found[list(HEADINGS)].apply(
        lambda row: "\n\n".join(f"{title}: {row[title]}" for title in HEADINGS), axis=1
    )
    found[["HADM_ID", "text", "HOSPITAL_EXPIRE_FLAG"]].to_parquet(work / "cohort.parquet")
    return len(found)


def with_clinpeft(hospital: Path, work: Path) -> int:
    from clinpeft.data import cohorts
    from clinpeft.data import hospital as tables
    from clinpeft.recipe import CohortRecipe, SourceSpec

    task = {"name": "mortality", "compat": "core-2021"}
    recipe = CohortRecipe.model_validate(
        {"kind": "cohort", "source": {"name": "mimic-iii", "path": str(hospital)}, "task": task}
    )
    opened = tables.open_hospital_database(
        SourceSpec(name="mimic-iii", path=hospital), work / "database"
    )
    return cohorts.write_cohort(recipe, opened, work / "cohort").attrition[-1].kept_rows


BUILDERS: dict[str, Callable[[Path, Path], int]] = {
    "pandas": with_pandas,
    "clinpeft": with_clinpeft,
}


if __name__ == "__main__":
    main()
