"""An invented grid of embeddings: runs of kind embed with the numbers of the published tables,
shaken a little."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft import runs
from clinpeft.core import schemas
from clinpeft.recipe import Recipe
from clinpeft.reports import CellResult
from tests.runs.conftest import NIGHT, make_recipe, opening, results_of

PAIR_SCORES = schemas.PAIR_SCORE_SCHEMA.append(pa.field("task", pa.string())).append(
    pa.field("state", pa.string())
)

# name, hub name, zero-shot and adapted separation, similar, different, embeddings/s, GB, dimension,
# parameters: tables 1 to 3 of arXiv 2511.19739
TEN = (
    (
        "BioLinkBERT",
        "michiyasunaga/BioLinkBERT-large",
        0.033,
        0.510,
        0.772,
        0.263,
        143.5,
        1.51,
        1024,
        340e6,
    ),
    ("Gemma-2-2B", "google/gemma-2-2b-it", 0.057, 0.455, 0.812, 0.357, 55.5, 12.02, 2304, 2.5e9),
    ("Qwen3-4B", "Qwen/Qwen3-Embedding-4B", 0.035, 0.446, 0.812, 0.366, 27.4, 17.99, 2560, 4e9),
    (
        "MPNet-base",
        "sentence-transformers/all-mpnet-base-v2",
        0.175,
        0.386,
        0.674,
        0.288,
        228.8,
        0.73,
        768,
        109e6,
    ),
    ("Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", 0.025, 0.327, 0.643, 0.316, 88.1, 2.47, 896, 494e6),
    (
        "BGE-large-v1.5",
        "BAAI/bge-large-en-v1.5",
        0.109,
        0.314,
        0.778,
        0.465,
        128.8,
        1.55,
        1024,
        335e6,
    ),
    ("E5-large-v2", "intfloat/e5-large-v2", 0.032, 0.284, 0.752, 0.469, 121.2, 1.55, 1024, 335e6),
    (
        "BGE-small-v1.5",
        "BAAI/bge-small-en-v1.5",
        0.122,
        0.250,
        0.696,
        0.446,
        467.3,
        0.24,
        384,
        33e6,
    ),
    ("BGE-M3", "BAAI/bge-m3", 0.059, 0.209, 0.713, 0.504, 129.6, 2.46, 1024, 568e6),
    (
        "Jina-v2",
        "jinaai/jina-embeddings-v2-base-en",
        0.063,
        -0.175,
        0.210,
        0.386,
        228.3,
        0.77,
        768,
        137e6,
    ),
)
KEYS = (
    "zero_shot_separation",
    "separation",
    "similar",
    "different",
    "embeddings_per_second",
    "memory_gb",
    "dimension",
    "parameters",
)


def make_embed_recipe(
    hub_name: str = "BAAI/bge-small-en-v1.5", seed: int = 1, **changes: Any
) -> Recipe:
    base = {"path": f"/models/{hub_name.partition('/')[2]}", "backbone": hub_name}
    adapters = [{"method": "lora", "rank": 16, "alpha": 32}]
    books = {"name": "books", "path": "/books"}
    return make_recipe(
        **{
            "kind": "embed",
            "source": books,
            "base": base,
            "seed": seed,
            "adapters": adapters,
            **changes,
        }
    )


def row(
    name: str,
    value: float | None,
    group: str,
    task: str = "held-out chapters",
    width: float | None = 0.03,
    **changes: Any,
) -> dict[str, Any]:
    ends: dict[str, float | None] = {"low": None, "high": None, "level": None}
    if value is not None and width is not None:
        ends = {"low": value - width, "high": value + width, "level": 0.95}
    counts = {"n": 400, "n_subjects": 12, "n_events": 200, "split": "held_out"}
    return {
        "name": name,
        "value": value,
        **ends,
        **counts,
        "group": group,
        "definition": f"what {name} is",
        "task": task,
        **changes,
    }


def profile(
    embeddings: float, gigabytes: float, dimension: float, parameters: float
) -> list[dict[str, Any]]:
    defaults = {
        "embeddings_per_second": embeddings,
        "tokens_per_second": 20 * embeddings,
        "latency_ms_p50": 9.5,
        "latency_ms_p95": 12.5,
    }
    defaults |= {
        "peak_memory_bytes": gigabytes * 1e9,
        "load_seconds": 1.5,
        "parameters": parameters,
        "dimension": dimension,
    }
    return [row(name, value, "adapted", "profile", None) for name, value in defaults.items()]


def separations(
    before: float,
    after: float,
    task: str = "held-out chapters",
    stratum: str = "random",
    unrelated: float = 0.3,
) -> list[dict[str, Any]]:
    rows = []
    for state, value in (("zero-shot", before), ("adapted", after)):
        group = f"{state} · {stratum}"
        rows += [
            row("mean_related", unrelated + value, group, task),
            row("mean_unrelated", unrelated, group, task),
            row("separation", value, group, task),
        ]
        rows += [
            row("cohens_d", 4 * value, group, task),
            row("auroc", 0.5 + value / 2, group, task),
        ]
    return [
        *rows,
        row("separation_difference", after - before, f"adapted - zero-shot · {stratum}", task),
    ]


def pair_scores(
    related: float,
    unrelated: float,
    seed: int = 1,
    state: str = "adapted",
    task: str = "held-out chapters",
) -> pa.Table:
    draw = random.Random(seed)
    scores = [draw.gauss(middle, 0.1) for middle in (related, unrelated) for _ in range(60)]
    columns: dict[str, list[Any]] = {
        "pair_id": [f"p{at % 60}" for at in range(120)],
        "cluster": ["c"] * 120,
        "stratum": ["random"] * 120,
    }
    columns |= {
        "related": [at < 60 for at in range(120)],
        "score": scores,
        "task": [task] * 120,
        "state": [state] * 120,
    }
    return pa.Table.from_pydict(columns, schema=PAIR_SCORES)


def embedded(
    home: Path,
    run_id: str,
    recipe: Recipe,
    *rows: dict[str, Any],
    pairs: int = 1000,
    scores: pa.Table | None = None,
    **facts: Any,
) -> runs.Run:
    """A finished run of kind embed."""
    defaults = {
        "kind": "embed",
        "trained_parameters": 1_000,
        "base_parameters": 100_000,
        "trained_fraction": 0.01,
        "training_seconds": 60.0,
    }
    with runs.open_run_folder(
        home, recipe, opening(run_id, **{**defaults, "counts": {"pairs.train": pairs}, **facts})
    ) as run:
        run_tables = {} if scores is None else {"pair_scores": scores}
        return runs.finish_run(
            run, results=results_of(*rows), attrition=[], tables=run_tables, finished=NIGHT
        )


def ten_backbones(
    home: Path, count: int = 10, task: str = "study", stratum: str = "different"
) -> list[CellResult]:
    """As published, but 0.02 higher, and with intervals."""
    entries = []
    for at, (name, hub_name, before, after, similar, different, *costs) in enumerate(TEN[:count]):
        rows = [
            *separations(before + 0.02, after + 0.02, task, stratum, different),
            *profile(*costs),
        ]
        rows += [
            row("ndcg_at_10", 0.5, "zero-shot", width=0.02),
            row("ndcg_at_10", 0.6, "adapted", width=0.02),
        ]
        scores = pair_scores(similar, different, at)
        run = embedded(home, f"{at:012x}", make_embed_recipe(hub_name), *rows, scores=scores)
        entries.append(
            CellResult(
                name,
                run,
                published=dict(zip(KEYS, (before, after, similar, different, *costs), strict=True)),
            )
        )
    return entries


def ablation(home: Path) -> list[CellResult]:
    """Shares of the pairs, both losses, three ranks; published: some cells of table 4."""
    entries = []
    for at, (share, objective, rank) in enumerate(
        (s, o, r) for s in (0.25, 0.5, 1.0) for o in ("info-nce", "triplet") for r in (8, 16, 32)
    ):
        value = (0.13 if objective == "info-nce" else 0.0) - 0.02 * share + 0.001 * rank
        recipe = make_embed_recipe(
            "michiyasunaga/BioLinkBERT-large",
            adapters=[{"method": "lora", "rank": rank}],
            training={"objective": objective},
        )
        run = embedded(
            home,
            f"{at + 100:012x}",
            recipe,
            *separations(0.03, value, "study", "different"),
            pairs=round(40_000 * share),
        )
        entries.append(
            CellResult(
                f"{share:.0%} · {objective} · r={rank}", run, published={"separation": value + 0.01}
            )
        )
    return entries
