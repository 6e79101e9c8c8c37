"""Toys of the trust tests: bases, notes, a book and recipes that run in about a second each, with a
sentence planted where it is asked for."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from tests.conftest import WORDS, write_toy_bert, write_toy_llama

CANARY = "Zebulon Quixmarrow hides a vermilion accordion"
"""Stands in every note and book of a test that looks for it. No tokenizer knows its words, and no
code says them."""

SIGNS = {"Cardiology": "furosemide", "Pulmonology": "cough", "Surgery": "pain"}

_FILES = """
[source]
name = "files"
path = "{notes}"
columns = {{ note_id = "note_id", subject_id = "subject_id", category = "category", text = "text" }}
[split]
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{llama}"
max_tokens = 24
precision = "float32"
"""

ADAPT = (
    'kind = "adapt"\nname = "adapt"\n'
    + _FILES
    + """
[[adapters]]
method = "lora"
rank = 2
dropout = 0.1
[training]
learning_rate = 1e-2
max_steps = 6
batch_tokens = 200
micro_batch_tokens = 100
evaluations = 3
checkpoints = 3
[evaluation]
resamples = 100
max_notes = 6
"""
)

CLASSIFY = (
    'kind = "classify"\nname = "classify"\n'
    + _FILES
    + """
[task]
name = "note_category"
[[adapters]]
method = "lora"
rank = 2
dropout = 0.1
[head]
pooling = "mean"
[training]
learning_rate = 1e-2
head_epochs = 1
max_steps = 6
batch_notes = 8
micro_batch_tokens = 256
evaluations = 3
checkpoints = 3
[evaluation]
resamples = 100
subgroups = false
baselines = false
"""
)

EMBED = """
kind = "embed"
name = "embed"
[source]
name = "books"
path = "{book}"
[pairs]
kinds = ["term-definition", "question-answer", "heading-paragraph"]
[split]
by = "chapter"
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{bert}"
pooling = "mean"
max_tokens = 24
precision = "float32"
[[adapters]]
method = "lora"
rank = 2
dropout = 0.1
[training]
learning_rate = 1e-2
max_steps = 6
batch_pairs = 8
apart_by = "text"
micro_batch_tokens = 400
evaluations = 3
checkpoints = 3
[evaluation]
resamples = 100
controls = false
profile_texts = 0
"""

COHORT = """
kind = "cohort"
name = "cohort"
[source]
name = "files"
path = "{notes}"
columns = {{ note_id = "note_id", subject_id = "subject_id", category = "category", text = "text" }}
[task]
name = "note_category"
[split]
train = 0.6
tuning = 0.2
held_out = 0.2
"""

RECIPES = {"adapt": ADAPT, "classify": CLASSIFY, "embed": EMBED}


def write_notes(path: Path, count: int = 90, planted: str = "", seed: int = 0) -> Path:
    """Notes of filler in which one word tells the category, each of a subject of its own, with
    ``planted`` in the middle of every one."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("note_id", "subject_id", "category", "text"))
        for at in range(count):
            category = list(SIGNS)[at % len(SIGNS)]
            words = [
                *draw.choices(WORDS, k=draw.randint(6, 14)),
                *([planted] if planted else []),
                SIGNS[category],
                SIGNS[category],
            ]
            draw.shuffle(words)
            rows.writerow((f"n{at}", at, category, " ".join(words)))
    return path


def write_book(path: Path, planted: str = "", chapters: int = 8, seed: int = 0) -> Path:
    """A book in Markdown, in the words that the toy tokenizers know; each chapter has terms, and
    questions with answers."""
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    lines = []
    for number in range(1, chapters + 1):
        lines += [f"# Chapter of {words(2)} {number}", f"{words(20)} {planted}", words(15)]
        for _ in range(3):
            lines += [f"Question: {words(7)} {planted}?", f"Answer: {words(12)} {planted}."]
        lines += [
            "## Key terms",
            "\n".join(f"- **{words(3)}**: {words(9)} {planted}" for _ in range(3)),
        ]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def write(folder: Path, planted: str = "") -> dict[str, Path]:
    """Bases, notes, book and the three recipes: verb -> recipe."""
    places = {
        "llama": write_toy_llama(folder / "llama"),
        "bert": write_toy_bert(folder / "bert"),
        "notes": write_notes(folder / "notes.csv", planted=planted),
        "book": write_book(folder / "book.md", planted),
    }
    recipes = {}
    for verb, text in RECIPES.items():
        recipes[verb] = folder / f"{verb}.toml"
        recipes[verb].write_text(text.format(**places), encoding="utf-8")
    return recipes
