"""Answering a question with 1,266 labels from notes of 50 to 4,000 tokens: clinpeft beside HF
Trainer + PEFT, notes a second at equal logits.

    python benchmarks/classify.py --out results --minutes 4

Real notes (where ``MTSAMPLES`` or ``CLINPEFT_DATA`` names them) are cut and joined to lengths drawn
evenly on a logarithmic scale; what is longer than the small base has positions for (2,048) is cut
for everybody. Labels are drawn: 1,266 classes, three a note, frequencies as 1 / rank. All arms
start from the same adapter and the same head, and train the same notes in the same steps; before
and after, their logits of four notes are compared with those of the first arm. ``head-only`` trains
the head alone: clinpeft reads each note once, and its rate is that after the first epoch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _side_by_side as side
import numpy as np

LABELS, LABELS_A_NOTE = 1266, 3
NOTES = {"adapters": 80, "head-only": 80}  # drawn; six in ten are trained on
BATCH_NOTES = 8
LONGEST = 2048
WORDS_A_TOKEN = 0.72
ASKED = 4


def prepare(
    kind: str, work: Path, quick: bool, labels: int = LABELS, lengths: tuple[int, int] = (50, 4000)
) -> None:
    """Notes, labels, steps and first weights, as the product makes them from a recipe."""
    import _ours
    import _peers
    import _texts

    from clinpeft.workflows import classify as workflow

    notes = 40 if quick else NOTES[kind]
    lengths = (50, 300) if quick else lengths
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.uniform(np.log(lengths[0]), np.log(lengths[1]), 2 * notes))
    words = [max(8, round(WORDS_A_TOKEN * tokens)) for tokens in drawn]
    _texts.write_csv(work / "notes.csv", ("note_id", "category", "text"), rows(words, labels, rng))
    document = {
        "kind": "classify",
        "source": {
            "name": "files",
            "path": str(work / "notes.csv"),
            "columns": {name: name for name in ("note_id", "category", "text")},
        },
        "task": {"name": "note_categories"},
        "split": {"train": 0.6, "tuning": 0.0, "held_out": 0.4},
        "base": {"path": str(_texts.SMALL), "max_tokens": LONGEST},
        "adapters": [_texts.LORA] if kind == "adapters" else [],
        "head": {"pooling": "last"},
        "training": {
            **_peers.OPTIMISATION,
            "batch_notes": BATCH_NOTES,
            "micro_batch_tokens": 8192,
            "select_by": "last",
        },
        "evaluation": {"subgroups": False, "baselines": False, "resamples": 100},
    }
    (work / "recipe.json").write_text(json.dumps(document))
    seen: list[Any] = []
    read: list[Any] = []

    def look(course: Any, *_: object) -> list[list[int]]:
        _peers.save_first(dict(course.parameters), work / "first.npz")
        return [chosen.tolist() for chosen in course.epoch(0) if len(chosen) == BATCH_NOTES]

    with (
        _ours.spied(workflow, "build_classifier", seen),
        _ours.spied(workflow, "encode_documents", read),
    ):
        steps = _ours.at_the_door(document, work / "home", look)[: 3 if quick else None]
    _keep(steps, seen[0][0].task_data[0], read[0][0][0].documents, kind, work)


def rows(words: list[int], labels: int, rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """A text filed under each of its labels; the first rows know all labels, so that the question
    has all of them."""
    import _texts

    frequency = 1 / np.arange(1, labels + 1)
    kept = rng.permutation(labels)
    for at, text in enumerate(_texts.of_lengths(words)):
        every = kept[at :: len(words)]
        chosen = set(
            rng.choice(
                labels, min(LABELS_A_NOTE, labels), replace=False, p=frequency / frequency.sum()
            ).tolist()
        ) | set(every.tolist())
        for label in sorted(chosen):
            yield f"n{at}-{label}", f"code {label:04d}", text


def _keep(steps: list[list[int]], exam: Any, documents: Any, kind: str, work: Path) -> None:
    import _texts

    lengths = documents.lengths_of(np.arange(len(documents.tokens_total)))

    def token_ids(at: int) -> list[int]:
        (window,) = documents.windows_of(np.asarray([at]))[0]
        return [
            int(token)
            for token in documents.tokens[
                documents.starts[window] : documents.starts[window] + documents.lengths[window]
            ]
        ]

    used = sorted({at for step in steps for at in step})
    asked = used[:: max(1, len(used) // ASKED)][:ASKED]
    truth = {str(at): np.flatnonzero(exam.truth[at].numpy()).tolist() for at in used}
    kept = {
        "steps": steps,
        "ids": {str(at): token_ids(at) for at in used},
        "truth": truth,
        "asked": asked,
        "classes": len(exam.question.classes),
    }
    (work / "documents.json").write_text(json.dumps(kept))
    here = [int(lengths[at]) for at in used]
    padding = 1 - sum(here) / sum(
        max(int(lengths[at]) for at in step) * len(step) for step in steps
    )
    about = {
        "notes": f"{len(here)} of {_texts.histogram(here)} tokens, {BATCH_NOTES} a step",
        "labels": kept["classes"],
        "steps": len(steps),
    }
    (work / "about.json").write_text(
        json.dumps({**about, "padding of a padded step": f"{100 * padding:.0f} %", "trained": kind})
    )


def _read(work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((work / "recipe.json").read_text()), json.loads(
        (work / "documents.json").read_text()
    )


def compared(logits: np.ndarray[Any, Any], when: str, work: Path, measured: side.Measured) -> None:
    """The largest difference of the logits to those of the first arm, which leaves its own
    behind."""
    path = work / f"logits-{when}.npy"
    if not path.exists():
        np.save(path, logits)
    measured.end[f"logits Δ {when}"] = float(np.abs(logits - np.load(path)).max())


def _roofline(
    measured: side.Measured, recipe: dict[str, Any], kept: dict[str, Any], precision: str
) -> side.Measured:
    """Notes a second of the frozen products of all tokens of a step."""
    rows = int(np.median([sum(len(kept["ids"][str(at)]) for at in step) for step in kept["steps"]]))
    if recipe["adapters"]:
        shapes = side.linear_shapes(Path(recipe["base"]["path"]), classes=kept["classes"])
        measured.roofline = BATCH_NOTES / side.roofline(shapes, rows, precision)
    return measured


def ours(precision: str, work: Path, patches: Any = ()) -> side.Measured:
    """The verb ``classify``, at the loop's door given the prepared steps; ``patches`` take parts of
    the product away."""
    import contextlib
    import dataclasses

    import _ours

    from clinpeft.workflows import classify as workflow

    recipe, kept = _read(work)
    recipe["base"]["precision"] = precision
    seen: list[Any] = []
    steps = [np.asarray(step) for step in kept["steps"]]
    epochs = 1 if recipe["adapters"] else 5

    def train(course: Any, spec: Any, accelerator: Any) -> side.Measured:
        answering = seen[0][0]
        asked = np.asarray(kept["asked"])

        def logits() -> np.ndarray[Any, Any]:
            course.mode(False)
            found: np.ndarray[Any, Any] = answering.exams[0].scores(asked)
            return found

        before = logits()
        spec = spec.model_copy(update={"epochs": float(epochs)})
        amounts = [float(len(step)) for step in steps] * epochs
        measured = _ours.timed(
            dataclasses.replace(course, epoch=lambda _: steps), spec, accelerator, "notes", amounts
        )
        compared(before, "before", work, measured)
        if epochs == 1:
            compared(logits(), "after", work, measured)
        else:
            measured.reading = (
                f"first epoch {answering.features_seconds:.1f} s"
                if answering.features_seconds
                else ""
            )
            measured.same_steps = False  # more epochs than the reference
        return measured

    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(_ours.spied(workflow, "build_classifier", seen))
        measured = _ours.at_the_door(recipe, work / "home", train)
    return _roofline(measured, recipe, kept, precision)


def trainer(precision: str, grouped: bool, work: Path) -> side.Measured:
    """HF Trainer and stock PEFT for sequence classification, padded to the longest of each step."""
    import _peers
    import transformers

    recipe, kept = _read(work)
    model = _model(recipe, kept, work, precision)
    numbered = {at: row for row, at in enumerate(sorted(map(int, kept["ids"])))}
    rows = [
        {"input_ids": kept["ids"][str(at)], "labels": kept["truth"][str(at)]}
        for at in sorted(map(int, kept["ids"]))
    ]
    steps = [[numbered[at] for at in step] for step in kept["steps"]]
    callback, measured = _peers.clock("notes")
    collate = _peers.counting(
        partial(_padded, kept["classes"]),
        measured.amounts,
        lambda batch: float(len(batch["labels"])),
    )
    before = _logits(model, kept)
    more = (
        {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": BATCH_NOTES}
        if grouped
        else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, **_peers.arguments(precision, len(steps), **more)
        )
        given = {
            "model": model,
            "args": arguments,
            "train_dataset": rows,
            "data_collator": collate,
            "callbacks": [callback],
        }
        _peers.trainer_class(transformers.Trainer, None if grouped else steps)(**given).train()
    measured.amounts = measured.amounts[: len(measured.seconds)]
    measured.same_steps, measured.reading = not grouped, "own order" if grouped else ""
    compared(before, "before", work, measured)
    compared(_logits(model, kept), "after", work, measured)
    return _roofline(measured, recipe, kept, precision)


def _model(recipe: dict[str, Any], kept: dict[str, Any], work: Path, precision: str) -> Any:
    """Stock model for sequence classification with our first head (which has a bias) and our first
    adapter; without adapter only the head learns."""
    import _peers
    import torch
    import transformers

    options = {
        "num_labels": kept["classes"],
        "problem_type": "multi_label_classification",
        "dtype": getattr(torch, precision),
    }
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        recipe["base"]["path"], **options
    )
    model.score = torch.nn.Linear(model.config.hidden_size, kept["classes"])
    first = dict(np.load(work / "first.npz"))
    weight, bias = (
        next(value for name, value in first.items() if name.endswith(part) and "lora" not in name)
        for part in ("weight", "bias")
    )
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(weight))
        model.score.bias.copy_(torch.from_numpy(bias))
    model.score.to(
        getattr(torch, precision)
        if precision != "float32" and recipe["adapters"]
        else torch.float32
    )
    if recipe["adapters"]:
        model = _peers.lora(model, "SEQ_CLS", recipe["adapters"][0])
        _peers.fill(model, work / "first.npz")
        return model
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    return model


def _padded(classes: int, rows: Any) -> dict[str, Any]:
    import torch

    ids = [torch.tensor(row["input_ids"]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=2)
    mask = (
        torch.arange(padded.shape[1])[None, :] < torch.tensor([len(each) for each in ids])[:, None]
    ).long()
    labels = torch.zeros(len(rows), classes)
    for at, row in enumerate(rows):
        labels[at, row["labels"]] = 1.0
    return {"input_ids": padded, "attention_mask": mask, "labels": labels}


def _logits(model: Any, kept: dict[str, Any]) -> np.ndarray[Any, Any]:
    """(documents, classes) of the documents asked of all arms, each alone."""
    import torch

    model.eval()
    found = []
    with (
        torch.no_grad(),
        torch.autocast(
            "cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.bfloat16
        ),
    ):
        for at in kept["asked"]:
            row = torch.tensor([kept["ids"][str(at)]], device=next(model.parameters()).device)
            found.append(
                model(input_ids=row, attention_mask=torch.ones_like(row))
                .logits[0]
                .float()
                .cpu()
                .numpy()
            )
    return np.stack(found)


ARMS = {
    "HF Trainer + PEFT, padded, float32": partial(trainer, "float32", False),
    "HF Trainer + PEFT, padded, bfloat16": partial(trainer, "bfloat16", False),
    "HF Trainer + PEFT, length groups, float32": partial(trainer, "float32", True),
    "HF Trainer + PEFT, length groups, bfloat16": partial(trainer, "bfloat16", True),
    "clinpeft, float32": partial(ours, "float32"),
    "clinpeft, bfloat16": partial(ours, "bfloat16"),
}

BENCHMARK = side.Benchmark(
    file="classify.py",
    about="Answering with 1,266 labels, notes a second",
    workloads={
        "adapters": partial(prepare, "adapters"),
        "head-only": partial(prepare, "head-only"),
    },
    arms=ARMS,
    peers=[name for name in ARMS if not name.startswith("clinpeft")],
    only={"head-only": [name for name in ARMS if "length groups" not in name]},
    goals=(
        (
            "Goals: at least 2.5 × the best peer at equal logits; the head alone, after the "
            "first epoch, 50 ×."
        ),
        (
            "Logits of four notes, each asked alone, before the first step and after the last, "
            "against the first arm."
        ),
    ),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
