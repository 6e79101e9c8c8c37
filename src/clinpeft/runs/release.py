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
from clinpeft.runs.manifest import sha256_of
from clinpeft.core.files import flush_to_disk, unwritable, write_atomically

PRIVACY = "privacy.json"
MANIFEST, SUMS, CARD, METRICS = "manifest.json", "SHA256SUMS", "README.md", "metrics.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "clinpeft.json")
SMALLEST_CELL = 10
"""Subjects, events, and what is neither: the rule of most trusted research environments."""

LONGEST_LABEL_CHARACTERS, LONGEST_LABEL_WORDS = 80, 10
"""A class with a longer name may be a piece of a text, and its head stays inside."""

_PATHS = re.compile(rb"(?<![\w:/.])(?:/(?:home|Users|root|mnt|data|srv|media|tmp|var|opt|scratch|work|gpfs|lustre)/[\w.-]+|[A-Za-z]:\\+[\w.-]+)")


@dataclass(frozen=True)
class Content:
    """What a release is made of, beside the files of the run.

    Attributes:
        results: rows of ``tables.RESULT`` that may leave.
        privacy: the audit, whose rows may leave.
        train_counts: task -> stays of each class in training, None where too few.
        data_licence: of the data that was learned from.
        private: words that must not be found in any file: user, home, folders.
        made: when.
    """

    results: list[dict[str, Any]]
    privacy: Mapping[str, Any]
    train_counts: Mapping[str, list[int | None]]
    data_licence: str
    private: tuple[str, ...]
    made: datetime


def weights_of(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all that a run trained: adapters, heads, the model where that was trained itself."""
    found = [*folder.glob("adapter*/**/*.safetensors"), *folder.glob("head.safetensors"), *folder.glob("model/*.safetensors")]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(found)}


def privacy_of(run: Run) -> dict[str, Any] | None:
    """What the privacy audit of a run found; None where there was none.

    Raises:
        InputError: the file cannot be read.
    """
    path = run.folder / PRIVACY
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["weights"], found["made"], found["results"], found["left_out"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("this privacy audit cannot be read", location=str(path), hint=f"make it again: clinpeft privacy {run.id}") from error
    return dict(found)


def audit_for_release(run: Run) -> dict[str, Any]:
    """The privacy audit of these very weights.

    Raises:
        RefusedError: there is none, or it is of other weights or from before the run finished.
    """
    found = privacy_of(run)
    hint = f"clinpeft privacy {run.id}, and read what it found before anything leaves"
    if found is None:
        raise RefusedError(f"run {run.id} has no privacy audit", location=str(run.folder), hint=hint)
    if found["weights"] != weights_of(run.folder):
        raise RefusedError("the privacy audit is of other weights than those in the folder", location=str(run.folder / PRIVACY), hint=hint)
    if run.record.finished is not None and datetime.fromisoformat(found["made"]) < run.record.finished:
        raise RefusedError("the privacy audit is older than the run", location=str(run.folder / PRIVACY), hint=hint)
    return found


def write_release(run: Run, folder: Path, content: Content) -> Path:
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
        notices = _fill(run, writing, content)
        _describe(run, writing, content, notices)
        _refuse_private(writing, content.private)
        writing.rename(folder)
        flush_to_disk(folder.parent)
    except OSError as error:
        raise unwritable(error, folder) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return folder


def _fill(run: Run, writing: Path, content: Content) -> list[str]:
    """Weights and numbers; gives what was left out, in words."""
    for config in sorted(run.folder.glob("adapter*/**/adapter_config.json")):
        target = writing / config.parent.relative_to(run.folder)
        target.mkdir(parents=True)
        for name in ADAPTER_FILES:
            shutil.copyfile(config.parent / name, target / name)
    if (run.folder / "encoder.json").exists():
        shutil.copyfile(run.folder / "encoder.json", writing / "encoder.json")
    notices = _head(run, writing, content)
    _write(writing / METRICS, content.results)
    _write(writing / PRIVACY, content.privacy)
    return notices


def _head(run: Run, writing: Path, content: Content) -> list[str]:
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
    _write(writing / "head.json", about)
    shutil.copyfile(run.folder / "head.safetensors", writing / "head.safetensors")
    return notices


def _may_be_text(label: str) -> bool:
    return len(label) > LONGEST_LABEL_CHARACTERS or len(label.split()) > LONGEST_LABEL_WORDS or "\n" in label


def _describe(run: Run, writing: Path, content: Content, notices: list[str]) -> None:
    """Card, manifest and checksums."""
    base = _base(run, writing)
    write_atomically(writing / CARD, _card(run, content, base, notices))
    about = {
        "format": 1,
        "run": run.id,
        "kind": run.recipe.kind,
        "made": content.made.isoformat(),
        "clinpeft": run.record.versions.get("clinpeft", ""),
        "data_licence": content.data_licence,
        "derived_from": {"source": run.recipe.source.name, "sha256": run.record.hashes.source},
        "base": {"name": base, "sha256": run.record.hashes.base},
        "adapters_below": run.record.hashes.adapters,
        "privacy_audit": {"made": content.privacy["made"], "left_out": content.privacy["left_out"]},
        "smallest_cell": SMALLEST_CELL,
        "notices": notices,
        "files": {path.relative_to(writing).as_posix(): sha256_of(path) for path in _files(writing)},
    }
    _write(writing / MANIFEST, about)
    write_atomically(writing / SUMS, "".join(f"{sha256_of(path)}  {path.relative_to(writing).as_posix()}\n" for path in _files(writing)))


def _base(run: Run, writing: Path) -> str:
    """The name of the base's folder, as an adapter knows it."""
    for path in sorted(writing.rglob("clinpeft.json")):
        return str(json.loads(path.read_text(encoding="utf-8"))["base"]["name"])
    return str(run.recipe.model_dump()["base"]["path"].name)


def _card(run: Run, content: Content, base: str, notices: list[str]) -> str:
    """What a reader outside must know: what it is, what it learned from, under which terms, what was measured. Metadata as the hub reads them."""
    record, shown = run.record, [row for row in content.results if row["split"] == "held_out" and row["value"] is not None]
    said = "\n".join(f"| {row['task'] or ''} | {row['group'] or ''} | {row['name']} | {_estimate(row)} | {row['n']} |" for row in shown)
    attacks = "\n".join(
        f"| {row['task'] or ''} | {row['group']} | {row['split']} | {row['name']} | {_estimate(row)} |" for row in content.privacy["results"]
    )
    left_out = "\n".join(f"- not measured: {name}: {reason}" for name, reason in content.privacy["left_out"].items())
    trained = f"{record.trained_parameters:,}" if record.trained_parameters is not None else "unknown"
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: peft",
        "license: other",
        f"license_name: {json.dumps(content.data_licence)}",
        "tags:",
        "- clinical",
        "- peft",
        "---",
        f"# Run {run.id}: {run.recipe.kind} on {base}",
        f"Trained parameters: {trained}. The base is not in this folder; its fingerprint (SHA-256) is `{record.hashes.base}`.",
        "## Data and terms",
        f"Learned from the source `{run.recipe.source.name}` (fingerprint `{record.hashes.source}`), whose licence is: {content.data_licence}.",
        "What was learned from data about people may be told by the weights: share them under the terms of the data, and no wider.",
        "## Results on held-out subjects",
        f"Numbers that rest on fewer than {SMALLEST_CELL} are withheld, and so are those from which they could be worked out.",
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


def _estimate(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "withheld or undefined"
    interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if row["low"] is not None and row["high"] is not None else ""
    return f"{row['value']:.3g}{interval}"


def _refuse_private(folder: Path, words: Iterable[str]) -> None:
    """No file names a folder of this machine, or a word that is private; a number of a subject has no file to stand in."""
    sought = [word.encode() for word in words if len(word) > 2]
    for path in _files(folder):
        content = path.read_bytes()
        plain = content if path.suffix != ".safetensors" else content[: 8 + int.from_bytes(content[:8], "little")]  # its header; the rest is numbers
        named = _PATHS.search(plain)
        word = next((word for word in sought if re.search(rb"(?<!\w)" + re.escape(word) + rb"(?!\w)", plain)), None)
        if named or word:
            message = f"{path.relative_to(folder).as_posix()} names {'a folder' if named else 'a user or a folder'} of this machine"
            raise RefusedError(
                message, location="release", hint="name run, base folder and classes without it, and train again; nothing was released"
            )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def checksum(path: Path) -> str:
    """SHA-256 (hex) of a file, or over names and hashes of all files of a folder."""
    if path.is_file():
        return sha256_of(path)
    whole = hashlib.sha256()
    for file in _files(path):
        whole.update(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n".encode())
    return whole.hexdigest()
