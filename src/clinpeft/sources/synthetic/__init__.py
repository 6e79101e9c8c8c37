"""An invented hospital: nobody in it lives, and its notes read like notes. For trying things out, for tests, and for measuring.

```
hospital.py        who comes and what happens: people, stays, severity, outcomes        conditions.toml   16 reasons to come, in words and numbers
wording.py         templates, de-identification marks of both kinds                     phrases.toml      what every note is worded from
notes.py           what happened, written down                                          writers.py        the files of both data sets
```
What it is not: evidence. Text made from templates is far easier to predict than a nurse's.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from clinpeft.errors import SourceError
from clinpeft.recipe import SourceSpec
from clinpeft.sources import mimic
from clinpeft.sources.stream import Lost, Row
from clinpeft.sources.synthetic import hospital, notes, writers
from clinpeft.sources.synthetic.notes import Document

__all__ = ["fingerprint", "rows", "write"]

MARKER = "invented.json"
GENERATOR = ("__init__.py", "conditions.toml", "hospital.py", "notes.py", "phrases.toml", "wording.py", "writers.py")


def write(folder: Path, subjects: int, seed: int, shape: Literal["mimic-iii", "mimic-iv"]) -> None:
    """Write the notes of ``subjects`` invented people in the layout of a data set; the same arguments give the same bytes.

    The folder appears whole or not at all. One that already holds exactly this is left as it is.

    Raises:
        SourceError: the folder holds something else, or cannot be written.
    """
    made_of = _made_of(subjects, seed, shape)
    if _holds(folder, made_of):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError("this folder holds something else", place=str(folder), way_out="name a folder that is empty or not there yet")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            WRITERS[shape](made, _people(subjects, seed, shape), seed)
            (made / MARKER).write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")
            made.replace(folder)
    except OSError as error:
        if not _holds(folder, made_of):  # else another process was faster
            raise SourceError(
                f"this folder cannot be written: {error.strerror}", place=str(folder), way_out="check its rights and the space left"
            ) from error


def rows(spec: SourceSpec, cache: Path) -> Iterator[Row | Lost]:
    """The notes of the invented hospital, written once to ``spec.path`` (or into the cache) and read as ``spec.shape`` is read."""
    made_of = _made_of(spec.subjects, spec.seed, spec.shape)
    folder = spec.path or cache / f"synthetic-{spec.shape}-{spec.subjects}-{spec.seed}-{made_of['generator'][:12]}"
    write(folder, spec.subjects, spec.seed, spec.shape)
    return READERS[spec.shape](spec.model_copy(update={"path": folder}), cache)


def fingerprint(spec: SourceSpec) -> str:
    """SHA-256 in hexadecimal over what the hospital is made of: its parameters, and the files that generate it."""
    return hashlib.sha256(json.dumps(_made_of(spec.subjects, spec.seed, spec.shape), sort_keys=True).encode()).hexdigest()


def _people(subjects: int, seed: int, shape: str) -> Iterator[Sequence[Document]]:
    for index in range(subjects):
        yield list(notes.documents(hospital.stays_of(index, seed), seed, shape))


def _made_of(subjects: int, seed: int, shape: str) -> dict[str, str]:
    return {"shape": shape, "subjects": str(subjects), "seed": str(seed), "generator": _generator()}


def _generator() -> str:
    """SHA-256 over the generator's own files: a changed phrase is another hospital, without anybody having to count versions."""
    digest = hashlib.sha256()
    for name in GENERATOR:
        digest.update(resources.files(__package__).joinpath(name).read_bytes())
    return digest.hexdigest()


def _holds(folder: Path, made_of: dict[str, str]) -> bool:
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8")) == made_of)
    except (OSError, ValueError):
        return False


Writer = Callable[[Path, Iterable[Sequence[Document]], int], None]
WRITERS: dict[str, Writer] = {"mimic-iv": writers.write_iv, "mimic-iii": writers.write_iii}
READERS: dict[str, Callable[[SourceSpec, Path], Iterator[Row | Lost]]] = {"mimic-iv": mimic.rows_iv, "mimic-iii": mimic.rows_iii}
