"""How cost grows: tokens a second against the length of documents, notes a second against the
number of labels and the size of the corpus.

    python benchmarks/growth.py --out results --rounds 1

``tokens-N``: the small base learns documents of exactly N tokens, 4,096 a step. ``labels-N``: notes
of 50 to 500 tokens answered with N labels. ``corpus-N``: from the notes of N invented people to the
first step: cleaning, deduplication, splits, tokens, and what the base thinks of a few.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import _side_by_side as side
import adapt
import classify

TOKENS = (64, 256, 1024, 2048)
LABELS = (10, 100, 1266)
PEOPLE = (50, 200, 800)


def people(count: int, work: Path, quick: bool) -> None:
    """A recipe whose corpus is not made yet."""
    import _texts

    document = {
        "kind": "adapt",
        "source": {"name": "synthetic", "subjects": 20 if quick else count},
        "base": {"path": str(_texts.SMALL), "max_tokens": 256},
        "adapters": [_texts.LORA],
        "evaluation": {"max_notes": 1},
    }
    (work / "recipe.json").write_text(json.dumps(document))
    (work / "about.json").write_text(json.dumps({"people": document["source"]}))


def to_the_first_step(work: Path) -> side.Measured:
    """Everything before training, from nothing."""
    import _ours

    from clinpeft.workflows import adapt

    document = json.loads((work / "recipe.json").read_text())
    lessons: list[object] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home, _ours.spied(adapt, "build_language_data", lessons):
        _ours.at_the_door(document, Path(home), lambda *_: None)
        seconds = time.perf_counter() - began
        notes = len(lessons[0][0].encodings.table)  # type: ignore[index]
    return side.Measured(
        "notes",
        [float(notes)],
        [seconds],
        first_step_seconds=side.since_start(),
        peak_bytes=side.peak_bytes(),
    )


ARMS = {
    "clinpeft, learning": partial(adapt.ours, "float32"),
    "clinpeft, answering": partial(classify.ours, "float32"),
    "clinpeft, preparing": to_the_first_step,
}

WORKLOADS: dict[str, side.Prepare] = {
    **{f"tokens-{count}": partial(adapt.prepare, "small", count) for count in TOKENS},
    **{
        f"labels-{count}": partial(classify.prepare, "adapters", labels=count, lengths=(50, 500))
        for count in LABELS
    },
    **{f"corpus-{count}": partial(people, count) for count in PEOPLE},
}

BENCHMARK = side.Benchmark(
    file="growth.py",
    about="How cost grows with length, labels and size",
    workloads=WORKLOADS,
    arms=ARMS,
    only={
        name: [
            arm
            for arm, kind in zip(ARMS, ("tokens", "labels", "corpus"), strict=True)
            if name.startswith(kind)
        ]
        for name in WORKLOADS
    },
)

if __name__ == "__main__":
    side.main(BENCHMARK)
