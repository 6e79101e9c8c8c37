"""The checklist has every item of both statements, filled from the record where it can be, and a
marked gap where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from clinpeft.core.errors import UsageError
from clinpeft.reports import cards
from clinpeft.reports.checklist import (
    CHECKLIST_GAP_MARK,
    read_checklist,
    render_reporting_checklist,
)
from tests.reports.invented import answering
from tests.reports.test_cards import metadata
from tests.reports.test_classification import make_classify_recipe
from tests.runs.conftest import finished_run

PARTS = {
    3: "abc",
    5: "ab",
    6: "abc",
    8: "abc",
    9: "abc",
    12: "abcdefg",
    18: "abcdef",
    20: "abc",
    23: "ab",
    27: "abc",
}


def lines(text: str) -> dict[str, str]:
    """Item of TRIPOD+AI -> what its line says of the record."""
    part = text.partition("## TRIPOD+AI")[2].partition("## TRIPOD-LLM")[0]
    cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {cell[0]: cell[3] for cell in cells[1:]}


def test_every_item_stands_once_in_the_order_of_the_statements() -> None:
    expected = [f"{number}{letter}" for number in range(1, 28) for letter in PARTS.get(number, " ")]
    assert [item.number for item in read_checklist("tripod-ai").items] == [
        number.strip() for number in expected
    ] and len(expected) == 52
    assert [item.number for item in read_checklist("tripod-llm").items] == [
        str(number) for number in range(1, 20)
    ]


def test_what_the_record_knows_is_filled_in(tmp_path: Path) -> None:
    texts = lines(render_reporting_checklist([answering(tmp_path, 1, "mortality", 7, 0.8)], "t"))
    assert (
        "synthetic, fingerprint s1" in texts["5a"]
        and "by subject, 0.7 / 0.1 / 0.2" in texts["12a"]
        and CHECKLIST_GAP_MARK not in texts["12a"]
    )
    assert (
        "mortality: n 400, 300 people, 100 events, held out" in texts["21"]
        and "auroc 0.800 (0.780–0.820)" in texts["23a"]
    )
    assert "stays, newborn" in texts["6b"] and "1,000 parameters trained" in texts["22"]


def test_what_only_a_person_knows_is_a_marked_gap(tmp_path: Path) -> None:
    texts = lines(render_reporting_checklist([answering(tmp_path, 1, "mortality", 7, 0.8)], "t"))
    for number in ("1", "2", "3a", "3b", "3c", "17", "18a", "25", "26", "27a", "27b", "27c"):
        assert texts[number].startswith(CHECKLIST_GAP_MARK), number
    assert CHECKLIST_GAP_MARK in texts["5a"] and "☑" in texts["5a"]


def test_small_counts_are_not_told(tmp_path: Path) -> None:
    run = finished_run(tmp_path)  # 6 people
    assert "<10 people" in render_reporting_checklist(
        [run], "t"
    ) and "6 people" not in render_reporting_checklist([run], "t")


def test_the_card_of_an_adapter_is_what_the_hub_reads(tmp_path: Path) -> None:
    text = cards.render_model_card(answering(tmp_path, 1, "mortality", 7, 0.8))
    texts = metadata(text)
    assert (texts["base_model"], texts["library_name"], texts["pipeline_tag"]) == (
        "toy-llama",
        "peft",
        "text-classification",
    )
    assert texts["license"] == "other" and {"peft", "lora"} <= set(texts["tags"])
    (model_index,) = texts["model-index"][0]["results"]
    assert (
        model_index["task"]["name"] == "mortality" and model_index["dataset"]["split"] == "held_out"
    )
    assert model_index["metrics"][0] == {
        "type": "auroc",
        "value": 0.8,
        "name": "auroc, 95 % interval 0.780 to 0.820",
    }


def test_the_card_says_what_the_adapter_does_not_beat_and_what_is_to_be_written(
    tmp_path: Path,
) -> None:
    text = cards.render_model_card(answering(tmp_path, 1, "mortality", 7, 0.8))
    assert (
        "**Does not beat TF-IDF on mortality**: difference -0.100" in text
        and text.count("**To be written:**") == 4
    )
    assert "None" not in text and "0.123" not in text


def test_the_card_of_a_language_adapter_has_its_perplexity(tmp_path: Path) -> None:
    texts = metadata(cards.render_model_card(finished_run(tmp_path)))
    assert (
        texts["pipeline_tag"] == "text-generation"
        and texts["model-index"][0]["results"][0]["metrics"][0]["value"] == 9.0
    )


def test_a_head_alone_has_no_card(tmp_path: Path) -> None:
    run = finished_run(tmp_path, recipe=make_classify_recipe(adapters=[]), kind="classify")
    assert not cards.has_model_card(run)
    with pytest.raises(UsageError) as error:
        cards.render_model_card(run)
    assert error.value.location == "card" and run.id in error.value.message
