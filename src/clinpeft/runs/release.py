"""The release folder of a run: what goes into it, its description, and what must not be in it."""

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

import pydantic

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.files import build_write_error, flush_path_to_disk, write_file_atomically
from clinpeft.core.hashing import compute_file_sha256
from clinpeft.runs.store import Run

PRIVACY_AUDIT_FILE = "privacy.json"
RELEASE_MANIFEST_FILE, RELEASE_CHECKSUMS_FILE = "manifest.json", "SHA256SUMS"
RELEASE_CARD_FILE, RELEASE_METRICS_FILE = "README.md", "metrics.json"
RELEASED_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "clinpeft.json")
RELEASE_SMALLEST_CELL = 10
"""Subjects, events, and what is neither: the rule of most trusted research environments."""

MAX_LABEL_CHARACTERS, MAX_LABEL_WORDS = 80, 10
"""A class with a longer name may be a piece of a text, and its head is not released."""

_MACHINE_PATH_PATTERN = re.compile(
    rb"(?<![\w:/.])"
    rb"(?:/(?:home|Users|root|mnt|data|srv|media|tmp|var|opt|scratch|work|gpfs|lustre)/[\w.-]+"
    rb"|[A-Za-z]:\\+[\w.-]+)"
)


@dataclass(frozen=True)
class ReleaseContent:
    """What a release consists of, beside the files of the run.

    Attributes:
        results: rows of ``METRIC_RESULT_SCHEMA`` that may be released.
        privacy: the audit, with rows that may be released.
        train_counts: task -> stays of each class in training, None where too few.
        data_license: of the training data.
        private_words: words that must not occur in any file: user, home, folders.
        created_at: time of the release.
    """

    results: list[dict[str, Any]]
    privacy: Mapping[str, Any]
    train_counts: Mapping[str, list[int | None]]
    data_license: str
    private_words: tuple[str, ...]
    created_at: datetime


class _PrivacyAudit(pydantic.BaseModel):
    """Required fields of ``privacy.json``; others are passed on."""

    model_config = pydantic.ConfigDict(extra="allow")

    weights: dict[str, str]
    made_at: str = pydantic.Field(alias="made")
    results: list[dict[str, Any]]
    left_out: dict[str, str]


_DOCUMENT_ADAPTER = pydantic.TypeAdapter(dict[str, Any])


def hash_trained_weights(folder: Path) -> dict[str, str]:
    """Compute the checksums of all weights that a run trained.

    Returns:
        Path -> SHA-256 of adapters, heads, and the model where that was trained itself.
    """
    # Patterns and not the manifest: weights that were added later count as well.
    paths = [
        *folder.glob("adapter*/**/*.safetensors"),
        *folder.glob("head.safetensors"),
        *folder.glob("model/*.safetensors"),
    ]
    return {
        path.relative_to(folder).as_posix(): compute_file_sha256(path) for path in sorted(paths)
    }


def compute_path_checksum(path: Path) -> str:
    """Compute the SHA-256 of a file, or over names and checksums of all files of a folder.

    Returns:
        64 hexadecimal characters.
    """
    if path.is_file():
        return compute_file_sha256(path)
    # Over names and checksums: a renamed file changes the result.
    digest = hashlib.sha256()
    for file in _list_files(path):
        digest.update(f"{file.relative_to(path).as_posix()} {compute_file_sha256(file)}\n".encode())
    return digest.hexdigest()


def read_privacy_audit(run: Run) -> dict[str, Any] | None:
    """Read the privacy audit of a run; None where there is none.

    Raises:
        InputError: the file cannot be read.
    """
    path = run.folder / PRIVACY_AUDIT_FILE
    if not path.exists():
        return None
    try:
        return _PrivacyAudit.model_validate_json(path.read_bytes()).model_dump(by_alias=True)
    except (OSError, ValueError) as error:
        raise InputError(
            "this privacy audit cannot be read",
            location=str(path),
            hint=f"make it again: clinpeft privacy {run.id}",
        ) from error


def read_matching_privacy_audit(run: Run) -> dict[str, Any]:
    """Read the privacy audit of exactly the weights in the run's folder.

    Raises:
        RefusedError: there is none, or it is of other weights or from before the run finished.
    """
    audit = read_privacy_audit(run)
    hint = f"clinpeft privacy {run.id}, and read its results before anything is released"
    if audit is None:
        message = f"run {run.id} has no privacy audit"
        raise RefusedError(message, location=str(run.folder), hint=hint)
    location = str(run.folder / PRIVACY_AUDIT_FILE)
    # An audit of other weights says nothing about these.
    if audit["weights"] != hash_trained_weights(run.folder):
        message = "the privacy audit is of other weights than those in the folder"
        raise RefusedError(message, location=location, hint=hint)
    finished = run.record.finished
    # The same weights, but the run was opened again after the audit.
    if finished is not None and datetime.fromisoformat(audit["made"]) < finished:
        message = "the privacy audit is older than the run"
        raise RefusedError(message, location=location, hint=hint)
    return audit


def write_release_folder(run: Run, folder: Path, content: ReleaseContent) -> Path:
    """Write the release folder, completely or not at all.

    Raises:
        RefusedError: it exists; the run trained a whole model; or a path or a private word occurs
            in a file of it.
        StorageError: it cannot be written.
    """
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="release --to",
            hint="name a new folder, or remove this one yourself",
        )
    # Only what is added to a base is released; others have the base already.
    if (run.folder / "model").exists():
        raise RefusedError(
            "this run trained the whole model, and only adapters and heads are released",
            location=str(run.folder / "model"),
            hint="train an adapter on the frozen base instead",
        )
    # A sibling, so that the final rename stays on one file system.
    partial_folder = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True, mode=0o700)
        notices = _copy_release_files(run, partial_folder, content)
        _write_descriptions(run, partial_folder, content, notices)
        # The check reads the written files, so that nothing is added after it.
        _check_no_private_words(partial_folder, content.private_words)
        partial_folder.rename(folder)
        flush_path_to_disk(folder.parent)
    except OSError as error:
        raise build_write_error(error, folder) from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return folder


def _copy_release_files(run: Run, partial_folder: Path, content: ReleaseContent) -> list[str]:
    """Copy weights and write results; returns notices about what was left out."""
    for config in sorted(run.folder.glob("adapter*/**/adapter_config.json")):
        # Adapters below a run's own keep their relative folders.
        target = partial_folder / config.parent.relative_to(run.folder)
        target.mkdir(parents=True)
        for name in RELEASED_ADAPTER_FILES:
            shutil.copyfile(config.parent / name, target / name)
    if (run.folder / "encoder.json").exists():
        shutil.copyfile(run.folder / "encoder.json", partial_folder / "encoder.json")
    _write_json(partial_folder / RELEASE_METRICS_FILE, content.results)
    _write_json(partial_folder / PRIVACY_AUDIT_FILE, content.privacy)
    if not (run.folder / "head.json").exists():
        return []
    head = _DOCUMENT_ADAPTER.validate_json((run.folder / "head.json").read_bytes())
    # The head names its classes, and a long name may be a sentence of a note.
    long_tasks = [
        task
        for task, entry in head["tasks"].items()
        if any(
            len(label) > MAX_LABEL_CHARACTERS
            or len(label.split()) > MAX_LABEL_WORDS
            or "\n" in label
            for label in entry["question"]["classes"]
        )
    ]
    if long_tasks:
        return [
            f"the head is not released: names of classes of {', '.join(long_tasks)} are so long "
            "that they may be text of notes"
        ]
    notices = []
    for task, entry in head["tasks"].items():
        # The exact numbers of rare classes would identify patients.
        counts = entry["question"]["train_counts"] = content.train_counts[task]
        if None in counts:
            notices.append(
                f"{task}: the number of training stays of {counts.count(None)} of {len(counts)} "
                "classes is withheld; that these classes exist is not"
            )
    _write_json(partial_folder / "head.json", head)
    shutil.copyfile(run.folder / "head.safetensors", partial_folder / "head.safetensors")
    return notices


def _write_descriptions(
    run: Run, partial_folder: Path, content: ReleaseContent, notices: list[str]
) -> None:
    """Write card, manifest and checksums, in this order: each covers the files before it."""
    base_name = str(run.recipe.model_dump()["base"]["path"].name)
    for path in sorted(partial_folder.rglob("clinpeft.json"))[:1]:
        # The name that the adapter records is that of the base it was trained on.
        adapter = _DOCUMENT_ADAPTER.validate_json(path.read_bytes())
        base_name = str(adapter["base"]["name"])
    card = _format_card(run, content, base_name, notices)
    write_file_atomically(partial_folder / RELEASE_CARD_FILE, card)
    # Of every file so far; the manifest is added below, SHA256SUMS lists both.
    checksums = {
        path.relative_to(partial_folder).as_posix(): compute_file_sha256(path)
        for path in _list_files(partial_folder)
    }
    # Keys of format 1 are read by others and keep their spelling.
    manifest = {
        "format": 1,
        "run": run.id,
        "kind": run.recipe.kind,
        "made": content.created_at.isoformat(),
        "clinpeft": run.record.versions.get("clinpeft", ""),
        "data_licence": content.data_license,
        "derived_from": {"source": run.recipe.source.name, "sha256": run.record.hashes.source},
        "base": {"name": base_name, "sha256": run.record.hashes.base},
        "adapters_below": run.record.hashes.adapters,
        "privacy_audit": {"made": content.privacy["made"], "left_out": content.privacy["left_out"]},
        "smallest_cell": RELEASE_SMALLEST_CELL,
        "notices": notices,
        "files": checksums,
    }
    manifest_path = partial_folder / RELEASE_MANIFEST_FILE
    _write_json(manifest_path, manifest)
    checksums[RELEASE_MANIFEST_FILE] = compute_file_sha256(manifest_path)
    # In the order of paths, as `sha256sum -c` accepts in any.
    paths = sorted(checksums, key=Path)
    lines = [f"{checksums[name]}  {name}\n" for name in paths]
    write_file_atomically(partial_folder / RELEASE_CHECKSUMS_FILE, "".join(lines))


def _format_card(run: Run, content: ReleaseContent, base_name: str, notices: list[str]) -> str:
    """The model card, with metadata as the Hugging Face hub reads them (Mitchell et al. 2019)."""
    record, audit = run.record, content.privacy
    # The results on training and tuning splits are in metrics.json only.
    held_out = [r for r in content.results if r["split"] == "held_out" and r["value"] is not None]
    results = "\n".join(
        f"| {row['task'] or ''} | {row['group'] or ''} | {row['name']} | {_format_estimate(row)} "
        f"| {row['n']} |"
        for row in held_out
    )
    attacks = "\n".join(
        f"| {row['task'] or ''} | {row['group']} | {row['split']} | {row['name']} "
        f"| {_format_estimate(row)} |"
        for row in audit["results"]
    )
    skipped = "\n".join(
        f"- not measured: {name}: {reason}" for name, reason in audit["left_out"].items()
    )
    trained = "unknown" if record.trained_parameters is None else f"{record.trained_parameters:,}"
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
        f"Trained parameters: {trained}. The base is not in this folder; "
        f"its fingerprint (SHA-256) is `{record.hashes.base}`.",
        "## Data and terms",
        f"Trained on the source `{run.recipe.source.name}` "
        f"(fingerprint `{record.hashes.source}`), whose license is: {content.data_license}.",
        "Weights may reveal the data about people that they were trained on: "
        "share them under the terms of the data, and no wider.",
        "## Results on held-out subjects",
        f"Numbers about fewer than {RELEASE_SMALLEST_CELL} are withheld, "
        "and so are those from which they could be computed.",
        f"\n| task | group | metric | value [interval] | n |\n|---|---|---|---|---:|\n{results}\n",
        "## Privacy audit",
        f"Made {audit['made'][:10]} on these weights. "
        "Attacks that fail prove nothing about attacks that were not tried.",
        "\n| task | attack | split | metric | value [interval] |\n|---|---|---|---|---|\n"
        f"{attacks}\n",
        skipped,
        "## Limits",
        "Not a medical device, and not validated for decisions about patients.",
        *(f"- {notice}" for notice in notices),
    ]
    return "\n".join(lines) + "\n"


def _format_estimate(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "withheld or undefined"
    has_limits = row["low"] is not None and row["high"] is not None
    limits = f" [{row['low']:.3g}, {row['high']:.3g}]" if has_limits else ""
    return f"{row['value']:.3g}{limits}"


def _check_no_private_words(folder: Path, words: Iterable[str]) -> None:
    """Raise a RefusedError if a file names a folder of this machine, or a private word.

    Subject ids need no check: no file of a release has rows of subjects.
    """
    # Words of one or two letters occur in any file by chance.
    escaped = [re.escape(word.encode()) for word in words if len(word) > 2]
    word_patterns = [re.compile(rb"(?<!\w)" + word + rb"(?!\w)") for word in escaped]
    for path in _list_files(folder):
        data = path.read_bytes()
        if path.suffix == ".safetensors":  # its JSON header only; the rest is numbers
            data = data[: 8 + int.from_bytes(data[:8], "little")]
        # Searched in bytes: the header of safetensors is JSON within a binary file.
        has_path = _MACHINE_PATH_PATTERN.search(data) is not None
        if has_path or any(pattern.search(data) for pattern in word_patterns):
            noun = "a folder" if has_path else "a user or a folder"
            raise RefusedError(
                f"{path.relative_to(folder).as_posix()} names {noun} of this machine",
                location="release",
                hint="name run, base folder and classes without it, and train again; "
                "nothing was released",
            )


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, content: object) -> None:
    write_file_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
