"""Trials of a search one after another and in one pass over one base: notes a second, memory, and whether the losses are the same.

    python benchmarks/trials.py --out results --minutes 4

``batch-N``: four LoRA trials (of different rank, dropout, learning rate and seed) answer a question of 20 classes from notes of 128 tokens, N a step,
with the small base: the curve says from which size on one pass no longer pays. ``trials-K``: the same of K trials at 8 notes a step. Loading,
attaching and the first two steps are not counted. One after another is the reference, in the precision named; losses are compared step by step.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import _side_by_side as side
import numpy as np

CLASSES, TOKENS, STEPS = 20, 128, 8
BATCHES = (2, 4, 8, 16)
TRIALS = (2, 8)


def prepare(trials: int, batch: int, work: Path, quick: bool) -> None:
    """Notes of one length, as token ids, with classes drawn."""
    import _texts
    import transformers

    steps = 3 if quick else STEPS
    count, rng = steps * batch, np.random.default_rng(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(_texts.SMALL)
    ids: list[int] = []
    for text in _texts.texts():
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= count * TOKENS:
            break
    kept = np.resize(np.asarray(ids), (count, TOKENS))
    np.savez(work / "notes.npz", ids=kept, truth=rng.integers(0, CLASSES, count))
    (work / "shape.json").write_text(json.dumps({"trials": trials, "batch": batch}))
    about = {
        "trials": trials,
        "notes a step": batch,
        "tokens a note": TOKENS,
        "steps of a trial": steps,
    }
    (work / "about.json").write_text(json.dumps(about))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a trial differs in."""

    rank: int
    dropout: float
    rate: float
    seed: int


def settings(work: Path) -> list[Setting]:
    """As a search would propose them."""
    count = json.loads((work / "shape.json").read_text())["trials"]
    return [
        Setting(2 ** (1 + at % 4), 0.1 * (at % 3), 1e-4 * 2 ** (at % 5), 100 + at)
        for at in range(count)
    ]


def course(
    base: Any, stack: Any, setting: Setting, work: Path, accelerator: Any
) -> tuple[Any, Any]:
    """How one trial learns, as ``classify`` has it, and its optimisation."""
    import torch

    from clinpeft import adapters, models, training
    from clinpeft.core.schemas import LabelSpace
    from clinpeft.recipe import ClassifierTrainingSpec, LossSpec

    notes = np.load(work / "notes.npz")
    ids, truth, batch = (
        torch.from_numpy(notes["ids"]),
        torch.from_numpy(notes["truth"]),
        json.loads((work / "shape.json").read_text())["batch"],
    )
    head = models.Head(base.width, CLASSES, 0.1, seed=setting.seed).to(accelerator.device)

    def reading(documents: Any) -> Any:
        chosen = ids[torch.from_numpy(documents)].to(accelerator.device)

        def answer(vectors: Any) -> Any:
            pooled = models.pool_packed_hidden_states(
                vectors, models.SequenceLengths((TOKENS,) * len(chosen)), "last"
            )
            return head(
                pooled, torch.arange(len(chosen), device=accelerator.device), len(chosen), "mean"
            )

        return adapters.PackedInput(chosen, torch.ones_like(chosen), answer)

    def live(documents: Any) -> Any:
        read = reading(documents)
        return read.answer(
            adapters.compute_packed_hidden_states(stack, read.input_ids, read.attention_mask)
        )

    def mode(on: bool) -> None:
        stack.train(on)
        head.train(on)

    names = tuple(f"class {at}" for at in range(CLASSES))
    exam = training.ClassificationData(
        label_space=LabelSpace(
            "drawn", "multiclass", names, ("",) * CLASSES, (1,) * CLASSES, "auroc_ovo"
        ),
        **{
            "answer": live,
            "reading": reading,
            "truth": truth,
            "lengths": np.full(len(ids), TOKENS),
        },
        **{
            "train": np.arange(len(ids)),
            "tuning": np.arange(0),
            "grouped": lambda chosen: [chosen],
        },
        **{
            "scores": lambda _: np.zeros((0, CLASSES), np.float32),
            "metric": lambda *_: float("nan"),
        },
    )
    spec = ClassifierTrainingSpec(
        learning_rate=setting.rate,
        epochs=1,
        batch_notes=batch,
        checkpoints=1,
        evaluations=1,
        select_by="last",
    )
    own = training.collect_module_parameters({"head": head})
    made = training.build_classification_trainable(
        [exam],
        {**stack.trained, **own},
        mode,
        LossSpec(),
        spec,
        setting.seed,
        accelerator,
        tuple(own),
    )
    return made, spec


def _base(precision: str, accelerator: Any) -> Any:
    import _texts

    from clinpeft import models
    from clinpeft.recipe import LanguageModelSpec

    return models.load_base_model(
        LanguageModelSpec.model_validate({"path": _texts.SMALL, "precision": precision}),
        accelerator.device,
        "vectors",
    )


def _adapter(setting: Setting) -> list[Any]:
    from clinpeft.recipe import LoraSpec

    return [LoraSpec(rank=setting.rank, alpha=16.0, dropout=setting.dropout)]


def one_after_another(precision: str, work: Path) -> side.Measured:
    """Each trial on a base of its own, which goes when it has ended."""
    from clinpeft import adapters, training

    accelerator, seconds, losses, first = training.create_accelerator(), [], [], 0.0
    for setting in settings(work):
        base = _base(precision, accelerator)
        made, spec = course(
            base,
            adapters.attach_adapters(base, _adapter(setting), setting.seed),
            setting,
            work,
            accelerator,
        )
        marks = [time.perf_counter()]
        with tempfile.TemporaryDirectory() as folder:
            watch = training.TrainingCallbacks(
                on_step=lambda _, marks=marks: marks.append(time.perf_counter())
            )  # type: ignore[misc]
            losses.append(
                [
                    point["loss"]
                    for point in training.run_training(
                        made, spec, accelerator, Path(folder), watch
                    ).progress.history
                ]
            )
        first = first or side.since_start()
        seconds.append(np.diff(marks))
    every = np.stack(seconds).T  # (steps, trials): the first steps of all are left out of the rate
    return _measured(work, every.sum(axis=1).tolist(), losses, first, precision)


def together(precision: str, work: Path) -> side.Measured:
    """All trials in one pass."""
    from clinpeft import adapters, training

    accelerator, tried = training.create_accelerator(), settings(work)
    base = _base(precision, accelerator)
    joint = adapters.attach_stacks(
        base, [adapters.TrialAdapters(_adapter(setting), setting.seed) for setting in tried]
    )
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fits = []
        for at, (stack, setting) in enumerate(zip(joint.stacks, tried, strict=True)):
            watch = (
                training.TrainingCallbacks(on_step=lambda _: marks.append(time.perf_counter()))
                if at == len(tried) - 1
                else training.TrainingCallbacks()
            )
            fits.append(
                training.TrialTraining(
                    *course(base, stack, setting, work, accelerator), Path(folder) / str(at), watch
                )
            )
        marks.append(time.perf_counter())
        found = training.train_jointly(joint, fits, accelerator)
    losses = [
        [point["loss"] for point in each.progress.history]
        for each in found
        if isinstance(each, training.TrainingResult)
    ]
    return _measured(work, np.diff(marks).tolist(), losses, side.since_start(), precision)


def _measured(
    work: Path, seconds: list[float], losses: list[list[float]], first: float, precision: str
) -> side.Measured:
    """Steps of all trials at once, with the losses of all, trial by trial."""
    shape = json.loads((work / "shape.json").read_text())
    return side.Measured(
        unit="notes",
        amounts=[float(shape["trials"] * shape["batch"])] * len(seconds),
        seconds=seconds,
        losses=[loss for each in losses for loss in each],
        first_step_seconds=first,
        peak_bytes=side.peak_bytes(),
        reading=precision,
    )


BENCHMARK = side.Benchmark(
    file="trials.py",
    about="Trials of a search: one after another, and together",
    workloads={
        **{f"batch-{batch}": partial(prepare, 4, batch) for batch in BATCHES},
        **{f"trials-{trials}": partial(prepare, trials, 8) for trials in TRIALS},
    },
    arms={
        f"{name}, {precision}": partial(arm, precision)
        for precision in ("float32", "bfloat16")
        for name, arm in (("one after another", one_after_another), ("together", together))
    },
    goals=(
        "together at least 1.3 times one after another at batch-8, memory of one base, the same losses in float32",
    ),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
