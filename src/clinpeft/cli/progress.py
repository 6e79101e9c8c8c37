"""What the user sees while something long goes on, and how it is stopped: numbers only."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clinpeft.inference import EncodingProgress
    from clinpeft.training import StepEvent

PROGRESS_METRIC_TITLES = {
    "tuning_perplexity": "tuning perplexity",
    "tuning_loss": "tuning loss",
    "tuning_metric": "tuning metric",
    "tuning_accuracy": "tuning accuracy",
}


@contextmanager
def handle_stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and a scheduler's SIGTERM stop between two steps, with a checkpoint; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def show_training_progress(title: str) -> Iterator[Callable[[StepEvent], None]]:
    """A bar in a terminal, now and then a line elsewhere."""
    if sys.stderr.isatty():
        with _show_progress_bar(title) as tell:
            yield tell
        return

    def line(event: StepEvent) -> None:
        if (
            event.step == 1
            or event.step % max(1, event.total_steps // 20) == 0
            or event.step == event.total_steps
            or event.metrics
        ):
            print(f"{title} {format_step(event)}", file=sys.stderr, flush=True)

    yield line


@contextmanager
def _show_progress_bar(title: str) -> Iterator[Callable[[StepEvent], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True)) as shown:
        bar = shown.add_task(title, total=None, said="")
        yield lambda event: shown.update(
            bar, completed=event.step, total=event.total_steps, said=format_step(event)
        )


@contextmanager
def show_encoding_progress(title: str) -> Iterator[Callable[[EncodingProgress], None]]:
    """Texts done and tokens a second, now and then."""
    last = [0.0]

    def line(event: EncodingProgress) -> None:
        if event.seconds - last[0] > 2.0:
            last[0] = event.seconds
            print(
                f"{title} {event.texts:,} texts · {event.tokens / event.seconds:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )

    yield line


def format_step(event: StepEvent) -> str:
    """One step in one line."""
    minutes, seconds = divmod(round(event.remaining_seconds), 60)
    measured = "".join(
        f" · {title} {event.metrics[name]:.3f}"
        for name, title in PROGRESS_METRIC_TITLES.items()
        if name in event.metrics
    )
    left = f"{minutes}:{seconds:02d} left"
    return f"step {event.step}/{event.total_steps} · loss {event.loss:.3f} · {event.tokens_per_second:,.0f} tokens/s · {left}{measured}"
