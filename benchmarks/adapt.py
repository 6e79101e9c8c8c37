"""Adapting a language model to notes with LoRA: clinpeft beside HF Trainer + PEFT and TRL, the same documents in the same steps.

    pip install "clinpeft[peers]"
    MTSAMPLES=/data/mtsamples.csv.gz python benchmarks/adapt.py --out results --minutes 4

Bases: the small base of this repository (8 M) and a LLaMA shape of 60 M random weights. Documents are whole notes up to 1,024 tokens (a longer
one is cut), some 4,096 tokens a step; ``equal`` cuts the same notes into windows of 256 tokens, so that there is no padding for anybody to save. The
arms start from the same adapter and train the same documents in the same steps; those that choose their own order (length grouping, packing) are
compared by what they think of the same eight documents at the end.

``7B-notes`` is for a GPU: the shape of LLaMA-7B with random weights, notes up to 2,048 tokens, 16,384 a step, bfloat16 arms alone, and beside each
rate its share of the GPU's peak (MFU): tokens a second times (4 N + 6 n + 6 s h L) operations, with N the weights of the linear layers and of the
head, n those of the adapters, s the mean length of the document that a token stands in, h the width, and L the layers; nothing that an arm computes
twice is counted.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _side_by_side as side
import _texts
import numpy as np

EQUAL_TOKENS, ASKED = 256, 8


@dataclass(frozen=True)
class Size:
    """Of a workload: its base, the most tokens of a document and those of a step, and how many steps."""

    base: Callable[[Path], Path]
    max_tokens: int
    step_tokens: int
    steps: int


SIZES = {
    "small": Size(lambda _: _texts.SMALL, 1024, 4096, 12),
    "60M": Size(partial(_texts.shaped, sizes=_texts.SIXTY_MILLION), 1024, 4096, 6),
    "7B": Size(partial(_texts.shaped, sizes=_texts.SEVEN_BILLION), 2048, 16_384, 12),
}


def prepare(base: str, equal: int, work: Path, quick: bool) -> None:
    """Documents, steps and first weights, as the product makes them from a recipe; ``equal``: all of so many tokens, 0: whole notes."""
    import _ours
    import _peers

    from clinpeft.workflows import language_model

    size = SIZES[base]
    source, said = _texts.source()
    steps = 3 if quick else size.steps
    document = {
        "kind": "adapt",
        "source": source,
        "corpus": {"deduplicate": "exact"},
        "base": {
            "path": str(size.base(work / "base")),
            "max_tokens": equal or size.max_tokens,
            "overflow": "window" if equal else "truncate",
        },
        "adapters": [_texts.LORA],
        "training": {
            **_peers.OPTIMISATION,
            "max_steps": steps,
            "batch_tokens": size.step_tokens,
            "micro_batch_tokens": size.step_tokens,
        },
        "evaluation": {"max_notes": 1},
    }
    (work / "recipe.json").write_text(json.dumps(document))
    lessons: list[Any] = []

    def look(course: Any, *_: object) -> list[list[int]]:
        _peers.save_first(dict(course.parameters), work / "first.npz")
        return [chosen.tolist() for chosen in course.epoch(0)]

    with _ours.spied(language_model, "lesson_of", lessons):
        windows = _ours.at_the_door(document, work / "home", look)
    encodings = lessons[0][0].encodings
    if equal:
        windows = full_windows_only(windows, encodings.lengths, size, equal)[:steps]
    used = windows[:steps]
    held = encodings.windows("held_out")
    held = held[np.argsort(-encodings.lengths[held], kind="stable")][:: max(1, len(held) // ASKED)][
        :ASKED
    ]
    token_ids = lambda at: [
        int(token)
        for token in encodings.tokens[
            encodings.starts[at] : encodings.starts[at] + encodings.lengths[at]
        ]
    ]  # noqa: E731
    kept = {
        "windows": used,
        "steps": [[token_ids(at) for at in step] for step in used],
        "asked": [token_ids(at) for at in held],
    }
    (work / "documents.json").write_text(json.dumps(kept))
    lengths = [len(ids) for step in kept["steps"] for ids in step]
    longest = sum(max(map(len, step)) * len(step) for step in kept["steps"])
    about = {
        "base": base,
        "documents": f"{said}, {len(lengths)} of {_texts.histogram(lengths)} tokens",
        "steps": len(used),
    }
    about |= {"padding of a padded step": f"{100 * (1 - sum(lengths) / longest):.0f} %"}
    (work / "about.json").write_text(json.dumps(about))


def full_windows_only(
    windows: list[list[int]], lengths: Any, size: Size, tokens: int
) -> list[list[int]]:
    """Steps of windows of the length that most have: ``tokens``, or one less where room is left for a token at the end of a note."""
    usual = Counter(int(lengths[at]) for step in windows for at in step).most_common(1)[0][0]
    full = [at for step in windows for at in step if lengths[at] == usual]
    rows = max(1, size.step_tokens // tokens)
    found = [full[rows * at : rows * (at + 1)] for at in range(size.steps)]
    return [step for step in found if len(step) == rows]


def read(work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and documents."""
    return json.loads((work / "recipe.json").read_text()), json.loads(
        (work / "documents.json").read_text()
    )


def finished(measured: side.Measured, model: Any, work: Path, precision: str) -> side.Measured:
    """What the trained model thinks of the documents that all arms are asked, and how fast the frozen products alone would have been."""
    import torch

    recipe, kept = read(work)
    summed, targets = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids in kept["asked"]:
            row = torch.tensor([ids], device=next(model.parameters()).device)
            logits = model(input_ids=row).logits[0, :-1].float()
            summed += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
            targets += len(ids) - 1
    measured.end["held-out loss Δ"] = summed / targets
    rows = int(np.median([sum(map(len, step)) for step in kept["steps"]]))
    measured.roofline = rows / side.roofline(
        side.linear_shapes(Path(recipe["base"]["path"])), rows, precision
    )
    if torch.cuda.is_available() and precision == "bfloat16":
        share = (
            measured.rate * operations(recipe, kept["steps"]) / peak(torch.cuda.get_device_name())
        )
        measured.reading = ", ".join(
            part for part in (measured.reading, f"MFU {100 * share:.1f} %") if part
        )
    return measured


def operations(recipe: dict[str, Any], steps: list[list[list[int]]]) -> float:
    """Floating-point operations a trained token, by the formula above."""
    from clinpeft import models
    from clinpeft.recipe import LoraSpec
    from clinpeft.workflows import plan

    lengths = np.asarray([len(ids) for step in steps for ids in step], dtype=np.float64)
    shape = models.read_model_shape(Path(recipe["base"]["path"]))
    trained = plan.count_trained_parameters(shape, (LoraSpec(**recipe["adapters"][0]),))
    terms = plan.estimate_operations(
        shape, trained, round(float((lengths**2).sum() / lengths.sum())), has_language_head=True
    )
    return sum(term.value for term in terms)


def peak(gpu: str) -> float:
    """Dense bfloat16 operations a second of a GPU by its data sheet; not a number where it is in no row."""
    from clinpeft.workflows import plan

    return next(
        (row.peak_flops for name, row in plan.GPU_DATA_SHEETS.items() if name.split("-")[0] in gpu),
        float("nan"),
    )


def ours(precision: str, work: Path, patches: Any = (), activations: str = "auto") -> side.Measured:
    """The verb ``adapt``, at the loop's door given the prepared steps; ``patches`` take parts of the product away."""
    import contextlib
    import dataclasses

    import _ours

    recipe, kept = read(work)
    recipe["base"]["precision"], recipe["training"]["activations"] = precision, activations
    models: list[Any] = []
    steps = [np.asarray(step) for step in kept["windows"]]

    def train(course: Any, spec: Any, accelerator: Any) -> side.Measured:
        return _ours.timed(dataclasses.replace(course, epoch=lambda _: steps), spec, accelerator)

    from clinpeft import adapters

    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(_ours.spied(adapters, "attach", models))
        measured = _ours.at_the_door(recipe, work / "home", train)
    return finished(measured, models[0][0].base.model, work, precision)


def trainer(precision: str, grouped: bool, work: Path) -> side.Measured:
    """HF Trainer and stock PEFT, padded to the longest of each step."""
    import _peers
    import torch
    import transformers

    recipe, kept = read(work)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        recipe["base"]["path"], dtype=getattr(torch, precision)
    )
    model = _peers.lora(model, "CAUSAL_LM", recipe["adapters"][0])
    _peers.fill(model, work / "first.npz")
    rows = [{"input_ids": ids} for step in kept["steps"] for ids in step]
    at = iter(range(len(rows)))
    steps = [[next(at) for _ in step] for step in kept["steps"]]
    callback, measured = _peers.clock("tokens")
    collate = _peers.counting(
        _padded, measured.amounts, lambda batch: float(batch["attention_mask"].sum())
    )
    more = (
        {
            "train_sampling_strategy": "group_by_length",
            "per_device_train_batch_size": round(len(rows) / len(steps)),
        }
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
    _settled(measured, grouped)
    return finished(measured, model, work, precision)


def _padded(rows: Any) -> dict[str, Any]:
    """Padded on the right; padding is told by the mask, and never learned."""
    import torch

    ids = [torch.tensor(row["input_ids"]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = (
        torch.arange(padded.shape[1])[None, :] < torch.tensor([len(each) for each in ids])[:, None]
    ).long()
    return {
        "input_ids": padded,
        "attention_mask": mask,
        "labels": padded.masked_fill(mask == 0, -100),
    }


def _settled(measured: side.Measured, own_order: bool) -> None:
    """A loader reads ahead: only as many batches as steps were trained."""
    measured.amounts = measured.amounts[: len(measured.seconds)]
    measured.losses = measured.losses[: len(measured.seconds)]
    measured.same_steps, measured.reading = not own_order, "own order" if own_order else ""


def trl(precision: str, work: Path) -> side.Measured:
    """TRL's SFTTrainer with packing: rows of the most tokens of a document, in which documents stand one behind the other."""
    import _peers
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    recipe, kept = read(work)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        recipe["base"]["path"], dtype=getattr(torch, precision)
    )
    model = _peers.lora(model, "CAUSAL_LM", recipe["adapters"][0])
    _peers.fill(model, work / "first.npz")
    rows = datasets.Dataset.from_list(
        [{"input_ids": ids} for step in kept["steps"] for ids in step]
    )
    callback, measured = _peers.clock("tokens")
    longest = recipe["base"]["max_tokens"]
    options = _peers.arguments(
        precision,
        len(kept["steps"]),
        per_device_train_batch_size=recipe["training"]["batch_tokens"] // longest,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, **options, packing=True, max_length=longest, gradient_checkpointing=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(recipe["base"]["path"])
        training = SFTTrainer(
            model, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[callback]
        )
        pad = tokenizer.pad_token_id
        collate = training.data_collator
        training.data_collator = _peers.counting(
            collate, measured.amounts, lambda batch: float((batch["input_ids"] != pad).sum())
        )
        training.train()
    _settled(measured, own_order=True)
    measured.reading = "packed"
    return finished(measured, training.model, work, precision)


ARMS = {
    "HF Trainer + PEFT, padded, float32": partial(trainer, "float32", False),
    "HF Trainer + PEFT, padded, bfloat16": partial(trainer, "bfloat16", False),
    "HF Trainer + PEFT, length groups, float32": partial(trainer, "float32", True),
    "HF Trainer + PEFT, length groups, bfloat16": partial(trainer, "bfloat16", True),
    "TRL SFT, packing, bfloat16": partial(trl, "bfloat16"),
    "clinpeft, float32": partial(ours, "float32"),
    "clinpeft, bfloat16": partial(ours, "bfloat16"),
}

BENCHMARK = side.Benchmark(
    file="adapt.py",
    about="Adapting a language model with LoRA, real tokens a second",
    workloads={
        "small-notes": partial(prepare, "small", 0),
        "60M-notes": partial(prepare, "60M", 0),
        "60M-equal": partial(prepare, "60M", EQUAL_TOKENS),
        "7B-notes": partial(prepare, "7B", 0),
    },
    arms=ARMS,
    peers=[name for name in ARMS if not name.startswith("clinpeft")],
    only={
        "60M-equal": [name for name in ARMS if "length groups" not in name],
        "7B-notes": [name for name in ARMS if "bfloat16" in name],
    },
    apart=("7B-notes",),
    goals=(
        "Goals: at least 4 × HF Trainer + PEFT padded in bfloat16, 2 × the best peer, half of the roofline, no more memory than the peer.",
        "Goals of 7B-notes, on a GPU: 2.5 × HF Trainer + PEFT padded, MFU of 46 %.",
        "The reference is the first arm. Real tokens only; a step's time holds loading, collating and the optimiser.",
    ),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
