"""What is carried into a place without a network: a base, recipes and wheels in one plain tar, with a SHA-256 of every file.

A bundle is a list of plain files and nothing else. What is read from one was written by somebody else, so every name, kind, size and hash is
looked at before anything is used: no way out of the folder, no link, no device, no weights that can run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import clinpeft
from clinpeft.core.errors import InputError, RefusedError
from clinpeft.models.download import SENTENCE_TRANSFORMERS_FILES
from clinpeft.models.folder import (
    WEIGHT_INDEX_FILE,
    POOLING_CONFIG_FILE,
    TOKENIZER_FILES,
    check_model_folder,
    fingerprint_base_model,
    hash_model_file,
)

BUNDLE_MANIFEST_FILE = "manifest.json"
BUNDLED_BASE_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        WEIGHT_INDEX_FILE,
        *TOKENIZER_FILES,
        *SENTENCE_TRANSFORMERS_FILES,
        "README.md",
    }
)
BUNDLE_NAME_PATTERNS: dict[str, re.Pattern[str]] = {
    "base": re.compile(
        r"base/[\w.+-]+/(?:[\w.+-]+\.safetensors|LICENSE[\w.-]*|"
        + "|".join(re.escape(name) for name in sorted(BUNDLED_BASE_FILES))
        + ")"
    ),
    "recipes": re.compile(r"recipes/[\w.+-]+\.toml"),
    "wheels": re.compile(r"wheels/[\w.+!-]+\.(?:whl|lock)"),
}
"""First folder -> the only names that may stand in it."""

MAX_MANIFEST_BYTES = 16 * 2**20
BUNDLE_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class ModelBundle:
    """What a bundle holds.

    Attributes:
        base_name: the name of the base's folder.
        base_sha256: of the base, as runs record it.
        files: path -> (SHA-256, bytes).
    """

    base_name: str
    base_sha256: str
    files: Mapping[str, tuple[str, int]]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(size for _, size in self.files.values())


def make_bundle(base: Path, recipes: Sequence[Path], wheels: Path | None, out: Path) -> ModelBundle:
    """Pack a checked base, recipes and a folder of wheels into ``out``, which is there whole or not at all. No name of a user goes along.

    Args:
        base: a folder as ``models pull`` writes it.
        recipes: TOML files.
        wheels: a folder of ``.whl`` files, and the lock that they are installed by; None: none.
        out: a new file.

    Raises:
        BaseModelError: the folder is no whole, plain, known model.
        InputError: a recipe or the wheels are not there, or are something else.
        RefusedError: ``out`` exists.
    """
    if out.exists():
        raise RefusedError(
            f"{str(out)!r} exists",
            location="bundle make --out",
            hint="name a new file, or remove this one yourself",
        )
    check_model_folder(base)
    base = base.resolve()
    packed = dict(_select_files(base, recipes, wheels))
    files = {name: (hash_model_file(path), path.stat().st_size) for name, path in packed.items()}
    bundle = ModelBundle(base.name, fingerprint_base_model(base), files)
    writing = out.with_name(f".{out.name}.writing")
    try:
        with tarfile.open(writing, "w", format=tarfile.PAX_FORMAT) as tar:
            _add_content(tar, BUNDLE_MANIFEST_FILE, _serialize_manifest(bundle))
            for name, path in packed.items():
                with path.open("rb") as file:
                    tar.addfile(_create_member(name, files[name][1]), file)
        verify_bundle(writing)  # what was changed while it was packed is found here
        writing.replace(out)
    finally:
        writing.unlink(missing_ok=True)
    return bundle


def _select_files(
    base: Path, recipes: Sequence[Path], wheels: Path | None
) -> Iterator[tuple[str, Path]]:
    """Name in the bundle -> file."""
    inside = [
        *(path for path in base.iterdir() if path.is_file()),
        *(path for path in (base / POOLING_CONFIG_FILE,) if path.is_file()),
    ]
    yield from (
        (name, path)
        for path in sorted(inside)
        if _is_allowed_name(name := f"base/{base.name}/{path.relative_to(base).as_posix()}")
    )
    for path in recipes:
        if not path.is_file() or not _is_allowed_name(f"recipes/{path.name}"):
            raise InputError(
                f"{path.name!r} is no recipe file", location=str(path), hint="give TOML files"
            )
        yield f"recipes/{path.name}", path
    if wheels is not None:
        found = (
            [
                path
                for path in sorted(wheels.glob("*"))
                if path.is_file() and _is_allowed_name(f"wheels/{path.name}")
            ]
            if wheels.is_dir()
            else []
        )
        if not found:
            hint = "fill it with: python -m pip download --require-hashes --no-deps -r requirements.lock -d wheels"
            raise InputError("there are no wheels", location=str(wheels), hint=hint)
        yield from ((f"wheels/{path.name}", path) for path in found)


def _is_allowed_name(name: str) -> bool:
    pattern = BUNDLE_NAME_PATTERNS.get(name.partition("/")[0])
    return pattern is not None and pattern.fullmatch(name) is not None


def verify_bundle(path: Path) -> ModelBundle:
    """That a bundle is what its manifest says, without unpacking it: names, kinds, sizes and hashes of all its files.

    Raises:
        InputError: it is no bundle, or it is cut short.
        RefusedError: it holds what must not be opened, or a file is not the one that was packed.
    """
    return _read_bundle(path, None)


def unpack_bundle(path: Path, folder: Path) -> ModelBundle:
    """The files of a bundle in a new folder, each of them checked as in ``verify_bundle`` and the base as before a run; whole or not at all.

    Raises:
        InputError, RefusedError: as ``verify_bundle``; ``folder`` exists.
        BaseModelError: the base is no whole, plain, known model.
    """
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="bundle unpack --to",
            hint="name a new folder, or remove this one yourself",
        )
    writing = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True, mode=0o700)
    try:
        bundle = _read_bundle(path, writing)
        base = writing / "base" / bundle.base_name
        check_model_folder(base)
        if fingerprint_base_model(base) != bundle.base_sha256:
            raise _create_refused_error("the base is not the one that the manifest names", path)
        writing.rename(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return bundle


def _read_bundle(path: Path, folder: Path | None) -> ModelBundle:
    """Walk through the members once, in order; into ``folder``, where one is given, go only files that were right."""
    try:
        with tarfile.open(
            path, "r:"
        ) as tar:  # plain: what unpacks to a thousand times its size is not read
            bundle, missing = None, set[str]()
            for member in tar:
                _check_member(member, path)
                content = tar.extractfile(member)
                assert content is not None  # it is a plain file
                if bundle is None:
                    bundle = _parse_manifest(member, content, path)
                    missing = set(bundle.files)
                    continue
                if member.name not in missing:
                    raise _create_refused_error(
                        f"{member.name!r} is not in its manifest, or is there twice", path
                    )
                missing.remove(member.name)
                _copy_member(member, content, bundle.files[member.name], folder, path)
    except tarfile.TarError as error:
        raise _create_format_error(path, type(error).__name__) from error
    except OSError as error:
        raise InputError(
            f"the bundle cannot be read: {error.strerror}",
            location=str(path),
            hint="check the path, and copy it again",
        ) from error
    if bundle is None:
        raise _create_format_error(path, "it is empty")
    if missing:
        raise _create_refused_error(
            f"{len(missing)} files of its manifest are not in it, such as {min(missing)!r}", path
        )
    return bundle


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    name = member.name
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or ":" in name:
        raise _create_refused_error(f"{name!r} leads out of the folder", path)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise _create_refused_error(
            f"{name!r} is no plain file but {_describe_member_type(member)}", path
        )
    if name != BUNDLE_MANIFEST_FILE and not _is_allowed_name(name):
        raise _create_refused_error(
            f"{name!r} has no place in a bundle: weights are .safetensors, recipes .toml, wheels .whl, and a base brings no code",
            path,
        )


def _describe_member_type(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    return (
        "a device or a pipe"
        if member.isdev()
        else "a folder"
        if member.isdir()
        else "something else"
    )


def _parse_manifest(member: tarfile.TarInfo, content: IO[bytes], path: Path) -> ModelBundle:
    if member.name != BUNDLE_MANIFEST_FILE or member.size > MAX_MANIFEST_BYTES:
        raise _create_format_error(path, f"it does not begin with {BUNDLE_MANIFEST_FILE}")
    try:
        found = json.loads(content.read())
        files = {
            str(name): (str(about["sha256"]), int(about["bytes"]))
            for name, about in found["files"].items()
        }
        bundle = ModelBundle(str(found["base"]["name"]), str(found["base"]["sha256"]), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _create_format_error(
            path, f"its manifest cannot be read: {type(error).__name__}"
        ) from error
    if not _is_allowed_name(f"base/{bundle.base_name}/config.json") or ".." in bundle.base_name:
        raise _create_refused_error(f"its base is called {bundle.base_name!r}", path)
    return bundle


def _copy_member(
    member: tarfile.TarInfo,
    content: IO[bytes],
    expected: tuple[str, int],
    folder: Path | None,
    path: Path,
) -> None:
    """A file, hashed on its way, into the folder where there is one."""
    if member.size != expected[1]:
        raise _create_refused_error(
            f"{member.name!r} has {member.size:,} bytes, and {expected[1]:,} were packed", path
        )
    digest = hashlib.sha256()
    target = folder / member.name if folder is not None else None
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with target.open("xb") if target is not None else io.BytesIO() as out:
        while piece := content.read(BUNDLE_CHUNK_BYTES):
            digest.update(piece)
            if target is not None:
                out.write(piece)
    if digest.hexdigest() != expected[0]:
        raise _create_refused_error(
            f"{member.name!r} is not the file that was packed: sha256 {digest.hexdigest()[:12]} for {expected[0][:12]}",
            path,
        )


def _serialize_manifest(bundle: ModelBundle) -> bytes:
    files = {
        name: {"sha256": digest, "bytes": size} for name, (digest, size) in bundle.files.items()
    }
    base = {"name": bundle.base_name, "sha256": bundle.base_sha256}
    about: dict[str, Any] = {
        "format": 1,
        "clinpeft": clinpeft.__version__,
        "base": base,
        "files": files,
    }
    return (json.dumps(about, indent=1) + "\n").encode()


def _add_content(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    tar.addfile(_create_member(name, len(content)), io.BytesIO(content))


def _create_member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """Nobody's, of no time: the same files give the same bundle, to the byte."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o600
    return member


def _create_refused_error(message: str, path: Path) -> RefusedError:
    return RefusedError(
        message,
        location=str(path),
        hint="carry the bundle in again from where it was made, and ask who changed it",
    )


def _create_format_error(path: Path, reason: str) -> InputError:
    return InputError(
        f"this is no bundle: {reason}",
        location=str(path),
        hint="give the file that `clinpeft bundle make` wrote, and copy it whole",
    )
