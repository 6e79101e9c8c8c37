"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clinpeft.core.errors import StorageError
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import TrainingProgress


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save_step_checkpoint(
            tmp_path, {"w": torch.full((2,), float(step))}, TrainingProgress(step=step)
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]
    actual = checkpoint.find_newest_checkpoint(tmp_path)
    assert actual is not None and actual[1].step == 3 and actual[0]["w"].tolist() == [3.0, 3.0]


def test_a_truncated_newest_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save_step_checkpoint(
            tmp_path, {"w": torch.ones(100)}, TrainingProgress(step=step)
        )
    newest = tmp_path / "step-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"step-00000002\.safetensors"):
        actual = checkpoint.find_newest_checkpoint(tmp_path)
    assert actual is not None and actual[1].step == 1


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.find_newest_checkpoint(tmp_path / "nothing") is None


def test_a_failed_write_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint.save_checkpoint_file(path, {"w": torch.ones(1)})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match="No space left") as raised:
        checkpoint.save_checkpoint_file(path, {"w": torch.zeros(1)})
    assert "free some space" in str(raised.value)
    assert checkpoint.load_checkpoint_tensors(path)["w"].item() == 1.0 and list(
        tmp_path.iterdir()
    ) == [path]


@pytest.fixture
def files_of_4_kib_at_most() -> Iterator[None]:
    """A disk that takes no more bytes, as the system tells it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_bytes_costs_only_the_new_checkpoint(
    tmp_path: Path, files_of_4_kib_at_most: None
) -> None:
    checkpoint.save_step_checkpoint(tmp_path, {"w": torch.ones(10)}, TrainingProgress(step=1))
    with pytest.raises(StorageError, match="written"):
        checkpoint.save_step_checkpoint(
            tmp_path, {"w": torch.ones(100_000)}, TrainingProgress(step=2)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]


def test_the_optimiser_goes_through_a_file_unchanged(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight])
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimiser.step()
    checkpoint.save_checkpoint_file(
        tmp_path / "a.safetensors",
        checkpoint.collect_optimizer_tensors(optimiser, ["layer.0.weight"]),
    )
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    checkpoint.load_optimizer_state(
        other, ["layer.0.weight"], checkpoint.load_checkpoint_tensors(tmp_path / "a.safetensors")
    )
    for key, value in optimiser.state_dict()["state"][0].items():
        assert torch.equal(other.state_dict()["state"][0][key], value)
