"""The Python API: ``import clinpeft`` loads it on first use.

Each function wraps what a command of the same name does, takes notes and texts from files or from
memory, and changes nothing of the process: the libraries are kept offline only while a function
runs.
"""

from __future__ import annotations

import hashlib
import html
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import runs
from clinpeft.core.errors import UsageError
from clinpeft.core.offline import offline_mode
from clinpeft.core.schemas import NOTE_SCHEMA
from clinpeft.recipe import Recipe, SourceSpec, load_recipe

if TYPE_CHECKING:
    import numpy as np

    from clinpeft.workflows import RunContext

RecipeLike = Recipe | str | Path | Mapping[str, Any]
"""A recipe, the path of a TOML file, or a dictionary of the same keys."""

TableLike = Any
"""The path of a file (CSV, TSV, JSON lines, Parquet), a list of dictionaries, or anything with the
Arrow C stream interface: pyarrow, polars, pandas (2.2 or newer), duckdb, datasets."""


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Attributes:
        name: of the metric, such as ``auroc`` or ``perplexity``.
        value: None where it is not defined.
        low, high: confidence interval; None without one.
        split: ``train``, ``tuning`` or ``held_out``.
        definition: how it is computed.
        task: what was predicted; None for a run without tasks.
        group: state of the model and subgroup, such as ``base`` or ``model · female``.
        n: number of stays, notes, tokens or pairs.

    Example:
        >>> str(Metric("auroc", 0.8, 0.7, 0.9, "held_out", "area under the ROC curve"))
        'auroc 0.800 (0.700 to 0.900)'
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    split: str
    definition: str
    task: str | None = None
    group: str | None = None
    n: int = 0

    def __str__(self) -> str:
        """Name, value and interval."""
        if self.value is None:
            return f"{self.name} undefined"
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.name} {self.value:.3f}{interval}"


@dataclass(frozen=True)
class RunResult:
    """A run: its metrics, and what can be done with its model.

    Attributes:
        run: the run folder, as ``clinpeft.runs`` reads it.
    """

    run: runs.Run

    @property
    def id(self) -> str:
        """Id of the run, and name of its folder."""
        return self.run.id

    @property
    def name(self) -> str:
        """Name that the recipe gives to the run; several runs may share one."""
        return self.run.record.name

    @property
    def kind(self) -> str:
        """``adapt``, ``classify`` or ``embed``."""
        return self.run.recipe.kind

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.run.folder

    @property
    def metrics(self) -> list[Metric]:
        """Everything that the run measured."""
        return _to_metrics(self.run.results)

    def predict(self, notes: TableLike, task: str = "") -> pa.Table:
        """Predict for new notes, see ``clinpeft.predict``."""
        return predict(self, notes, task)

    def encode(self, texts: TableLike) -> np.ndarray[Any, Any]:
        """Encode texts as vectors, see ``clinpeft.encode``."""
        return encode(self, texts)

    def report(self, folder: str | Path, title: str = "") -> Path:
        """Write a report of the run: ``report.html``, its tables and figures.

        Args:
            folder: a new folder.
            title: of the page.

        Returns:
            The page.
        """
        from clinpeft.workflows.run_report import write_runs_report

        with offline_mode(os.environ):
            return write_runs_report(self.folder.parent, [self.id], Path(folder), title)[0]

    def _repr_html_(self) -> str:
        """A small table of the held-out metrics, as a notebook shows it."""
        rows = "".join(
            f"<tr><td>{html.escape(metric.task or '')}</td>"
            f"<td>{html.escape(metric.group or '')}</td>"
            f"<td title='{html.escape(metric.definition, quote=True)}'>"
            f"{html.escape(str(metric))}</td></tr>"
            for metric in self.metrics[:20]
        )
        title = html.escape(f"{self.kind} run {self.id} {self.name}".strip())
        header = "<tr><th>task</th><th>group</th><th>metric</th></tr>"
        return f"<table><caption>{title}</caption>{header}{rows}</table>"


def adapt(
    recipe: RecipeLike,
    home: str | Path = "runs",
    notes: TableLike | None = None,
    *,
    progress: bool = True,
) -> RunResult:
    """Adapt a language model to notes with a small adapter.

    The same recipe, notes, base and code give the same run, which is trained once.

    Args:
        recipe: of kind ``adapt``.
        home: folder of all runs.
        notes: to be used instead of the recipe's source; a column ``text`` is needed.
        progress: whether training prints its progress.

    Raises:
        ClinpeftError: with the value, its location and a hint.

    Example:
        >>> run = clinpeft.adapt("adapt.toml", notes=[{"text": "..."}])  # doctest: +SKIP
        >>> run.metrics[0].name  # doctest: +SKIP
        'perplexity'
    """
    return _train("adapt", recipe, Path(home), {"notes": notes}, progress)


def classify(
    recipe: RecipeLike,
    home: str | Path = "runs",
    notes: TableLike | None = None,
    labels: TableLike | None = None,
    *,
    progress: bool = True,
) -> RunResult:
    """Train a classifier of notes: a base, a stack of adapters and a head.

    Args:
        recipe: of kind ``classify``.
        home: folder of all runs.
        notes: to be used instead of the recipe's source; a column ``text`` is needed, and
            ``category`` for the tasks that predict it.
        labels: of the task ``given``: ``subject_id``, ``prediction_time`` and ``boolean_value``, as
            the MEDS label schema has them.
        progress: whether training prints its progress.

    Raises:
        ClinpeftError: with the value, its location and a hint.

    Example:
        >>> run = clinpeft.classify("classify.toml")  # doctest: +SKIP
        >>> run.predict([{"text": "Admitted with chest pain."}])  # doctest: +SKIP
    """
    return _train("classify", recipe, Path(home), {"notes": notes, "labels": labels}, progress)


def embed(recipe: RecipeLike, home: str | Path = "runs", *, progress: bool = True) -> RunResult:
    """Adapt an encoder to textbooks by contrastive training.

    Args:
        recipe: of kind ``embed``.
        home: folder of all runs.
        progress: whether training prints its progress.

    Raises:
        ClinpeftError: with the value, its location and a hint.

    Example:
        >>> run = clinpeft.embed("embed.toml")  # doctest: +SKIP
        >>> run.encode(["heart failure"]).shape  # doctest: +SKIP
        (1, 384)
    """
    return _train("embed", recipe, Path(home), {}, progress)


def predict(run: RunResult | str | Path, notes: TableLike, task: str = "") -> pa.Table:
    """Predict a task of a run of ``classify`` for new notes.

    Args:
        run: the run, or its folder.
        notes: with a column ``text``, and ``note_id`` and ``subject_id`` where they are known.
        task: of the run; empty: the first of its recipe.

    Returns:
        A row a note, with ``note_id`` and ``probabilities``; no text.

    Raises:
        UsageError: the run predicts nothing, or not this task.
        InputError: a note cannot be read.
    """
    from clinpeft import workflows

    result = _as_result(run)
    home = result.folder.parent
    # empty for a kind of run without tasks
    names = [each.name for each in result.run.recipe.tasks]
    if task and task not in names:
        raise UsageError(
            f"run {result.id} does not predict {task!r}",
            location="predict",
            hint=f"it predicts: {', '.join(names) or 'nothing'}",
        )
    with offline_mode(os.environ), tempfile.TemporaryDirectory(dir=_cache(home)) as folder:
        out = Path(folder) / "predictions.parquet"
        # Under its content, so that the same notes are written once.
        path = _as_file(notes, home)
        files = workflows.predict_new_notes(home, result.id, path, {}, out)
        return pq.read_table(files[names.index(task) if task else 0])


def encode(run: RunResult | str | Path, texts: TableLike) -> np.ndarray[Any, Any]:
    """Encode texts as vectors by a run of ``embed``.

    Args:
        run: the run, or its folder.
        texts: a list of strings, or a table with a column ``text``.

    Returns:
        (texts, width) float32, in the order of the texts.

    Raises:
        UsageError: the run holds no encoder.
        InputError: a text is empty, or there is none.
    """
    import numpy

    from clinpeft import workflows

    result = _as_result(run)
    home = result.folder.parent
    if isinstance(texts, Sequence) and not isinstance(texts, str):
        texts = [{"text": text} if isinstance(text, str) else text for text in texts]
    with offline_mode(os.environ), tempfile.TemporaryDirectory(dir=_cache(home)) as folder:
        out = Path(folder) / "vectors.npy"
        path = _as_file(texts, home)
        workflows.encode_text_file(home, result.id, path, out, lambda _: None)
        vectors: np.ndarray[Any, Any] = numpy.load(out, allow_pickle=False)
        return vectors


def evaluate(run: RunResult | str | Path, resamples: int = 1000) -> list[Metric]:
    """Score the predictions of a run again.

    Args:
        run: the run, or its folder.
        resamples: bootstrap resamples of subjects.

    Returns:
        Metrics of all tasks; of a run without predictions, those that it recorded.
    """
    from clinpeft import workflows

    result = _as_result(run)
    if not result.run.recipe.tasks:
        return result.metrics
    table, _ = workflows.rescore_predictions(result.folder.parent, result.id, resamples)
    return _to_metrics(table)


def compare(first: RunResult | str | Path, second: RunResult | str | Path) -> list[Metric]:
    """Compare two runs of one home on what both measured.

    Args:
        first, second: the runs, or their folders.

    Returns:
        Differences, second less first, with paired intervals.

    Raises:
        UsageError: they have nothing in common that can be compared; the message says why.
    """
    from clinpeft import workflows

    before, after = _as_result(first), _as_result(second)
    _, table, reason = workflows.compare_run_results(before.folder.parent, before.id, after.id)
    if table is None:
        raise UsageError(
            f"runs {before.id} and {after.id} cannot be compared: {reason}",
            location="compare",
            hint="compare runs of one kind that measured the same notes, stays or pairs",
        )
    return _to_metrics(table)


def list_runs(home: str | Path = "runs") -> list[RunResult]:
    """List the runs of a home, oldest first.

    Args:
        home: folder of all runs.

    Example:
        >>> list_runs("a folder without runs")
        []
    """
    return [RunResult(run) for run in runs.find_all_runs(Path(home).resolve()).runs]


def load_run(home: str | Path, name: str) -> RunResult:
    """Load a run.

    Args:
        home: folder of all runs.
        name: id, name, or the beginning of an id.

    Raises:
        UsageError: there is no such run, or several.
    """
    return RunResult(runs.find_run(Path(home).resolve(), name))


def _train(
    kind: str, recipe: RecipeLike, home: Path, data: Mapping[str, TableLike | None], progress: bool
) -> RunResult:
    """Train the run of a recipe of one kind."""
    from clinpeft import workflows

    home = home.resolve()
    with offline_mode(os.environ):
        loaded = _load(kind, recipe, home, data)
        with _show_progress(loaded.name or kind, progress) as on_step:
            context: RunContext = workflows.create_context(home, on_step=on_step)
            return RunResult(workflows.get_workflow(loaded).run(loaded, context))


def _load(
    kind: str, recipe: RecipeLike, home: Path, data: Mapping[str, TableLike | None]
) -> Recipe:
    """The recipe, reading what is in memory instead of what it names."""
    changes: dict[str, Any] = {}
    if data.get("notes") is not None:
        path = _as_file(data["notes"], home)
        columns = [name for name in _read_column_names(path) if name in NOTE_SCHEMA.names]
        same_names = {name: name for name in columns}
        # The columns of a note that are there keep their names.
        changes["source"] = {"name": "files", "path": str(path), "columns": same_names}
    if isinstance(recipe, Mapping):
        recipe = load_recipe({"kind": kind, **recipe, **changes}, environment=os.environ)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe), environment=os.environ)
    if recipe.kind != kind:
        raise UsageError(
            f"this is a recipe of kind {recipe.kind!r}",
            location="kind",
            hint=f"give it to clinpeft.{recipe.kind}",
        )
    if "source" in changes:
        recipe = recipe.model_copy(update={"source": SourceSpec(**changes["source"])})
    if data.get("labels") is not None:
        path = _as_file(data["labels"], home)
        task = recipe.tasks[0].model_copy(update={"labels": path})
        recipe = recipe.model_copy(update={"task": task})
    return recipe


def _read_column_names(path: Path) -> list[str]:
    from clinpeft.data import sources

    return list(sources.read_column_names(path))


@contextmanager
def _show_progress(title: str, enabled: bool) -> Iterator[Callable[[Any], None]]:
    if not enabled:
        yield lambda _: None
        return
    from clinpeft.cli.progress import show_training_progress

    with show_training_progress(title) as on_step:
        yield on_step


def _as_result(run: RunResult | str | Path) -> RunResult:
    if isinstance(run, RunResult):
        return run
    return RunResult(runs.read_run(Path(run).resolve()))


def _cache(home: Path) -> Path:
    cache = home / "cache"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return cache


def _as_file(data: TableLike, home: Path) -> Path:
    """A file of what is in memory, named after its content, that no other user can read."""
    if isinstance(data, str | Path):
        return Path(data).resolve()
    table = _as_table(data).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()[:16]
    path = _cache(home) / f"memory-{digest}.parquet"
    if not path.exists():
        with runs.replace_file_atomically(path) as writing:
            pq.write_table(table, writing)
            # The text of notes: for this user alone.
            writing.chmod(0o600)
    return path


def _as_table(data: TableLike) -> pa.Table:
    if hasattr(data, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(data).read_all()
    rows = list(data) if isinstance(data, Iterable) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise UsageError(
            f"a {type(data).__name__} is neither a table nor a list of dictionaries",
            location="notes, labels or texts",
            hint="give a path, a list of dictionaries, or a table with the Arrow C stream "
            "interface, such as a data frame",
        )
    return pa.Table.from_pylist([dict(row) for row in rows])


_METRIC_FIELDS = tuple(field.name for field in fields(Metric))


def _to_metrics(table: pa.Table) -> list[Metric]:
    return [Metric(**{name: row[name] for name in _METRIC_FIELDS}) for row in table.to_pylist()]
