"""How long the five tasks of MIMIC-III take to build at the real size, and in how much memory.

Writes a folder of random words in the layout and the sizes of MIMIC-III (``cohorts_tables.py``; kept, and used again the next time), builds each
task from it in a process of its own, and prints for each step the seconds and the peak of resident memory until then.

    python benchmarks/cohorts_scale.py --folder /a/disk/with/25/GB
    python benchmarks/cohorts_scale.py --folder /a/disk --fraction 0.1 --tasks mortality ventilation
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cohorts_tables

TASKS = ("mortality", "length_of_stay", "diagnoses", "procedures", "ventilation")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where the hospital is written, and found the next time",
    )
    parser.add_argument("--fraction", type=float, default=1.0, help="of the size of MIMIC-III")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument(
        "--memory-gigabytes", type=float, default=2.0, help="for DuckDB, before it goes to disk"
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="(used by itself) build the one task and print what it took",
    )
    asked = parser.parse_args()
    hospital = asked.folder / f"mimic-iii-{asked.fraction:g}"
    if asked.build:
        print(json.dumps(built(hospital, asked.tasks[0], asked.memory_gigabytes)))
        return
    sizes = cohorts_tables.Sizes().scaled(asked.fraction)
    began = time.perf_counter()
    cohorts_tables.write(hospital, sizes)
    print(
        f"{sizes}\nwritten in {time.perf_counter() - began:,.0f} s: {written_bytes(hospital) / 1e9:.2f} GB",
        flush=True,
    )
    for task in asked.tasks:
        report(task, asked)


def report(task: str, asked: argparse.Namespace) -> None:
    given = [
        "--folder",
        str(asked.folder),
        "--fraction",
        str(asked.fraction),
        "--memory-gigabytes",
        str(asked.memory_gigabytes),
    ]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--build", *given, "--tasks", task],
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    total = time.perf_counter() - began
    print(f"{task}: {found['stays']:,} stays, {total:,.0f} s", flush=True)
    for step, (seconds, processor, peak) in found["steps"].items():
        print(
            f"    {step:30} {seconds:8,.1f} s {processor:8,.1f} s of processor, peak {peak / 1e9:.2f} GB",
            flush=True,
        )


def written_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".csv")


def built(folder: Path, task: str, memory_gigabytes: float) -> dict[str, object]:
    """One task, as ``clinpeft cohort build`` makes it, step by step."""
    from clinpeft.data import cohorts, hospital
    from clinpeft.data.cohorts import leakage, meds
    from clinpeft.recipe import CohortRecipe, SourceSpec

    steps: dict[str, tuple[float, float, int]] = {}
    document = {
        "kind": "cohort",
        "source": {"name": "mimic-iii", "path": str(folder)},
        "task": {"name": task},
    }
    recipe = CohortRecipe.model_validate(document)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        with timed(steps, "tables"):
            opened = hospital.open_hospital_database(
                SourceSpec(name="mimic-iii", path=folder), work / "database", memory_gigabytes
            )
        with timed(steps, "rows, notes, texts"):
            cohort = cohorts.write_cohort(recipe, opened, work / "cohort")
        with timed(steps, "leakage audit"):
            leakage.audit_leakage(
                cohort.path,
                cohort.classes,
                cohort.task.kind,
                work / "cohort",
                recipe.seed,
                task_name=task,
            )
        with timed(steps, "MEDS"):
            meds.write_meds_dataset(
                cohort.path,
                cohort.task.kind,
                cohort.classes,
                work / "meds",
                "mimic-iii",
                "as shipped",
                task_name=task,
            )
        opened.connection.close()
    return {"stays": cohort.attrition[-1].kept_rows, "steps": steps}


@contextmanager
def timed(steps: dict[str, tuple[float, float, int]], name: str) -> Iterator[None]:
    """Seconds on the clock and of the processor, and the peak of resident bytes since the process began."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    steps[name] = (time.perf_counter() - clock, time.process_time() - processor, peak)


if __name__ == "__main__":
    main()
