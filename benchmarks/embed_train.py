"""Learning which texts belong together, MiniLM with LoRA: clinpeft beside sentence-transformers and
its cached loss, pairs a second.

    python benchmarks/embed_train.py --out results --minutes 3

The pairs are the beginnings of real notes (``MTSAMPLES``, ``CLINPEFT_DATA``; else of the invented
hospital) and what follows them. All arms start from the same adapter and learn the same pairs in
the same steps, scale 20, in one direction. The peer's arms are a plain loop around the library's
own loss, which is faster than its Trainer; tokenising is part of a step, as it is there.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import _side_by_side as side
import numpy as np

MAX_TOKENS = 128
STEPS = {64: 12, 256: 6}
TEXTS_OF_A_CACHED_BATCH = 64


def prepare(batch_pairs: int, work: Path, quick: bool) -> None:
    """Pairs, steps and first weights, as the product makes them from a recipe."""
    import _ours
    import _peers
    import _texts

    from clinpeft import inference, training

    steps = 3 if quick else STEPS[batch_pairs]
    batch_pairs = 16 if quick else batch_pairs
    with (work / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for anchor, positive in pieces(2 * steps * batch_pairs):
            file.write(json.dumps({"anchor": anchor, "positive": positive}) + "\n")
    training_spec = {
        **_peers.OPTIMISATION,
        "batch_pairs": batch_pairs,
        "apart_by": "text",
        "symmetric": False,
        "micro_batch_tokens": 8192,
    }
    document = {
        "kind": "embed",
        "source": {"name": "handbook"},
        "pairs": {
            "kinds": ["question-answer"],
            "deduplicate": "none",
            "imported": [{"path": str(work / "pairs.jsonl")}],
        },
        "base": {
            "path": str(_texts.without_dropout(_texts.minilm(), work / "minilm")),
            "pooling": "mean",
            "max_tokens": MAX_TOKENS,
        },
        "adapters": [_texts.LORA],
        "training": training_spec,
        "evaluation": {"resamples": 100, "controls": False, "profile_texts": 0, "max_pairs": 8},
    }
    (work / "recipe.json").write_text(json.dumps(document))
    read: list[Any] = []
    courses: list[Any] = []

    def look(course: Any, *_: object) -> list[list[int]]:
        _peers.save_first(dict(course.parameters), work / "first.npz")
        return [chosen.tolist() for chosen in course.epoch(0) if len(chosen) == batch_pairs][:steps]

    with _ours.spied(inference, "learning", read), _ours.spied(training, "contrastive", courses):
        chosen = _ours.at_the_door(document, work / "home", look)
    texts, pairs = read[0][1][2], courses[0][1][0]
    sides = [
        [
            [texts[at] for at in side_[np.asarray(step)]]
            for side_ in (pairs.anchors, pairs.positives)
        ]
        for step in chosen
    ]
    tokens = int(
        np.median(
            [
                read[0][0]
                .lengths[np.concatenate([pairs.anchors[step], pairs.positives[step]])]
                .sum()
                for step in chosen
            ]
        )
    )
    (work / "pairs.json").write_text(
        json.dumps({"chosen": chosen, "steps": sides, "tokens": tokens})
    )
    about = {
        "pairs": f"{batch_pairs} a step, {tokens / batch_pairs / 2:.0f} tokens a text",
        "steps": len(chosen),
    }
    (work / "about.json").write_text(json.dumps(about))


def pieces(wanted: int) -> list[tuple[str, str]]:
    """The beginning of a piece of a note, and what follows it."""
    import _texts

    rng = np.random.default_rng(0)
    found: list[tuple[str, str]] = []
    for text in _texts.of_lengths([int(rng.integers(40, 110)) for _ in range(wanted)]):
        words = text.split()
        found.append((" ".join(words[:16]), " ".join(words[16:])))
    return found


def _finished(measured: side.Measured, work: Path, precision: str) -> side.Measured:
    kept = json.loads((work / "pairs.json").read_text())
    shapes = side.linear_shapes(work / "minilm", classes=1)
    measured.roofline = len(kept["chosen"][0]) / side.roofline(shapes, kept["tokens"], precision)
    return measured


def ours(precision: str, work: Path) -> side.Measured:
    """The verb ``embed``, at the loop's door given the prepared steps."""
    import dataclasses

    import _ours

    recipe = json.loads((work / "recipe.json").read_text())
    kept = json.loads((work / "pairs.json").read_text())
    recipe["base"]["precision"] = precision
    steps = [np.asarray(step) for step in kept["chosen"]]

    def train(course: Any, spec: Any, accelerator: Any) -> side.Measured:
        course = dataclasses.replace(course, epoch=lambda _: steps)
        return _ours.timed(course, spec, accelerator, "pairs", [float(len(step)) for step in steps])

    return _finished(_ours.at_the_door(recipe, work / "home", train), work, precision)


def theirs(precision: str, cached: bool, work: Path) -> side.Measured:
    """sentence-transformers with its own loss."""
    import _peers
    import peft
    import torch
    from sentence_transformers import SentenceTransformer, losses

    recipe = json.loads((work / "recipe.json").read_text())
    kept = json.loads((work / "pairs.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SentenceTransformer(
        str(work / "minilm"),
        device=device,
        model_kwargs={"dtype": getattr(torch, precision)},
        local_files_only=True,
    )
    model.max_seq_length = MAX_TOKENS
    spec = recipe["adapters"][0]
    model.add_adapter(
        peft.LoraConfig(
            r=spec["rank"],
            lora_alpha=spec["alpha"],
            lora_dropout=0.0,
            target_modules=["query", "value"],
        )
    )
    _peers.fill(model, work / "first.npz")
    if cached:
        loss_of: Any = losses.CachedMultipleNegativesRankingLoss(
            model, mini_batch_size=TEXTS_OF_A_CACHED_BATCH
        )
    else:
        loss_of = losses.MultipleNegativesRankingLoss(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = _peers.OPTIMISATION
    optimiser = torch.optim.AdamW(
        trained, lr=options["learning_rate"], weight_decay=options["weight_decay"]
    )
    tokenise = getattr(model, "preprocess", None) or model.tokenize
    measured = side.Measured("pairs", [], [])
    model.train()
    for anchors, positives in kept["steps"]:
        began = time.perf_counter()
        features = [
            {
                name: value.to(device)
                for name, value in tokenise(texts).items()
                if torch.is_tensor(value)
            }
            for texts in (anchors, positives)
        ]
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, options["clip_norm"])
        optimiser.step()
        optimiser.zero_grad()
        measured.losses.append(float(loss))
        measured.seconds.append(time.perf_counter() - began)
        measured.amounts.append(float(len(anchors)))
        measured.first_step_seconds = measured.first_step_seconds or side.since_start()
    measured.peak_bytes = side.peak_bytes()
    return _finished(measured, work, precision)


ARMS = {
    "sentence-transformers, float32": partial(theirs, "float32", False),
    "sentence-transformers, bfloat16": partial(theirs, "bfloat16", False),
    "sentence-transformers, cached, float32": partial(theirs, "float32", True),
    "sentence-transformers, cached, bfloat16": partial(theirs, "bfloat16", True),
    "clinpeft, float32": partial(ours, "float32"),
    "clinpeft, bfloat16": partial(ours, "bfloat16"),
}

BENCHMARK = side.Benchmark(
    file="embed_train.py",
    about="Contrastive training of MiniLM with LoRA, pairs a second",
    workloads={"pairs-64": partial(prepare, 64), "pairs-256": partial(prepare, 256)},
    arms=ARMS,
    peers=[name for name in ARMS if not name.startswith("clinpeft")],
    goals=(
        "Goals: at least 2 × sentence-transformers at its best settings, with the same losses.",
        "MiniLM without its dropout in all arms, so that losses can be compared step by step.",
    ),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
