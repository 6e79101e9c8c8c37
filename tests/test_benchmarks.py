"""The frame that the benchmarks stand in: arms in processes of their own, a failing one told and
not fatal, ratios of the same rounds."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = ("adapt", "classify", "embed_train", "encode", "ladder", "growth", "plan", "trials")


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(FOLDER))
    import _side_by_side

    return _side_by_side


TOY = textwrap.dedent("""
    import sys
    from pathlib import Path
    sys.path.insert(0, {folder!r})
    import _side_by_side as side
    side.ROOT = Path({root!r})

    def prepare(work, quick):
        (work / "about.json").write_text('{{"notes": "made up"}}')

    def arm(speed, work):
        return side.Measured("tokens", [100.0] * 6, [9.0, 9.0] + [1.0 / speed] * 4, losses=[1.0, 0.5 * speed], peak_bytes=2**20)

    def broken(work):
        raise RuntimeError("no such file: /home/somebody/notes.csv")

    arms = {{"theirs": lambda work: arm(1.0, work), "best of theirs": lambda work: arm(2.0, work), "broken": broken}}
    arms["ours"] = lambda work: arm(4.0, work)
    benchmark = side.Benchmark("toy.py", "A toy", {{"plain": prepare}}, arms, peers=("theirs", "best of theirs", "broken"))
    if __name__ == "__main__":
        side.main(benchmark)
""")  # noqa: E501


def test_arms_run_side_by_side_and_one_that_fails_is_told_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "toy.py"
    script.write_text(TOY.format(folder=str(FOLDER), root=str(tmp_path)))
    command = [sys.executable, str(script), "--rounds", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "toy.json").read_text())
    rows = {row["arm"]: row for row in found["workloads"]["plain"]["rows"]}
    assert rows["ours"]["rate"] == 400 and rows["ours"]["rounds"] == 2  # the first steps left out
    assert (rows["ours"]["against_reference"], rows["ours"]["against_best_peer"]) == (4, 2)
    assert rows["ours"]["loss_difference"] == 1.5
    assert (
        "no such file" in rows["broken"]["failure"] and "somebody" not in rows["broken"]["failure"]
    )
    table = (tmp_path / "out" / "toy.md").read_text()
    assert (
        "| broken | failed: exit 1" in table
        and "made up" in table
        and found["versions"]["python"] in table
    )


def test_ratios_are_of_the_same_round_so_that_a_slow_hour_of_the_machine_cancels(side) -> None:  # type: ignore[no-untyped-def]
    def runs(*seconds: float) -> dict[str, object]:
        return {
            "failure": "",
            "runs": [side.asdict(side.Measured("notes", [1.0], [each])) for each in seconds],
        }

    rows = side.summary({"theirs": runs(1.0, 10.0, 1.0), "ours": runs(0.5, 5.0, 0.5)}, ["theirs"])
    assert rows[1]["against_best_peer"] == 2 and (rows[1]["least"], rows[1]["most"]) == (0.2, 2)


def test_losses_of_other_documents_are_not_compared(side) -> None:  # type: ignore[no-untyped-def]
    same, other = (
        side.Measured("tokens", [1.0], [1.0], losses=[3.0], same_steps=same)
        for same in (True, False)
    )
    rows = side.summary({"first": _of(side, same), "own order": _of(side, other)}, [])
    assert rows[0]["loss_difference"] == 0 and rows[1]["loss_difference"] is None


def _of(side, measured) -> dict[str, object]:  # type: ignore[no-untyped-def]
    return {"failure": "", "runs": [side.asdict(measured)]}


def test_the_roofline_grows_with_the_products(side) -> None:  # type: ignore[no-untyped-def]
    assert (
        side.roofline([(256, 256, 40)], 256, "float32")
        > side.roofline([(8, 8, 1)], 8, "float32", backward=False)
        > 0
    )


AWAY = (
    "rows_padded",
    "rows_of_one_length",
    "stock_layers",
    "fused_attention",
    "whole_vocabulary",
    "whole_last_layer",
)


@pytest.mark.parametrize("name", AWAY)
@pytest.mark.usefixtures("side")
def test_what_the_ladder_takes_away_is_there_under_that_name(name: str) -> None:
    ladder = importlib.import_module("ladder")

    with contextlib.ExitStack() as stack:
        for taken in getattr(ladder, name)():
            assert stack.enter_context(taken) is not None


@pytest.mark.usefixtures("side")
def test_every_workload_of_the_ladder_ends_with_the_product_and_every_rung_belongs_to_one() -> None:
    ladder = importlib.import_module("ladder")

    arms = {workload: ladder.BENCHMARK.of(workload) for workload in ladder.BENCHMARK.workloads}
    assert all(any("(the product)" in arm for arm in of) for of in arms.values())
    assert {arm for of in arms.values() for arm in of} == set(ladder.BENCHMARK.arms)


def test_a_step_of_equal_lengths_is_full_of_windows_of_the_usual_length(side) -> None:  # type: ignore[no-untyped-def]
    adapt = importlib.import_module("adapt")
    lengths = [
        255,
        80,
        255,
        256,
        255,
        255,
        255,
    ]  # a full window leaves room for the token at the end of a note, which one of them has
    size = adapt.Size(lambda _: Path(), 1024, 512, 3)
    assert adapt.full_windows_only([[0, 1, 2], [3, 4], [5, 6]], lengths, size, 256) == [
        [0, 2],
        [4, 5],
    ]


@pytest.mark.usefixtures("side")
def test_a_plan_is_compared_with_the_run_of_the_same_round(side) -> None:  # type: ignore[no-untyped-def]
    plan = importlib.import_module("plan")

    def measured(seconds: float, peak: int, **end: float) -> dict[str, object]:
        return side.asdict(side.Measured("tokens", [10.0], [seconds], peak_bytes=peak, end=end))  # type: ignore[no-any-return]

    plans = [
        measured(8.0, 0, probe=3 * 2**20, formula=2.0 * 2**20),
        measured(90.0, 0, probe=3 * 2**20, formula=2.0 * 2**20),
    ]
    runs = [
        measured(10.0, 4 * 2**20, training=2.0 * 2**20),
        measured(100.0, 4 * 2**20, training=2.0 * 2**20),
    ]
    rows = {
        row["quantity"]: row
        for row in plan.compared(
            {"plan": {"runs": plans, "failure": ""}, "run": {"runs": runs, "failure": ""}}, ()
        )
    }
    assert rows["seconds of training"]["error"] == pytest.approx(-0.15) and rows[
        "seconds of training"
    ]["worst"] == pytest.approx(-0.2)
    assert (
        rows["peak of the process by its first steps, MB"]["planned"] == 3
        and rows["peak of the process by its first steps, MB"]["error"] == -0.25
    )
    assert rows["peak of training by formula and what is held before, MB"]["error"] == 0
    failed = plan.compared(
        {"plan": {"runs": plans, "failure": ""}, "run": {"runs": [], "failure": "exit 1: no"}}, ()
    )
    assert failed == [
        {"quantity": "run", "failure": "exit 1: no"}
    ] and "failed: exit 1: no" in "\n".join(plan.table(failed))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_how_it_is_called(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout and f"python benchmarks/{name}.py" in (
        FOLDER / f"{name}.py"
    ).read_text(encoding="utf-8")
