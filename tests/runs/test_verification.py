"""Files of a run that changed, went or came; what can be purged; what a release refuses."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import pytest

from clinpeft import runs
from clinpeft.core.errors import InputError, RefusedError
from clinpeft.runs import Run, purge, verify
from tests.runs.conftest import NIGHT, NOON, finished_run, make_recipe, opening, results_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with an adapter of a few bytes."""
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as begun:
        adapter = begun.folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        header = b'{"__metadata__":{"format":"pt"}}'
        (adapter / "adapter_model.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header
        )
        (adapter / "clinpeft.json").write_text(json.dumps({"base": {"name": "toy-llama"}}))
        (begun.folder / "checkpoints").mkdir()
        (begun.folder / "checkpoints" / "1.safetensors").write_bytes(b"12345")
        runs.append_log_event(begun, "step", step=1)
        return runs.finish_run(begun, results=results_of(), attrition=[], finished=NIGHT)


def states(run: Run) -> dict[str, str]:
    return {check.item: check.state for check in runs.check_run_files(run)}


def test_a_finished_run_knows_its_files_and_not_what_still_changes(run: Run) -> None:
    assert set(run.record.files) >= {
        "adapter/adapter_model.safetensors",
        "metrics.json",
        "recipe.toml",
        "attrition.json",
    }
    assert not {
        name
        for name in run.record.files
        if name.startswith(("checkpoints", "log", "lock", "run.json"))
    }
    assert set(states(run).values()) == {"same"}
    runs.append_log_event(run, "step", step=2)
    assert set(states(runs.read_run(run.folder)).values()) == {"same"}


def test_a_byte_in_any_file_is_seen(run: Run) -> None:
    for name in run.record.files:
        path = run.folder / name
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert {what for what, state in states(run).items() if state == "changed"} == {name}
        path.write_bytes(before)


def test_what_was_taken_away_and_what_was_put_in_is_seen(run: Run) -> None:
    (run.folder / "metrics.json").unlink()
    (run.folder / "adapter" / "extra.safetensors").write_bytes(b"x")
    found = states(run)
    assert (found["metrics.json"], found["adapter/extra.safetensors"]) == ("missing", "added")
    with pytest.raises(RefusedError, match=r"adapter/extra.safetensors \(added\)") as refused:
        runs.check_model_files(run)
    assert refused.value.exit_code == 4


def test_a_model_is_not_refused_for_a_table(run: Run) -> None:
    (run.folder / "metrics.json").write_text("[]")
    runs.check_model_files(run)
    (run.folder / "adapter" / "adapter_config.json").write_text("{ }")
    with pytest.raises(RefusedError, match="adapter_config"):
        runs.check_model_files(run)


def test_a_run_of_an_older_version_has_no_hashes_and_is_not_refused(run: Run) -> None:
    older = dataclasses.replace(run, record=run.record.model_copy(update={"files": {}}))
    assert [check.state for check in runs.check_run_files(older)] == ["unknown"]
    runs.check_model_files(older)


def test_checkpoints_and_tables_of_single_stays_can_be_purged_and_are_not_missed(
    tmp_path: Path,
) -> None:
    run = finished_run(tmp_path)
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "1.safetensors").write_bytes(b"12345")
    found = purge.list_run_removals(run, include_predictions=False)
    assert [(removal.path.name, removal.file_count, removal.size_bytes) for removal in found] == [
        ("checkpoints", 1, 5)
    ]
    found = purge.list_run_removals(run, include_predictions=True)
    assert [removal.path.name for removal in found] == ["checkpoints", "likelihoods.parquet"]
    assert purge.execute_removals(found, run, "2025-03-02") == sum(
        removal.size_bytes for removal in found
    )
    assert not (run.folder / "likelihoods.parquet").exists()
    assert states(run)["likelihoods.parquet"] == "purged"
    assert not [check for check in runs.check_run_files(run) if check.fails]
    assert purge.list_run_removals(run, include_predictions=True) == []


def test_caches_are_listed_with_their_bytes_and_go(tmp_path: Path) -> None:
    finished_run(tmp_path)
    for name in ("corpus-1/corpus.parquet", "tokens-2/tokens.bin"):
        (tmp_path / "cache" / name).parent.mkdir(parents=True)
        (tmp_path / "cache" / name).write_bytes(b"123")
    (tmp_path / "cohorts" / "mortality").mkdir(parents=True)
    (tmp_path / "cohorts" / "mortality" / "cohort.parquet").write_bytes(b"1234")
    found = purge.list_cache_removals(tmp_path)
    assert [(removal.description, removal.size_bytes) for removal in found] == [
        ("cleaned text of notes", 3),
        ("notes as tokens", 3),
        ("a cohort, with the text of its notes", 4),
    ]
    assert purge.execute_removals(found, None, "2025-03-02") == 10
    assert purge.list_cache_removals(tmp_path) == []
    assert (tmp_path / "0123456789ab" / "run.json").exists()


def test_nothing_is_purged_under_a_run_that_is_at_work(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        with pytest.raises(RefusedError, match=rf"where: .*{run.id}"):
            purge.list_cache_removals(tmp_path)
        with pytest.raises(RefusedError, match=rf"where: .*{run.id}"):
            purge.list_run_removals(run, include_predictions=True)


def test_a_link_in_the_cache_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "notes.csv").write_text("kept")
    (tmp_path / "home" / "cache").mkdir(parents=True)
    (tmp_path / "home" / "cache" / "corpus-1").symlink_to(outside)
    purge.execute_removals(purge.list_cache_removals(tmp_path / "home"), None, "2025-03-02")
    assert (outside / "notes.csv").exists()
    assert not (tmp_path / "home" / "cache" / "corpus-1").is_symlink()


# Release


def audit_of(run: Run, **changes: object) -> dict[str, object]:
    known = {
        "made": (NIGHT + timedelta(hours=1)).isoformat(),
        "weights": runs.hash_trained_weights(run.folder),
        "results": [],
        "left_out": {},
    }
    return {**known, **changes}


def audited(run: Run, **changes: object) -> None:
    (run.folder / runs.PRIVACY_AUDIT_FILE).write_text(json.dumps(audit_of(run, **changes)))


def content(run: Run, *private: str) -> runs.ReleaseContent:
    return runs.ReleaseContent(
        [], runs.read_matching_privacy_audit(run), {}, "invented", private, NIGHT
    )


def test_a_run_without_an_audit_or_with_one_of_other_weights_or_too_old_is_refused(
    run: Run,
) -> None:
    with pytest.raises(RefusedError, match=rf"where: .*{run.id}") as refused:
        runs.read_matching_privacy_audit(run)
    assert refused.value.exit_code == 4
    audited(run, weights={"adapter/adapter_model.safetensors": "0" * 64})
    with pytest.raises(RefusedError, match=r"where: .*privacy\.json"):
        runs.read_matching_privacy_audit(run)
    audited(run, made=NOON.isoformat())
    with pytest.raises(RefusedError, match=r"where: .*privacy\.json"):
        runs.read_matching_privacy_audit(run)
    audited(run)
    assert runs.read_matching_privacy_audit(run)["left_out"] == {}
    (run.folder / runs.PRIVACY_AUDIT_FILE).write_text("{}")
    with pytest.raises(InputError, match=r"where: .*privacy\.json"):
        runs.read_matching_privacy_audit(run)


def test_the_manifest_names_every_file_with_its_hash(run: Run, tmp_path: Path) -> None:
    audited(run)
    folder = runs.write_release_folder(run, tmp_path / "out", content(run))
    about = json.loads((folder / "manifest.json").read_text())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {"manifest.json", "SHA256SUMS"} == set(about["files"])
    assert {name: runs.compute_path_checksum(folder / name) for name in about["files"]} == about[
        "files"
    ]
    assert (about["data_licence"], about["run"], about["smallest_cell"]) == ("invented", run.id, 10)
    sums = {line[66:]: line[:64] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert sums == {
        **about["files"],
        "manifest.json": runs.compute_path_checksum(folder / "manifest.json"),
    }


@pytest.mark.parametrize("word", ["/home/ann/bases", "C:\\\\models", "ann-the-user"])
def test_a_path_or_a_user_in_any_file_stops_the_release(
    run: Run, tmp_path: Path, word: str
) -> None:
    path = run.folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": word}))
    audited(run)
    with pytest.raises(RefusedError, match="where: release"):
        runs.write_release_folder(run, tmp_path / "out", content(run, "ann-the-user"))
    assert not list(tmp_path.glob("*out*"))


def test_a_whole_model_and_a_folder_that_exists_are_refused(run: Run, tmp_path: Path) -> None:
    audited(run)
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError, match="where: release --to"):
        runs.write_release_folder(run, tmp_path / "out", content(run))
    (run.folder / "model").mkdir()
    with pytest.raises(RefusedError, match=r"where: .*model"):
        runs.write_release_folder(run, tmp_path / "other", content(run))


def head(run: Run, classes: list[str]) -> None:
    question = {
        "name": "t",
        "kind": "multiclass",
        "classes": classes,
        "train_counts": [3] * len(classes),
    }
    (run.folder / "head.json").write_text(json.dumps({"tasks": {"t": {"question": question}}}))
    (run.folder / "head.safetensors").write_bytes(b"\x02" + b"\x00" * 7 + b"{}")


def test_a_head_whose_classes_may_be_text_of_notes_stays_inside(run: Run, tmp_path: Path) -> None:
    head(
        run, ["alive", "the patient was found at home by his wife who called the ambulance at once"]
    )
    audited(run)
    folder = runs.write_release_folder(run, tmp_path / "out", content(run))
    assert not list(folder.glob("head*"))
    assert "classes of t " in json.loads((folder / "manifest.json").read_text())["notices"][0]


def test_small_counts_of_classes_do_not_leave_with_the_head(run: Run, tmp_path: Path) -> None:
    head(run, ["alive", "dead"])
    audited(run)
    made = dataclasses.replace(content(run), train_counts={"t": [None, None]})
    folder = runs.write_release_folder(run, tmp_path / "out", made)
    assert json.loads((folder / "head.json").read_text())["tasks"]["t"]["question"][
        "train_counts"
    ] == [None, None]


def test_the_states_that_fail_are_those_that_cannot_be_explained() -> None:
    assert {state for state, fails in verify.IS_FAILING_STATE.items() if fails} == {
        "changed",
        "missing",
        "added",
    }
