"""What the peers' arms share: stock PEFT adapters that start from our first weights, a data loader
of given steps, the clock in a Trainer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _side_by_side as side
import numpy as np

Step = Sequence[int]


def lora(
    model: Any, task: str, spec: dict[str, Any], targets: Sequence[str] = ("q_proj", "v_proj")
) -> Any:
    """A stock PEFT model with one LoRA."""
    import peft

    options = {
        "r": spec["rank"],
        "lora_alpha": spec["alpha"],
        "lora_dropout": spec.get("dropout", 0.0),
        "target_modules": list(targets),
    }
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, **options))


def short(name: str) -> str:
    """A trained tensor's name without what peft and we put around it:
    ``0.self_attn.q_proj.lora_A``."""
    found = re.search(r"layers?\.(\d+\..+?)(\.default)?(\.weight)?$", name)
    return found.group(1) if found else name


def save_first(parameters: dict[str, Any], path: Path) -> None:
    """The first weights of our adapters, for the peers to start from."""
    np.savez(
        path,
        **{
            short(name): parameter.detach().float().cpu().numpy()
            for name, parameter in parameters.items()
        },
    )


def fill(model: Any, path: Path) -> None:
    """Our first weights into the adapters of a stock PEFT model; every one of them must be
    found."""
    import torch

    first = dict(np.load(path))
    adapters = {
        short(name): parameter for name, parameter in model.named_parameters() if "lora_" in name
    }
    wanted = {name for name in first if "lora_" in name}
    if set(adapters) != wanted:
        raise RuntimeError(f"adapters differ: {sorted(wanted ^ set(adapters))[:3]}")
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(torch.from_numpy(first[name]).to(parameter.dtype))


def clock(unit: str) -> tuple[Any, side.Measured]:
    """A Trainer's callback that fills the seconds and losses of every step, and what it fills."""
    import transformers

    measured = side.Measured(unit, [], [])

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            if not measured.seconds:
                measured.first_step_seconds = side.since_start()
            measured.seconds.append(now - self.last)
            self.last = now

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                measured.losses.append(float(logs["loss"]))

        def on_train_end(self, *_: Any, **__: Any) -> None:
            measured.peak_bytes = side.peak_bytes()

    return Clock(), measured


def trainer_class(base: Any, steps: Sequence[Step] | None) -> Any:
    """A Trainer whose steps are the given ones, through torch's own ``batch_sampler``; its own
    order where none are given."""
    import torch

    if steps is None:
        return base

    class Given(base):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                self.train_dataset,
                batch_sampler=[list(step) for step in steps],
                collate_fn=self.data_collator,
            )

    return Given


Collate = Callable[[Any], dict[str, Any]]


def counting(
    collate: Collate, into: list[float], count: Callable[[dict[str, Any]], float]
) -> Collate:
    """A collator that notes how many real units each batch holds."""

    def collated(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        into.append(count(batch))
        return batch

    return collated


def arguments(precision: str, steps: int, **more: Any) -> dict[str, Any]:
    """Options of every Trainer here: ours in its words."""
    import torch

    options = {
        "max_steps": steps,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": precision == "bfloat16",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "seed": 1234,
    }
    return options | more


OPTIMISATION = {
    "learning_rate": 1e-3,
    "warmup_fraction": 0.0,
    "schedule": "constant",
    "weight_decay": 0.01,
    "clip_norm": 1.0,
}
"""The same in a recipe."""
