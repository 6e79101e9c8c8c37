"""clinpeft: small, verified adapters on a frozen language model for clinical notes, offline.

>>> import clinpeft
>>> run = clinpeft.classify("classify.toml", home="runs")  # doctest: +SKIP
>>> run.metrics  # doctest: +SKIP
>>> run.predict([{"text": "Admitted with chest pain."}])  # doctest: +SKIP

Importing the package loads nothing but this file; the functions are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.7.0"

if TYPE_CHECKING:
    from clinpeft.api import (
        Metric,
        RunResult,
        adapt,
        classify,
        compare,
        embed,
        encode,
        evaluate,
        list_runs,
        load_run,
        predict,
    )
    from clinpeft.recipe import Recipe, load_recipe

__all__ = [
    "Metric",
    "Recipe",
    "RunResult",
    "__version__",
    "adapt",
    "classify",
    "compare",
    "embed",
    "encode",
    "evaluate",
    "list_runs",
    "load_recipe",
    "load_run",
    "predict",
]


def __getattr__(name: str) -> Any:
    """Load a name of the API on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'clinpeft' has no attribute {name!r}")
    from clinpeft import api

    value = getattr(api, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the API."""
    return sorted(__all__)
