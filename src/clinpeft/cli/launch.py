"""Where the work of a search or a study is done: this process, local workers, or a Slurm array job.

Every worker runs the same command with ``--launch here``; workers share the home and take what no
other worker holds.
"""

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

from clinpeft.cli.audit import audit_run_attempt
from clinpeft.cli.console import to_relative_path
from clinpeft.cli.grid import RESUME_HINT, format_command, run_recipe
from clinpeft.cli.progress import show_training_progress
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from clinpeft.recipe import Recipe, RecipePlan
    from clinpeft.runs import Run

DEFAULT_WORKERS = 2
POLL_SECONDS = 0.2
SLURM_SCRIPT_FILE = "workers.sbatch"


def was_trained_since(run: Run, start: datetime) -> bool:
    """Whether a run was trained after a time; False for one that had finished before."""
    return run.record.finished is None or run.record.finished >= start


def run_or_find_recipe(
    recipe: Recipe, home: Path, title: str, should_stop: Callable[[], bool]
) -> tuple[Run, bool]:
    """Get the run of a recipe, and whether it was trained now rather than found.

    Raises:
        ClinpeftError: as the recipe's workflow.
    """
    from datetime import UTC, datetime

    start = datetime.now(UTC)
    run = run_recipe(recipe, home, title, should_stop)
    return run, was_trained_since(run, start)


def run_recipes_jointly(
    recipes: Sequence[Recipe], home: Path, title: str, should_stop: Callable[[], bool]
) -> Sequence[tuple[Run, bool] | ClinpeftError] | None:
    """Train several recipes in one pass over one base.

    Returns:
        For each recipe what ``run_or_find_recipe`` gives, or its error; None where the recipes
        cannot be trained together.

    Raises:
        ClinpeftError: what concerns all recipes; none is trained.
    """
    from clinpeft.workflows import can_train_jointly, create_context, train_classifiers_jointly

    if not can_train_jointly(recipes):
        return None
    with show_training_progress(title) as on_step:
        # One progress line is enough: the trials advance step by step together.
        callbacks = [on_step, *(lambda _: None for _ in recipes[1:])]
        contexts = [
            create_context(
                home, command=format_command(), on_step=callback, should_stop=should_stop
            )
            for callback in callbacks
        ]
        start = contexts[0].now()
        try:
            outcomes = train_classifiers_jointly(recipes, contexts)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped at once", location=title, hint=RESUME_HINT
            ) from error
    for recipe, outcome in zip(recipes, outcomes, strict=True):
        with contextlib.suppress(ClinpeftError), audit_run_attempt(home, recipe) as runs:
            if isinstance(outcome, ClinpeftError):
                raise outcome
            runs.append(outcome)
    return [
        outcome
        if isinstance(outcome, ClinpeftError)
        else (outcome, was_trained_since(outcome, start))
        for outcome in outcomes
    ]


def launch_workers(
    recipe_plan: RecipePlan,
    launch: str | None,
    folder: Path,
    command: Sequence[str],
    should_stop: Callable[[], bool],
) -> str:
    """Start other workers, where the recipe or ``--launch`` asks for them.

    Args:
        recipe_plan: the recipe file.
        launch: of the command line; overrides the recipe's.
        folder: of the search or study; the script of an array job is written there.
        command: arguments of ``clinpeft`` for a worker.
        should_stop: whether this process was asked to end.

    Returns:
        ``here``: no other worker; ``local``: local workers, which have ended; ``slurm``: those that
        a scheduler will start.

    Raises:
        UsageError: ``launch`` is none of the three.
        InterruptedRunError: asked to end; the workers were asked too, and have ended.
    """
    from clinpeft.recipe import WorkersSpec

    try:
        spec = WorkersSpec(launch=launch) if launch else recipe_plan.workers
    except ValueError:
        raise UsageError(
            f"launch = {launch!r}", location="--launch", hint="write here, local:2 or slurm:8"
        ) from None
    method, _, count = spec.launch.partition(":")
    workers = int(count or DEFAULT_WORKERS)
    if method == "slurm":
        _submit_slurm_job(recipe_plan, folder, command, workers)
    if method == "local":
        _run_local_workers(command, workers, should_stop)
    return method


def _run_local_workers(
    command: Sequence[str], workers: int, should_stop: Callable[[], bool]
) -> None:
    """Run workers on this machine until all have ended; this process then does the rest."""
    processes = [
        subprocess.Popen([sys.executable, "-m", "clinpeft", *command], stdout=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    try:
        while any(process.poll() is None for process in processes):
            if should_stop():
                raise InterruptedRunError(
                    "stopped with its workers", location="--launch", hint=RESUME_HINT
                )
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # each ends after its step, with a checkpoint
        for process in processes:
            process.wait()


def _submit_slurm_job(
    recipe_plan: RecipePlan, folder: Path, command: Sequence[str], workers: int
) -> None:
    path = folder / SLURM_SCRIPT_FILE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(format_slurm_script(recipe_plan, folder, command, workers), encoding="utf-8")
    print(to_relative_path(path))
    if shutil.which("sbatch") is None:
        print("sbatch is not installed here: submit the script where it is")
        return
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(
            f"sbatch refused the script: {done.stderr.strip()}",
            location=str(path),
            hint="set [workers] sbatch, or edit the script",
        )
    print(done.stdout.strip())


def format_slurm_script(
    recipe_plan: RecipePlan, folder: Path, command: Sequence[str], workers: int
) -> str:
    """Format an array job: one worker per task, requeued by the scheduler, which then resumes."""
    name = "".join(
        character if character.isalnum() or character in "-_." else "-"
        for character in recipe_plan.name
    )
    options = [
        f"--job-name=clinpeft-{name}",
        f"--array=1-{workers}",
        f"--output={folder / 'worker-%A-%a.log'}",
        f"--chdir={Path.cwd()}",
        "--requeue",
        *recipe_plan.workers.sbatch,
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"exec {shlex.join([sys.executable, '-m', 'clinpeft', *command])}",
    ]
    return "\n".join(lines) + "\n"
