"""Adapters of earlier runs that a recipe names with ``from_run``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clinpeft import runs
from clinpeft.core.errors import UsageError
from clinpeft.recipe import ClassifyRecipe, EmbedRecipe
from clinpeft.runs import Run

AdapterStackRecipe = TypeVar("AdapterStackRecipe", ClassifyRecipe, EmbedRecipe)
"""Recipes whose adapters may come from earlier runs."""


@dataclass(frozen=True)
class AdapterSource:
    """An adapter of an earlier run: the run, and the adapter's folder."""

    run: Run
    folder: Path


def resolve_adapter_runs(
    recipe: AdapterStackRecipe, home: Path
) -> tuple[AdapterStackRecipe, dict[str, AdapterSource]]:
    """Replace names of earlier runs by their ids, since a name can come to mean another run.

    Args:
        recipe: whose adapters are resolved.
        home: folder of all runs.

    Returns:
        The recipe, and ``from_run`` -> the adapter.

    Raises:
        UsageError: there is no such run, or it has several adapters and none was named.
    """
    specs, sources = [], {}
    for spec in recipe.adapters:
        if spec.from_run:
            name, source = _find_adapter_source(spec.from_run, home)
            sources[name] = source
            specs.append(spec.model_copy(update={"from_run": name}))
        else:
            specs.append(spec)
    return recipe.model_copy(update={"adapters": tuple(specs)}), sources


def _find_adapter_source(run_and_adapter: str, home: Path) -> tuple[str, AdapterSource]:
    """``RUN`` or ``RUN/ADAPTER`` -> the same with the run's id, and the adapter."""
    run_name, _, adapter = (
        run_and_adapter.rpartition("/") if "/" in run_and_adapter else (run_and_adapter, "", "")
    )
    run = runs.find_run(home, run_name, finished_only=True)
    folders = {
        path.parent.name: path.parent
        for path in sorted(run.folder.glob("adapter*/**/adapter_config.json"))
    }
    if adapter and adapter not in folders:
        raise UsageError(
            f"run {run.id} has no adapter {adapter!r}",
            location="adapters.from_run",
            hint=f"it has: {', '.join(folders) or 'none'}",
        )
    if not adapter and len(folders) != 1:
        names = ", ".join(f"{run.id}/{name}" for name in folders)
        raise UsageError(
            f"run {run.id} has {len(folders)} adapters",
            location="adapters.from_run",
            hint=f"name one: {names}" if folders else "take a run that trained an adapter",
        )
    name = adapter or next(iter(folders))
    return (f"{run.id}/{name}" if adapter else run.id), AdapterSource(run, folders[name])


def get_adapter_folders(adapter_sources: Mapping[str, AdapterSource]) -> dict[str, Path]:
    """Get ``from_run`` -> the adapter's folder."""
    return {name: source.folder for name, source in adapter_sources.items()}


def hash_adapters(adapter_sources: Mapping[str, AdapterSource]) -> dict[str, str]:
    """Compute ``from_run`` -> SHA-256 of the adapter's weights."""
    return {
        name: runs.compute_path_checksum(source.folder / "adapter_model.safetensors")
        for name, source in adapter_sources.items()
    }
