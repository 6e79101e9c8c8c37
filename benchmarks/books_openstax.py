"""How much of two sets of OpenStax extracts the reader of books finds again, and how long it reads.

The extracts (JSON lines, made by other code from the same CNXML) give the cardiovascular passages
and the glossary of each folder. One is found where a passage of the same module holds the same
letters and digits in the same order; blanks, punctuation, raised and lowered characters and the
words that stand for a link to a figure are left out of both sides.

    python benchmarks/books_openstax.py ../shared/data/openstax_anatomy_physiology_2e
    ../shared/data/openstax_nursing
"""

from __future__ import annotations

import argparse
import json
import re
import time
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import lxml.etree

from clinpeft.core.schemas import Attrition
from clinpeft.data import textbooks

LEFT_OUT = re.compile(r"references|suggested-reading")
"""Classes of sections that the reader leaves out on purpose, so that they are no text to be found;
one more is only titled so."""


class Recall(NamedTuple):
    """Of one kind of extract: how many are found, of how many, and how many more are in sections
    that are left out on purpose."""

    name: str
    found: int
    asked: int
    left_out: int

    @property
    def value(self) -> float:
        return self.found / self.asked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    for folder in parser.parse_args().folders:
        began = time.perf_counter()
        attrition = Attrition("books")
        passages = textbooks.read_textbooks(folder, attrition).read_all().to_pylist()
        print(
            f"{folder.name}: {len(passages):,} passages in "
            f"{time.perf_counter() - began:.1f} s; {attrition.as_json()}"
        )
        for recall in recalls(folder, passages):
            asked = f"{recall.found:,} of {recall.asked:,}"
            print(
                f"    {recall.name:10} {recall.value:.4f} ({asked}; {recall.left_out:,} "
                "more in sections that are left out on purpose)"
            )


def recalls(folder: Path, passages: list[dict[str, object]]) -> list[Recall]:
    """What of ``cardio_passages.jsonl`` and ``glossary.jsonl`` is found in the passages read from
    the same folder."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    terms = set()
    for passage in passages:
        module = str(passage["location"]).partition("#")[0]
        texts[module].append(letters(str(passage["text"])))
        if passage["kind"] == "definition":
            terms.add((module, letters(str(passage["title"])), letters(str(passage["text"]))))
    asked = lines(folder / "cardio_passages.jsonl")
    left_out = listed(folder / "modules")
    kept = [row for row in asked if (row["module"], row["para_id"]) not in left_out]
    found = sum(any(letters(row["text"]) in text for text in texts[row["module"]]) for row in kept)
    glossary = lines(folder / "glossary.jsonl")
    defined = sum(
        (row["module"], letters(row["term"]), letters(row["meaning"])) in terms for row in glossary
    )
    return [
        Recall("passages", found, len(kept), len(asked) - len(kept)),
        Recall("glossary", defined, len(glossary), 0),
    ]


def listed(modules: Path) -> set[tuple[str, str]]:
    """(module, element) of everything in a reference list, as the CNXML itself says."""
    found = set()
    for path in sorted(modules.glob("*.cnxml")):
        root = lxml.etree.parse(str(path)).getroot()
        for section in root.iter("{*}section"):
            title = section.findtext("{*}title") or ""
            if LEFT_OUT.search(section.get("class") or "") or title == "References":
                found |= {
                    (path.stem, element.get("id")) for element in section.iter("{*}para", "{*}list")
                }
    return found


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def letters(text: str) -> str:
    """Letters and digits only, in lower case, without the words that stand for links."""
    plain = re.sub(
        r"\b(?:figure|table)\b", "", unicodedata.normalize("NFKC", text.replace("−", "-")).lower()
    )
    return re.sub(r"[\W_]+", "", plain)


if __name__ == "__main__":
    main()
