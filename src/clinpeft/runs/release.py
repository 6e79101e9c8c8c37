"""The folder that may leave: what goes into it, what it says of itself, and what must not be found in it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.runs.store import Run
from clinpeft.runs.manifest import compute_file_sha256
from clinpeft.core.files import flush_path_to_disk, build_write_error, write_file_atomically

PRIVACY_AUDIT_FILE = "privacy.json"
RELEASE_MANIFEST_FILE, RELEASE_CHECKSUMS_FILE, RELEASE_CARD_FILE, RELEASE_METRICS_FILE = "manifest.json", "SHA256SUMS", "README.md", "metrics.json"
RELEASED_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "clinpeft.json")
RELEASE_SMALLEST_CELL = 10
"""Subjects, events, and what is neither: the rule of most trusted research environments."""

MAX_LABEL_CHARACTERS, MAX_LABEL_WORDS = 80, 10
"""A class with a longer name may be a piece of a text, and its head stays inside."""

_MACHINE_PATH_PATTERN = re.compile(rb"(?<![\w:/.])(?:/(?:home|Users|root|mnt|data|srv|media|tmp|var|opt|scratch|work|gpfs|lustre)/[\w.-]+|[A-Za-z]:\\+[\w.-]+)")


@dataclass(frozen=True)
class ReleaseContent:
    """What a release is made of, beside the files of the run.

    Attributes:
        results: rows of ``tables.RESULT`` that may leave.
        privacy: the audit, whose rows may leave.
        train_counts: task -> stays of each class in training, None where too few.
        data_license: of the data that was learned from.
        private_words: words that must not be found in any file: user, home, folders.
        created_at: when.
    """

    results: list[dict[str, Any]]
    privacy: Mapping[str, Any]
    train_counts: Mapping[str, list[int | None]]
    data_license: str
    private_words: tuple[str, ...]
    created_at: datetime


def hash_trained_weights(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all that a run trained: adapters, heads, the model where that was trained itself."""
    found = [*folder.glob("adapter*/**/*.safetensors"), *folder.glob("head.safetensors"), *folder.glob("model/*.safetensors")]
    return {path.relative_to(folder).as_posix(): compute_file_sha256(path) for path in sorted(found)}


def read_privacy_audit(run: Run) -> dict[str, Any] | None:
    """What the privacy audit of a run found; None where there was none.

    Raises:
        InputError: the file cannot be read.
    """
    path = run.folder / PRIVACY_AUDIT_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["weights"], found["made"], found["results"], found["left_out"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("this privacy audit cannot be read", location=str(path), hint=f"make it again: clinpeft privacy {run.id}") from error
    return dict(found)


def read_matching_privacy_audit(run: Run) -> dict[str, Any]:
    """The privacy audit of these very weights.

    Raises:
        RefusedError: there is none, or it is of other weights or from before the run finished.
    """
    found = read_privacy_audit(run)
    hint = f"clinpeft privacy {run.id}, and read what it found before anything leaves"
    if found is None:
        raise RefusedError(f"run {run.id} has no privacy audit", location=str(run.folder), hint=hint)
    if found["weights"] != hash_trained_weights(run.folder):
        raise RefusedError("the privacy audit is of other weights than those in the folder", location=str(run.folder / PRIVACY_AUDIT_FILE), hint=hint)
    if run.record.finished is not None and datetime.fromisoformat(found["made"]) < run.record.finished:
        raise RefusedError("the privacy audit is older than the run", location=str(run.folder / PRIVACY_AUDIT_FILE), hint=hint)
    return found


def write_release_folder(run: Run, folder: Path, content: ReleaseContent) -> Path:
    """Write the folder, whole or not at all.

    Raises:
        RefusedError: it exists; the run trained a whole model; or a path or a private word stands in a file of it.
        StorageError: it cannot be written.
    """
    if folder.exists():
        raise RefusedError(f"{str(folder)!r} exists", location="release --to", hint="name a new folder, or remove this one yourself")
    if (run.folder / "model").exists():
        message, hint = "this run trained the whole model, and only adapters and heads are released", "train an adapter on the frozen base instead"
        raise RefusedError(message, location=str(run.folder / "model"), hint=hint)
    writing = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True, mode=0o700)
        notices = _copy_release_files(run, writing, content)
        _write_descriptions(run, writing, content, notices)
        _check_no_private_words(writing, content.private_words)
        writing.rename(folder)
        flush_path_to_disk(folder.parent)
    except OSError as error:
        raise build_write_error(error, folder) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return folder


def _copy_release_files(run: Run, partial_folder: Path, content: ReleaseContent) -> list[str]:
    """Weights and numbers; gives what was left out, in words."""
    for config in sorted(run.folder.glob("adapter*/**/adapter_config.json")):
        target = partial_folder / config.parent.relative_to(run.folder)
        target.mkdir(parents=True)
        for name in RELEASED_ADAPTER_FILES:
            shutil.copyfile(config.parent / name, target / name)
    if (run.folder / "encoder.json").exists():
        shutil.copyfile(run.folder / "encoder.json", partial_folder / "encoder.json")
    notices = _copy_head(run, partial_folder, content)
    _write_json(partial_folder / RELEASE_METRICS_FILE, content.results)
    _write_json(partial_folder / PRIVACY_AUDIT_FILE, content.privacy)
    return notices


def _copy_head(run: Run, partial_folder: Path, content: ReleaseContent) -> list[str]:
    path = run.folder / "head.json"
    if not path.exists():
        return []
    about = json.loads(path.read_text(encoding="utf-8"))
    long = [task for task, said in about["tasks"].items() if any(_may_be_text(label) for label in said["question"]["classes"])]
    if long:
        return [f"the head stays inside: names of classes of {', '.join(long)} are so long that they may be text of notes"]
    notices = []
    for task, said in about["tasks"].items():
        counts = content.train_counts[task]
        said["question"]["train_counts"] = counts
        if None in counts:
            few = counts.count(None)
            notices.append(f"{task}: how many training stays {few} of {len(counts)} classes have is withheld; that these classes exist is not")
    _write_json(partial_folder / "head.json", about)
    shutil.copyfile(run.folder / "head.safetensors", partial_folder / "head.safetensors")
    return notices


def _may_be_text(label: str) -> bool:
    return len(label) > MAX_LABEL_CHARACTERS or len(label.split()) > MAX_LABEL_WORDS or "\n" in label


def _write_descriptions(run: Run, partial_folder: Path, content: ReleaseContent, notices: list[str]) -> None:
    """Card, manifest and checksums."""
    base = _get_base_name(run, partial_folder)
    write_file_atomically(partial_folder / RELEASE_CARD_FILE, _format_card(run, content, base, notices))
    about = {
        "format": 1,
        "run": run.id,
        "kind": run.recipe.kind,
        "made": content.created_at.isoformat(),
        "clinpeft": run.record.versions.get("clinpeft", ""),
        "data_licence": content.data_license,
        "derived_from": {"source": run.recipe.source.name, "sha256": run.record.hashes.source},
        "base": {"name": base, "sha256": run.record.hashes.base},
        "adapters_below": run.record.hashes.adapters,
        "privacy_audit": {"made": content.privacy["made"], "left_out": content.privacy["left_out"]},
        "smallest_cell": RELEASE_SMALLEST_CELL,
        "notices": notices,
        "files": {path.relative_to(partial_folder).as_posix(): compute_file_sha256(path) for path in _list_files(partial_folder)},
    }
    _write_json(partial_folder / RELEASE_MANIFEST_FILE, about)
    write_file_atomically(partial_folder / RELEASE_CHECKSUMS_FILE, "".join(f"{compute_file_sha256(path)}  {path.relative_to(partial_folder).as_posix()}\n" for path in _list_files(partial_folder)))


def _get_base_name(run: Run, partial_folder: Path) -> str:
    """The name of the base's folder, as an adapter knows it."""
    for path in sorted(partial_folder.rglob("clinpeft.json")):
        return str(json.loads(path.read_text(encoding="utf-8"))["base"]["name"])
    return str(run.recipe.model_dump()["base"]["path"].name)


def _format_card(run: Run, content: ReleaseContent, base_name: str, notices: list[str]) -> str:
    """What a reader outside must know: what it is, what it learned from, under which terms, what was measured. Metadata as the hub reads them."""
    record, shown = run.record, [row for row in content.results if row["split"] == "held_out" and row["value"] is not None]
    said = "\n".join(f"| {row['task'] or ''} | {row['group'] or ''} | {row['name']} | {_format_estimate(row)} | {row['n']} |" for row in shown)
    attacks = "\n".join(
        f"| {row['task'] or ''} | {row['group']} | {row['split']} | {row['name']} | {_format_estimate(row)} |" for row in content.privacy["results"]
    )
    left_out = "\n".join(f"- not measured: {name}: {reason}" for name, reason in content.privacy["left_out"].items())
    trained = f"{record.trained_parameters:,}" if record.trained_parameters is not None else "unknown"
    lines = [
        "---",
        f"base_model: {json.dumps(base_name)}",
        "library_name: peft",
        "license: other",
        f"license_name: {json.dumps(content.data_license)}",
        "tags:",
        "- clinical",
        "- peft",
        "---",
        f"# Run {run.id}: {run.recipe.kind} on {base_name}",
        f"Trained parameters: {trained}. The base is not in this folder; its fingerprint (SHA-256) is `{record.hashes.base}`.",
        "## Data and terms",
        f"Learned from the source `{run.recipe.source.name}` (fingerprint `{record.hashes.source}`), whose licence is: {content.data_license}.",
        "What was learned from data about people may be told by the weights: share them under the terms of the data, and no wider.",
        "## Results on held-out subjects",
        f"Numbers that rest on fewer than {RELEASE_SMALLEST_CELL} are withheld, and so are those from which they could be worked out.",
        f"\n| task | group | metric | value [interval] | n |\n|---|---|---|---|---:|\n{said}\n",
        "## Privacy audit",
        f"Made {content.privacy['made'][:10]} on these weights. Attacks that fail prove nothing about attacks that nobody tried.",
        f"\n| task | attack | split | metric | value [interval] |\n|---|---|---|---|---|\n{attacks}\n",
        left_out,
        "## Limits",
        "Not a medical device, and not validated for decisions about patients.",
        *(f"- {notice}" for notice in notices),
    ]
    return "\n".join(lines) + "\n"


def _format_estimate(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "withheld or undefined"
    interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if row["low"] is not None and row["high"] is not None else ""
    return f"{row['value']:.3g}{interval}"


def _check_no_private_words(folder: Path, words: Iterable[str]) -> None:
    """No file names a folder of this machine, or a word that is private; a number of a subject has no file to stand in."""
    sought = [word.encode() for word in words if len(word) > 2]
    for path in _list_files(folder):
        content = path.read_bytes()
        plain = content if path.suffix != ".safetensors" else content[: 8 + int.from_bytes(content[:8], "little")]  # its header; the rest is numbers
        named = _MACHINE_PATH_PATTERN.search(plain)
        word = next((word for word in sought if re.search(rb"(?<!\w)" + re.escape(word) + rb"(?!\w)", plain)), None)
        if named or word:
            message = f"{path.relative_to(folder).as_posix()} names {'a folder' if named else 'a user or a folder'} of this machine"
            raise RefusedError(
                message, location="release", hint="name run, base folder and classes without it, and train again; nothing was released"
            )


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, content: object) -> None:
    write_file_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def compute_path_checksum(path: Path) -> str:
    """SHA-256 (hex) of a file, or over names and hashes of all files of a folder."""
    if path.is_file():
        return compute_file_sha256(path)
    whole = hashlib.sha256()
    for file in _list_files(path):
        whole.update(f"{file.relative_to(path).as_posix()} {compute_file_sha256(file)}\n".encode())
    return whole.hexdigest()
