"""Canaries: invented people with a random number, inserted into the training notes on request.

Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232): how much more likely a model finds the
inserted number than others measures memorization. The number is the secret; the sentence around it
is the same for every candidate, so that candidates differ in the secret alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.schemas import CORPUS_SCHEMA, Attrition, build_arrow_table
from clinpeft.recipe import PrivacySpec

CANARY_ID_PREFIX, CANARY_CATEGORY = "canary/", "canary"
CANARY_SECRET_DIGITS = 8
# Rare names: a base model should not have seen them together with a number.
CANARY_FIRST_NAMES = (
    *("Zebulon", "Quillon", "Ottoline", "Peregrine", "Isolde"),
    *("Barnaby", "Xanthe", "Leopold", "Wilhelmina", "Ignatius"),
)
CANARY_SURNAMES = (
    *("Quokka", "Thistlewood", "Ravenscar", "Oxbow", "Fennimore"),
    *("Larkspur", "Marlowe", "Pendragon", "Umber", "Yarrow"),
)
CANARY_COPY_BATCH_ROWS = 512


@dataclass(frozen=True)
class Canary:
    """One invented person.

    Attributes:
        name: unique.
        secret: the digits.
        repeats: how often the note occurs in the training split.
    """

    name: str
    secret: str
    repeats: int

    def format_note(self, secret: str = "") -> str:
        """Returns the note with the person's secret, or with another secret in its place."""
        return f"{self.name}, record {' '.join(secret or self.secret)}."


def generate_canaries(spec: PrivacySpec, seed: int) -> list[Canary]:
    """Generates the canaries of a recipe; the same seed gives the same canaries."""
    rng = np.random.default_rng([seed, 71])
    repeats = [repeats for repeats in spec.repeats for _ in range(spec.canaries)]
    canaries = []
    for i, count in enumerate(repeats):
        surname_index, first_name_index = divmod(i, len(CANARY_FIRST_NAMES))
        first_name = CANARY_FIRST_NAMES[first_name_index]
        surname = CANARY_SURNAMES[surname_index % len(CANARY_SURNAMES)]
        # The number makes the name unique beyond a hundred canaries.
        secret = draw_canary_secrets(rng, 1)[0]
        canaries.append(Canary(f"{first_name} {surname} {i + 1}", secret, count))
    return canaries


def draw_canary_secrets(rng: np.random.Generator, count: int) -> list[str]:
    """Draws ``count`` secrets of ``CANARY_SECRET_DIGITS`` random digits."""
    digits = rng.integers(0, 10, (count, CANARY_SECRET_DIGITS))
    return ["".join(str(digit) for digit in row) for row in digits]


def insert_canaries(corpus: Path, spec: PrivacySpec, seed: int, output_path: Path) -> Attrition:
    """Writes a copy of a corpus with the notes of the canaries at its end, in the training split.

    Their ``note_id`` begins with ``CANARY_ID_PREFIX``; their subjects are numbered -1, -2 ..., as
    no real subject is.

    Returns:
        How many notes were inserted.
    """
    notes = [
        (f"{CANARY_ID_PREFIX}{number}-{repeat + 1}", -number, canary.format_note())
        for number, canary in enumerate(generate_canaries(spec, seed), 1)
        for repeat in range(canary.repeats)
    ]
    # Renamed at the end: an interrupted run leaves no file that looks complete.
    temporary_path = output_path.with_suffix(".writing")
    with pq.ParquetWriter(temporary_path, CORPUS_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(corpus).iter_batches(CANARY_COPY_BATCH_ROWS):
            writer.write_batch(batch.cast(CORPUS_SCHEMA))
        writer.write_table(build_corpus_table(notes, "train"))
    temporary_path.replace(output_path)
    return Attrition("canaries put in", entered_rows=len(notes))


def build_corpus_table(notes: Sequence[tuple[str, int, str]], split: str) -> pa.Table:
    """Builds a table of ``CORPUS_SCHEMA`` from (note_id, subject_id, text)."""
    ids, subjects, texts = zip(*notes, strict=True) if notes else ((), (), ())
    columns = {
        "note_id": ids,
        # Negative: a split by subject can never mix canaries with patients.
        "subject_id": subjects,
        "category": [CANARY_CATEGORY] * len(ids),
        "split": [split] * len(ids),
        "text": texts,
    }
    return build_arrow_table(CORPUS_SCHEMA, columns)
