"""What this machine can do, tried and not believed: versions, instructions, memory, disk, locks, and a run that is trained, saved and read again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from clinpeft import adapters, models
from clinpeft.core.errors import ClinpeftError
from clinpeft.recipe import AdaptRecipe, ModelSpec, validated
from clinpeft.runs import Run, write_atomically
from clinpeft.workflows.context import Circumstances

State = Literal["good", "warning", "failure"]
ENOUGH_MEMORY, ENOUGH_DISK, LEAST_DISK = 4 * 2**30, 10 * 2**30, 2**30
MACHINE = "machine.json"
"""In the home: what ``doctor --tune`` found for this machine."""


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        name: what was looked at.
        state: ``failure`` where a run would not come through, ``warning`` where it would be slower, or less safe, than it could be.
        said: what was found, with its numbers.
        hint: what to do about it; empty where all is good.
    """

    name: str
    state: State
    said: str
    hint: str = ""


Verb = Callable[[AdaptRecipe, Path, Circumstances], Run]


def examined(
    home: Path, environment: Mapping[str, str], context: Circumstances, verb: Verb | None
) -> Iterator[Finding]:
    """All looks, one after the other, the longest last.

    Args:
        home: of the runs; made where it is not there.
        environment: of this process.
        context: the clock, for the run that is tried.
        verb: ``adapt``; None leaves out the run that is tried.
    """
    yield python()
    yield from libraries()
    yield arithmetic()
    yield computing(environment)
    yield memory()
    yield graphics()
    yield offline(environment)
    yield permissions(home)
    yield disk(home)
    yield locks(home)
    if verb is not None:
        yield tried(context, verb)


# ------------------------------------------------------------------------------------------------------------------------------ versions


def python() -> Finding:
    """The version of Python against what the package asks for."""
    asked = _metadata("Requires-Python") or ">=3.11"
    version = platform.python_version()
    if _numbers(version) < _numbers(asked):
        return Finding(
            "Python",
            "failure",
            f"{version}, and {asked} is asked for",
            "make the environment anew with a newer Python",
        )
    return Finding("Python", "good", f"{version} ({asked})")


def libraries() -> Iterator[Finding]:
    """Every library that the package names, against the versions it names."""
    required = (
        [line for line in importlib.metadata.requires("clinpeft") or () if "extra ==" not in line]
        if _metadata("Name")
        else []
    )
    if not required:
        said = "clinpeft runs from a folder and is not installed, so its requirements are not known"
        yield Finding("libraries", "warning", said, "install it: pip install -e . or the wheel")
    for line in required:
        yield library(line, _installed)


def library(requirement: str, installed: Callable[[str], str | None]) -> Finding:
    """One library.

    Args:
        requirement: such as ``torch>=2.11``, as it stands in the metadata.
        installed: name -> its version; None where it is not there.
    """
    name = re.split(r"[<>=!~;\s\[(]", requirement, maxsplit=1)[0]
    least, below = (re.search(rf"{sign}\s*([\d.]+)", requirement) for sign in (">=", "<(?!=)"))
    version = installed(name)
    if version is None:
        return Finding(
            name,
            "failure",
            "not installed",
            f"pip install '{requirement.partition(';')[0].strip()}'",
        )
    if least and _numbers(version) < _numbers(least.group(1)):
        said = f"{version}, and {least.group(1)} is the oldest that was tested"
        return Finding(name, "failure", said, f"pip install -U '{name}>={least.group(1)}'")
    if below and _numbers(version) >= _numbers(below.group(1)):
        hint = f"pip install '{name}<{below.group(1)}', or run the tests with this one"
        return Finding(
            name,
            "warning",
            f"{version} is newer than what was tested (below {below.group(1)})",
            hint,
        )
    return Finding(name, "good", f"{version}" + (f" (from {least.group(1)})" if least else ""))


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metadata(field: str) -> str | None:
    try:
        said = importlib.metadata.metadata("clinpeft").get_all(field)
    except importlib.metadata.PackageNotFoundError:
        return None
    return str(said[0]) if said else None


def _numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


# ------------------------------------------------------------------------------------------------------------------------------- machine


def arithmetic() -> Finding:
    """Whether bfloat16 is faster here than float32, measured, and whether ``precision = "auto"`` would choose as the measurement does."""
    has = models.instructions()
    named = (
        ", ".join(
            title
            for flag, title in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512-BF16"))
            if has[flag]
        )
        or "no instructions for bfloat16"
    )
    rates = {precision: models.product_rate(precision) for precision in ("float32", "bfloat16")}
    return chosen_precision(
        named, any(has.values()), rates["bfloat16"] / rates["float32"], rates["float32"]
    )


def chosen_precision(named: str, takes_bfloat16: bool, ratio: float, rate: float) -> Finding:
    """What a measured ratio of bfloat16 to float32 means.

    Args:
        named: the instructions.
        takes_bfloat16: what ``auto`` would take.
        ratio: speed of products in bfloat16 to float32.
        rate: operations a second in float32.
    """
    said = f"{named}; matrix products in bfloat16 {ratio:.1f} × as fast as in float32 ({rate / 1e9:,.0f} GFLOP/s)"
    if takes_bfloat16 and ratio < 1:
        hint = 'write base.precision = "float32" in recipes, or --set base.precision=float32: bfloat16 is slower'
        return Finding("processor", "warning", said, hint)
    if not takes_bfloat16 and ratio > 1.2:
        return Finding(
            "processor",
            "warning",
            said,
            'try base.precision = "bfloat16": it is faster here, and auto does not take it',
        )
    return Finding("processor", "good", said)


def computing(environment: Mapping[str, str]) -> Finding:
    """Threads and allocator."""
    threads, cores = (
        models.threads(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    preloaded = environment.get("LD_PRELOAD", "")
    allocator = next(
        (name for name in ("jemalloc", "tcmalloc", "mimalloc") if name in preloaded), "the system's"
    )
    said = f"{threads} threads on {cores} cores, allocator: {allocator}"
    if threads > cores:
        return Finding(
            "threads",
            "warning",
            said,
            f"export OMP_NUM_THREADS={cores}: more threads than cores wait for each other",
        )
    if threads < cores:
        return Finding(
            "threads",
            "warning",
            said,
            "unset OMP_NUM_THREADS, or run doctor --tune, unless other work shares this machine",
        )
    return Finding("threads", "good", said)


def memory() -> Finding:
    """What is free."""
    free, whole = memory_bytes()
    if free is None or whole is None:
        return Finding(
            "memory",
            "warning",
            "this system does not tell",
            "see docs/plan.md for what a run needs",
        )
    said = f"{free / 2**30:.1f} GB free of {whole / 2**30:.1f}"
    if free < ENOUGH_MEMORY:
        hint = "close other programs, lower training.micro_batch_tokens, or take a smaller base; see clinpeft plan"
        return Finding("memory", "warning", said, hint)
    return Finding("memory", "good", said)


def memory_bytes(told: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Memory that is free, and all of it; None where the system does not tell."""
    if not told.exists():
        return None, None
    text = told.read_text(encoding="utf-8")
    found = [re.search(rf"{name}:\s+(\d+) kB", text) for name in ("MemAvailable", "MemTotal")]
    free, whole = (1024 * int(match.group(1)) if match else None for match in found)
    return free, whole


def graphics() -> Finding:
    """The GPU, where there is one."""
    gpu = models.gpu()
    if gpu is None:
        return Finding("GPU", "good", "none: everything runs on the processor")
    said = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GB, {'with' if gpu.bfloat16 else 'without'} bfloat16"
    if not gpu.bfloat16:
        return Finding(
            "GPU",
            "warning",
            said,
            "expect float32: half the speed and twice the memory of a GPU with bfloat16",
        )
    return Finding("GPU", "good", said)


def offline(environment: Mapping[str, str]) -> Finding:
    """Whether the libraries are told to stay offline."""
    open_doors = [name for name, value in models.OFFLINE.items() if environment.get(name) != value]
    if open_doors:
        hint = "start through the command clinpeft, which sets them"
        return Finding(
            "network", "failure", f"{', '.join(open_doors)} not set in this process", hint
        )
    return Finding(
        "network",
        "good",
        "the libraries are told to stay offline; only clinpeft models pull opens a connection",
    )


# ---------------------------------------------------------------------------------------------------------------------------------- home


def permissions(home: Path) -> Finding:
    """Whether the home can be written, and by nobody else be read."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=home) as file:
            file.write(b"1")
    except OSError as error:
        return Finding(
            "home",
            "failure",
            f"cannot be written: {error.strerror}",
            "give another folder with --home, or CLINPEFT_HOME",
        )
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "home",
            "warning",
            f"others may look into it (mode {mode:o})",
            "chmod 700 on the folder: caches hold the text of notes",
        )
    return Finding("home", "good", f"can be written, mode {mode:o}")


def disk(home: Path) -> Finding:
    """What is free where the runs go."""
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    said = f"{free / 2**30:.1f} GB free in the home"
    if free < LEAST_DISK:
        return Finding(
            "disk",
            "failure",
            said,
            "make room, clinpeft purge removes derived text, or give another --home",
        )
    if free < ENOUGH_DISK:
        return Finding(
            "disk",
            "warning",
            said,
            "tokens and checkpoints of a large corpus may not fit: make room, or give another --home",
        )
    return Finding("disk", "good", said)


def locks(home: Path) -> Finding:
    """Whether a lock on a file of this file system is seen by another opening of it, which is what keeps two processes out of one run."""
    hint = "put the home on a local disk, or never give the same command twice at a time: two processes could write one run"
    try:
        import fcntl

        with tempfile.NamedTemporaryFile(dir=home) as file, Path(file.name).open("rb") as other:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Finding("file locks", "good", "held")
    except (ImportError, OSError) as error:
        return Finding("file locks", "warning", f"this file system has none: {error}", hint)
    return Finding("file locks", "warning", "a second opening is not kept out", hint)


# ----------------------------------------------------------------------------------------------------------------------------- self-test


def tried(context: Circumstances, verb: Verb) -> Finding:
    """A small run, twice: notes of an invented hospital, a base of random weights; trained, saved, read again, compared bit by bit."""
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="clinpeft-doctor-") as name:
            message = _trained_twice(Path(name), context, verb)
    except ClinpeftError as error:
        message = f"{error.message} ({error.location})"
    except Exception as error:  # whatever breaks here would break a run
        message = f"{type(error).__name__}"
    seconds = time.perf_counter() - began
    if message:
        return Finding(
            "self-test",
            "failure",
            message,
            "run make test, and report what fails with the output of clinpeft doctor --json",
        )
    return Finding(
        "self-test",
        "good",
        f"trained, saved, read again and trained again: bit by bit the same, {seconds:.0f} s",
    )


def _trained_twice(folder: Path, context: Circumstances, verb: Verb) -> str:
    """What is wrong, or nothing."""
    base = models.write_tiny(folder / "base")
    document = {
        "kind": "adapt",
        "source": {"name": "synthetic", "subjects": 24},
        "split": {"train": 0.5, "tuning": 0.25, "held_out": 0.25},
        "base": {
            "path": str(base),
            "max_tokens": 64,
            "precision": "float32",
            "overflow": "truncate",
        },
        "adapters": [{"method": "lora", "rank": 4}],
        "training": {
            "max_steps": 6,
            "batch_tokens": 512,
            "micro_batch_tokens": 512,
            "learning_rate": 1e-2,
            "evaluations": 1,
            "checkpoints": 1,
        },
        "evaluation": {"resamples": 100, "max_notes": 4},
    }
    recipe = validated(document, "doctor")
    assert isinstance(recipe, AdaptRecipe)
    runs = [verb(recipe, folder / home, context) for home in ("first", "second")]
    weights = [(run.folder / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    if weights[0] != weights[1]:
        return "the same recipe gave two different adapters"
    answers = [_answers(base, run.folder / "adapter") for run in runs]
    if not all(
        bool((one == other).all()) for one, other in zip(answers[0], answers[1], strict=True)
    ):
        return "one adapter, read twice, gave two different answers"
    if bool((answers[0][0] == answers[0][1]).all()):
        return "the adapter, read again, changes nothing"
    return ""


def _answers(folder: Path, adapter: Path) -> tuple[Any, Any]:
    """Logits of a few made-up rows, without and with the adapter."""
    base = models.load(ModelSpec(path=folder, max_tokens=64, precision="float32"), models.cpu())
    ids = models.probe_ids(base, seed=0)
    stack = adapters.load(base, adapter)
    with_it = adapters.logits(stack, ids, ids * 0 + 1).detach()
    with stack.off():
        return adapters.logits(stack, ids, ids * 0 + 1).detach(), with_it


# ---------------------------------------------------------------------------------------------------------------------------------- tune


def tuned(home: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The number of threads with which a small training step is fastest here, kept in the home as ``machine.json``.

    Args:
        home: of the runs.
        environment: of this process.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    counts = sorted({1, max(1, cores // 2), cores})
    seconds = models.step_seconds(counts)
    best = min(counts, key=lambda count: seconds[count])
    found = {
        "threads": best,
        "cores": cores,
        "step_seconds": {str(count): round(value, 5) for count, value in seconds.items()},
        "allocator": environment.get("LD_PRELOAD", "") or "the system's",
        "instructions": models.instructions(),
    }
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(home / MACHINE, json.dumps(found, indent=1) + "\n")
    return found


def as_json(findings: list[Finding]) -> str:
    """All findings, for a file or another program."""
    return json.dumps(
        {"format": 1, "findings": [asdict(finding) for finding in findings]},
        indent=1,
        ensure_ascii=False,
    )
