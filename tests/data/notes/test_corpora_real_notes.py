from __future__ import annotations

import csv
import gzip
from pathlib import Path

from clinpeft.core import schemas
from clinpeft.data.notes.corpus import build_note_corpus
from clinpeft.recipe import CorpusSpec, SplitSpec


def test_in_real_transcriptions_every_repetition_is_found(
    shared_data: Path, tmp_path: Path
) -> None:
    """4,999 rows hold 2,376 distinct texts; six of these have an exact Jaccard similarity of
    0.8 or more with an earlier one, three of them below 0.82, where one in two may be estimated
    below the threshold.
    """
    with gzip.open(
        shared_data / "mtsamples" / "mtsamples.csv.gz", "rt", encoding="utf-8", newline=""
    ) as file:
        texts = [row["transcription"] for row in csv.DictReader(file)]
    rows = {
        "note_id": [str(at) for at in range(len(texts))],
        "subject_id": list(range(len(texts))),
        "text": texts,
    }
    corpus = build_note_corpus(
        schemas.build_arrow_table(schemas.NOTE_SCHEMA, rows).to_reader(512),
        CorpusSpec(),
        SplitSpec(),
        1234,
        tmp_path,
    )
    clean, exact, near, _ = corpus.attrition
    assert (clean.kept_rows, exact.kept_rows) == (4999, 2376)
    assert 3 <= near.entered_rows - near.kept_rows <= 8
