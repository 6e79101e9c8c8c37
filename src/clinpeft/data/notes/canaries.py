"""Invented people with an invented number each, put among the training notes on request: what a model remembers of them can be measured.

Carlini et al. 2019, "The Secret Sharer". The number is the secret; the sentence around it is the same for every candidate, so that candidates differ
in the secret alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.schemas import CORPUS_SCHEMA, Attrition
from clinpeft.recipe import PrivacySpec

CANARY_ID_PREFIX, CANARY_CATEGORY = "canary/", "canary"
CANARY_SECRET_DIGITS = 8
CANARY_FIRST_NAMES = (
    "Zebulon",
    "Quillon",
    "Ottoline",
    "Peregrine",
    "Isolde",
    "Barnaby",
    "Xanthe",
    "Leopold",
    "Wilhelmina",
    "Ignatius",
)
CANARY_SURNAMES = (
    "Quokka",
    "Thistlewood",
    "Ravenscar",
    "Oxbow",
    "Fennimore",
    "Larkspur",
    "Marlowe",
    "Pendragon",
    "Umber",
    "Yarrow",
)
CANARY_COPY_BATCH_ROWS = 512


@dataclass(frozen=True)
class Canary:
    """One invented person.

    Attributes:
        name: of the person; no two have the same.
        secret: the digits.
        repeats: how often the note stands in the training split.
    """

    name: str
    secret: str
    repeats: int

    def format_note(self, secret: str = "") -> str:
        """The note with the person's secret, or with another one in its place."""
        return f"{self.name}, record {' '.join(secret or self.secret)}."


def generate_canaries(spec: PrivacySpec, seed: int) -> list[Canary]:
    """The invented people that a recipe asks for; the same seed gives the same."""
    rng = np.random.default_rng([seed, 71])
    wanted = [repeats for repeats in spec.repeats for _ in range(spec.canaries)]
    return [
        Canary(
            f"{CANARY_FIRST_NAMES[at % len(CANARY_FIRST_NAMES)]} {CANARY_SURNAMES[at // len(CANARY_FIRST_NAMES) % len(CANARY_SURNAMES)]} {at + 1}",
            draw_canary_secrets(rng, 1)[0],
            repeats,
        )
        for at, repeats in enumerate(wanted)
    ]


def draw_canary_secrets(rng: np.random.Generator, count: int) -> list[str]:
    """Random digits, ``DIGITS`` of them each."""
    return [
        "".join(str(digit) for digit in row)
        for row in rng.integers(0, 10, (count, CANARY_SECRET_DIGITS))
    ]


def insert_canaries(corpus: Path, spec: PrivacySpec, seed: int, output_path: Path) -> Attrition:
    """The corpus and, behind its notes, the notes of the canaries, in the training split, as another file.

    Their ``note_id`` begins with ``MARK``; their subjects are numbered -1, -2 ... as no real one is. What is counted: how many notes were put in.
    """
    planted = list(_generate_canary_notes(generate_canaries(spec, seed)))
    writing = output_path.with_suffix(".writing")
    with pq.ParquetWriter(writing, CORPUS_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(corpus).iter_batches(CANARY_COPY_BATCH_ROWS):
            writer.write_batch(batch.cast(CORPUS_SCHEMA))
        writer.write_table(build_corpus_table(planted, "train"))
    writing.replace(output_path)
    return Attrition("canaries put in", entered_rows=len(planted))


def build_corpus_table(notes: Sequence[tuple[str, int, str]], split: str) -> pa.Table:
    """(note_id, subject_id, text) as a table of schema ``tables.CORPUS``."""
    ids, subjects, texts = zip(*notes, strict=True) if notes else ((), (), ())
    columns = {
        "note_id": ids,
        "subject_id": subjects,
        "category": [CANARY_CATEGORY] * len(ids),
        "split": [split] * len(ids),
        "text": texts,
    }
    return pa.Table.from_arrays(
        [pa.array(columns[field.name], field.type) for field in CORPUS_SCHEMA], schema=CORPUS_SCHEMA
    )


def _generate_canary_notes(canaries: Sequence[Canary]) -> Iterator[tuple[str, int, str]]:
    for number, canary in enumerate(canaries, 1):
        for repeat in range(canary.repeats):
            yield f"{CANARY_ID_PREFIX}{number}-{repeat + 1}", -number, canary.format_note()
