"""Arms of a benchmark side by side: every arm in its own process, A B A B, medians and spread, and
why an arm failed.

A benchmark is a table of workloads (name -> prepares a folder) and of arms (name -> a function from
that folder to ``Measured``). The parent runs ``prepare`` once a workload, then all arms in turn,
round after round, while the time given lasts; it writes ``results.json`` and ``results.md``.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()  # of an arm's process: imports count towards the first step

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WARM_STEPS = 2
LIBRARIES = (
    *(
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "trl",
        "sentence-transformers",
        "optimum",
        "optimum-intel",
        "openvino",
        "onnxruntime",
    ),
    *("numpy", "clinpeft"),
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Measured:
    """What one process of one arm found.

    Attributes:
        unit: what is counted: ``tokens`` (never padding), ``notes``, ``pairs``, ``texts``.
        amounts: units of each step.
        seconds: of each step, data loading and optimiser included.
        losses: of each step; empty where there is none.
        first_step_seconds: from the start of the process to the end of the first step.
        peak_bytes: the largest resident set, or of a GPU what was allocated at most.
        roofline: units a second of the frozen matrix products alone, replayed with this arm's
            precision; None where that means nothing.
        end: numbers asked of the trained model, the same way of every arm.
        reading: told of an arm in the table: its precision, what it packs.
        same_steps: whether its steps are of the same documents as the reference's, so that losses
            can be compared step by step.
    """

    unit: str
    amounts: list[float]
    seconds: list[float]
    losses: list[float] = field(default_factory=list)
    first_step_seconds: float = 0.0
    peak_bytes: int = 0
    roofline: float | None = None
    end: dict[str, float] = field(default_factory=dict)
    reading: str = ""
    same_steps: bool = True

    @property
    def rate(self) -> float:
        """Units a second, the first steps left out, which compile and fill caches."""
        warm = WARM_STEPS if len(self.seconds) > 2 * WARM_STEPS else min(1, len(self.seconds) - 1)
        return sum(self.amounts[warm:]) / sum(self.seconds[warm:])


Arm = Callable[[Path], Measured]
Prepare = Callable[[Path, bool], None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it is run.

    Attributes:
        file: its script.
        about: its first line.
        workloads: name -> writes what all arms read into a folder; told whether it is to be quick.
        arms: name -> measures itself; the first one is the reference.
        peers: names of arms that are not ours, among which the best is looked for.
        only: workload -> the arms it is for; all where it is not named.
        goals: told under the table.
        apart: workloads that are run only where they are named.
        rows: arms and peers of a workload -> rows of its table; None: one an arm, see ``summary``.
        table: those rows -> lines of Markdown; given where ``rows`` is.
    """

    file: str
    about: str
    workloads: Mapping[str, Prepare]
    arms: Mapping[str, Arm]
    peers: Sequence[str] = ()
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    goals: Sequence[str] = ()
    apart: Sequence[str] = ()
    rows: (
        Callable[[Mapping[str, Mapping[str, Any]], Sequence[str]], list[dict[str, Any]]] | None
    ) = None
    table: Callable[[Sequence[Mapping[str, Any]]], Iterator[str]] | None = None

    @property
    def everywhere(self) -> list[str]:
        """The workloads of a machine like any other."""
        return [name for name in self.workloads if name not in self.apart]

    def of(self, workload: str) -> list[str]:
        """The arms of a workload."""
        return [name for name in self.arms if name in self.only.get(workload, self.arms)]


def main(benchmark: Benchmark) -> None:
    """The command of a benchmark."""
    given = _options(benchmark)
    if given.arm:
        _child(benchmark, given)
        return
    with contextlib.ExitStack() as stack:
        folder = given.work or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="clinpeft-bench-"))
        )
        found = {
            name: _workload(benchmark, name, folder, given)
            for name in given.workload or benchmark.everywhere
        }
    _write(benchmark, found, given)


def _options(benchmark: Benchmark) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=benchmark.about)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results.json and results.md; without it the tables are printed only",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="A B A B ...: at most so many; the first is always finished",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="begin no further round of a workload that would end after so many; 0: no limit",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps and one round: whether everything runs, not how fast",
    )
    parser.add_argument(
        "--workload",
        action="append",
        choices=list(benchmark.workloads),
        help="only this; may be repeated",
    )
    parser.add_argument(
        "--only", action="append", help="only arms whose name contains this; may be repeated"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="of every arm; 0: what the libraries take by themselves",
    )
    parser.add_argument(
        "--timeout", type=float, default=1200.0, help="seconds of one process at most"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PART=PATH",
        help="interpreter of the arms whose name contains PART",
    )
    parser.add_argument(
        "--work", type=Path, help="folder for prepared workloads, kept; without it a temporary one"
    )
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.rounds = 1 if given.quick else given.rounds
    given.work = given.work and given.work.resolve()
    return given


# parent -------------------------------------------------------------------------------------------


def _workload(
    benchmark: Benchmark, name: str, folder: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """One workload: prepared, then its arms in turn. {about, arms: {name: {runs, failure}}}."""
    work = folder / name
    work.mkdir(parents=True, exist_ok=True)
    print(f"== {benchmark.file}: {name}", flush=True)
    if not (work / "prepared").exists():
        failure = _spawn(benchmark, "prepare", name, work, given)
        if failure:
            print(f"  cannot be prepared: {failure}", flush=True)
            return {"about": {}, "failure": failure, "arms": {}}
        (work / "prepared").touch()
    names = [
        arm
        for arm in benchmark.of(name)
        if not given.only or any(part in arm for part in given.only)
    ]
    arms: dict[str, dict[str, Any]] = {arm: {"runs": [], "failure": ""} for arm in names}
    began, longest = time.perf_counter(), 0.0
    for number in range(given.rounds):
        if number and given.minutes and time.perf_counter() - began + longest > 60 * given.minutes:
            break
        started = time.perf_counter()
        for arm in names:
            if not arms[arm]["failure"]:
                _run(benchmark, arm, name, work, given, arms[arm])
        longest = max(longest, time.perf_counter() - started)
    about = json.loads((work / "about.json").read_text()) if (work / "about.json").exists() else {}
    return {"about": about, "failure": "", "arms": arms}


def _run(
    benchmark: Benchmark,
    arm: str,
    workload: str,
    work: Path,
    given: argparse.Namespace,
    into: dict[str, Any],
) -> None:
    result = work / "result.json"
    result.unlink(missing_ok=True)
    failure = _spawn(benchmark, arm, workload, work, given)
    if failure or not result.exists():
        into["failure"] = failure or "it ended without a result"
        print(f"  {arm}: failed: {into['failure']}", flush=True)
        return
    run = json.loads(result.read_text())
    into["runs"].append(run)
    print(
        (
            f"  {arm}: {Measured(**run).rate:,.0f} {run['unit']}/s, first step after "
            f"{run['first_step_seconds']:.1f} s"
        ),
        flush=True,
    )


def _spawn(
    benchmark: Benchmark, arm: str, workload: str, work: Path, given: argparse.Namespace
) -> str:
    """Run one arm in a process of its own; the reason why it failed, or nothing."""
    threads = {"OMP_NUM_THREADS": str(given.threads)} if given.threads else {}
    sources = os.pathsep.join(
        part for part in (str(ROOT / "src"), os.environ.get("PYTHONPATH", "")) if part
    )
    environment = (
        os.environ | OFFLINE | threads | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": sources}
    )
    named = dict(pair.split("=", 1) for pair in given.python)
    python = next((path for part, path in named.items() if part in arm), sys.executable)
    command = [
        python,
        str(ROOT / "benchmarks" / benchmark.file),
        "--arm",
        arm,
        "--workload",
        workload,
        "--work",
        str(work),
    ]
    command += ["--quick"] if given.quick else []
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=given.timeout,
            env=environment,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return f"longer than {given.timeout:.0f} s"
    (work / "stderr.txt").write_text(done.stderr)
    return "" if done.returncode == 0 else _reason(done.stderr, done.returncode)


def _reason(stderr: str, code: int) -> str:
    """The last line that says something, without paths."""
    lines = [
        line.strip()
        for line in stderr.splitlines()
        if line.strip() and not line.startswith(("  ", "\t"))
    ]
    said = lines[-1] if lines else "no message"
    return f"exit {code}: {re.sub(r'/[^ :,]+/', '', said)[:200]}"


# child --------------------------------------------------------------------------------------------


def _child(benchmark: Benchmark, given: argparse.Namespace) -> None:
    workload = given.workload[0]
    if given.arm == "prepare":
        benchmark.workloads[workload](given.work, given.quick)
        return
    measured = benchmark.arms[given.arm](given.work)
    (given.work / "result.json").write_text(json.dumps(asdict(measured)))


def since_start() -> float:
    """Seconds since this process began to import."""
    return time.perf_counter() - BEGAN


def peak_bytes() -> int:
    """The largest resident set of this process, or of a GPU what was allocated at most."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found.group(1)) if found else 0


def roofline(
    shapes: Sequence[tuple[int, int, int]], rows: int, precision: str, backward: bool = True
) -> float:
    """Seconds of the frozen matrix products of a step alone, on random data.

    Args:
        shapes: (inputs, outputs, how often) of the linear layers.
        rows: tokens of the step, padding apart.
        precision: ``float32`` or ``bfloat16``.
        backward: whether the gradient of the input is asked too; frozen weights have none.
    """
    import torch

    dtype, device = getattr(torch, precision), "cuda" if torch.cuda.is_available() else "cpu"
    total = 0.0
    for inputs, outputs, times in shapes:
        x, weight = (
            torch.randn(rows, inputs, dtype=dtype, device=device),
            torch.randn(outputs, inputs, dtype=dtype, device=device),
        )
        gradient = torch.randn(rows, outputs, dtype=dtype, device=device)
        taken = []
        for _ in range(4):
            began = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            if backward:
                torch.mm(gradient, weight)
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        total += times * statistics.median(taken[1:])
    return total


def linear_shapes(folder: Path, classes: int = 0) -> list[tuple[int, int, int]]:
    """(inputs, outputs, how often) of the linear layers of the model in a folder; the head over the
    vocabulary left out where classes are asked, and a pooler always, which sees one token a
    text."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModel if classes else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
    counted: dict[tuple[int, int], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "pooler" not in name:
            key = (module.in_features, module.out_features)
            counted[key] = counted.get(key, 0) + 1
    return [(*key, times) for key, times in counted.items()]


# results ------------------------------------------------------------------------------------------


def summary(arms: Mapping[str, Mapping[str, Any]], peers: Sequence[str]) -> list[dict[str, Any]]:
    """One row an arm: medians over rounds, spread, ratios to the reference and to the best peer of
    the same rounds, losses beside the reference's."""
    runs = {name: [Measured(**run) for run in arm["runs"]] for name, arm in arms.items()}
    medians = {
        name: statistics.median(run.rate for run in found) for name, found in runs.items() if found
    }
    reference = next(iter(runs), "")
    best = max(
        (name for name in peers if name in medians), key=lambda name: medians[name], default=""
    )
    return [_row(name, arm["failure"], runs, reference, best) for name, arm in arms.items()]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _row(
    name: str, failure: str, runs: Mapping[str, list[Measured]], reference: str, best: str
) -> dict[str, Any]:
    found = runs[name]
    if not found:
        return {"arm": name, "failure": failure}
    rates = [run.rate for run in found]
    first = runs[reference][0] if runs[reference] else None
    row: dict[str, Any] = {
        "arm": name,
        "failure": failure,
        "unit": found[0].unit,
        "rounds": len(found),
        "reading": found[0].reading,
    }
    row |= {"rate": statistics.median(rates), "least": min(rates), "most": max(rates)}
    row |= {
        "peak_bytes": max(run.peak_bytes for run in found),
        "first_step_seconds": statistics.median(run.first_step_seconds for run in found),
    }
    row["roofline_share"] = _median([run.rate / run.roofline for run in found if run.roofline])
    row["against_reference"], row["against_best_peer"] = (
        _ratio(found, runs.get(reference, [])),
        _ratio(found, runs.get(best, [])),
    )
    row["loss_difference"] = _loss_difference(found[0], first)
    row["end"] = {
        key: value - first.end[key] if first and key in first.end else value
        for key, value in found[0].end.items()
    }
    row["end_is_difference"] = first is not None
    return row


def _ratio(found: Sequence[Measured], other: Sequence[Measured]) -> float | None:
    """The median ratio of the rounds that both ran."""
    pairs = [mine.rate / theirs.rate for mine, theirs in zip(found, other, strict=False)]
    return statistics.median(pairs) if pairs else None


def _loss_difference(run: Measured, reference: Measured | None) -> float | None:
    """The largest difference of the loss of a step to the reference's; None where the steps are of
    other documents."""
    if reference is None or not (run.losses and reference.losses and run.same_steps):
        return None
    return max(abs(one - other) for one, other in zip(run.losses, reference.losses, strict=False))


def _write(
    benchmark: Benchmark, found: Mapping[str, Mapping[str, Any]], given: argparse.Namespace
) -> None:
    words = _without_paths(sys.argv[1:])
    about = {
        "benchmark": benchmark.file,
        "command": shlex.join(["python", f"benchmarks/{benchmark.file}", *words]),
        **circumstances(),
    }
    rows = {
        name: (benchmark.rows or summary)(workload["arms"], benchmark.peers)
        for name, workload in found.items()
    }
    text = _markdown(benchmark, about, found, rows)
    print("\n" + text)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = benchmark.file.removesuffix(".py")
        workloads = {name: {**workload, "rows": rows[name]} for name, workload in found.items()}
        (given.out / f"{stem}.json").write_text(
            json.dumps({**about, "workloads": workloads}, indent=1)
        )
        (given.out / f"{stem}.md").write_text(text)


def _without_paths(words: Sequence[str]) -> list[str]:
    """What was typed, folders of this machine as ``...``."""
    return [re.sub(r"(^|=)/.*", r"\1...", word) for word in words]


def circumstances() -> dict[str, Any]:
    """Versions and hardware."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"versions": versions, "hardware": hardware()}


def hardware() -> dict[str, Any]:
    """Processor, cores, threads, memory, and a GPU where there is one."""
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", known)
    flags = re.search(r"flags\s*: (.+)", known)
    has = [
        flag
        for flag in ("amx_tile", "amx_bf16", "avx512_bf16", "avx512f", "avx2")
        if flags and flag in flags.group(1).split()
    ]
    memory = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    total = re.search(r"MemTotal:\s+(\d+) kB", memory)
    return {
        "processor": name.group(1) if name else platform.processor(),
        "cores": os.cpu_count(),
        "features": has,
        "memory_gb": round(int(total.group(1)) / 2**20, 1) if total else None,
        "system": f"{platform.system()} {platform.machine()}",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "load_before": round(os.getloadavg()[0], 1),
    }


def _markdown(
    benchmark: Benchmark,
    about: Mapping[str, Any],
    found: Mapping[str, Any],
    rows: Mapping[str, list[dict[str, Any]]],
) -> str:
    parts = [f"# {benchmark.about}", f"`{about['command']}`"]
    machine, versions = about["hardware"], about["versions"]
    parts.append(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{', '.join(machine['features'])}"
    )
    parts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    for name, workload in found.items():
        told = "; ".join(f"{key} {value}" for key, value in workload["about"].items())
        parts += [f"## {name}", told]
        parts.append(
            f"Not measured: {workload['failure']}"
            if workload["failure"]
            else "\n".join((benchmark.table or _table)(rows[name]))
        )
    parts += [f"- {goal}" for goal in benchmark.goals]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    measured = [row for row in rows if "rate" in row]
    unit = measured[0]["unit"] if measured else "units"
    ends = list(dict.fromkeys(key for row in measured for key in row["end"]))
    head = [
        "arm",
        f"{unit}/s",
        "least–most",
        "× reference",
        "× best peer",
        "of roofline",
        "peak MB",
        "first step s",
        "loss Δ",
        *ends,
    ]
    yield "| " + " | ".join(head) + " |"
    yield "|---|" + "---:|" * (len(head) - 1)
    for row in rows:
        if "rate" not in row:
            yield f"| {row['arm']} | failed: {row['failure']} |" + " |" * (len(head) - 2)
            continue
        cells = [
            row["arm"] + (f" ({row['reading']})" if row["reading"] else ""),
            _rate(row["rate"]),
            f"{_rate(row['least'])}–{_rate(row['most'])}",
        ]
        cells += [
            _told(row[key], ".2f")
            for key in ("against_reference", "against_best_peer", "roofline_share")
        ]
        cells += [
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['first_step_seconds']:.1f}",
            _told(row["loss_difference"], ".1e"),
        ]
        cells += [_told(row["end"].get(key), ".2e") for key in ends]
        yield "| " + " | ".join(cells) + " |"


def _rate(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _told(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
