"""Write requirements.lock: every package of a working installation, pinned and hashed, with no host
name in it.

``make lock`` calls this with the ``uv`` of the environment. Two things are done beyond ``uv pip
compile``. The build backend is locked with the rest, so that installing clinpeft itself downloads
nothing unchecked. And torch, which exists under one version as a build with CUDA and as a build for
the processor alone (``2.13.0`` and ``2.13.0+cpu``), gets the hashes of both: see ``install.py``,
which chooses.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

LOCK = Path("requirements.lock")
LOWEST_PYTHON = "3.11"


def entries(lock: str) -> list[str]:
    """The requirements of a lock file, each with its hashes, as they stand there; comments are left
    out."""
    lines = "\n".join(
        line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")
    )
    return re.split(r"\n(?=\S)", lines) if lines else []


def name(entry: str) -> str:
    """The package that an entry pins."""
    return re.split(r"[\s=;\[]", entry, maxsplit=1)[0]


def hashes(entry: str) -> list[str]:
    """The accepted SHA-256 digests of an entry, in hex."""
    return re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)


def with_hashes(entry: str, more: Iterable[str]) -> str:
    """The entry, accepting further files; the digests sorted, so that the same lock is the same
    file."""
    pin = entry.split("\\\n", maxsplit=1)[0].rstrip()
    accepted = sorted({*hashes(entry), *more})
    return " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in accepted)])


def processor_builds(torch: str, folders: Sequence[Path]) -> list[str]:
    """Digests of the wheels of torch for the processor alone that lie in these folders."""
    wheels = [
        wheel
        for folder in folders
        if folder.is_dir()
        for wheel in folder.glob(f"torch-{torch}+cpu-*.whl")
    ]
    return [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels]


def compiled(torch: str, uv: str) -> str:
    """What ``uv`` resolves for every Python from 3.11 and every platform, hashes included."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    further = "\n".join([f"torch=={torch}", *project["build-system"]["requires"]])
    options = [
        "--extra",
        "dev",
        "--universal",
        "--python-version",
        LOWEST_PYTHON,
        "--generate-hashes",
    ]
    quiet = [
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
        "--no-emit-find-links",
        "--quiet",
    ]
    command = [uv, "pip", "compile", "pyproject.toml", "-", *options, *quiet]
    return subprocess.run(command, input=further, text=True, check=True, capture_output=True).stdout


def locked(fresh: str, old: str, torch: str, folders: Sequence[Path]) -> str:
    """The new lock: what was resolved, and for torch also the digests of the processor builds found
    now or in the old lock of that version."""
    kept = [
        digest
        for entry in entries(old)
        if entry.startswith(f"torch=={torch} ")
        for digest in hashes(entry)
    ]
    more = {"torch": [*kept, *processor_builds(torch, folders)]}
    return (
        "\n".join(with_hashes(entry, more.get(name(entry), [])) for entry in entries(fresh)) + "\n"
    )


def main() -> None:
    """Write the lock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch", required=True, help="the version of torch to pin, without a local part"
    )
    parser.add_argument("--uv", default="uv")
    parser.add_argument(
        "--wheels",
        nargs="*",
        type=Path,
        default=[],
        help="folders where processor builds of torch may lie",
    )
    given = parser.parse_args()
    old = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    LOCK.write_text(
        locked(compiled(given.torch, given.uv), old, given.torch, given.wheels), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
