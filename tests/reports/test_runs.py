"""The tables about runs say what the runs measured, and nothing that they did not."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import rich.console

from clinpeft import reports, runs
from clinpeft.core.errors import TrainingError
from clinpeft.recipe import CohortRecipe, SourceSpec, TaskSpec
from clinpeft.reports import CellResult, ReportTable
from clinpeft.runs import InputHashes
from tests.runs.conftest import NIGHT, finished_run, make_recipe, opening, result, results_of

LORA = "aaaaaaaaaaaa"
PREFIX = "bbbbbbbbbbbb"

PUBLISHED: dict[str, Any] = {
    "trained": 8_388_608,
    "share": ".12%",
    "train_perplexity": 1.858,
    "test_perplexity": 2.244,
    "time": "21:37:42",
}
NUMBERS: dict[str, Any] = {
    "base_parameters": 1_000_000,
    "trained_parameters": 1_200,
    "trained_fraction": 0.0012,
    "tokens_seen": 7_200,
    "training_seconds": 3.6,
}
BASE = (result(15.0, "train", "base"), result(14.0, group="base"))


def trained(home: Path, run_id: str = LORA, test: float = 9.0, **facts: Any) -> runs.Run:
    return finished_run(
        home, run_id, rows=(*BASE, result(8.5, "train"), result(test)), **{**NUMBERS, **facts}
    )


def failed(home: Path, run_id: str = PREFIX) -> runs.Run:
    with runs.open_run_folder(
        home, make_recipe(adapters=[{"method": "prefix"}]), opening(run_id)
    ) as run:
        return runs.fail_run(
            run,
            TrainingError(
                "the loss is nan", location="step 7", hint="lower training.learning_rate"
            ),
            NIGHT,
        )


def rows(table: ReportTable) -> dict[str, dict[str, str]]:
    titles = [column.title for column in table.columns]
    return {row[0]: dict(zip(titles, row, strict=True)) for row in table.cell_texts}


def test_the_adaptation_table_has_what_table_2_of_the_paper_has(tmp_path: Path) -> None:
    table = reports.build_adaptation_table([CellResult("LoRA", trained(tmp_path))], "Table 2")
    expected = {
        "trained": "1,200",
        "share": ".12%",
        "train perplexity": "8.500",
        "test perplexity": "9.000 (8.750–9.500)",
    }
    assert rows(table)["LoRA"] == {
        "method": "LoRA",
        **expected,
        "time": "0:00:04",
        "tokens/s": "2,000",
    }


def test_published_values_stand_beside_the_measured_and_only_where_there_are_any(
    tmp_path: Path,
) -> None:
    run = trained(tmp_path)
    with_some = rows(
        reports.build_adaptation_table(
            [CellResult("LoRA", run, published=PUBLISHED), CellResult("mine", run, published={})],
            "t",
        )
    )
    assert with_some["LoRA"]["published trained"] == "8,388,608"
    assert with_some["LoRA"]["published share"] == ".12%"
    assert (
        with_some["LoRA"]["published train perplexity"],
        with_some["LoRA"]["published test perplexity"],
        with_some["LoRA"]["published time"],
    ) == (
        "1.858",
        "2.244",
        "21:37:42",
    )
    assert with_some["mine"]["published test perplexity"] == "–"
    assert not [
        title
        for title in rows(reports.build_adaptation_table([CellResult("mine", run)], "t"))["mine"]
        if "published" in title
    ]


def test_the_base_as_it_comes_stands_above_its_adapters_once(tmp_path: Path) -> None:
    entries = [
        CellResult("LoRA", trained(tmp_path)),
        CellResult("prefix", trained(tmp_path, PREFIX, 10.0)),
    ]
    table = reports.build_adaptation_table(entries, "t")
    assert [row[0] for row in table.cell_texts] == ["toy-llama, not adapted", "LoRA", "prefix"]
    assert table.cell_texts[0][1:5] == ["0", "0%", "15.000", "14.000 (13.750–14.500)"]


def test_two_bases_have_a_row_each(tmp_path: Path) -> None:
    other = make_recipe(base={"path": "/models/other"})
    second = finished_run(tmp_path, PREFIX, other, rows=(result(20.0, group="base"), result(9.0)))
    table = reports.build_adaptation_table(
        [CellResult("LoRA", trained(tmp_path)), CellResult("LoRA, other", second)], "t"
    )
    assert [row[0] for row in table.cell_texts][:2] == [
        "toy-llama, not adapted",
        "other, not adapted",
    ]


def test_a_unigram_model_stands_above_all_where_it_was_measured(tmp_path: Path) -> None:
    run = finished_run(tmp_path, rows=(*BASE, result(300.0, group="unigram"), result(9.0)))
    table = reports.build_adaptation_table([CellResult("LoRA", run)], "t")
    assert [row[0] for row in table.cell_texts] == [
        "unigram model",
        "toy-llama, not adapted",
        "LoRA",
    ]
    assert table.cell_texts[0][1:6] == ["–", "–", "–", "300.000 (299.750–300.500)", "–"]


def test_a_cell_that_failed_has_its_reason_in_its_row(tmp_path: Path) -> None:
    entries = [
        CellResult("LoRA", trained(tmp_path)),
        CellResult("prefix", failed(tmp_path)),
        CellResult("prompt", None, "unknown key"),
    ]
    cells = rows(reports.build_adaptation_table(entries, "t"))
    assert cells["prefix"]["remark"] == "failed: the loss is nan"
    assert cells["prompt"]["remark"] == "failed: unknown key"
    assert cells["LoRA"]["remark"] == ""
    assert {
        cells["prompt"][title]
        for title in ("trained", "share", "test perplexity", "time", "tokens/s")
    } == {"–"}


def test_the_note_under_the_table_says_which_split_and_level(tmp_path: Path) -> None:
    (note, own) = reports.build_adaptation_table(
        [CellResult("LoRA", trained(tmp_path))], "t", ["On 12 invented patients."]
    ).notes
    assert "test is split held_out" in note
    assert "95 % interval" in note
    assert own == "On 12 invented patients."


def test_a_table_of_nothing_is_a_table(tmp_path: Path) -> None:
    assert reports.build_adaptation_table([], "t").rows == ()
    assert "| method |" in reports.as_markdown_table(reports.build_adaptation_table([], "t"))


def test_the_summary_says_before_and_after(tmp_path: Path) -> None:
    ratio = result(0.64, name="perplexity_ratio", group="adapted / base", low=0.6, high=0.7)
    run = finished_run(
        tmp_path,
        rows=(*BASE, result(8.5, "train"), result(9.0), ratio),
        notices=("the tuning split is empty",),
        **NUMBERS,
    )
    facts = {row[0]: row[1] for row in reports.build_run_summary(run).cell_texts}
    assert (
        facts["test perplexity"]
        == "14.000 (13.750–14.500) before, 9.000 (8.750–9.500) after, 0.640 (0.600–0.700) times"
    )
    assert facts["train perplexity"] == "15.000 (14.750–15.500) before, 8.500 (8.250–9.000) after"
    assert facts["trained"] == "1,200 of 1,000,000 parameters (.12%)"
    assert (facts["tokens/s"], facts["training time"], facts["notice"]) == (
        "2,000",
        "0:00:04",
        "the tuning split is empty",
    )
    assert "tuning perplexity" not in facts


def test_the_summary_of_a_failed_run_says_why_and_the_way_out(tmp_path: Path) -> None:
    facts = {row[0]: row[1] for row in reports.build_run_summary(failed(tmp_path)).cell_texts}
    assert (facts["state"], facts["error"], facts["where"], facts["hint"]) == (
        "failed",
        "the loss is nan",
        "step 7",
        "lower training.learning_rate",
    )
    assert not {"trained", "tokens/s", "training time"} & set(facts)


def test_results_and_attrition_are_shown_in_full(tmp_path: Path) -> None:
    run = trained(tmp_path)
    assert reports.build_run_results_table(run).cell_texts[-1] == [
        "perplexity",
        "held_out",
        "adapted",
        "9.000 (8.750–9.500)",
        "12",
        "6",
        "3,400",
    ]
    assert reports.build_run_results_table(run).notes == ("perplexity: exp(nats / tokens).",)
    assert reports.build_run_attrition_table(run).cell_texts == [
        ["corpus", "entered", "10"],
        ["corpus", "dropped: exact duplicate", "3"],
        ["corpus", "kept", "7"],
    ]


def test_the_list_shows_every_run_and_what_could_not_be_read(tmp_path: Path) -> None:
    trained(tmp_path)
    failed(tmp_path)
    (finished_run(tmp_path, "cccccccccccc").folder / "run.json").write_text("{")
    table = reports.build_runs_table(runs.find_all_runs(tmp_path))
    assert table.cell_texts[0][:7] == [
        LORA,
        "clinical-lora",
        "adapt",
        "finished",
        "2025-03-01 12:00",
        "toy-llama",
        "lora",
    ]
    assert table.cell_texts[0][7:] == ["1,200", "perplexity 9.000", "0:00:04"]
    assert table.cell_texts[1][:7] == [
        PREFIX,
        "clinical-lora",
        "adapt",
        "failed",
        "2025-03-01 12:00",
        "toy-llama",
        "prefix",
    ]
    assert table.cell_texts[2][:4] == ["cccccccccccc", "", "", "unreadable"]
    assert "run.json" in table.notes[0]


def test_an_id_is_never_broken_on_a_terminal(tmp_path: Path) -> None:
    trained(
        tmp_path,
        name="a name that is much longer than anybody would ever want a name of a run to be",
    )
    console = rich.console.Console(file=io.StringIO(), width=70, record=True)
    console.print(reports.as_rich_table(reports.build_runs_table(runs.find_all_runs(tmp_path))))
    assert LORA in console.export_text()


def test_a_run_of_a_kind_without_a_base_is_listed_too(tmp_path: Path) -> None:
    source = SourceSpec(name="synthetic", path=Path("/data"))
    recipe = CohortRecipe(kind="cohort", source=source, task=TaskSpec(name="mortality"))
    run = dataclasses.replace(trained(tmp_path), recipe=recipe)
    assert reports.build_runs_table(runs.RunListing((run,))).cell_texts[0][5:7] == ["", ""]


def test_frozen_adapters_are_named_as_such(tmp_path: Path) -> None:
    recipe = make_recipe(adapters=[{"method": "lora", "trainable": False}, {"method": "prefix"}])
    facts = {
        row[0]: row[1]
        for row in reports.build_run_summary(finished_run(tmp_path, recipe=recipe)).cell_texts
    }
    assert facts["adapters"] == "lora (frozen) + prefix"


def test_a_comparison_shows_what_differs_and_the_results_side_by_side(tmp_path: Path) -> None:
    other = finished_run(
        tmp_path, PREFIX, make_recipe(seed=7), rows=(result(9.5), result(3.0, name="accuracy"))
    )
    differences, results = reports.build_comparison_tables(
        runs.compare_runs(trained(tmp_path), other)
    )
    assert ["seed", "1234", "7"] in differences.cell_texts
    assert [
        "perplexity",
        "held_out",
        "adapted",
        "9.000 (8.750–9.500)",
        "9.500 (9.250–10.000)",
    ] in results.cell_texts
    assert ["accuracy", "held_out", "adapted", "–", "3.000 (2.750–3.500)"] in results.cell_texts
    assert results.notes == ()


def test_a_comparison_with_a_paired_ratio_shows_it(tmp_path: Path) -> None:
    comparison = runs.compare_runs(trained(tmp_path), trained(tmp_path, PREFIX, 9.5))
    paired = results_of(result(1.05, name="perplexity_ratio", group=f"{PREFIX} / {LORA}"))
    assert reports.build_comparison_tables(comparison, paired)[2].cell_texts[0][:4] == [
        "perplexity_ratio",
        "held_out",
        f"{PREFIX} / {LORA}",
        "1.050 (0.800–1.550)",
    ]


@pytest.mark.parametrize("reason", ["", "4 notes have another split"])
def test_a_comparison_that_means_nothing_says_so(tmp_path: Path, reason: str) -> None:
    hashes = InputHashes(base="b2", tokenizer="t1" if reason else "t2", corpus_policy="1")
    comparison = runs.compare_runs(trained(tmp_path), trained(tmp_path, PREFIX, hashes=hashes))
    expected = reason or "the tokenizers differ, so a token of one is not a token of the other"
    assert reports.build_comparison_tables(comparison, reason=reason)[1].notes == (
        f"Not comparable on perplexity: {expected}.",
    )
