"""Who does the work of a search or a study: this process, several of this machine, or an array job of Slurm; all give the same command."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clinpeft.cli.console import near
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from clinpeft.recipe import Recipe, RecipePlan
    from clinpeft.runs import Run

DEFAULT_WORKERS = 2
POLL_SECONDS = 0.2
SCRIPT = "workers.sbatch"


def made(recipe: Recipe, home: Path, title: str, stopping: Callable[[], bool]) -> tuple[Run, bool]:
    """The run of a recipe, and whether it was trained now; False where it was there already.

    Raises:
        ClinpeftError: as the recipe's verb.
    """
    from clinpeft.cli.audit import attempted
    from clinpeft.cli.grid import circumstances
    from clinpeft.cli.progress import progress
    from clinpeft.workflows import get_workflow

    workflow = get_workflow(recipe)
    with progress(title) as tell, attempted(home, recipe) as runs:
        context = circumstances(home, tell, stopping)
        begun = context.now()
        try:
            run = workflow.run(recipe, context)
            runs.append(run)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped at once", location=title, hint="give the same command to go on"
            ) from error
    return run, run.record.finished is None or run.record.finished >= begun


def made_together(
    recipes: Sequence[Recipe], home: Path, title: str, stopping: Callable[[], bool]
) -> Sequence[tuple[Run, bool] | ClinpeftError] | None:
    """``made`` of several recipes, trained in one pass: of each, its run or its error. None where they cannot be.

    Raises:
        ClinpeftError: what concerns all of them; none is made.
    """
    from clinpeft import workflows
    from clinpeft.cli.audit import attempted
    from clinpeft.cli.grid import circumstances
    from clinpeft.cli.progress import progress

    if not workflows.can_train_jointly(recipes):
        return None
    with progress(title) as tell:
        arounds = [
            circumstances(home, tell if at == 0 else _silent, stopping)
            for at in range(len(recipes))
        ]
        begun = arounds[0].now()
        try:
            found = workflows.train_classifiers_jointly(recipes, arounds)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped at once", location=title, hint="give the same command to go on"
            ) from error
    for recipe, each in zip(recipes, found, strict=True):
        with contextlib.suppress(ClinpeftError), attempted(home, recipe) as runs:
            if isinstance(each, ClinpeftError):
                raise each
            runs.append(each)
    return [
        each
        if isinstance(each, ClinpeftError)
        else (each, each.record.finished is None or each.record.finished >= begun)
        for each in found
    ]


def _silent(_: object) -> None:
    """One bar is enough for trials that go step by step together."""


def launched(
    asked: RecipePlan,
    launch: str | None,
    folder: Path,
    command: Sequence[str],
    stopping: Callable[[], bool],
) -> str:
    """Let others work, where the recipe or ``--launch`` says so, and say who: ``here``: nobody else; ``local``: processes that have ended; ``slurm``:
    those that a scheduler will start.

    Args:
        asked: the recipe file.
        launch: of the command line, before the recipe's.
        folder: of the search or study; the array job's script is written there.
        command: arguments of ``clinpeft`` for a worker.
        stopping: whether this process is asked to end.

    Raises:
        UsageError: ``launch`` is none of the three.
        InterruptedRun: asked to end; the workers were too, and have.
    """
    from clinpeft.recipe import WorkersSpec

    try:
        spec = WorkersSpec(launch=launch) if launch else asked.workers
    except ValueError:
        raise UsageError(
            f"launch = {launch!r}", location="--launch", hint="write here, local:2 or slurm:8"
        ) from None
    how, _, count = spec.launch.partition(":")
    workers = int(count or DEFAULT_WORKERS)
    if how == "slurm":
        _submit(asked, folder, command, workers)
    if how == "local":
        _together(command, workers, stopping)
    return how


def _together(command: Sequence[str], workers: int, stopping: Callable[[], bool]) -> None:
    """Processes of this machine, until all have ended; what one that died leaves undone, this process does afterwards."""
    running = [
        subprocess.Popen([sys.executable, "-m", "clinpeft", *command], stdout=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    try:
        while any(worker.poll() is None for worker in running):
            if stopping():
                raise InterruptedRunError(
                    "stopped with its workers",
                    location="--launch",
                    hint="give the same command to go on",
                )
            time.sleep(POLL_SECONDS)
    finally:
        for worker in running:
            if worker.poll() is None:
                worker.terminate()  # each ends after its step, with a checkpoint
        for worker in running:
            worker.wait()


def _submit(asked: RecipePlan, folder: Path, command: Sequence[str], workers: int) -> None:
    path = folder / SCRIPT
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(script(asked, folder, command, workers), encoding="utf-8")
    print(near(path))
    if shutil.which("sbatch") is None:
        print("there is no sbatch here: submit the script where there is one")
        return
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"sbatch refused the script: {done.stderr.strip()}",
            location=str(path),
            hint="set [workers] sbatch, or edit the script",
        )
    print(done.stdout.strip())


def script(asked: RecipePlan, folder: Path, command: Sequence[str], workers: int) -> str:
    """An array job, one worker a task, requeued by the scheduler and going on where it was."""
    name = "".join(
        character if character.isalnum() or character in "-_." else "-" for character in asked.name
    )
    options = [
        f"--job-name=clinpeft-{name}",
        f"--array=1-{workers}",
        f"--output={folder / 'worker-%A-%a.log'}",
        f"--chdir={Path.cwd()}",
        "--requeue",
        *asked.workers.sbatch,
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"exec {shlex.join([sys.executable, '-m', 'clinpeft', *command])}",
    ]
    return "\n".join(lines) + "\n"
