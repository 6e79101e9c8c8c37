"""Run the golden recipes and compare what they made with the hashes of an earlier commit.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/golden_runs.py run HOME
    .venv/bin/python scripts/golden_runs.py hash HOME
    .venv/bin/python scripts/golden_runs.py compare HOME [--against docs/results/rebuild.json]

A refactoring changes no number: in float32 on one thread, the trained weights, the metrics with
their intervals, the predictions and the cohorts are the same bits before and after. Hashes leave
out what a clock measured (rows of speed and memory) and every name, so that a renamed column or
file compares. They hold on one kind of processor: on another, record both commits anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
RECIPES = (
    ("adapt", "recipes/smoke.toml"),
    ("classify", "recipes/smoke-classify.toml"),
    ("embed", "recipes/smoke-embed.toml"),
    ("adapt", "recipes/quickstart.toml"),
    ("embed", "recipes/quickstart-embed.toml"),
    ("adapt", "tests/golden/methods.toml"),
    ("classify", "tests/golden/stack.toml"),
    ("search", "tests/golden/search.toml"),
)
RECORDED = ROOT / "docs" / "results" / "rebuild.json"


def run_recipes(home: Path) -> None:
    """Every golden recipe as a command of its own, on one thread in float32."""
    program = str(Path(sys.executable).with_name("clinpeft"))
    for verb, recipe in RECIPES:
        command = [program, verb, str(ROOT / recipe), "--home", str(home)]
        print("$", " ".join(["clinpeft", *command[1:]]), flush=True)
        subprocess.run([*command, "--set", "base.precision=float32"], check=True, cwd=ROOT)


def hash_weights(folder: Path) -> str:
    """SHA-256 over the tensors of all safetensors files of a run, checkpoints apart."""
    hashes = [
        hashlib.sha256(tensor.tobytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
        if "checkpoints" not in path.parts
        for tensor in load_file(path).values()
    ]
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def hash_numbers(table: pa.Table) -> str:
    """SHA-256 over the floating-point columns of a table, rows in any order."""
    if "task" in table.column_names:  # speed and memory of an encoder: measured by a clock
        rows = [row for row in table.to_pylist() if row["task"] != "profile"]
    else:
        rows = table.to_pylist()
    names = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    lines = sorted(" ".join(repr(row[name]) for name in names) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_runs(home: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Kind and name of each finished run -> the hashes of its weights and of each of its tables."""
    for path in home.glob("*/run.json"):
        record = json.loads(path.read_text("utf-8"))
        if record["state"] != "finished":
            continue
        tables = {
            table.stem: hash_numbers(pq.read_table(table))[:16]
            for table in sorted(path.parent.glob("*.parquet"))
        }
        name = f"{record['kind']}: {record['name']}"
        yield name, {"weights": hash_weights(path.parent)[:16], **tables}


def hash_cohorts(home: Path) -> dict[str, str]:
    """Hashes of the cohort tables in the cache: every stay with its split, label and text."""
    columns = ["subject_id", "stay_id", "split", "label", "labels", "text"]
    hashes = set()
    for path in home.glob("cache/cohort-*/cohort.parquet"):
        rows = sorted(map(repr, pq.read_table(path, columns=columns).to_pylist()))
        hashes.add(hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16])
    return {f"cohort {number}": value for number, value in enumerate(sorted(hashes), 1)}


def hash_home(home: Path) -> dict[str, dict[str, str]]:
    """All hashes of a home: of its runs and of its cohorts."""
    return dict(sorted(hash_runs(home), key=lambda run: run[0])) | {"cohorts": hash_cohorts(home)}


def compare_runs(home: Path, recorded: Path) -> int:
    """Print what is equal and what differs; the number of runs that differ or are missing."""
    expected, actual = json.loads(recorded.read_text("utf-8")), hash_home(home)
    differing = 0
    for name, hashes in expected.items():
        wrong = sorted(key for key in hashes if actual.get(name, {}).get(key) != hashes[key])
        differing += bool(wrong)
        print(f"{name}: {'differs in ' + ', '.join(wrong) if wrong else 'equal'}")
    return differing


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "hash", "compare"))
    parser.add_argument("home", type=Path)
    parser.add_argument("--against", type=Path, default=RECORDED)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run_recipes(arguments.home)
    elif arguments.what == "hash":
        print(json.dumps(hash_home(arguments.home), indent=1))
    else:
        sys.exit(min(1, compare_runs(arguments.home, arguments.against)))


if __name__ == "__main__":
    main()
