"""What a finished run stands on, compared with what is there now; and what of it may leave."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft import adapters, evaluation, inference, models, runs, training
from clinpeft.core.errors import ClinpeftError, UsageError
from clinpeft.core.schemas import RESULT
from clinpeft.data.notes import sources
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import SMALLEST_CELL, Check, Content, Run
from clinpeft.workflows import task_cohorts, textbooks
from clinpeft.workflows.context import code_version


def verified(home: Path, text: str, *, probe: bool = True) -> tuple[Run, list[Check]]:
    """Every file of a run, base, source, earlier adapters, recipe and code against what the record says, and the stored probe asked again.

    What is not here any more (a source in another place, a base that was moved) is said to be absent and fails nothing.

    Args:
        home: the folder of all runs.
        text: the run.
        probe: load base and weights and ask the probe; without it no model is loaded.

    Raises:
        UsageError: there is no such run.
    """
    run = runs.find(home, text, finished=True)
    checks = [
        *runs.file_checks(run),
        _recipe(run),
        _code(run),
        _base(run),
        _source(run),
        *_adapters_below(home, run),
    ]
    return run, [*checks, _probe(run)] if probe else checks


def _compared(what: str, written: str | None, now: Callable[[], str]) -> Check:
    if written is None:
        return Check(what, "unknown", "the record does not say what it was")
    try:
        found = now()
    except ClinpeftError as error:
        return Check(what, "absent", type(error).__name__)
    except OSError as error:
        return Check(what, "absent", error.strerror or "cannot be read")
    return (
        Check(what, "same", f"sha256 {found[:12]}")
        if found == written
        else Check(what, "changed", f"sha256 {found[:12]}, and was {written[:12]}")
    )


def _recipe(run: Run) -> Check:
    """The run's id is a hash over recipe, source, base and code: with the code of the run it can be worked out again."""
    hashes, version = run.record.hashes, run.record.versions.get("clinpeft", "")
    if version != code_version():
        return Check(
            "id",
            "unknown",
            f"it is worked out with the code of {version or 'an unknown version'}; recipe.toml is compared by its own hash",
        )
    found = runs.identity(run.recipe, hashes.source or "", hashes.base or "", version)
    return Check(
        "id",
        "same" if found == run.id else "changed",
        f"{found} from recipe, source, base and code",
    )


def _code(run: Run) -> Check:
    written, now = run.record.versions.get("clinpeft"), code_version()
    if written is None:
        return Check("code", "unknown", "the record does not say which it was")
    return (
        Check("code", "same", now)
        if written == now
        else Check("code", "other", f"{now}, and the run was made with {written}")
    )


def _base(run: Run) -> Check:
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
    return _compared(
        "base and tokenizer", run.record.hashes.base, lambda: models.fingerprint(recipe.base.path)
    )


def _source(run: Run) -> Check:
    return _compared("source", run.record.hashes.source, lambda: _fingerprint(run))


def _fingerprint(run: Run) -> str:
    recipe = run.recipe
    if isinstance(recipe, ClassifyRecipe):
        return task_cohorts.fingerprint(recipe)
    return (
        textbooks.fingerprint(recipe)
        if isinstance(recipe, EmbedRecipe)
        else sources.fingerprint(recipe.source)
    )


def _adapters_below(home: Path, run: Run) -> Iterator[Check]:
    """Adapters of earlier runs, where those runs are still in this home."""
    for name, written in run.record.hashes.adapters.items():
        origin, _, adapter = name.partition("/")
        folders = sorted(
            (home / origin).glob(f"adapter*/**/{adapter or '.'}/adapter_model.safetensors")
        )
        found = folders or sorted((home / origin).glob("adapter*/**/adapter_model.safetensors"))
        yield _compared(f"adapter of run {name}", written, functools.partial(_weights, found))


def _weights(found: list[Path]) -> str:
    if not found:
        raise FileNotFoundError(2, "not in this home any more")
    return runs.checksum(found[0])


def _probe(run: Run) -> Check:
    """The model put together again and asked what it was asked when it was kept."""
    device = training.assemble().device
    try:
        kept = {"adapt": _language_probe, "classify": _answers_probe, "embed": _vectors_probe}[
            run.recipe.kind
        ](run, device)
    except ClinpeftError as error:
        absent = not run.recipe.model_dump()["base"]["path"].is_dir()
        return Check("probe", "absent" if absent else "changed", error.message)
    return (
        Check("probe", "same", "answered as when it was kept")
        if kept
        else Check("probe", "unknown", "none was kept with this run")
    )


def _language_probe(run: Run, device: Any) -> bool:
    assert isinstance(run.recipe, AdaptRecipe)
    base = models.load(run.recipe.base, device)
    return adapters.check_kept_probe(adapters.load(base, run.folder / "adapter"), run.folder)


def _answers_probe(run: Run, device: Any) -> bool:
    assert isinstance(run.recipe, ClassifyRecipe)
    inference.open_run(run.folder, run.recipe.base, device)
    return True


def _vectors_probe(run: Run, device: Any) -> bool:
    assert isinstance(run.recipe, EmbedRecipe)
    stack, _ = inference.open_encoder(run.folder, run.recipe.base, device)
    return adapters.check_kept_probe(stack, run.folder)


def released(
    home: Path, text: str, folder: Path, data_licence: str, private: tuple[str, ...], made: datetime
) -> Path:
    """The folder of a run that may leave: adapters, head, card, aggregates, the audit, a manifest. No prediction, no text, no id of a person.

    Args:
        home: the folder of all runs.
        text: the run.
        folder: a new folder.
        data_licence: of the data that the run learned from, as it binds who receives the weights.
        private: words that no file may hold, such as the name of the user.
        made: the time.

    Raises:
        UsageError: there is no such run, or no licence is named.
        RefusedError: there is no privacy audit of these weights, a file was changed, ``folder`` exists, or a private word would leave.
    """
    if not data_licence.strip():
        hint = "name the terms of the data, such as 'PhysioNet Credentialed 1.5.0'"
        raise UsageError("no data licence", location="release --data-licence", hint=hint)
    run = runs.find(home, text, finished=True)
    runs.refuse_changed(run)
    audit = runs.audit_for_release(run)
    privacy = {name: value for name, value in audit.items() if name != "results"}
    rows = evaluation.releasable(
        pa.Table.from_pylist(audit["results"], schema=RESULT), SMALLEST_CELL
    ).to_pylist()
    results = evaluation.releasable(run.results, SMALLEST_CELL).to_pylist()
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
    folders = tuple(
        str(path) for path in (recipe.source.path, recipe.base.path, home) if path is not None
    )
    content = Content(
        results,
        {**privacy, "results": rows},
        _train_counts(run),
        data_licence.strip(),
        (*private, *folders),
        made,
    )
    return runs.write_release(run, folder, content)


def _train_counts(run: Run) -> dict[str, list[int | None]]:
    """Task -> training stays of each class, small counts withheld."""
    path = run.folder / "head.json"
    if not path.exists():
        return {}
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {
        task: evaluation.few_counts_withheld(said["question"]["train_counts"], SMALLEST_CELL)
        for task, said in tasks.items()
    }
