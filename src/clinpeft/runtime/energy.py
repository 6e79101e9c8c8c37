"""Energy by the machine's own meters: what the processor counts of itself, and what the graphics card draws; unknown where neither may be read.

Linux gives the counters of Intel's and AMD's processors (RAPL) as files, since 2020 to the administrator alone unless the site allows more. They are
of whole packages and of the memory beside them, with all that runs there. Of a card the power is read at every step and taken for what it was since
the last one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP_FOLDER = Path("/sys/class/powercap")
RAPL_ZONES = {"package": "processor packages", "dram": "memory"}
"""How a zone's name begins, and what it is of; cores and graphics of a processor are parts of its package."""

JouleReader = Callable[[], float]


@dataclass(frozen=True)
class EnergyMeter:
    """What counts.

    Attributes:
        components: what is counted, for the reader.
        read_joules: joules since the meter was made, a number that only rises.
    """

    components: str
    read_joules: JouleReader


def create_energy_meter(
    device: torch.device | None = None, powercap: Path = POWERCAP_FOLDER
) -> EnergyMeter | None:
    """A meter of all that can be read on this machine; None where nothing can.

    Args:
        device: what a run computes on, whose power is counted where it is a card; None: a card where there is one.
        powercap: where the processor's counters are.
    """
    found = [
        (told, read)
        for zone in sorted(powercap.glob("*:*"))
        if (told := _describe_zone(zone)) and (read := _create_zone_reader(zone))
    ]
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and (card := _create_gpu_reader(device)):
        found.append(("graphics card", card))
    if not found:
        return None
    reads = [read for _, read in found]
    return EnergyMeter(
        ", ".join(dict.fromkeys(told for told, _ in found)), lambda: sum(read() for read in reads)
    )


def _describe_zone(zone: Path) -> str | None:
    with contextlib.suppress(OSError):
        name = (zone / "name").read_text(encoding="ascii")
        return next((told for begins, told in RAPL_ZONES.items() if name.startswith(begins)), None)
    return None


def _create_zone_reader(zone: Path) -> JouleReader | None:
    """Of a zone whose counter begins again at 0 when it is full, which takes minutes at least."""
    try:
        full, last = (
            _read_microjoules(zone / "max_energy_range_uj"),
            _read_microjoules(zone / "energy_uj"),
        )
    except (OSError, ValueError):
        return None
    counted = 0

    def read() -> float:
        nonlocal last, counted
        now = _read_microjoules(zone / "energy_uj")
        counted += now - last if now >= last else now - last + full
        last = now
        return counted / 1e6

    return read


def _read_microjoules(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _create_gpu_reader(device: torch.device) -> JouleReader | None:
    """Of a card whose driver tells its power, through a package that torch wants for that."""
    try:
        torch.cuda.power_draw(device)
    except (ImportError, RuntimeError, OSError):
        return None
    last, counted = time.perf_counter(), 0.0

    def read() -> float:
        nonlocal last, counted
        now = time.perf_counter()
        counted += torch.cuda.power_draw(device) / 1000 * (now - last)  # in milliwatts
        last = now
        return counted

    return read
