"""Random kills, full disks and damaged files over small recipes, again and again: nothing may be
lost.

Every round takes a recipe and a fresh home, disturbs the command a few times, lets it end, and
compares what it made with an undisturbed run: weights, metrics, tables and attrition byte for byte,
the log line for line but for its seconds, and the names of all files. ``make soak`` runs it for
half an hour over the smoke recipes; ``tests/trust`` for a dozen rounds over toys. The command is
run in children forked from one process that has loaded everything, so that a round takes seconds;
``--real`` rounds start the real command anew.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMOKE = [
    ROOT / "recipes" / name for name in ("smoke.toml", "smoke-classify.toml", "smoke-embed.toml")
]
SETTINGS = {
    "adapt": ["base.precision=float32"],
    "classify": ["base.precision=float32"],
    "embed": [
        "base.precision=float32",
        "evaluation.profile_texts=0",
    ],  # what is timed is never the same twice
}
FORGOTTEN = (
    "checkpoints",
    "lock",
    "log.jsonl",
    "run.json",
    "audit.jsonl",
    "audit.head",
    "audit.lock",
)
"""What differs between two runs of the same recipe: compared apart, or not at all."""

TIMES = ("seconds",)
WRITES = ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate", "os.rmdir")
TAKES_ROOM = ("open", "os.rename", "os.mkdir", "os.truncate")
LONGEST_SECONDS, HUNG = 180.0, 124
LIMITS = (0, 200, 2_000, 10_000, 40_000, 200_000)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run of a recipe: what it made, how often it touched the disk, how long it
    took."""

    verb: str
    recipe: Path
    outcome: dict[str, str]
    writes: int
    seconds: float


@dataclass
class Round:
    """What was done to one run, and what came of it."""

    verb: str
    recipe: str
    done: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def verb_of(recipe: Path) -> str:
    return str(tomllib.loads(recipe.read_text(encoding="utf-8"))["kind"])


def words(verb: str, recipe: Path, home: Path) -> list[str]:
    return [
        verb,
        str(recipe),
        "--home",
        str(home),
        *(word for change in SETTINGS[verb] for word in ("--set", change)),
    ]


def command(asked: list[str]) -> int:
    """The command in this process: its exit code."""
    from clinpeft import cli

    sys.argv = ["clinpeft", *asked]
    try:
        cli.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def writes_under(home: Path, hit: Callable[[str], object]) -> None:
    """Call ``hit`` with the name of every event by which this process touches a file below
    ``home``, before it happens; there is no way back."""
    below = str(home)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in WRITES or not args or not str(args[0]).startswith(below):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        hit(event)

    sys.addaudithook(hook)


def child(asked: list[str], told: Path, arm: Callable[[], None]) -> int:
    """Fork, arm, run the command with its output in ``told``; the process id."""
    _flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        arm()
        code = command(asked)
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code, negative for a signal; one that takes far longer than any run does is ended,
    and counts as ``HUNG``."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < LONGEST_SECONDS:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HUNG


# disturbances -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One call that is to be disturbed: the command, its home, where it speaks, the undisturbed
    run, and the dice."""

    asked: list[str]
    home: Path
    told: Path
    reference: Reference
    draw: random.Random


Disturbed = Callable[[Trial], tuple[str, int]]
"""A trial -> what was done, and the exit code."""


def killed_at_a_write(one: Trial) -> tuple[str, int]:
    at, seen = one.draw.randint(1, one.reference.writes), Counter[str]()

    def hit(_: str) -> None:
        seen["writes"] += 1
        if seen["writes"] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return f"kill -9 at write {at} of {one.reference.writes}", ended(
        child(one.asked, one.told, lambda: writes_under(one.home, hit))
    )


def killed_at_any_time(one: Trial) -> tuple[str, int]:
    return _signalled(one, signal.SIGKILL)


def told_to_stop(one: Trial) -> tuple[str, int]:
    return _signalled(one, signal.SIGTERM)


def _signalled(one: Trial, number: signal.Signals) -> tuple[str, int]:
    after = one.draw.uniform(0, one.reference.seconds)
    pid = child(one.asked, one.told, lambda: None)
    time.sleep(after)
    os.kill(pid, number)
    return f"{number.name} after {after:.2f} of {one.reference.seconds:.2f} s", ended(pid)


def disk_full_from_a_write_on(one: Trial) -> tuple[str, int]:
    at, seen = one.draw.randint(1, one.reference.writes), Counter[str]()

    def hit(event: str) -> None:
        seen["writes"] += 1
        if seen["writes"] >= at and event in TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(one.home))

    return f"disk full from write {at} of {one.reference.writes} on", ended(
        child(one.asked, one.told, lambda: writes_under(one.home, hit))
    )


def files_of_limited_size(one: Trial) -> tuple[str, int]:
    """Below Python, too: Arrow, DuckDB and safetensors meet the limit as they would a full disk.
    What the command says goes through a pipe."""
    limit = one.draw.choice(LIMITS)
    piped = one.told.with_suffix(".pipe")
    piped.unlink(missing_ok=True)
    os.mkfifo(piped)
    reader = os.fork()
    if not reader:
        one.told.write_bytes(piped.read_bytes())
        os._exit(0)
    pid = child(
        one.asked,
        piped,
        lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        ),
    )
    code = ended(pid)
    os.waitpid(reader, 0)
    return f"no file over {limit} bytes", code


def killed_for_real(one: Trial) -> tuple[str, int]:
    """The real command in a process group of its own, killed when its log has so many lines."""
    step = one.draw.randint(1, 3)
    with one.told.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "clinpeft", *one.asked],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    while (
        running.poll() is None
        and sum(len(log.read_bytes().splitlines()) for log in one.home.glob("*/log.jsonl")) < step
    ):
        time.sleep(0.01)
    running.kill()
    return f"real kill -9 in step {step}", running.wait()


DISTURBANCES: dict[str, tuple[Disturbed, tuple[int, ...]]] = {
    "kill -9 at a write": (killed_at_a_write, (-signal.SIGKILL, 0)),
    "kill -9 at any time": (killed_at_any_time, (-signal.SIGKILL, 0)),
    "SIGTERM": (told_to_stop, (5, 0, -signal.SIGTERM)),
    "disk full": (disk_full_from_a_write_on, (1, 0)),
    "file size limit": (files_of_limited_size, (1, 0)),
}
"""How a run is disturbed -> by what, and the exit codes that are right."""


# damage -------------------------------------------------------------------------------------------


def truncated(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def flipped(path: Path, draw: random.Random) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def torn(path: Path, draw: random.Random) -> None:
    """A line that the power cut through."""
    with path.open("ab") as file:
        line = b'{"event": "step", "step": 1, "loss": 0.5}'
        file.write(line[: draw.randrange(1, len(line))])


def damaged(home: Path, draw: random.Random) -> str:
    """Damage a checkpoint, the newest more often than not, or the log: what was done, or nothing
    where there is nothing."""
    found = {
        "newest checkpoint": sorted(home.glob("*/checkpoints/**/step-*.safetensors"))[-1:],
        "best weights": sorted(home.glob("*/checkpoints/**/best-*.safetensors"))[-1:],
        "log": sorted(home.glob("*/log.jsonl"))[-1:],
    }
    name = draw.choice(["newest checkpoint", "newest checkpoint", "best weights", "log"])
    if not found[name] or not found[name][0].stat().st_size:
        return ""
    how = torn if name == "log" else draw.choice([truncated, flipped])
    how(found[name][0], draw)
    return f"{name} {how.__name__}"


# comparing ----------------------------------------------------------------------------------------


def outcome(home: Path) -> dict[str, str]:
    """What a home holds: file -> a hash of what must be the same in two runs of the same recipe."""
    found = {}
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        name = path.relative_to(home).as_posix()
        if name.startswith(("cache/", "tables/")):
            found[name] = (
                # what is remembered is compared by what is made of it; tables of a grid tell
                # seconds
                "there"
            )
        elif not any(part in FORGOTTEN for part in path.relative_to(home).parts):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for run in sorted(home.glob("*/run.json")):
        found[f"{run.parent.name}/log.jsonl"] = json.dumps(list(logged(run.parent)))
        found[f"{run.parent.name}/run.json"] = json.dumps(recorded(run))
    return found


def logged(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield {name: value for name, value in json.loads(line).items() if name not in TIMES}
        except ValueError:
            yield {"torn": line}


def recorded(path: Path) -> dict[str, Any]:
    """Of the record, what does not tell the time."""
    told = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: told.get(name)
        for name in (
            "id",
            "state",
            "counts",
            "liveness",
            "trained_parameters",
            "tokens_seen",
            "notices",
            "error",
            "hashes",
        )
    }


def unaudited(home: Path) -> list[str]:
    """What is wrong with the chain of the audit log, and the finished runs that it does not
    know."""
    from clinpeft.runs import audit_log

    known = {
        line.get("run")
        for line in audit_log.read_audit_lines(home)
        if line.get("state") == "finished"
    }
    missing = [
        f"run {run.parent.name} is not in the audit log"
        for run in home.glob("*/run.json")
        if run.parent.name not in known
    ]
    return [*audit_log.verify_audit_log(home).problems, *missing]


def differences(reference: dict[str, str], found: dict[str, str]) -> list[str]:
    lost = [f"{name} is missing" for name in sorted(reference.keys() - found.keys())]
    left = [f"{name} is left over" for name in sorted(found.keys() - reference.keys())]
    return (
        lost
        + left
        + [
            f"{name} differs"
            for name in sorted(reference.keys() & found.keys())
            if reference[name] != found[name]
        ]
    )


# rounds -------------------------------------------------------------------------------------------


def undisturbed(recipe: Path, scratch: Path) -> Reference:
    """The recipe once in this process, which loads all that is loaded late, and once in a child,
    where its writes are counted."""
    verb = verb_of(recipe)
    warm, home, counted = (
        scratch / f"warm-{verb}",
        scratch / f"straight-{verb}",
        scratch / "counted",
    )
    with _quiet(scratch / "warm.txt"):
        code = command(words(verb, recipe, warm))
    if code:
        sys.exit((scratch / "warm.txt").read_text(encoding="utf-8"))
    shutil.rmtree(warm)
    counted.write_bytes(b"")

    def arm() -> None:
        tally = os.open(counted, os.O_WRONLY | os.O_APPEND)
        writes_under(home, lambda _: os.write(tally, b"."))

    begun = time.perf_counter()
    if ended(child(words(verb, recipe, home), scratch / "straight.txt", arm)):
        sys.exit((scratch / "straight.txt").read_text(encoding="utf-8"))
    seconds = time.perf_counter() - begun
    made = outcome(home)
    shutil.rmtree(home)
    return Reference(verb, recipe, made, counted.stat().st_size, seconds)


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Standard output and error of this process into a file, for a while."""
    kept = os.dup(1), os.dup(2)
    into = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _flush()
    os.dup2(into, 1)
    os.dup2(into, 2)
    try:
        yield
    finally:
        _flush()
        for at, before in enumerate(kept, start=1):
            os.dup2(before, at)
        for descriptor in (into, *kept):
            os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def disturbed(
    reference: Reference, scratch: Path, draw: random.Random, names: list[str], real: bool = False
) -> Round:
    """One run under these disturbances, each in its turn, sometimes with damage after it; then the
    same command until it ends."""
    home, told = scratch / "home", scratch / "told.txt"
    shutil.rmtree(home, ignore_errors=True)
    asked = words(reference.verb, reference.recipe, home)
    done, begun = Round(reference.verb, reference.recipe.stem), time.perf_counter()
    for name in names:
        disturb, right = (killed_for_real, (-signal.SIGKILL, 0)) if real else DISTURBANCES[name]
        said, code = disturb(Trial(asked, home, told, reference, draw))
        done.done.append(said)
        done.codes.append(code)
        words_said = told.read_text(encoding="utf-8", errors="replace")
        if code not in right:
            done.wrong.append(f"{said}: exit code {code}: {words_said[-600:]}")
        elif code > 0 and ("hint:" not in words_said or "Traceback" in words_said):
            done.wrong.append(f"{said}: no three lines: {words_said[-600:]}")
        if (
            code
            and not _has_finished(home)
            and draw.random() < 0.8
            and (harm := damaged(home, draw))
        ):
            done.damage.append(harm)
    code = ended(child(asked, told, lambda: None))
    if code:
        done.wrong.append(
            f"the last call: exit code {code}: "
            f"{told.read_text(encoding='utf-8', errors='replace')[-600:]}"
        )
    done.wrong += [*differences(reference.outcome, outcome(home)), *unaudited(home)]
    done.seconds = time.perf_counter() - begun
    return done


def _has_finished(home: Path) -> bool:
    """Whether a call was stopped after its run was recorded: that run is not opened again, and its
    checkpoints and its log are read by nobody."""
    return any(
        json.loads(run.read_text(encoding="utf-8"))["state"] == "finished"
        for run in home.glob("*/run.json")
    )


def rounds(
    references: list[Reference],
    scratch: Path,
    seed: int,
    going_on: Callable[[int], bool],
    real: int,
) -> Iterator[Round]:
    """Every recipe and every disturbance in turn, the latter mostly followed by one or two more
    before the run may end."""
    number = 0
    while going_on(number):
        draw = random.Random(f"{seed} {number}")
        names = [list(DISTURBANCES)[(number // len(references)) % len(DISTURBANCES)]]
        names += draw.choices(list(DISTURBANCES), k=draw.choice([0, 1, 1, 2]))
        yield disturbed(references[number % len(references)], scratch, draw, names)
        number += 1
    for at in range(real):
        yield disturbed(
            references[at % len(references)],
            scratch,
            random.Random(f"{seed} real {at}"),
            ["real"],
            real=True,
        )


def summary(done: list[Round]) -> str:
    """A table: how often each verb was disturbed in which way, and how many ended in something
    lost."""
    kinds = sorted({_kind(said) for one in done for said in one.done})
    verbs = sorted({one.verb for one in done})
    rows = [("disturbance", *verbs)]
    rows += [
        (
            kind,
            *(
                str(
                    sum(
                        _kind(said) == kind for one in done if one.verb == verb for said in one.done
                    )
                )
                for verb in verbs
            ),
        )
        for kind in kinds
    ]
    rows.append(
        (
            "damaged files",
            *(str(sum(len(one.damage) for one in done if one.verb == verb)) for verb in verbs),
        )
    )
    rows.append(("runs compared", *(str(sum(one.verb == verb for one in done)) for verb in verbs)))
    rows.append(
        (
            "runs that lost something",
            *(str(sum(bool(one.wrong) for one in done if one.verb == verb)) for verb in verbs),
        )
    )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _kind(said: str) -> str:
    """``kill -9 at write 3 of 90`` -> ``kill -9 at write``."""
    return next(
        kind
        for kind in ("real kill -9", "kill -9", "SIGKILL", "SIGTERM", "disk full", "no file over")
        if said.startswith(kind)
    )


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("recipes", nargs="*", type=Path, default=SMOKE)
    asked.add_argument("--minutes", type=float, default=0.0, help="go on for so long")
    asked.add_argument("--rounds", type=int, default=0, help="or so many rounds")
    asked.add_argument(
        "--real",
        type=int,
        default=0,
        help="rounds in which the real command is started and killed, at the end",
    )
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--json", type=Path, help="a line a round goes here")
    options = asked.parse_args()
    import torch

    from clinpeft import cli  # noqa: F401

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork

    done = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        references = [undisturbed(path.resolve(), Path(folder)) for path in options.recipes]
        begun = time.perf_counter()

        def going_on(number: int) -> bool:
            return bool(
                time.perf_counter() - begun < options.minutes * 60
                if options.minutes
                else number < options.rounds
            )

        for one in rounds(references, Path(folder), options.seed, going_on, options.real):
            done.append(one)
            print(
                (
                    f"{len(done):4d} {one.verb:9s} {one.seconds:6.1f} s  {'; '.join(one.done)} "
                    f"{one.damage or ''} {'LOST' if one.wrong else ''}"
                ),
                flush=True,
            )
            for line in one.wrong:
                print(f"       {line}", flush=True)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(one)) + "\n")
    print(
        f"\nseed {options.seed}, {(time.perf_counter() - begun) / 60:.1f} minutes\n\n"
        f"{summary(done)}"
    )
    sys.exit(any(one.wrong for one in done))


if __name__ == "__main__":
    main()
