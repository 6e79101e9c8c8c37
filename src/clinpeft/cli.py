"""One verb a job. Rooms are imported inside the verbs, so that ``--help`` is instant and nothing is loaded that is not used."""

from __future__ import annotations

import os

# before any library that reads them is imported: nothing here reaches for a network
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "true",
}

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clinpeft.errors import ClinpeftError, UsageError

if TYPE_CHECKING:
    from clinpeft.pipeline import Circumstances
    from clinpeft.recipe import Cell, CohortRecipe
    from clinpeft.reports import Entry, Table
    from clinpeft.tables import Hospital
    from clinpeft.training import Event

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__, rich_markup_mode=None)
runs_app = typer.Typer(invoke_without_command=True, help="List runs, show one, set two beside each other.")
models_app = typer.Typer(no_args_is_help=True, help="Base models: the one door to the network, and what is in a folder.")
cohort_app = typer.Typer(no_args_is_help=True, help="Who is asked what, when, with which answer.")
app.add_typer(runs_app, name="runs")
app.add_typer(cohort_app, name="cohort")
app.add_typer(models_app, name="models")

Home = Annotated[Path, typer.Option("--home", envvar="CLINPEFT_HOME", help="Folder of all runs and caches.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the recipe; may be repeated.")]
HERE = Path("runs")


@app.command()
def adapt(recipe: Annotated[Path, typer.Argument(help="A recipe of kind adapt.")], set_: Overrides = None, home: Home = HERE) -> None:
    """Adapt a language model to notes: domain-adaptive pretraining with a small adapter, one run a cell of the recipe's grid."""
    from clinpeft import recipe as recipes
    from clinpeft.reports import adaptation_table

    cells = recipes.read(recipe, set_ or [], os.environ)
    _only("adapt", cells, recipe)
    with _stoppable() as stopping:
        entries = [_adapted(cell, home.resolve(), stopping) for cell in cells]
    title = recipe.stem
    _finish(adaptation_table(entries, title), home, title)
    for entry in entries:
        if entry.run is not None:
            print(f"{entry.name or title}: {_near(entry.run.folder)}")
    if any(entry.run is None for entry in entries):
        raise typer.Exit(1)


@runs_app.callback()
def list_all(context: typer.Context, home: Home = HERE) -> None:
    """List the runs of a home, oldest first."""
    from clinpeft import registry, reports

    if context.invoked_subcommand is None:
        _print(reports.runs_list(registry.list_runs(home.resolve())))


@runs_app.command()
def show(run: Annotated[str, typer.Argument(help="Id, the beginning of one, or name.")], home: Home = HERE) -> None:
    """What one run is, what it read, and every number of it."""
    from clinpeft import registry, reports

    found = registry.find(home.resolve(), run)
    for table in (reports.run_summary(found), reports.run_attrition(found), reports.run_results(found)):
        _print(table)
    print(found.folder)


@runs_app.command()
def compare(first: str, second: str, home: Home = HERE) -> None:
    """Two runs side by side: what differs, their numbers, and the paired difference where they scored the same tokens."""
    from clinpeft import pipeline, reports

    for table in reports.comparison(*pipeline.compared(home.resolve(), first, second)):
        _print(table)


@cohort_app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind cohort.")],
    set_: Overrides = None,
    home: Home = HERE,
    corpus: Annotated[Path | None, typer.Option(help="A corpus a model was adapted to: searched for copies of what is held out.")] = None,
) -> None:
    """Tables and notes in, one Parquet file of questions with their answers out, with its leakage audit and its MEDS form."""
    from clinpeft import cohorts

    for cell, folder, hospital in _hospitals(recipe, set_, home.resolve() / "cohorts"):
        cohort = cohorts.build(cell, hospital, folder, corpus)
        _print_cohort(cohort.folder)


@cohort_app.command("show")
def show_cohort(folder: Annotated[Path, typer.Argument(help="The folder of a built cohort.")]) -> None:
    """Splits, classes, stays and subjects of a cohort, and who left for which reason."""
    _print_cohort(folder)


@cohort_app.command()
def verify(recipe: Annotated[Path, typer.Argument(help="A recipe of kind cohort.")], set_: Overrides = None, home: Home = HERE) -> None:
    """The cohort as published and corrected, beside the published counts, with every difference explained."""
    from clinpeft import cohorts
    from clinpeft.reports import plain

    for cell, folder, hospital in _hospitals(recipe, set_, home.resolve() / "cohorts"):
        _print(plain(f"{cell.task.name}: published, as published, corrected", cohorts.verify(cell, hospital, folder / "verify")))


@models_app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name on the model hub.")], to: Annotated[Path, typer.Option("--to", help="A new folder.")]
) -> None:
    """Fetch a base model: the only verb that opens a connection. Run it outside, and carry the folder in."""
    from clinpeft import models

    models.pull(name, to)
    print(f"{to}: {models.fingerprint(to)}")


@app.command()
def synthetic(
    to: Annotated[Path, typer.Option("--to", help="A folder.")],
    subjects: Annotated[int, typer.Option(help="How many people.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 1234,
    shape: Annotated[Literal["mimic-iii", "mimic-iv"], typer.Option(help="Whose files and columns.")] = "mimic-iv",
) -> None:
    """Write the notes of an invented hospital, in the files and columns of MIMIC-III or MIMIC-IV-Note."""
    from clinpeft.sources import synthetic as hospital

    hospital.write(to, subjects, seed, shape)
    print(to)
    for task, best in hospital.ceiling(to).items():
        print(f"{task}: AUROC {best:.3f} is the best that a reader of the admission note can expect")


def main() -> None:
    """The command ``clinpeft``: verbs, and errors as three lines and an exit code."""
    try:
        app(standalone_mode=True)
    except ClinpeftError as error:
        print(f"clinpeft: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _only(kind: str, cells: list[Cell], path: Path) -> None:
    for cell in cells:
        if cell.recipe.kind != kind:
            way_out = f"give it to: clinpeft {cell.recipe.kind}"
            raise UsageError(f"this is a recipe of kind {cell.recipe.kind!r}", place=str(path), way_out=way_out)


def _hospitals(path: Path, set_: list[str] | None, home: Path) -> Iterator[tuple[CohortRecipe, Path, Hospital]]:
    """Each recipe of a file with its folder and its open tables; the working database goes when the caller is done with it."""
    from clinpeft import recipe as recipes
    from clinpeft.sources import hospital

    cells = recipes.read(path, set_ or [], os.environ)
    _only("cohort", cells, path)
    for cell in cells:
        assert isinstance(cell.recipe, recipes.CohortRecipe)
        folder = home / re.sub(r"[^\w.-]+", "-", cell.recipe.name or path.stem)
        working = folder / "working"  # clinical data, which goes when the cohort stands
        try:
            tables = hospital.open_tables(cell.recipe.source, working)
            with contextlib.closing(tables.connection):
                yield cell.recipe, folder, tables
        finally:
            shutil.rmtree(working, ignore_errors=True)


def _print_cohort(folder: Path) -> None:
    import json

    from clinpeft import cohorts, reports
    from clinpeft.tables import Attrition

    _print(reports.plain("Cohort", cohorts.show(folder)))
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    _print(reports.attrition_table("Who left, at which step, for which reason", [Attrition.from_json(step) for step in steps]))
    print(folder)


def _adapted(cell: Cell, home: Path, stopping: Callable[[], bool]) -> Entry:
    """One cell; in a grid, one that fails says so in the table and the others go on."""
    from clinpeft import pipeline
    from clinpeft.errors import InterruptedRun
    from clinpeft.recipe import AdaptRecipe
    from clinpeft.reports import Entry

    assert isinstance(cell.recipe, AdaptRecipe)
    try:
        with _progress(cell.name or cell.recipe.name) as tell:
            run = pipeline.adapt(cell.recipe, home, _circumstances(tell, stopping))
    except InterruptedRun:
        raise
    except ClinpeftError as error:
        if not cell.name:
            raise
        print(f"{cell.name}: {error}", file=sys.stderr)
        return Entry(cell.name, None, problem=error.problem, published=cell.published)
    return Entry(cell.name or cell.recipe.name, run, published=cell.published)


def _circumstances(tell: Callable[[Event], None], stopping: Callable[[], bool]) -> Circumstances:
    from importlib.metadata import version

    from clinpeft.pipeline import Circumstances

    libraries = ("torch", "transformers", "peft", "accelerate", "numpy", "pyarrow", "duckdb", "tokenizers", "safetensors")
    versions = {"python": sys.version.split()[0]} | {name: version(name) for name in libraries}
    return Circumstances(lambda: datetime.now(UTC), shlex.join(["clinpeft", *sys.argv[1:]]), _commit(), versions, tell, stopping)


def _commit() -> str | None:
    """Of the checkout that this file is in, if it is one; ``+`` marks uncommitted changes."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and a scheduler's SIGTERM stop between two steps, with a checkpoint; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[Event], None]]:
    """A bar in a terminal, now and then a line elsewhere; numbers only."""
    if sys.stderr.isatty():
        with _bar(title) as tell:
            yield tell
        return

    def line(event: Event) -> None:
        if event.step == 1 or event.step % max(1, event.total_steps // 20) == 0 or event.step == event.total_steps:
            print(f"{title} {_said(event)}", file=sys.stderr, flush=True)

    yield line


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=None, said="")
        yield lambda event: progress.update(bar, completed=event.step, total=event.total_steps, said=_said(event))


def _said(event: Event) -> str:
    minutes, seconds = divmod(round(event.seconds_left), 60)
    measured = "" if event.tuning_perplexity is None else f" · tuning perplexity {event.tuning_perplexity:.2f}"
    left = f"{minutes}:{seconds:02d} left"
    return f"step {event.step}/{event.total_steps} · loss {event.loss:.3f} · {event.tokens_per_second:,.0f} tokens/s · {left}{measured}"


def _near(path: Path) -> Path:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _print(table: Table) -> None:
    from rich.console import Console

    from clinpeft.reports import as_terminal

    Console(width=None if sys.stdout.isatty() else 160).print(as_terminal(table))


def _finish(table: Table, home: Path, name: str) -> None:
    from clinpeft.reports import write

    _print(table)
    for path in write(home, name, table):
        print(path)
