"""A set to search from outside of medicine, to see what an encoder forgot: which gloss of WordNet
3.0 explains a word?

    python benchmarks/general_wordnet.py /usr/share/wordnet/data.noun --out wordnet
    clinpeft evaluate RUN --search wordnet

Nouns for artefacts, food, animals, plants, places, events, communication and possession that have
one meaning; bodies, illnesses, substances, processes and states are left out, and so is every gloss
with a word of medicine in it. A thousand words are asked, none of which is in its own gloss, and
their glosses are searched among 10,000. Intervals are over questions.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from clinpeft.core.schemas import (
    CANDIDATE_PASSAGE_SCHEMA,
    QUERY_SCHEMA,
    RetrievalSet,
    build_arrow_table,
)
from clinpeft.data.retrieval import beir

FIELDS = {
    "05": "animal",
    "06": "artifact",
    "10": "communication",
    "11": "event",
    "13": "food",
    "15": "location",
    "20": "plant",
    "21": "possession",
}
MEDICINE = re.compile(
    r"medic|disease|drug|surg|patient|blood|heart|clinic|hospital|nurs|anatom|physio|bod(y|ies)|organ|infect|pain|cell|tissue",
    re.I,
)
QUESTIONS, GLOSSES, LEAST_WORDS = 1_000, 10_000, 6


def meanings(path: Path) -> Iterator[tuple[str, str, list[str], str]]:
    """(number, field, words, gloss without its examples) of every noun."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if not line or line.startswith(" "):
            continue
        data, _, gloss = line.partition(" | ")
        number, field, _, count, *rest = data.split(" ")
        words = [rest[2 * at].replace("_", " ") for at in range(int(count, 16))]
        yield number, field, words, gloss.split('; "')[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nouns", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    every = list(meanings(given.nouns))
    senses = Counter(word.lower() for _, _, words, _ in every for word in words)
    kept = [
        one
        for one in every
        if one[1] in FIELDS
        and len(one[3].split()) >= LEAST_WORDS
        and not MEDICINE.search(f"{' '.join(one[2])} {one[3]}")
    ]
    asked = [
        (number, word)
        for number, _, words, gloss in kept
        for word in words[:1]
        if senses[word.lower()] == 1
        and not any(part.lower() in gloss.lower() for part in word.split())
        and not word[0].isupper()
    ]
    draw = random.Random(0)
    drawn = sorted(draw.sample(asked, QUESTIONS))
    answers = {number for number, _ in drawn}
    others = draw.sample([one for one in kept if one[0] not in answers], GLOSSES - QUESTIONS)
    searched = [one for one in kept if one[0] in answers] + others
    queries = build_arrow_table(
        QUERY_SCHEMA,
        {"query_id": [f"q{number}" for number, _ in drawn], "text": [word for _, word in drawn]},
    )
    passages = build_arrow_table(
        CANDIDATE_PASSAGE_SCHEMA,
        {"passage_id": [f"n{one[0]}" for one in searched], "text": [one[3] for one in searched]},
    )
    judged: pa.Table = beir.build_relevance_judgments(
        {(f"q{number}", f"n{number}"): 1 for number, _ in drawn}
    )
    beir.write_beir(RetrievalSet(queries, passages, judged), given.out)
    print(
        f"{len(drawn)} of {len(asked):,} questions, {len(searched):,} of {len(kept):,} "
        f"glosses: {given.out}"
    )


if __name__ == "__main__":
    main()
