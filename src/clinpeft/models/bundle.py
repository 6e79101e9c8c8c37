"""Bundles: a base model, recipes and wheels in one plain tar for machines without a network.

A bundle is a list of plain files with the SHA-256 of each. It comes from another machine and is
not trusted: names, types, sizes and hashes of all members are checked before any is used, so that
none is a link or a device, leads out of the folder, or holds weights that can run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import clinpeft
from clinpeft.core.errors import InputError, RefusedError
from clinpeft.models.folder import (
    POOLING_CONFIG_FILE,
    SENTENCE_TRANSFORMERS_FILES,
    TOKENIZER_FILES,
    WEIGHT_INDEX_FILE,
    check_model_folder,
    fingerprint_base_model,
    hash_model_file,
)

BUNDLE_MANIFEST_FILE = "manifest.json"
# no optimizer states, logs, pickles or Python files
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
"""First folder -> the only names that are allowed in it."""

# limits what is read into memory before anything of a bundle has been checked
MAX_MANIFEST_BYTES = 16 * 2**20
BUNDLE_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class ModelBundle:
    """The content of a bundle.

    Attributes:
        base_name: name of the base's folder.
        base_sha256: fingerprint of the base, as runs record it.
        files: path -> (SHA-256, bytes).
    """

    base_name: str
    base_sha256: str
    files: Mapping[str, tuple[str, int]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values())

    def as_manifest(self) -> bytes:
        """Return ``manifest.json``, the first member of a bundle."""
        content = {
            "format": 1,
            "clinpeft": clinpeft.__version__,
            "base": {"name": self.base_name, "sha256": self.base_sha256},
            "files": {
                name: {"sha256": sha256, "bytes": size}
                for name, (sha256, size) in self.files.items()
            },
        }
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def from_manifest(cls, content: bytes) -> ModelBundle:
        """Read what ``as_manifest`` returned.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is something else.
        """
        document = json.loads(content)
        files = {
            str(name): (str(entry["sha256"]), int(entry["bytes"]))
            for name, entry in document["files"].items()
        }
        return cls(str(document["base"]["name"]), str(document["base"]["sha256"]), files)


def make_bundle(base: Path, recipes: Sequence[Path], wheels: Path | None, out: Path) -> ModelBundle:
    """Pack a checked base, recipes and wheels into a tar, which is written whole or not at all.

    User names and times of files are left out: the same files give the same bytes.

    Args:
        base: a folder as ``models pull`` writes it.
        recipes: TOML files.
        wheels: a folder of ``.whl`` files, and the lock file that they are installed by; None for
            a bundle without wheels.
        out: a new file.

    Raises:
        BaseModelError: the base is not a complete model folder of a known family.
        InputError: a recipe or the wheels are missing, or are something else.
        RefusedError: ``out`` exists.
    """
    if out.exists():
        raise RefusedError(
            f"{str(out)!r} exists",
            location="bundle make --out",
            hint="name a new file, or remove this one yourself",
        )
    check_model_folder(base)
    # the name of the folder, and not of a link to it, becomes part of the bundle
    base = base.resolve()
    paths = _select_files(base, recipes, wheels)
    files = {name: (hash_model_file(path), path.stat().st_size) for name, path in paths.items()}
    bundle = ModelBundle(base.name, fingerprint_base_model(base), files)
    manifest = bundle.as_manifest()
    temporary = out.with_name(f".{out.name}.writing")
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            # the manifest comes first, so that a reader can check every member as it streams
            tar.addfile(_create_member(BUNDLE_MANIFEST_FILE, len(manifest)), io.BytesIO(manifest))
            # PAX headers hold names of any length and no user
            for name, path in paths.items():
                with path.open("rb") as file:
                    tar.addfile(_create_member(name, files[name][1]), file)
        # fails if a file changed between its hash and its copy
        verify_bundle(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return bundle


def _create_member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """Return a header of fixed owner, mode and time."""
    # its defaults are time 0, owner 0 and no names
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o600
    return member


def _select_files(base: Path, recipes: Sequence[Path], wheels: Path | None) -> dict[str, Path]:
    """Return name in the bundle -> file, with the base's files first."""
    candidates = [path for path in base.iterdir() if path.is_file()]
    if (base / POOLING_CONFIG_FILE).is_file():  # the only file of a base in a subfolder
        candidates.append(base / POOLING_CONFIG_FILE)
    files = {
        f"base/{base.name}/{path.relative_to(base).as_posix()}": path for path in sorted(candidates)
    }
    # a base may hold other files (pickles, logs), which stay behind
    files = {name: path for name, path in files.items() if _is_allowed_name(name)}
    for path in recipes:
        name = f"recipes/{path.name}"
        if not path.is_file() or not _is_allowed_name(name):
            message = f"{path.name!r} is no recipe file"
            raise InputError(message, location=str(path), hint="give TOML files")
        # recipes of one name would overwrite each other, and the last one wins
        files[name] = path
    if wheels is not None:
        packages = {f"wheels/{path.name}": path for path in sorted(wheels.glob("*"))}
        allowed = {
            n: path for n, path in packages.items() if path.is_file() and _is_allowed_name(n)
        }
        # an empty folder is a mistake: the bundle would install nothing
        if not allowed:
            raise InputError(
                "there are no wheels",
                location=str(wheels),
                hint="fill the folder with: python -m pip download --require-hashes --no-deps "
                "-r requirements.lock -d wheels",
            )
        files |= allowed
    return files


def _is_allowed_name(name: str) -> bool:
    # fullmatch, because `$` would accept a trailing newline
    pattern = BUNDLE_NAME_PATTERNS.get(name.partition("/")[0])
    return pattern is not None and pattern.fullmatch(name) is not None


def verify_bundle(path: Path) -> ModelBundle:
    """Check a bundle against its manifest without unpacking it: names, types, sizes and hashes.

    Raises:
        InputError: it is not a bundle, or it is truncated.
        RefusedError: it holds what must not be opened, or a file differs from the packed one.
    """
    return _read_bundle(path, None)


def unpack_bundle(path: Path, folder: Path) -> ModelBundle:
    """Write the files of a bundle to a new folder, which appears whole or not at all.

    Every file is checked as by ``verify_bundle``, and the base as before a run.

    Raises:
        InputError, RefusedError: as for ``verify_bundle``; ``folder`` exists.
        BaseModelError: the base is not a complete model folder of a known family.
    """
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="bundle unpack --to",
            hint="name a new folder, or remove this one yourself",
        )
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    # in the same file system as `folder`, so that the rename is atomic
    temporary.mkdir(parents=True, mode=0o700)
    try:
        bundle = _read_bundle(path, temporary)
        base = temporary / "base" / bundle.base_name
        check_model_folder(base)
        # file hashes alone would accept a base with files added to or missing from the manifest
        if fingerprint_base_model(base) != bundle.base_sha256:
            raise _create_refused_error("the base is not the one that the manifest names", path)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bundle


def _read_bundle(path: Path, folder: Path | None) -> ModelBundle:
    """Read the members once, in order, and copy into ``folder``, if given, those that are right."""
    bundle: ModelBundle | None = None
    missing: set[str] = set()
    try:
        # "r:" opens plain tars only: a compressed one could expand to a thousand times its size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _check_member(member, path)
                content = tar.extractfile(member)
                assert content is not None  # _check_member accepts plain files only
                if bundle is None:
                    bundle = _read_manifest(member, content, path)
                    missing = set(bundle.files)
                    continue
                # a name that occurs twice would replace a file that was checked
                if member.name not in missing:
                    message = f"{member.name!r} is not in its manifest, or is there twice"
                    raise _create_refused_error(message, path)
                missing.remove(member.name)
                target = folder / member.name if folder is not None else None
                _copy_member(member, content, bundle.files[member.name], target, path)
    # truncated, compressed, or not a tar
    except tarfile.TarError as error:
        raise _create_format_error(type(error).__name__, path) from error
    except OSError as error:
        raise InputError(
            f"the bundle cannot be read: {error.strerror}",
            location=str(path),
            hint="check the path, and copy it again",
        ) from error
    if bundle is None:
        raise _create_format_error("it is empty", path)
    if missing:
        message = f"{len(missing)} files of its manifest are missing, such as {min(missing)!r}"
        raise _create_refused_error(message, path)
    return bundle


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    """Check name and type of a member before anything of it is read."""
    name = member.name
    parts = PurePosixPath(name)
    # backslashes and colons are separators and drives on Windows, where bundles are unpacked too
    if parts.is_absolute() or ".." in parts.parts or any(c in name for c in ("\\", "\0", ":")):
        raise _create_refused_error(f"{name!r} leads out of the folder", path)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        # sparse files have a size that is not the number of stored bytes
        kind = "something else"
        if member.issym() or member.islnk():
            kind = "a link"
        elif member.isdev():
            kind = "a device or a pipe"
        elif member.isdir():
            kind = "a folder"
        raise _create_refused_error(f"{name!r} is no plain file but {kind}", path)
    if name != BUNDLE_MANIFEST_FILE and not _is_allowed_name(name):
        raise _create_refused_error(
            f"{name!r} is not allowed in a bundle: weights are .safetensors, recipes .toml, "
            "wheels .whl, and a base has no code",
            path,
        )


def _read_manifest(member: tarfile.TarInfo, content: IO[bytes], path: Path) -> ModelBundle:
    """Return the manifest, which must be the first member."""
    if member.name != BUNDLE_MANIFEST_FILE or member.size > MAX_MANIFEST_BYTES:
        raise _create_format_error(f"it does not begin with {BUNDLE_MANIFEST_FILE}", path)
    try:
        bundle = ModelBundle.from_manifest(content.read())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"its manifest cannot be read: {type(error).__name__}"
        raise _create_format_error(reason, path) from error
    # the name becomes a path below
    if not _is_allowed_name(f"base/{bundle.base_name}/config.json") or ".." in bundle.base_name:
        raise _create_refused_error(f"its base is called {bundle.base_name!r}", path)
    return bundle


def _copy_member(
    member: tarfile.TarInfo,
    content: IO[bytes],
    expected: tuple[str, int],
    target: Path | None,
    path: Path,
) -> None:
    """Hash a member while it is copied to ``target``, if given, and compare size and hash."""
    expected_sha256, expected_bytes = expected
    # before anything is written, so that a member cannot fill the disk
    if member.size != expected_bytes:
        message = f"{member.name!r} has {member.size:,} bytes instead of {expected_bytes:,}"
        raise _create_refused_error(message, path)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    # "x": a member never replaces a file
    with target.open("xb") if target is not None else io.BytesIO() as out:
        while chunk := content.read(BUNDLE_CHUNK_BYTES):
            digest.update(chunk)
            if target is not None:
                out.write(chunk)
    sha256 = digest.hexdigest()
    if sha256 != expected_sha256:
        raise _create_refused_error(
            f"{member.name!r} is not the file that was packed: "
            f"sha256 {sha256[:12]} instead of {expected_sha256[:12]}",
            path,
        )


def _create_refused_error(message: str, path: Path) -> RefusedError:
    return RefusedError(
        message,
        location=str(path),
        hint="copy the bundle again from where it was made, and find out who changed it",
    )


def _create_format_error(reason: str, path: Path) -> InputError:
    return InputError(
        f"this is not a bundle: {reason}",
        location=str(path),
        hint="give the file that `clinpeft bundle make` wrote, and copy all of it",
    )
