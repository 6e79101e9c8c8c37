"""Progress lines of long work, and how it is stopped. Lines hold numbers, never a text."""

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
SECONDS_BETWEEN_LINES = 2.0


@contextmanager
def handle_stop_signals() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM stop training after the current step, with a checkpoint.

    A second signal stops at once.

    Yields:
        A function that says whether a signal came.
    """
    signals: list[int] = []

    def note_signal(number: int, _: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    handlers = {
        number: signal.signal(number, note_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def show_training_progress(title: str) -> Iterator[Callable[[StepEvent], None]]:
    """Show training as a bar in a terminal, and as some 20 lines elsewhere.

    Yields:
        A function to call after every step.
    """

    def print_step(event: StepEvent) -> None:
        interval = max(1, event.total_steps // 20)
        is_edge = event.step in (1, event.total_steps)
        if is_edge or event.step % interval == 0 or event.metrics:
            print(f"{title} {format_step(event)}", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield print_step
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"))
    with Progress(*columns, console=Console(stderr=True)) as display:
        bar = display.add_task(title, total=None, step="")
        yield lambda event: display.update(
            bar, completed=event.step, total=event.total_steps, step=format_step(event)
        )


@contextmanager
def show_encoding_progress(title: str) -> Iterator[Callable[[EncodingProgress], None]]:
    """Print the number of encoded texts and tokens per second, every two seconds."""
    last_seconds = 0.0

    def print_texts(event: EncodingProgress) -> None:
        nonlocal last_seconds
        if event.seconds - last_seconds > SECONDS_BETWEEN_LINES:
            last_seconds = event.seconds
            rate = event.tokens / event.seconds
            line = f"{title} {event.texts:,} texts · {rate:,.0f} tokens/s"
            print(line, file=sys.stderr, flush=True)

    yield print_texts


def format_step(event: StepEvent) -> str:
    """Format one training step as one line."""
    minutes, seconds = divmod(round(event.remaining_seconds), 60)
    metrics = "".join(
        f" · {title} {event.metrics[name]:.3f}"
        for name, title in PROGRESS_METRIC_TITLES.items()
        if name in event.metrics
    )
    return (
        f"step {event.step}/{event.total_steps} · loss {event.loss:.3f} · "
        f"{event.tokens_per_second:,.0f} tokens/s · {minutes}:{seconds:02d} left{metrics}"
    )
