"""A crash costs minutes: killed, stopped, out of room or with its newest checkpoint damaged, the
same command goes on to the very same bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import soak
import torch

from clinpeft import runs, training
from clinpeft.core.errors import InputError, StorageError
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import TrainingProgress
from clinpeft.training.trainable import Trainable
from tests.conftest import ROOT
from tests.runs.conftest import NIGHT, make_recipe, opening
from tests.trust import toys

ROUNDS, REAL = 12, 1


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Adapt, classify with its head first, and embed: each disturbed again and again, let go to its
    end, and compared with an undisturbed run."""
    folder = tmp_path_factory.mktemp("kills")
    recipes, told = toys.write(folder), folder / "rounds.jsonl"
    asked = [sys.executable, str(ROOT / "scripts" / "soak.py"), *map(str, recipes.values())]
    asked += ["--rounds", str(ROUNDS), "--real", str(REAL), "--seed", "20", "--json", str(told)]
    done = subprocess.run(
        asked,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=1200,
        check=False,
    )
    assert "runs that lost something" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]


def test_killed_at_twenty_random_points_every_run_ends_in_the_bytes_of_an_undisturbed_one(
    rounds: list[dict[str, Any]],
) -> None:
    assert len(rounds) == ROUNDS + REAL
    assert {one["verb"] for one in rounds} == {"adapt", "classify", "embed"}
    assert sum(len(one["done"]) for one in rounds) >= 20
    assert not [(one["done"], one["damage"], one["wrong"]) for one in rounds if one["wrong"]]


def test_among_them_were_real_kills_full_disks_and_stops(rounds: list[dict[str, Any]]) -> None:
    said = " ".join(done for one in rounds for done in one["done"])
    assert all(
        kind in said
        for kind in (
            "kill -9 at write",
            "SIGKILL",
            "SIGTERM",
            "disk full",
            "no file over",
            "real kill -9",
        )
    )
    codes = [code for one in rounds for code in one["codes"]]
    assert (
        codes.count(-9) >= 3 and codes.count(1) >= 1
    )  # when a signal comes in time depends on the machine


def test_the_comparison_would_have_seen_a_difference(tmp_path: Path) -> None:
    run = tmp_path / "0123456789ab"
    run.mkdir()
    (run / "run.json").write_text('{"state": "finished"}', encoding="utf-8")
    (run / "log.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 0.5, "seconds": 1}\n', encoding="utf-8"
    )
    (run / "head.safetensors").write_bytes(b"weights")
    before = soak.outcome(tmp_path)
    (run / "log.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 0.5, "seconds": 2}\n', encoding="utf-8"
    )
    assert not soak.differences(before, soak.outcome(tmp_path))
    (run / "log.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 0.5, "seconds": 2}\n' * 2, encoding="utf-8"
    )
    (run / "head.safetensors").write_bytes(b"weighty")
    (run / ".run.json.17.partial").write_bytes(b"")
    assert len(soak.differences(before, soak.outcome(tmp_path))) == 3


# checkpoints --------------------------------------------------------------------------------------

CREW = training.create_accelerator()


def course(weight: torch.nn.Parameter, measured: dict[int, float] | None = None) -> Trainable:
    """One number that every step moves; what is measured after a step is given."""
    steps = [0]

    def backward(_: Any, step: int) -> tuple[float, float]:
        steps[0] = step
        weight.grad = torch.full_like(weight, float(step))
        return 1.0, 1.0

    given = measured or {}
    measure = (lambda: {"tuning_loss": given[steps[0]]}) if given else None
    return Trainable(
        {"w": weight},
        lambda _: [soak_items(at) for at in range(8)],
        lambda _: 1,
        backward,
        lambda _: None,
        measure,
        "tuning_loss",
    )


def soak_items(at: int) -> Any:
    """The items of a step."""
    return torch.tensor([at]).numpy()


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., torch.Tensor]:
    from clinpeft.recipe import TrainingSpec

    spec = TrainingSpec(learning_rate=0.1, epochs=1, evaluations=8, checkpoints=8)

    def run(
        folder: Path,
        watch: training.TrainingCallbacks | None = None,
        measured: dict[int, float] | None = None,
    ) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(40))
        training.run_training(
            course(weight, measured), spec, CREW, folder, watch or training.TrainingCallbacks()
        )
        return weight.detach().clone()

    return run


FALLING_THEN_RISING = {1: 5.0, 2: 4.0, 3: 1.0, 4: 2.0, 5: 3.0, 6: 4.0, 7: 5.0, 8: 6.0}


class Killed(BaseException):
    """Not an error that anything may catch."""


def after(step: int) -> training.TrainingCallbacks:
    def tell(event: training.StepEvent) -> None:
        if event.step == step:
            raise Killed

    return training.TrainingCallbacks(on_step=tell)


@pytest.mark.parametrize("damage", [soak.truncated, soak.flipped], ids=["truncated", "one bit"])
@pytest.mark.parametrize("which", ["step", "best"])
def test_damage_of_a_checkpoint_or_of_its_best_weights_is_seen_and_costs_the_steps_since_the_one_before(  # noqa: E501
    fit: Callable[..., torch.Tensor],
    tmp_path: Path,
    damage: Callable[[Path, random.Random], None],
    which: str,
) -> None:
    straight = fit(tmp_path / "straight", measured=FALLING_THEN_RISING)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", after(6), FALLING_THEN_RISING)
    damage(sorted((tmp_path / "killed").glob(f"{which}-*"))[-1], random.Random(3))
    resumed: list[int] = []
    with pytest.warns(UserWarning, match="cannot be read"):
        went_on = fit(
            tmp_path / "killed",
            training.TrainingCallbacks(on_resume=resumed.append),
            FALLING_THEN_RISING,
        )
    assert torch.equal(straight, went_on)
    assert resumed == ([4] if which == "step" else [0])


def test_a_damaged_checkpoint_is_not_counted_among_those_that_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save_step_checkpoint(tmp_path, {"w": torch.ones(3)}, TrainingProgress(step=step))
    soak.truncated(tmp_path / "step-00000003.safetensors", random.Random(0))
    with pytest.warns(UserWarning, match="step-00000003"):
        found = checkpoint.find_newest_checkpoint(tmp_path)
    assert found is not None and found[1].step == 2
    checkpoint.remove_later_checkpoints(tmp_path, 2)
    checkpoint.save_step_checkpoint(tmp_path, {"w": torch.ones(3)}, TrainingProgress(step=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]


def test_every_bit_of_a_checkpoint_is_under_its_hash(tmp_path: Path) -> None:
    """Any of the bits, flipped, makes the file one that is not read; what the format pads with is
    under no hash and changes nothing."""
    path, draw = tmp_path / "one.safetensors", random.Random(0)
    whole = {
        "w": torch.arange(6, dtype=torch.float32),
        "n": torch.tensor(3.0),
        "b": torch.ones(2, dtype=torch.bfloat16),
    }
    checkpoint.save_checkpoint_file(
        path, whole, TrainingProgress(step=4, history=[{"step": 1, "loss": 0.25}])
    )
    written = path.read_bytes()
    for _ in range(200):
        path.write_bytes(written)
        soak.flipped(path, draw)
        try:
            found = checkpoint.load_checkpoint_tensors(path)
        except InputError as error:
            assert str(path) == error.location
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())


def test_the_best_weights_of_both_kept_checkpoints_stay_and_no_others(
    fit: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path / "run", after(4), FALLING_THEN_RISING)
    assert sorted(path.name[:13] for path in (tmp_path / "run").iterdir()) == [
        "best-00000002",
        "best-00000003",
        "step-00000002",
        "step-00000003",
    ]
    fit(tmp_path / "run", measured=FALLING_THEN_RISING)
    assert sorted(path.name[:13] for path in (tmp_path / "run").iterdir()) == [
        "best-00000003",
        "step-00000007",
        "step-00000008",
    ]


def test_what_was_told_is_on_the_disk_before_the_checkpoint_that_rests_on_it(
    fit: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    order: list[str] = []

    def saving() -> None:
        order.append(f"saving, {len(list(tmp_path.glob('run/step-*')))} there")

    fit(
        tmp_path / "run",
        training.TrainingCallbacks(
            on_step=lambda event: order.append(f"told {event.step}"), on_save=saving
        ),
    )
    assert order[:4] == ["told 1", "saving, 0 there", "told 2", "saving, 1 there"]


# log ----------------------------------------------------------------------------------------------


def steps_of(run: runs.Run) -> list[int]:
    return [
        json.loads(line)["step"]
        for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_the_log_says_every_step_once_however_often_it_is_taken(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        for step in (1, 2, 3, 4, 5):
            runs.append_log_event(run, "step", step=step)
        with (run.folder / "log.jsonl").open("ab") as file:
            file.write(b'{"event": "step", "st')
        runs.rewind_log(run, 3)
        assert steps_of(run) == [1, 2, 3]
        runs.append_log_event(run, "step", step=4)
        runs.flush_log(run)
        assert steps_of(run) == [1, 2, 3, 4]
        runs.rewind_log(run, 0)
        assert steps_of(run) == []


def test_a_file_that_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        (run.folder / ".run.json.17.partial").write_text("{", encoding="utf-8")
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        assert not list(run.folder.glob(".*.partial"))


def test_what_a_dead_process_left_of_a_file_goes_when_the_file_is_written_again_and_a_living_one_keeps_its_own(  # noqa: E501
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for number in (dead.pid, 1):
        (tmp_path / f".a.md.{number}.partial").write_text("half", encoding="utf-8")
    runs.write_file_atomically(tmp_path / "a.md", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.md.1.partial", "a.md"]


# full disk ----------------------------------------------------------------------------------------


class Foreign(Exception):
    """An error of a library that knows no error numbers."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/a/b"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        pa.ArrowException(
            "Error writing bytes to file. Detail: [errno 28] No space left on device"
        ),
        Foreign('IO Error: Could not write file "/a/b.tmp": No space left on device; chest pain'),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_told_as_one_whichever_library_met_it(
    error: Exception, tmp_path: Path
) -> None:
    storage_error = runs.as_disk_full_error(error, tmp_path)
    assert (
        isinstance(storage_error, StorageError)
        and "--home" in storage_error.hint
        and "chest pain" not in str(storage_error)
    )
    assert storage_error.location == (
        "/a/b" if isinstance(error, OSError) and error.filename else str(tmp_path)
    )


def test_another_error_is_no_full_disk(tmp_path: Path) -> None:
    for error in (
        ValueError("chest pain"),
        OSError(errno.EACCES, "Permission denied"),
        KeyboardInterrupt(),
    ):
        assert runs.as_disk_full_error(error, tmp_path) is None


def test_a_file_system_that_is_really_full_costs_only_the_new_checkpoint(tmp_path: Path) -> None:
    """A disk of 256 KiB in a name space of its own, where the system allows that."""
    said = f"""
import sys, torch
from pathlib import Path
from clinpeft.core.errors import StorageError
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import TrainingProgress as Progress
folder = Path({str(tmp_path)!r})
checkpoint.save_step_checkpoint(folder, {{"w": torch.ones(10_000)}}, Progress(step=1))
try:
    checkpoint.save_step_checkpoint(folder, {{"w": torch.ones(100_000)}}, Progress(step=2))
except StorageError as error:
    assert error.location.startswith(str(folder))
else:
    sys.exit("it was written")
assert [path.name for path in folder.iterdir()] == ["step-00000001.safetensors"]
assert checkpoint.find_newest_checkpoint(folder)[1].step == 1
"""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system gives no name space to mount a small disk in")
    mounted = f'mount -t tmpfs -o size=256k tmpfs "{tmp_path}" && exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mounted, said], capture_output=True, text=True, check=False
    )
    if "mount:" in done.stderr:
        pytest.skip("this system mounts no small disk for a user")
    assert done.returncode == 0, done.stderr


def test_a_finished_run_says_so_after_a_full_disk_too(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        runs.fail_run(
            run, StorageError("nothing can be written", location="here", hint="make room"), NIGHT
        )
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        assert run.record.state == "running"
