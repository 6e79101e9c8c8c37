"""Install clinpeft and what the lock names into the environment whose Python runs this; every
download is checked against its hash.

    .venv/bin/python scripts/install.py [auto | cpu | cuda]

torch exists under one version as a build with CUDA (some gigabytes with the libraries it asks for)
and as a build for the processor alone (``+cpu``, some hundred megabytes). ``cuda`` takes the lock
as it is. ``cpu`` takes the same lock without the CUDA libraries, and torch as ``+cpu``. ``auto``
takes ``cpu`` when pip, as it is configured, finds such a build with a hash that the lock knows, and
the lock as it is otherwise. Only the standard library is used: nothing is installed yet.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lock import LOCK, entries, name

CUDA_ONLY = re.compile(r"nvidia-|cuda-|triton$")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
CHECKED = [
    "install",
    "--require-hashes",
    "--no-deps",
    "--no-compile",
]  # the lock is complete, so that nothing is left to resolve
QUIETLY = [
    "--quiet",
    "--quiet",
]  # errors only: a configured second index without some package is no news
NO_CPU_BUILD = (
    "pip finds no processor-only build of torch with a hash that requirements.lock knows\n"
    "  where: the package index and the find-links folder that pip is configured with\n"
    "  hint: point PIP_FIND_LINKS at a folder with the wheel and run `make lock`, or take "
    "the other build with `make TORCH=cuda ...`"
)


def for_the_processor(lock: str) -> list[str]:
    """The entries of a lock as a machine without a GPU wants them."""
    kept = [entry for entry in entries(lock) if not CUDA_ONLY.match(name(entry))]
    return [re.sub(r"^torch==([^\s;+]+)", r"torch==\1+cpu", entry) for entry in kept]


def processor_build_is_found(processor_lock: list[str], folder: Path) -> bool:
    """Whether pip would install the processor build: found where it looks, with a hash that the
    lock knows."""
    only = folder / "torch.lock"
    only.write_text(
        "\n".join(entry for entry in processor_lock if name(entry) == "torch") + "\n",
        encoding="utf-8",
    )
    return (
        subprocess.run(
            [*PIP, *CHECKED, *QUIETLY, "--dry-run", "-r", str(only)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def chosen(build: str, folder: Path) -> Path:
    """The lock to install: the file itself, or its form for the processor, written into
    ``folder``."""
    if build == "cuda":
        return LOCK
    processor_lock = for_the_processor(LOCK.read_text(encoding="utf-8"))
    if not processor_build_is_found(processor_lock, folder):
        return LOCK if build == "auto" else sys.exit(NO_CPU_BUILD)
    written = folder / "cpu.lock"
    written.write_text("\n".join(processor_lock) + "\n", encoding="utf-8")
    return written


def main() -> None:
    """Install what the lock names, then clinpeft as an editable package."""
    build = sys.argv[1] if len(sys.argv) > 1 else "auto"
    if build not in ("auto", "cpu", "cuda"):
        sys.exit(
            f"TORCH={build} is not a build of torch\n  where: the command line of make\n  "
            "hint: TORCH=auto, TORCH=cpu or TORCH=cuda"
        )
    lock = chosen(build, Path(sys.prefix))
    print(f"installing from {lock.name}; the first time takes a minute or more", flush=True)
    subprocess.run([*PIP, *CHECKED, *QUIETLY, "-r", str(lock)], check=True)
    subprocess.run(
        [*PIP, "install", *QUIETLY, "--no-deps", "--no-build-isolation", "-e", "."], check=True
    )


if __name__ == "__main__":
    main()
