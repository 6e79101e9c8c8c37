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
from clinpeft.recipe import AdaptRecipe, PretrainedModelSpec, validate_recipe
from clinpeft.runs import Run, write_file_atomically
from clinpeft.workflows.context import RunContext

DiagnosticState = Literal["good", "warning", "failure"]
ENOUGH_MEMORY_BYTES, ENOUGH_DISK_BYTES, MIN_DISK_BYTES = 4 * 2**30, 10 * 2**30, 2**30
MACHINE_FILE = "machine.json"
"""In the home: what ``doctor --tune`` found for this machine."""


@dataclass(frozen=True)
class DiagnosticFinding:
    """What one look found.

    Attributes:
        name: what was looked at.
        state: ``failure`` where a run would not come through, ``warning`` where it would be slower, or less safe, than it could be.
        message: what was found, with its numbers.
        hint: what to do about it; empty where all is good.
    """

    name: str
    state: DiagnosticState
    message: str
    hint: str = ""


AdaptFunction = Callable[[AdaptRecipe, Path, RunContext], Run]


def run_diagnostics(
    home: Path,
    environment: Mapping[str, str],
    context: RunContext,
    adapt_function: AdaptFunction | None,
) -> Iterator[DiagnosticFinding]:
    """All looks, one after the other, the longest last.

    Args:
        home: of the runs; made where it is not there.
        environment: of this process.
        context: the clock, for the run that is tried.
        adapt_function: ``adapt``; None leaves out the run that is tried.
    """
    yield check_python_version()
    yield from check_libraries()
    yield check_bfloat16_speed()
    yield check_threads(environment)
    yield check_free_memory()
    yield check_gpu_support()
    yield check_offline_variables(environment)
    yield check_home_permissions(home)
    yield check_free_disk(home)
    yield check_file_locks(home)
    if adapt_function is not None:
        yield run_self_test(context, adapt_function)


# ------------------------------------------------------------------------------------------------------------------------------ versions


def check_python_version() -> DiagnosticFinding:
    """The version of Python against what the package asks for."""
    asked = _read_package_metadata("Requires-Python") or ">=3.11"
    version = platform.python_version()
    if _parse_version(version) < _parse_version(asked):
        return DiagnosticFinding(
            "Python",
            "failure",
            f"{version}, and {asked} is asked for",
            "make the environment anew with a newer Python",
        )
    return DiagnosticFinding("Python", "good", f"{version} ({asked})")


def check_libraries() -> Iterator[DiagnosticFinding]:
    """Every library that the package names, against the versions it names."""
    required = (
        [line for line in importlib.metadata.requires("clinpeft") or () if "extra ==" not in line]
        if _read_package_metadata("Name")
        else []
    )
    if not required:
        said = "clinpeft runs from a folder and is not installed, so its requirements are not known"
        yield DiagnosticFinding(
            "libraries", "warning", said, "install it: pip install -e . or the wheel"
        )
    for line in required:
        yield check_library(line, _get_installed_version)


def check_library(requirement: str, get_version: Callable[[str], str | None]) -> DiagnosticFinding:
    """One library.

    Args:
        requirement: such as ``torch>=2.11``, as it stands in the metadata.
        get_version: name -> its version; None where it is not there.
    """
    name = re.split(r"[<>=!~;\s\[(]", requirement, maxsplit=1)[0]
    least, below = (re.search(rf"{sign}\s*([\d.]+)", requirement) for sign in (">=", "<(?!=)"))
    version = get_version(name)
    if version is None:
        return DiagnosticFinding(
            name,
            "failure",
            "not installed",
            f"pip install '{requirement.partition(';')[0].strip()}'",
        )
    if least and _parse_version(version) < _parse_version(least.group(1)):
        said = f"{version}, and {least.group(1)} is the oldest that was tested"
        return DiagnosticFinding(
            name, "failure", said, f"pip install -U '{name}>={least.group(1)}'"
        )
    if below and _parse_version(version) >= _parse_version(below.group(1)):
        hint = f"pip install '{name}<{below.group(1)}', or run the tests with this one"
        return DiagnosticFinding(
            name,
            "warning",
            f"{version} is newer than what was tested (below {below.group(1)})",
            hint,
        )
    return DiagnosticFinding(
        name, "good", f"{version}" + (f" (from {least.group(1)})" if least else "")
    )


def _get_installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_package_metadata(field: str) -> str | None:
    try:
        said = importlib.metadata.metadata("clinpeft").get_all(field)
    except importlib.metadata.PackageNotFoundError:
        return None
    return str(said[0]) if said else None


def _parse_version(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


# ------------------------------------------------------------------------------------------------------------------------------- machine


def check_bfloat16_speed() -> DiagnosticFinding:
    """Whether bfloat16 is faster here than float32, measured, and whether ``precision = "auto"`` would choose as the measurement does."""
    has = models.detect_bfloat16_instructions()
    named = (
        ", ".join(
            title
            for flag, title in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512-BF16"))
            if has[flag]
        )
        or "no instructions for bfloat16"
    )
    rates = {
        precision: models.measure_matmul_rate(precision) for precision in ("float32", "bfloat16")
    }
    return check_precision_choice(
        named, any(has.values()), rates["bfloat16"] / rates["float32"], rates["float32"]
    )


def check_precision_choice(
    instruction_names: str,
    auto_uses_bfloat16: bool,
    bfloat16_speedup: float,
    float32_operations_per_second: float,
) -> DiagnosticFinding:
    """What a measured ratio of bfloat16 to float32 means.

    Args:
        instruction_names: the instructions.
        auto_uses_bfloat16: what ``auto`` would take.
        bfloat16_speedup: speed of products in bfloat16 to float32.
        float32_operations_per_second: operations a second in float32.
    """
    said = f"{instruction_names}; matrix products in bfloat16 {bfloat16_speedup:.1f} × as fast as in float32 ({float32_operations_per_second / 1e9:,.0f} GFLOP/s)"
    if auto_uses_bfloat16 and bfloat16_speedup < 1:
        hint = 'write base.precision = "float32" in recipes, or --set base.precision=float32: bfloat16 is slower'
        return DiagnosticFinding("processor", "warning", said, hint)
    if not auto_uses_bfloat16 and bfloat16_speedup > 1.2:
        return DiagnosticFinding(
            "processor",
            "warning",
            said,
            'try base.precision = "bfloat16": it is faster here, and auto does not take it',
        )
    return DiagnosticFinding("processor", "good", said)


def check_threads(environment: Mapping[str, str]) -> DiagnosticFinding:
    """Threads and allocator."""
    threads, cores = (
        models.get_thread_count(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    preloaded = environment.get("LD_PRELOAD", "")
    allocator = next(
        (name for name in ("jemalloc", "tcmalloc", "mimalloc") if name in preloaded), "the system's"
    )
    said = f"{threads} threads on {cores} cores, allocator: {allocator}"
    if threads > cores:
        return DiagnosticFinding(
            "threads",
            "warning",
            said,
            f"export OMP_NUM_THREADS={cores}: more threads than cores wait for each other",
        )
    if threads < cores:
        return DiagnosticFinding(
            "threads",
            "warning",
            said,
            "unset OMP_NUM_THREADS, or run doctor --tune, unless other work shares this machine",
        )
    return DiagnosticFinding("threads", "good", said)


def check_free_memory() -> DiagnosticFinding:
    """What is free."""
    free, whole = read_memory_bytes()
    if free is None or whole is None:
        return DiagnosticFinding(
            "memory",
            "warning",
            "this system does not tell",
            "see docs/plan.md for what a run needs",
        )
    said = f"{free / 2**30:.1f} GB free of {whole / 2**30:.1f}"
    if free < ENOUGH_MEMORY_BYTES:
        hint = "close other programs, lower training.micro_batch_tokens, or take a smaller base; see clinpeft plan"
        return DiagnosticFinding("memory", "warning", said, hint)
    return DiagnosticFinding("memory", "good", said)


def read_memory_bytes(meminfo_path: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """Memory that is free, and all of it; None where the system does not tell."""
    if not meminfo_path.exists():
        return None, None
    text = meminfo_path.read_text(encoding="utf-8")
    found = [re.search(rf"{name}:\s+(\d+) kB", text) for name in ("MemAvailable", "MemTotal")]
    free, whole = (1024 * int(match.group(1)) if match else None for match in found)
    return free, whole


def check_gpu_support() -> DiagnosticFinding:
    """The GPU, where there is one."""
    gpu = models.detect_gpu()
    if gpu is None:
        return DiagnosticFinding("GPU", "good", "none: everything runs on the processor")
    said = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GB, {'with' if gpu.supports_bfloat16 else 'without'} bfloat16"
    if not gpu.supports_bfloat16:
        return DiagnosticFinding(
            "GPU",
            "warning",
            said,
            "expect float32: half the speed and twice the memory of a GPU with bfloat16",
        )
    return DiagnosticFinding("GPU", "good", said)


def check_offline_variables(environment: Mapping[str, str]) -> DiagnosticFinding:
    """Whether the libraries are told to stay offline."""
    open_doors = [
        name for name, value in models.OFFLINE_ENVIRONMENT.items() if environment.get(name) != value
    ]
    if open_doors:
        hint = "start through the command clinpeft, which sets them"
        return DiagnosticFinding(
            "network", "failure", f"{', '.join(open_doors)} not set in this process", hint
        )
    return DiagnosticFinding(
        "network",
        "good",
        "the libraries are told to stay offline; only clinpeft models pull opens a connection",
    )


# ---------------------------------------------------------------------------------------------------------------------------------- home


def check_home_permissions(home: Path) -> DiagnosticFinding:
    """Whether the home can be written, and by nobody else be read."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=home) as file:
            file.write(b"1")
    except OSError as error:
        return DiagnosticFinding(
            "home",
            "failure",
            f"cannot be written: {error.strerror}",
            "give another folder with --home, or CLINPEFT_HOME",
        )
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        return DiagnosticFinding(
            "home",
            "warning",
            f"others may look into it (mode {mode:o})",
            "chmod 700 on the folder: caches hold the text of notes",
        )
    return DiagnosticFinding("home", "good", f"can be written, mode {mode:o}")


def check_free_disk(home: Path) -> DiagnosticFinding:
    """What is free where the runs go."""
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    said = f"{free / 2**30:.1f} GB free in the home"
    if free < MIN_DISK_BYTES:
        return DiagnosticFinding(
            "disk",
            "failure",
            said,
            "make room, clinpeft purge removes derived text, or give another --home",
        )
    if free < ENOUGH_DISK_BYTES:
        return DiagnosticFinding(
            "disk",
            "warning",
            said,
            "tokens and checkpoints of a large corpus may not fit: make room, or give another --home",
        )
    return DiagnosticFinding("disk", "good", said)


def check_file_locks(home: Path) -> DiagnosticFinding:
    """Whether a lock on a file of this file system is seen by another opening of it, which is what keeps two processes out of one run."""
    hint = "put the home on a local disk, or never give the same command twice at a time: two processes could write one run"
    try:
        import fcntl

        with tempfile.NamedTemporaryFile(dir=home) as file, Path(file.name).open("rb") as other:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return DiagnosticFinding("file locks", "good", "held")
    except (ImportError, OSError) as error:
        return DiagnosticFinding(
            "file locks", "warning", f"this file system has none: {error}", hint
        )
    return DiagnosticFinding("file locks", "warning", "a second opening is not kept out", hint)


# ----------------------------------------------------------------------------------------------------------------------------- self-test


def run_self_test(context: RunContext, adapt_function: AdaptFunction) -> DiagnosticFinding:
    """A small run, twice: notes of an invented hospital, a base of random weights; trained, saved, read again, compared bit by bit."""
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="clinpeft-doctor-") as name:
            message = _train_twice(Path(name), context, adapt_function)
    except ClinpeftError as error:
        message = f"{error.message} ({error.location})"
    except Exception as error:  # whatever breaks here would break a run
        message = f"{type(error).__name__}"
    seconds = time.perf_counter() - began
    if message:
        return DiagnosticFinding(
            "self-test",
            "failure",
            message,
            "run make test, and report what fails with the output of clinpeft doctor --json",
        )
    return DiagnosticFinding(
        "self-test",
        "good",
        f"trained, saved, read again and trained again: bit by bit the same, {seconds:.0f} s",
    )


def _train_twice(folder: Path, context: RunContext, adapt_function: AdaptFunction) -> str:
    """What is wrong, or nothing."""
    base = models.write_toy_model(folder / "base")
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
    recipe = validate_recipe(document, "doctor")
    assert isinstance(recipe, AdaptRecipe)
    runs = [adapt_function(recipe, folder / home, context) for home in ("first", "second")]
    weights = [(run.folder / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    if weights[0] != weights[1]:
        return "the same recipe gave two different adapters"
    answers = [_compute_logits(base, run.folder / "adapter") for run in runs]
    if not all(
        bool((one == other).all()) for one, other in zip(answers[0], answers[1], strict=True)
    ):
        return "one adapter, read twice, gave two different answers"
    if bool((answers[0][0] == answers[0][1]).all()):
        return "the adapter, read again, changes nothing"
    return ""


def _compute_logits(folder: Path, adapter: Path) -> tuple[Any, Any]:
    """Logits of a few made-up rows, without and with the adapter."""
    base = models.load_base_model(
        PretrainedModelSpec(path=folder, max_tokens=64, precision="float32"),
        models.get_cpu_device(),
    )
    ids = models.sample_reference_tokens(base, seed=0)
    stack = adapters.load_adapter(base, adapter)
    with_it = adapters.compute_token_logits(stack, ids, ids * 0 + 1).detach()
    with stack.disable_adapters():
        return adapters.compute_token_logits(stack, ids, ids * 0 + 1).detach(), with_it


# ---------------------------------------------------------------------------------------------------------------------------------- tune


def tune_threads(home: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The number of threads with which a small training step is fastest here, kept in the home as ``machine.json``.

    Args:
        home: of the runs.
        environment: of this process.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    counts = sorted({1, max(1, cores // 2), cores})
    seconds = models.measure_step_seconds(counts)
    best = min(counts, key=lambda count: seconds[count])
    found = {
        "threads": best,
        "cores": cores,
        "step_seconds": {str(count): round(value, 5) for count, value in seconds.items()},
        "allocator": environment.get("LD_PRELOAD", "") or "the system's",
        "instructions": models.detect_bfloat16_instructions(),
    }
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_file_atomically(home / MACHINE_FILE, json.dumps(found, indent=1) + "\n")
    return found


def findings_to_json(findings: list[DiagnosticFinding]) -> str:
    """All findings, for a file or another program."""
    return json.dumps(
        {"format": 1, "findings": [asdict(finding) for finding in findings]},
        indent=1,
        ensure_ascii=False,
    )
