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
from typing import TYPE_CHECKING, Any

from clinpeft.cli.console import to_relative_path
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from clinpeft.recipe import Recipe, RecipePlan
    from clinpeft.runs import Run
    from clinpeft.workflows import RunContext

DEFAULT_WORKER_COUNT = 2
WORKER_POLL_SECONDS = 0.2
SLURM_SCRIPT_FILE = "workers.sbatch"


def get_run_function(kind: str) -> Callable[[Any, Path, RunContext], Run]:
    """What makes a run of this kind of recipe.

    Raises:
        UsageError: nothing is trained by such a recipe.
    """
    from clinpeft import workflows

    verbs: dict[str, Callable[[Any, Path, RunContext], Run]] = {
        "adapt": workflows.adapt_language_model,
        "classify": workflows.train_classifier,
        "embed": workflows.train_embedding_model,
    }
    if kind not in verbs:
        raise UsageError(
            f"a recipe of kind {kind!r} trains nothing",
            location="kind",
            hint=f"take one of kind {', '.join(verbs)}",
        )
    return verbs[kind]


def run_or_find_recipe(
    recipe: Recipe, home: Path, title: str, should_stop: Callable[[], bool]
) -> tuple[Run, bool]:
    """The run of a recipe, and whether it was trained now; False where it was there already.

    Raises:
        ClinpeftError: as the recipe's verb.
    """
    from clinpeft.cli.audit import audit_run_attempt
    from clinpeft.cli.grid import create_run_context
    from clinpeft.cli.progress import show_training_progress

    verb = get_run_function(recipe.kind)
    with show_training_progress(title) as tell, audit_run_attempt(home, recipe) as runs:
        context = create_run_context(tell, should_stop)
        begun = context.now()
        try:
            run = verb(recipe, home, context)
            runs.append(run)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped at once", location=title, hint="give the same command to go on"
            ) from error
    return run, run.record.finished is None or run.record.finished >= begun


def run_recipes_jointly(
    recipes: Sequence[Recipe], home: Path, title: str, should_stop: Callable[[], bool]
) -> Sequence[tuple[Run, bool] | ClinpeftError] | None:
    """``made`` of several recipes, trained in one pass: of each, its run or its error. None where they cannot be.

    Raises:
        ClinpeftError: what concerns all of them; none is made.
    """
    from clinpeft import workflows
    from clinpeft.cli.audit import audit_run_attempt
    from clinpeft.cli.grid import create_run_context
    from clinpeft.cli.progress import show_training_progress
    from clinpeft.recipe import ClassifyRecipe

    asked = [recipe for recipe in recipes if isinstance(recipe, ClassifyRecipe)]
    if len(asked) < len(recipes) or not workflows.can_train_jointly(asked):
        return None
    with show_training_progress(title) as tell:
        arounds = [
            create_run_context(tell if at == 0 else _ignore_step, should_stop)
            for at in range(len(asked))
        ]
        begun = arounds[0].now()
        try:
            found = workflows.train_classifiers_jointly(asked, home, arounds)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped at once", location=title, hint="give the same command to go on"
            ) from error
    for recipe, each in zip(asked, found, strict=True):
        with contextlib.suppress(ClinpeftError), audit_run_attempt(home, recipe) as runs:
            if isinstance(each, ClinpeftError):
                raise each
            runs.append(each)
    return [
        each
        if isinstance(each, ClinpeftError)
        else (each, each.record.finished is None or each.record.finished >= begun)
        for each in found
    ]


def _ignore_step(_: object) -> None:
    """One bar is enough for trials that go step by step together."""


def launch_workers(
    recipe_plan: RecipePlan,
    launch: str | None,
    folder: Path,
    command: Sequence[str],
    should_stop: Callable[[], bool],
) -> str:
    """Let others work, where the recipe or ``--launch`` says so, and say who: ``here``: nobody else; ``local``: processes that have ended; ``slurm``:
    those that a scheduler will start.

    Args:
        recipe_plan: the recipe file.
        launch: of the command line, before the recipe's.
        folder: of the search or study; the array job's script is written there.
        command: arguments of ``clinpeft`` for a worker.
        should_stop: whether this process is asked to end.

    Raises:
        UsageError: ``launch`` is none of the three.
        InterruptedRun: asked to end; the workers were too, and have.
    """
    from clinpeft.recipe import WorkersSpec

    try:
        spec = WorkersSpec(launch=launch) if launch else recipe_plan.workers
    except ValueError:
        raise UsageError(
            f"launch = {launch!r}", location="--launch", hint="write here, local:2 or slurm:8"
        ) from None
    how, _, count = spec.launch.partition(":")
    workers = int(count or DEFAULT_WORKER_COUNT)
    if how == "slurm":
        _submit_slurm_job(recipe_plan, folder, command, workers)
    if how == "local":
        _run_local_workers(command, workers, should_stop)
    return how


def _run_local_workers(
    command: Sequence[str], workers: int, should_stop: Callable[[], bool]
) -> None:
    """Processes of this machine, until all have ended; what one that died leaves undone, this process does afterwards."""
    running = [
        subprocess.Popen([sys.executable, "-m", "clinpeft", *command], stdout=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    try:
        while any(worker.poll() is None for worker in running):
            if should_stop():
                raise InterruptedRunError(
                    "stopped with its workers",
                    location="--launch",
                    hint="give the same command to go on",
                )
            time.sleep(WORKER_POLL_SECONDS)
    finally:
        for worker in running:
            if worker.poll() is None:
                worker.terminate()  # each ends after its step, with a checkpoint
        for worker in running:
            worker.wait()


def _submit_slurm_job(
    recipe_plan: RecipePlan, folder: Path, command: Sequence[str], workers: int
) -> None:
    path = folder / SLURM_SCRIPT_FILE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(format_slurm_script(recipe_plan, folder, command, workers), encoding="utf-8")
    print(to_relative_path(path))
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


def format_slurm_script(
    recipe_plan: RecipePlan, folder: Path, command: Sequence[str], workers: int
) -> str:
    """An array job, one worker a task, requeued by the scheduler and going on where it was."""
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
