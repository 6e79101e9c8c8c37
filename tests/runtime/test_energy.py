"""Energy is what the meters counted, added up over zones and over a counter that begins again;
unknown where nothing can be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clinpeft import models
from clinpeft.runtime import energy

CPU = torch.device("cpu")


def zone(powercap: Path, number: str, name: str, counted: int, full: int = 1_000_000) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", counted), ("max_energy_range_uj", full)):
        (folder / file).write_text(f"{value}\n", encoding="ascii")
    return folder


def test_packages_and_their_memory_are_added_up_and_parts_of_packages_are_not(
    tmp_path: Path,
) -> None:
    one, two = zone(tmp_path, "0", "package-0", 500_000), zone(tmp_path, "1", "package-1", 0)
    memory, cores = zone(tmp_path, "0:1", "dram", 100), zone(tmp_path, "0:0", "core", 0)
    found = models.create_energy_meter(CPU, tmp_path)
    assert found is not None
    assert found.components == "processor packages, memory"
    assert found.read_joules() == 0.0
    for folder, counted in ((one, 900_000), (two, 50_000), (memory, 50_100), (cores, 300_000)):
        (folder / "energy_uj").write_text(f"{counted}\n", encoding="ascii")
    assert found.read_joules() == pytest.approx(0.4 + 0.05 + 0.05)


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    one = zone(tmp_path, "0", "package-0", 900_000)
    found = models.create_energy_meter(CPU, tmp_path)
    assert found is not None
    for counted, joules in ((100_000, 0.2), (700_000, 0.8), (200_000, 1.3)):
        (one / "energy_uj").write_text(str(counted), encoding="ascii")
        assert found.read_joules() == pytest.approx(joules)


def test_a_machine_without_meters_has_none(tmp_path: Path) -> None:
    assert models.create_energy_meter(CPU, tmp_path / "nothing") is None
    zone(tmp_path, "0", "psys", 1)
    assert models.create_energy_meter(CPU, tmp_path) is None


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    (zone(tmp_path, "0", "package-0", 1) / "energy_uj").unlink()
    assert models.create_energy_meter(CPU, tmp_path) is None


def test_the_power_of_a_card_is_taken_for_what_it_was_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    monkeypatch.setattr(torch.cuda, "power_draw", lambda _: 300_000)  # milliwatts
    found = models.create_energy_meter(torch.device("cuda"), tmp_path)
    assert found is not None
    assert found.components == "graphics card"
    assert [found.read_joules(), found.read_joules()] == [
        pytest.approx(600.0),
        pytest.approx(900.0),
    ]


def test_a_card_that_tells_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: object) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "power_draw", silent)
    assert models.create_energy_meter(torch.device("cuda"), tmp_path) is None
