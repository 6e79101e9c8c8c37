"""The tables of questions say what the runs measured, beside what it has to beat and what was
published."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import rich.console

from clinpeft import recipe as recipes
from clinpeft import reports
from clinpeft.core import schemas
from clinpeft.recipe import Cell, Recipe
from clinpeft.reports import CellResult, Estimate, ReportTable
from clinpeft.runs import Run, RunComparison, RunListing, compute_run_id
from tests.runs.conftest import finished_run, make_recipe, results_of

TFIDF = "TF-IDF + logistic regression"
ENVIRONMENT = dict.fromkeys(
    ("MIMIC_III", "LLAMA_7B", "PMC_LLAMA_7B", "BLUEBERT", "UMLSBERT", "BIO_CLINICAL_BERT", "CORE"),
    "/there",
)
PUBLISHED = {"mortality": 0.668, "procedures": 0.6383, "macro_average": 0.5861}


def make_classify_recipe(task: str = "mortality", seed: int = 1, **changes: Any) -> Recipe:
    return make_recipe(
        **{
            "kind": "classify",
            "task": {"name": task},
            "seed": seed,
            "adapters": [{"method": "lora"}],
            **changes,
        }
    )


def score(
    value: float | None,
    task: str = "mortality",
    name: str = "auroc",
    group: str = "model",
    width: float = 0.02,
    **changes: Any,
) -> dict[str, Any]:
    interval = (
        {"low": None, "high": None, "level": None}
        if value is None
        else {"low": value - width, "high": value + width, "level": 0.95}
    )
    row = {
        "name": name,
        "value": value,
        **interval,
        "n": 400,
        "n_subjects": 300,
        "n_events": 100,
        "split": "held_out",
        "group": group,
    }
    return {**row, "definition": "area under the ROC curve", "task": task, **changes}


def against_tfidf(
    difference: float,
    width: float = 0.02,
    task: str = "mortality",
    name: str = "auroc_difference",
    minus: str = "−",
) -> dict[str, Any]:
    return score(difference, task, name, f"model {minus} {TFIDF}", width)


def answered(home: Path, run_id: str, recipe: Recipe, *rows: dict[str, Any], **facts: Any) -> Run:
    defaults = {
        "kind": "classify",
        "trained_parameters": 1_000,
        "trained_fraction": 0.01,
        "training_seconds": 60.0,
    }
    return finished_run(home, run_id, recipe, rows, **{**defaults, **facts})


def id_of(number: int) -> str:
    return f"{number:012x}"


def read_rows(table: ReportTable) -> dict[str, dict[str, str]]:
    titles = [column.title for column in table.columns]
    return {row[0]: dict(zip(titles, row, strict=True)) for row in table.cell_texts}


def two_tasks(home: Path) -> list[CellResult]:
    first = answered(
        home,
        id_of(1),
        make_classify_recipe("mortality"),
        score(0.8),
        score(0.7, group=TFIDF),
        score(0.5, group="prevalence"),
    )
    row: dict[str, Any] = {"task": "procedures", "name": "auroc_macro"}
    second = answered(
        home,
        id_of(2),
        make_classify_recipe("procedures"),
        score(0.6, **row),
        score(0.65, group=TFIDF, **row),
        trained_parameters=9_000,
        training_seconds=30.0,
    )
    names = ("LLaMA · LoRA · mortality", "LLaMA · LoRA · procedures")
    return [
        CellResult(name, run, published=PUBLISHED)
        for name, run in zip(names, (first, second), strict=True)
    ]


def test_cells_that_differ_by_task_are_one_row_with_the_plain_mean_over_tasks(
    tmp_path: Path,
) -> None:
    row = read_rows(reports.build_classification_table(two_tasks(tmp_path), "Table 3"))[
        "LLaMA · LoRA"
    ]
    assert (row["mortality"], row["procedures"]) == ("0.800 (0.780–0.820)", "0.600 (0.580–0.620)")
    assert row["macro average"] == "0.700"
    assert (row["trained"], row["time"]) == ("1,000–9,000", "0:01:30")


def test_published_values_stand_beside_each_task_and_their_mean_is_recomputed(
    tmp_path: Path,
) -> None:
    """(0.6680 + 0.6383) / 2 = 0.65315, and not what was printed."""
    table = reports.build_classification_table(two_tasks(tmp_path), "t")
    row = read_rows(table)["LLaMA · LoRA"]
    assert (
        row["published mortality"],
        row["published procedures"],
        row["published macro average"],
    ) == ("0.6680", "0.6383", "0.6532")
    assert (
        "Published macro averages are recomputed from the published values; printed "
        "otherwise: LLaMA · LoRA (0.5861, not 0.6532)."
    ) in table.notes


def test_nothing_published_leaves_no_columns_and_no_note(tmp_path: Path) -> None:
    table = reports.build_classification_table(
        [CellResult("LoRA", answered(tmp_path, id_of(1), make_classify_recipe(), score(0.8)))], "t"
    )
    assert [column.title for column in table.columns] == [
        "model",
        "mortality",
        "trained",
        "share",
        "time",
    ]
    assert table.notes == (
        "mortality: auroc on split held_out, 400 stays; area under the ROC curve.",
    )


def test_each_baseline_stands_above_the_rows_once(tmp_path: Path) -> None:
    entries = [
        *two_tasks(tmp_path),
        CellResult(
            "head only · mortality",
            answered(
                tmp_path,
                id_of(3),
                make_classify_recipe(adapters=[]),
                score(0.75),
                score(0.7, group=TFIDF),
            ),
        ),
    ]
    table = reports.build_classification_table(entries, "t")
    assert [row[0] for row in table.cell_texts] == [
        TFIDF,
        "prevalence",
        "LLaMA · LoRA",
        "head only",
    ]
    rows = read_rows(table)
    assert (rows[TFIDF]["mortality"], rows[TFIDF]["procedures"], rows[TFIDF]["macro average"]) == (
        "0.700 (0.680–0.720)",
        "0.650 (0.630–0.670)",
        "0.675",
    )
    assert (
        rows["prevalence"]["procedures"],
        rows["prevalence"]["macro average"],
        rows["prevalence"]["trained"],
    ) == ("–", "–", "–")


def test_several_seeds_show_their_mean_and_apart_from_the_interval_their_spread(
    tmp_path: Path,
) -> None:
    """Values 0.70, 0.80, 0.75: mean 0.75, standard deviation 0.05; ends 0.68, 0.78, 0.73 and 0.72,
    0.82, 0.77."""
    values = {1: 0.7, 2: 0.8, 3: 0.75}
    runs = {
        seed: answered(
            tmp_path,
            id_of(seed),
            make_classify_recipe(seed=seed),
            score(value),
            training_seconds=60.0 * seed,
        )
        for seed, value in values.items()
    }
    table = reports.build_classification_table(
        [CellResult(f"seed={seed} · LoRA", run) for seed, run in runs.items()], "t"
    )
    row = read_rows(table)["LoRA"]
    assert (row["mortality"], row["mortality, SD and range over seeds"]) == (
        "0.750 (0.730–0.770)",
        "0.050 (0.700–0.800)",
    )
    assert (row["trained"], row["time"]) == ("1,000", "0:02:00")
    assert any("mean over up to 3 seeds" in note for note in table.notes)


def test_a_spread_over_seeds_of_the_macro_average_takes_only_seeds_with_all_tasks(
    tmp_path: Path,
) -> None:
    entries = []
    for at, (seed, task, value) in enumerate(
        (
            (1, "mortality", 0.8),
            (1, "ventilation", 0.6),
            (2, "mortality", 0.9),
            (2, "ventilation", 0.7),
            (3, "mortality", 0.1),
        )
    ):
        entries.append(
            CellResult(
                f"LoRA · {task} · seed={seed}",
                answered(tmp_path, id_of(at), make_classify_recipe(task, seed), score(value, task)),
            )
        )
    row = read_rows(reports.build_classification_table(entries, "t"))["LoRA"]
    assert row["macro average"] == "0.750"
    assert row["macro average, SD and range over seeds"] == "0.071 (0.700–0.800)"
    assert row["mortality"].startswith("0.600")


def test_one_run_that_answers_several_questions_is_one_row(tmp_path: Path) -> None:
    run = answered(
        tmp_path,
        id_of(1),
        make_classify_recipe(more_tasks=[{"name": "ventilation"}]),
        score(0.8),
        score(0.7, "ventilation"),
    )
    row = read_rows(reports.build_classification_table([CellResult("five heads", run)], "t"))[
        "five heads"
    ]
    assert (row["mortality"], row["ventilation"], row["macro average"], row["time"]) == (
        "0.800 (0.780–0.820)",
        "0.700 (0.680–0.720)",
        "0.750",
        "0:01:00",
    )


@pytest.mark.parametrize(
    ("difference", "width", "expected"),
    [
        (0.05, 0.02, ""),
        (0.01, 0.02, "does not beat TF-IDF: no better on mortality"),
        (0.02, 0.02, "does not beat TF-IDF: no better on mortality"),
        (-0.05, 0.02, "does not beat TF-IDF: worse on mortality"),
    ],
)
def test_a_row_that_does_not_beat_tfidf_says_so(
    tmp_path: Path, difference: float, width: float, expected: str
) -> None:
    failed = CellResult("other", None, message="no such file", recipe=make_classify_recipe())
    run = answered(
        tmp_path,
        id_of(1),
        make_classify_recipe(),
        score(0.8),
        score(0.78, group=TFIDF),
        against_tfidf(difference, width),
    )
    assert (
        read_rows(reports.build_classification_table([CellResult("LoRA", run), failed], "t"))[
            "LoRA"
        ]["remark"]
        == expected
    )


def test_the_verdict_is_given_by_task(tmp_path: Path) -> None:
    rows = [
        score(0.8),
        against_tfidf(-0.05),
        score(0.6, "diagnoses", "auroc_macro"),
        against_tfidf(0.0, 0.01, "diagnoses", "auroc_macro_difference", "-"),
    ]
    run = answered(
        tmp_path, id_of(1), make_classify_recipe(more_tasks=[{"name": "diagnoses"}]), *rows
    )
    remark = read_rows(reports.build_classification_table([CellResult("LoRA", run)], "t"))["LoRA"][
        "remark"
    ]
    assert remark == "does not beat TF-IDF: no better on diagnoses, worse on mortality"


def test_a_cell_that_failed_leaves_its_column_empty_and_says_which(tmp_path: Path) -> None:
    good, _ = two_tasks(tmp_path)
    bad = CellResult(
        "LLaMA · LoRA · procedures",
        None,
        message="the loss is nan",
        recipe=make_classify_recipe("procedures"),
    )
    row = read_rows(reports.build_classification_table([good, bad], "t"))["LLaMA · LoRA"]
    assert (row["procedures"], row["macro average"], row["remark"]) == (
        "–",
        "–",
        "procedures: failed: the loss is nan",
    )
    worse = CellResult(
        "LLaMA · LoRA · diagnoses",
        None,
        message="the loss is nan",
        recipe=make_classify_recipe("diagnoses"),
    )
    assert (
        read_rows(reports.build_classification_table([good, bad, worse], "t"))["LLaMA · LoRA"][
            "remark"
        ]
        == "procedures, diagnoses: failed: the loss is nan"
    )
    unknown = reports.build_classification_table(
        [CellResult("unknown", None, message="unknown key")], "t"
    )
    assert read_rows(unknown)["unknown"]["remark"] == "failed: unknown key"


def test_a_failed_seed_is_named_with_its_seed(tmp_path: Path) -> None:
    run = answered(tmp_path, id_of(1), make_classify_recipe(), score(0.8))
    entries = [
        CellResult("seed=1 · LoRA", run),
        CellResult(
            "seed=2 · LoRA", None, message="the loss is nan", recipe=make_classify_recipe(seed=2)
        ),
    ]
    assert (
        read_rows(reports.build_classification_table(entries, "t"))["LoRA"]["remark"]
        == "mortality with seed 2: failed: the loss is nan"
    )


def test_the_papers_own_scoring_stands_beside_where_it_gives_another_number(tmp_path: Path) -> None:
    row: dict[str, Any] = {"task": "diagnoses", "name": "auroc_macro"}
    first = answered(
        tmp_path,
        id_of(1),
        make_classify_recipe(),
        score(0.8),
        score(0.8, name="auroc_clinical_peft"),
    )
    second = answered(
        tmp_path,
        id_of(2),
        make_classify_recipe("diagnoses"),
        score(0.7, **row),
        score(0.65, "diagnoses", "auroc_clinical_peft"),
    )
    table = reports.build_classification_table(
        [CellResult("LoRA · mortality", first), CellResult("LoRA · diagnoses", second)], "t"
    )
    assert read_rows(table)["LoRA"]["diagnoses, as scored by the paper"] == "0.650 (0.630–0.670)"
    assert "mortality, as scored by the paper" not in [column.title for column in table.columns]


def test_the_table_survives_its_renderings(tmp_path: Path) -> None:
    table = reports.build_classification_table(two_tasks(tmp_path), "t")
    (_, _, mine) = csv.DictReader(io.StringIO(reports.as_csv_table(table)))
    assert (
        mine["model"],
        mine["mortality"],
        mine["mortality low"],
        mine["published mortality"],
    ) == ("LLaMA · LoRA", "0.8", "0.78", "0.668")
    console = rich.console.Console(file=io.StringIO(), width=150, record=True)
    console.print(reports.as_rich_table(table))
    assert "[published 0.6680]" in console.export_text()


def test_a_table_of_no_entries_is_a_table() -> None:
    table = reports.build_classification_table([], "t", ["On nobody."])
    assert (table.rows, table.notes) == ((), ("On nobody.",))


def grid(name: str) -> list[Cell]:
    path = Path(__file__).parents[2] / "recipes" / f"{name}.toml"
    return recipes.load_recipe_cells(path, environment=ENVIRONMENT)


@pytest.mark.parametrize(
    ("name", "rows", "otherwise"),
    [
        (
            "paper-table-3",
            12,
            [
                "LLaMA · head only (0.5861, not 0.5994)",
                "PMC-LLaMA · clinical LoRA (frozen) (0.6006, not 0.6170)",
            ],
        ),
        ("paper-table-4", 9, ["BlueBERT · LoRA (0.7156, not 0.7138)"]),
    ],
)
def test_the_papers_tables_have_five_tasks_a_row_and_name_the_means_that_are_misprinted(
    name: str, rows: int, otherwise: list[str]
) -> None:
    table = reports.build_classification_table(
        [
            CellResult(cell.name, None, published=cell.published, recipe=cell.recipe)
            for cell in grid(name)
        ],
        name,
    )
    assert len(table.rows) == rows
    columns = [column.title for column in table.columns if column.title.startswith("published ")]
    assert columns == [
        f"published {task}"
        for task in (
            "ventilation",
            "mortality",
            "length_of_stay",
            "diagnoses",
            "procedures",
            "macro average",
        )
    ]
    assert table.notes[-1].endswith(f"printed otherwise: {'; '.join(otherwise)}.")


def test_the_best_row_of_table_3_is_the_same_run_in_table_4() -> None:
    third, fourth = (
        {cell.name: cell.recipe for cell in grid(name)}
        for name in ("paper-table-3", "paper-table-4")
    )
    best = [
        name
        for name in fourth
        if name.startswith("LLaMA · clinical LoRA (trainable) + downstream LoRA")
    ]
    assert len(best) == 5
    assert all(
        compute_run_id(third[name], "s", "b", "1") == compute_run_id(fourth[name], "s", "b", "1")
        for name in best
    )


def test_the_summary_of_a_run_says_its_stack_its_metric_and_its_proof(tmp_path: Path) -> None:
    stack = [
        {"method": "lora", "from_run": "clinical-lora", "trainable": False},
        {"method": "lora"},
        {"method": "ia3", "active": False},
    ]
    frozen = {
        "name": "1-lora",
        "role": "frozen",
        "parameters": 0,
        "gradient": None,
        "moved": None,
        "change_when_off": 0.12,
    }
    trained = {
        "name": "2-lora",
        "role": "trained",
        "parameters": 96,
        "gradient": 0.5,
        "moved": 0.03,
        "change_when_off": 2.0,
    }
    inert = {
        "name": "3-ia3",
        "role": "inert",
        "parameters": 0,
        "gradient": None,
        "moved": None,
        "change_when_off": 0.0,
    }
    proof = {"proofs": [frozen, trained, inert], "frozen_tensors": 60, "frozen_sha256": "f1"}
    rows = (score(0.8), score(0.7, group=TFIDF), against_tfidf(0.1))
    facts = dict(
        reports.build_run_summary(
            answered(
                tmp_path, id_of(1), make_classify_recipe(adapters=stack), *rows, liveness=proof
            )
        ).cell_texts
    )
    assert facts["adapters"] == "lora (frozen, from clinical-lora) + lora + ia3 (inactive)"
    assert facts["tasks"] == "mortality"
    assert (
        facts["mortality, held out"]
        == f"auroc 0.800 (0.780–0.820); {TFIDF} 0.700 (0.680–0.720); difference 0.100 (0.080–0.120)"
    )
    assert facts["liveness"] == (
        "1-lora frozen, changes the logits by 0.12; 2-lora trained, gradient 0.5, moved by "
        "0.03, changes the logits by 2; "
        "3-ia3 inert, changes the logits by 0; 60 frozen tensors unchanged"
    )


def test_a_run_without_adapters_trains_its_head_or_everything(tmp_path: Path) -> None:
    whole = make_classify_recipe(adapters=[], base={"path": "/models/bert", "trainable": True})
    both = make_classify_recipe(base={"path": "/models/bert", "trainable": True})
    runs = [
        answered(tmp_path, id_of(at), recipe, score(0.8))
        for at, recipe in enumerate((make_classify_recipe(adapters=[]), whole, both))
    ]
    table = reports.build_runs_table(RunListing(tuple(runs)))
    assert [
        row["adapters"]
        for row in map(
            dict,
            (zip([c.title for c in table.columns], row, strict=True) for row in table.cell_texts),
        )
    ] == [
        "head only",
        "all weights",
        "all weights + lora",
    ]
    assert table.cell_texts[0][8] == "auroc 0.800 (mortality)"


def test_subgroups_have_a_table_of_their_own(tmp_path: Path) -> None:
    rows = (
        score(0.8),
        score(0.75, group="model · sex F"),
        score(None, group="model · sex M", n=12, n_subjects=7, n_events=3),
    )
    run = answered(tmp_path, id_of(1), make_classify_recipe(), *rows)
    assert [row[3] for row in reports.build_run_results_table(run).cell_texts] == ["model"]
    assert reports.build_run_subgroups_table(run).cell_texts == [
        [
            "auroc",
            "mortality",
            "held_out",
            "model · sex F",
            "0.750 (0.730–0.770)",
            "400",
            "300",
            "100",
        ],
        [
            "auroc",
            "mortality",
            "held_out",
            "model · sex M",
            "fewer than 10 subjects",
            "12",
            "<10",
            "<10",
        ],
    ]


def test_a_number_that_no_data_defines_is_a_dash_and_not_a_small_cell() -> None:
    table = reports.build_scores_table(results_of(score(None, definition="one class only")), "t")
    assert table.cell_texts[0][4] == "–"
    assert table.notes == ("auroc: one class only.",)


def test_the_prevalence_stands_beside_the_auprc() -> None:
    """100 events in 400 stays; of several labels what the baseline measured."""
    rows = [
        score(0.4, name="auprc"),
        score(0.3, "diagnoses", "auprc_macro"),
        score(0.02, "diagnoses", "auprc_macro", "prevalence"),
        score(0.8),
    ]
    table = reports.build_scores_table(results_of(*rows), "t")
    assert [column.title for column in table.columns][5] == "prevalence"
    assert [row[5] for row in table.cell_texts] == ["0.250", "0.020", "0.020", "–"]


def test_the_calibration_curve_is_a_table_of_bins() -> None:
    point = {"name": "calibration", "task": "mortality", "group": "model", "split": "held_out"}
    bins: list[dict[str, Any]] = [
        {**point, "x": 0.1, "y": 0.12, "low": 0.1, "high": 0.2, "n": 200},
        {**point, "x": 0.9, "y": None, "low": None, "high": None, "n": 0},
    ]
    curves = pa.Table.from_pylist(
        [*bins, {**bins[0], "name": "net_benefit"}], schema=schemas.CURVE_POINT_SCHEMA
    )
    assert reports.build_calibration_table(curves, "t").cell_texts == [
        ["mortality", "held_out", "model", "0.100", "0.120 (0.100–0.200)", "200"],
        ["mortality", "held_out", "model", "0.900", "–", "0"],
    ]


def test_predictions_are_shown_with_the_tables_that_have_rows() -> None:
    none = schemas.CURVE_POINT_SCHEMA.empty_table()
    assert [
        table.title for table in reports.build_scores_tables(results_of(score(0.8)), none, "mine")
    ] == ["mine"]
    some = results_of(score(0.8), score(0.7, group="model · sex F"))
    assert [table.title for table in reports.build_scores_tables(some, none, "mine")] == [
        "mine",
        "mine: subgroups",
    ]


def test_the_cells_of_plain_axes_are_one_row_too(tmp_path: Path) -> None:
    """As a grid over ``task.name`` and ``seed`` names them."""
    cells = [("ventilation", 1), ("ventilation", 2), ("length_of_stay", 1), ("length_of_stay", 2)]
    entries = [
        CellResult(
            f"task.name={task} · seed={seed} · LoRA",
            answered(tmp_path, id_of(at), make_classify_recipe(task, seed), score(0.7, task)),
        )
        for at, (task, seed) in enumerate(cells)
    ]
    assert list(read_rows(reports.build_classification_table(entries, "t"))) == ["LoRA"]


def test_two_runs_of_questions_are_compared_on_what_both_measured(tmp_path: Path) -> None:
    first = answered(
        tmp_path,
        id_of(1),
        make_classify_recipe(),
        score(0.8),
        score(0.75, group="model · sex F"),
        score(0.6, group=TFIDF),
    )
    second = answered(
        tmp_path,
        id_of(2),
        make_classify_recipe(adapters=[]),
        score(0.7),
        score(0.75, group="model · sex F"),
    )
    paired = results_of(
        score(0.1, name="auroc_difference", group="1 − 2"),
        score(0.0001, name="delong_p", group="1 − 2"),
    )
    _, results, differences = reports.build_comparison_tables(
        RunComparison(first, second, (), ""), paired, ""
    )
    assert results.cell_texts == [
        ["auroc", "mortality", "held_out", "model", "0.800 (0.780–0.820)", "0.700 (0.680–0.720)"]
    ]
    assert results.notes == ("Not shown, since only one of the two has them: 1 number.",)
    assert differences.title == "Paired, on the same stays"
    assert [row[4] for row in differences.cell_texts] == ["0.100 (0.080–0.120)", "<0.001"]


def test_two_runs_of_questions_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    run = answered(tmp_path, id_of(1), make_classify_recipe(), score(0.8))
    (_, results) = reports.build_comparison_tables(
        RunComparison(run, run, (), ""), None, "they ask other stays"
    )
    assert results.notes == ("Not comparable: they ask other stays.",)
    assert results.rows == (
        (
            "auroc",
            "mortality",
            "held_out",
            "model",
            Estimate(0.8, 0.78, 0.8 + 0.02),
            Estimate(0.8, 0.78, 0.8 + 0.02),
        ),
    )
