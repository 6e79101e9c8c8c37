"""What ``clinpeft plan`` says beside what the run then takes: seconds of training and memory at the
peak.

    python benchmarks/plan.py --out results --rounds 3

Plan and run are processes of their own with homes of their own, so that neither finds what the
other prepared. Two plans of memory are compared: what was measured in the plan's own first steps,
with the whole process; and the sum of the formulas, with what the process holds before training,
the base apart: libraries, most of all. The first stands beside the peak of the whole run, the
second beside that at the end of training. Real notes where ``MTSAMPLES`` or ``CLINPEFT_DATA`` names
them.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _side_by_side as side

STEPS = {"adapt-small": 300, "adapt-60M": 160, "classify-small": 240, "embed-MiniLM": 120}
QUICK_STEPS = 6
PLANNED_WITHIN = 0.15


def adapting(base: str, work: Path) -> dict[str, Any]:
    """A language model learns notes, so many tokens a step."""
    import _texts

    folder = _texts.SMALL if base == "small" else _texts.shaped(work / "base", _texts.SIXTY_MILLION)
    return {
        "kind": "adapt",
        "source": _texts.source()[0],
        "corpus": {"deduplicate": "exact"},
        "base": {"path": str(folder), "max_tokens": 512, "overflow": "truncate"},
        "adapters": [_texts.LORA],
        "training": {"batch_tokens": 2048 if base == "small" else 1024, "micro_batch_tokens": 2048},
        "evaluation": {"max_notes": 20},
    }


def answering(work: Path) -> dict[str, Any]:
    """A question with 40 labels, from notes of 50 to 500 words."""
    import _texts
    import classify
    import numpy as np

    rng = np.random.default_rng(0)
    words = [int(count) for count in np.exp(rng.uniform(np.log(50), np.log(500), 400))]
    _texts.write_csv(
        work / "notes.csv", ("note_id", "category", "text"), classify.rows(words, 40, rng)
    )
    return {
        "kind": "classify",
        "source": {
            "name": "files",
            "path": str(work / "notes.csv"),
            "columns": {name: name for name in ("note_id", "category", "text")},
        },
        "task": {"name": "note_categories"},
        "base": {"path": str(_texts.SMALL), "max_tokens": 1024},
        "adapters": [_texts.LORA],
        "training": {"batch_notes": 8, "micro_batch_tokens": 4096},
        "evaluation": {"subgroups": False, "baselines": False, "resamples": 100},
    }


def embedding(work: Path) -> dict[str, Any]:
    """An encoder learns which pieces of notes follow each other."""
    import _texts
    import embed_train

    with (work / "pairs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"anchor": anchor, "positive": positive}) + "\n"
            for anchor, positive in embed_train.pieces(2000)
        )
    return {
        "kind": "embed",
        "source": {"name": "handbook"},
        "pairs": {
            "kinds": ["question-answer"],
            "deduplicate": "none",
            "imported": [{"path": str(work / "pairs.jsonl")}],
        },
        "base": {"path": str(_texts.minilm()), "max_tokens": 128},
        "adapters": [_texts.LORA],
        "training": {"batch_pairs": 32, "apart_by": "text", "micro_batch_tokens": 8192},
        "evaluation": {"resamples": 100, "controls": False, "profile_texts": 0, "max_pairs": 8},
    }


def prepare(name: str, work: Path, quick: bool) -> None:
    document = RECIPES[name](work)
    if quick and document["kind"] == "adapt":
        document["source"] = {"name": "synthetic", "subjects": 40}
    document["training"] |= {"max_steps": QUICK_STEPS if quick else STEPS[name], "epochs": 1000.0}
    (work / "recipe.json").write_text(json.dumps(document))
    told = {key: value for key, value in document["training"].items() if key != "epochs"}
    (work / "about.json").write_text(json.dumps({"kind": document["kind"], **told}))


RECIPES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "adapt-small": partial(adapting, "small"),
    "adapt-60M": partial(adapting, "60M"),
    "classify-small": answering,
    "embed-MiniLM": embedding,
}


def _load_recipe(work: Path) -> Any:
    from clinpeft import recipe

    return recipe.validate_recipe(json.loads((work / "recipe.json").read_text()), "the benchmark")


def planned(work: Path) -> side.Measured:
    """What ``clinpeft plan`` finds without ``--gpu``."""
    from clinpeft.workflows import RunContext
    from clinpeft.workflows.plan import plan_from_dry_run

    held: list[int] = []
    with tempfile.TemporaryDirectory(dir=work) as home, held_before_training(held):
        plan = plan_from_dry_run(_load_recipe(work), RunContext(Path(home)), None)
    assert plan.dry_run is not None and plan.seconds is not None and plan.tokens is not None
    terms = {f"{term.name}, MB": term.value / 2**20 for term in plan.memory_terms}
    by_formula = {
        "formula": held[0] + sum(term.value for term in plan.memory_terms[1:]),
        "before training": float(held[0]),
        **terms,
    }
    told = {
        "cold_seconds": plan.dry_run.warmup_seconds,
        "measuring_seconds": plan.dry_run.evaluation_seconds,
    }
    end = {**by_formula, **told, "probe": float(plan.dry_run.peak_bytes or 0)}
    return side.Measured(
        "tokens",
        [float(plan.tokens)],
        [plan.seconds[0]],
        peak_bytes=plan.dry_run.peak_bytes or 0,
        end=end,
    )


@contextlib.contextmanager
def held_before_training(held: list[int]) -> Iterator[None]:
    """The resident set when the loop is entered, base included, is appended whenever that
    happens."""
    from clinpeft import training

    real = training.run_training

    def fit(*given: Any, **asked: Any) -> Any:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
        held.append(1024 * int(found.group(1)) if found else 0)
        return real(*given, **asked)

    with mock.patch.object(training, "run_training", fit):
        yield


def run(work: Path) -> side.Measured:
    """The run itself."""
    from clinpeft.workflows import RunContext, get_workflow

    asked = _load_recipe(work)
    at_step: list[int] = []
    with tempfile.TemporaryDirectory(dir=work) as home:
        context = RunContext(Path(home), on_step=lambda _: at_step.append(side.peak_bytes()))
        record = get_workflow(asked).run(asked, context).record
    end = {"first step": float(at_step[0]), "training": float(at_step[-1])}
    return side.Measured(
        "tokens",
        [float(record.tokens_seen)],
        [record.training_seconds],
        peak_bytes=record.peak_memory_bytes or 0,
        end=end,
    )


QUANTITIES = {
    "seconds of training": (lambda plan: plan.seconds[0], lambda run: run.seconds[0], 1.0),
    "tokens": (lambda plan: plan.amounts[0], lambda run: run.amounts[0], 1.0),
    "peak of the process by its first steps, MB": (
        lambda plan: plan.end["probe"],
        lambda run: run.peak_bytes,
        2**20,
    ),
    "peak of training by formula and what is held before, MB": (
        lambda plan: plan.end["formula"],
        lambda run: run.end["training"],
        2**20,
    ),
}
"""What is planned -> where a plan and a run have it, and its unit."""


def compared(arms: Mapping[str, Mapping[str, Any]], _: Sequence[str]) -> list[dict[str, Any]]:
    """One row a quantity: medians over rounds, and how far the plan was off in the same rounds; one
    row for each arm that failed."""
    plans, runs = (
        [side.Measured(**each) for each in arms.get(name, {"runs": []})["runs"]]
        for name in ("plan", "run")
    )
    pairs = list(zip(plans, runs, strict=False))
    failed = [
        {"quantity": name, "failure": arm["failure"]}
        for name, arm in arms.items()
        if arm["failure"]
    ]
    return failed + [
        _quantity(name, [(of_plan(plan), of_run(run)) for plan, run in pairs], unit)
        for name, (of_plan, of_run, unit) in QUANTITIES.items()
        if pairs
    ]


def _quantity(name: str, pairs: Sequence[tuple[float, float]], unit: float) -> dict[str, Any]:
    errors = [plan / run - 1 for plan, run in pairs]
    middle = {
        "planned": statistics.median(plan for plan, _ in pairs) / unit,
        "measured": statistics.median(run for _, run in pairs) / unit,
    }
    return {
        "quantity": name,
        "failure": "",
        "rounds": len(pairs),
        **middle,
        "error": statistics.median(errors),
        "worst": max(errors, key=abs),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| | planned | measured | off by | at worst | rounds |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in rows:
        if row["failure"]:
            yield f"| {row['quantity']} | failed: {row['failure']} | | | | |"
            continue
        numbers = [
            f"{row['planned']:,.0f}",
            f"{row['measured']:,.0f}",
            f"{row['error']:+.0%}",
            f"{row['worst']:+.0%}",
            str(row["rounds"]),
        ]
        yield f"| {row['quantity']} | " + " | ".join(numbers) + " |"


BENCHMARK = side.Benchmark(
    file="plan.py",
    about="What is planned beside what the run takes",
    workloads={name: partial(prepare, name) for name in RECIPES},
    arms={"plan": planned, "run": run},
    goals=(
        f"Goal: within {PLANNED_WITHIN:.0%}.",
        (
            "Bytes by formula are those of training: what preparing and scoring hold at their "
            "own peak is not in them."
        ),
    ),
    rows=compared,
    table=table,
)

if __name__ == "__main__":
    side.main(BENCHMARK)
