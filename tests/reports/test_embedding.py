"""The tables of embeddings say what was measured, what was published, and what adapting did not
do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import rich.console

from clinpeft import models, recipe, reports, runs
from clinpeft.reports import CellResult, Estimate, ReportTable
from clinpeft.reports.encoders import (
    BACKBONE_INFO_BY_NAME,
    PUBLISHED_ENCODER_KEYS,
    build_encoder_grid,
    find_ablation,
)
from tests.conftest import ROOT
from tests.reports.conftest import (
    ablation,
    embedded,
    make_embed_recipe,
    row,
    separations,
    ten_backbones,
)
from tests.runs.conftest import opening


def id_of(number: int) -> str:
    return f"{number:012x}"


def read_rows(table: ReportTable) -> dict[tuple[str, str], dict[str, str]]:
    titles = [column.title for column in table.columns]
    return {(line[0], line[1]): dict(zip(titles, line, strict=True)) for line in table.cell_texts}


def scored(
    value: float, group: str = "adapted", task: str = "held-out chapters", **changes: Any
) -> dict[str, Any]:
    return row("ndcg_at_10", value, group, task, 0.02, **changes)


def mined(value: float, state: str = "adapted") -> dict[str, Any]:
    return row("auroc", value, f"{state} · mined", width=0.01)


def test_a_backbone_has_a_row_for_each_state_below_its_controls(tmp_path: Path) -> None:
    rows = [
        *separations(0.1, 0.4),
        mined(0.8),
        mined(0.7, "zero-shot"),
        mined(0.6, "BM25"),
        mined(0.55, "random weights"),
        mined(0.5, "shuffled pairs"),
    ]
    first = embedded(
        tmp_path, id_of(1), make_embed_recipe(), *rows, scored(0.6), scored(0.4, "BM25")
    )
    second = embedded(
        tmp_path,
        id_of(2),
        make_embed_recipe(
            adapters=[], base={"path": "/models/bge-small-en-v1.5", "trainable": True}
        ),
        *rows,
        scored(0.7),
    )
    table = reports.build_embedding_table(
        [CellResult("LoRA", first), CellResult("all weights", second)], "Grid"
    )
    assert [tuple(line[:2]) for line in table.cell_texts] == [
        ("words alone", "BM25"),
        ("bge-small-en-v1.5", "random weights"),
        ("bge-small-en-v1.5", "shuffled pairs"),
        ("bge-small-en-v1.5", "zero-shot"),
        ("bge-small-en-v1.5", "LoRA"),
        ("bge-small-en-v1.5", "all weights"),
    ]
    line_by_row = read_rows(table)
    assert line_by_row["words alone", "BM25"]["AUROC, mined"] == "0.600 (0.590–0.610)"
    assert line_by_row["words alone", "BM25"]["nDCG@10, held-out chapters"] == "0.400 (0.380–0.420)"
    assert (
        line_by_row["bge-small-en-v1.5", "all weights"]["nDCG@10, held-out chapters"]
        == "0.700 (0.680–0.720)"
    )


def test_a_difference_keeps_its_paired_interval_and_one_that_was_not_measured_has_none(
    tmp_path: Path,
) -> None:
    """Measured paired: 0.3 ± 0.03; nDCG@10 only as 0.6 and 0.5, whose difference is 0.1."""
    run = embedded(
        tmp_path,
        id_of(1),
        make_embed_recipe(),
        *separations(0.1, 0.4),
        scored(0.5, "zero-shot"),
        scored(0.6),
    )
    (_, adapted) = read_rows(reports.build_embedding_table([CellResult("BGE", run)], "t")).values()
    assert adapted["separation, adapted less zero-shot"] == "0.300 (0.270–0.330)"
    assert adapted["nDCG@10, held-out chapters, adapted less zero-shot"] == "0.100"


def test_a_row_that_adapting_did_not_help_says_so(tmp_path: Path) -> None:
    def difference(value: float, task: str) -> dict[str, Any]:
        return row("ndcg_at_10_difference", value, "adapted - zero-shot", task, 0.02)

    tasks = {"held-out chapters": 0.1, "other books": 0.01, "general": -0.05}
    rows = [
        part
        for task, change in tasks.items()
        for part in (scored(0.5 + change, task=task), difference(change, task))
    ]
    run = embedded(tmp_path, id_of(1), make_embed_recipe(), *rows)
    ((_, line),) = read_rows(reports.build_embedding_table([CellResult("BGE", run)], "t")).items()
    assert (
        line["remark"] == "worse than zero-shot: nDCG@10, general; "
        "not distinguishable from zero-shot: nDCG@10, other books"
    )


def test_several_seeds_are_one_row_with_what_they_change_apart(tmp_path: Path) -> None:
    """nDCG@10 0.5, 0.6, 0.7: mean 0.6, SD 0.1; the interval is the mean of theirs. Zero-shot is the
    same in all."""
    entries = []
    for seed, value in enumerate((0.5, 0.6, 0.7), 1):
        run = embedded(
            tmp_path,
            id_of(seed),
            make_embed_recipe(seed=seed),
            scored(value),
            scored(0.4, "zero-shot"),
        )
        entries.append(CellResult(f"seed={seed} · BGE", run))
    table = reports.build_embedding_table(entries, "t")
    zero_shot, adapted = read_rows(table).values()
    assert adapted["nDCG@10, held-out chapters"] == "0.600 (0.580–0.620)"
    assert adapted["nDCG@10, held-out chapters, SD and range over seeds"] == "0.100 (0.500–0.700)"
    assert zero_shot["nDCG@10, held-out chapters"] == "0.400 (0.380–0.420)"
    assert any("mean over up to 3 seeds" in note for note in table.notes)


def test_a_cell_that_failed_or_has_not_ended_says_so(tmp_path: Path) -> None:
    with runs.open_run_folder(
        tmp_path, make_embed_recipe("intfloat/e5-large-v2"), opening(id_of(2), kind="embed")
    ) as run:
        pass
    failed = CellResult(
        "Jina-v2",
        None,
        "code from a model folder is never run",
        recipe=make_embed_recipe("jinaai/jina-embeddings-v2-base-en"),
    )
    ended = CellResult("BGE", embedded(tmp_path, id_of(1), make_embed_recipe(), scored(0.5)))
    line_by_row = read_rows(
        reports.build_embedding_table([ended, failed, CellResult("E5", run)], "t")
    )
    assert (
        line_by_row["Jina-v2", "lora"]["remark"] == "failed: code from a model folder is never run"
    )
    assert line_by_row["E5", "lora"]["remark"] == "interrupted"
    assert line_by_row["BGE", "lora"]["remark"] == ""
    assert read_rows(reports.build_embedding_study_tables([failed])[0])["Jina-v2", "lora"][
        "remark"
    ].startswith("failed")


def test_the_study_has_its_tables_with_published_values_beside(tmp_path: Path) -> None:
    tables = reports.build_embedding_study_tables(ten_backbones(tmp_path))
    assert [table.title.partition(":")[0] for table in tables] == [
        "Table 1",
        "Table 2",
        "Table 3",
        "Table 5",
    ]
    first, second, third, fifth = (read_rows(table) for table in tables)
    best = first["BioLinkBERT", "lora"]
    assert (best["separation"], best["published separation"], best["published similar"]) == (
        "0.530 (0.500–0.560)",
        "0.510",
        "0.772",
    )
    assert (
        "Above 0.3, which the study calls clinically useful without data for it: 7 of 10."
        in tables[0].notes
    )
    small = second["BGE-small-v1.5", "lora"]
    assert (
        small["embeddings/s"],
        small["memory, GB"],
        small["dimension"],
        small["published parameters"],
    ) == ("467.3", "0.240", "384", "33,000,000")
    jina = third["Jina-v2", "lora"]
    assert (jina["difference"], jina["published difference"]) == (
        "-0.238 (-0.268 to -0.208)",
        "-0.238",
    )
    assert not any("%" in text for texts in tables[2].cell_texts for text in texts)
    assert fifth["Gemma-2-2B", "google/gemma-2-2b-it"]["licence"] == "Gemma Terms of Use"


def test_without_the_pairs_of_the_study_separation_is_that_of_random_pairs_and_the_table_says_so(
    tmp_path: Path,
) -> None:
    entries = [
        CellResult(
            "BGE",
            embedded(
                tmp_path,
                id_of(1),
                make_embed_recipe(),
                *separations(0.1, 0.4),
                *separations(0.2, 0.3, "study", "different"),
            ),
        ),
        CellResult(
            "E5",
            embedded(
                tmp_path,
                id_of(2),
                make_embed_recipe("intfloat/e5-large-v2"),
                *separations(0.1, 0.5),
            ),
        ),
    ]
    table = reports.build_embedding_study_tables(entries)[0]
    assert [line["separation"][:5] for line in read_rows(table).values()] == ["0.400", "0.500"]
    assert any("compare orders, not numbers" in note for note in table.notes)


def test_an_ablation_has_a_row_for_each_share_loss_and_rank(tmp_path: Path) -> None:
    entries = ablation(tmp_path)
    table = next(
        table
        for table in reports.build_embedding_study_tables(entries)
        if table.title.startswith("Table 4")
    )
    assert len(table.rows) == 18
    titles = [column.title for column in table.columns]
    first, last = (
        dict(zip(titles, line, strict=True)) for line in (table.cell_texts[0], table.cell_texts[-1])
    )
    assert (first["pairs"], first["loss"], first["rank"]) == ("25%", "info-nce", "8")
    assert (last["pairs"], last["loss"], last["rank"], last["published separation"]) == (
        "100%",
        "triplet",
        "32",
        "0.022",
    )


def test_backbones_alone_are_no_ablation(tmp_path: Path) -> None:
    assert find_ablation(build_encoder_grid(ten_backbones(tmp_path, 3))) == ()


def test_a_profile_that_lacks_numbers_leaves_them_open(tmp_path: Path) -> None:
    run = embedded(
        tmp_path,
        id_of(1),
        make_embed_recipe(),
        *separations(0.1, 0.4),
        row("embeddings_per_second", 50.0, "adapted", "profile", None),
    )
    line = read_rows(reports.build_embedding_study_tables([CellResult("BGE", run)])[1])[
        "BGE", "lora"
    ]
    assert (line["embeddings/s"], line["parameters"]) == ("50.0", "100,000")
    assert "memory, GB" not in line


def test_licences_are_those_of_the_backbones_and_can_be_given(tmp_path: Path) -> None:
    assert {name: info.license for name, info in BACKBONE_INFO_BY_NAME.items()} == {
        name: info.license for name, info in models.BACKBONES.items()
    }
    last = {"last": "decoder", "mean": "encoder", "cls": "encoder"}
    assert {name: info.architecture for name, info in BACKBONE_INFO_BY_NAME.items()} == {
        name: last[row.embedding_config.pooling] for name, row in models.BACKBONES.items()
    }
    entries = [
        CellResult("BGE", embedded(tmp_path, id_of(1), make_embed_recipe(), *separations(0.1, 0.4)))
    ]
    given = reports.build_embedding_study_tables(
        entries, {"BAAI/bge-small-en-v1.5": "read it yourself"}
    )[-1]
    assert [line["licence"] for line in read_rows(given).values()] == ["read it yourself"]


def test_a_backbone_is_known_by_its_folder_where_the_recipe_does_not_name_it(
    tmp_path: Path,
) -> None:
    unnamed = embedded(
        tmp_path,
        id_of(1),
        make_embed_recipe(base={"path": "/models/E5-large-v2"}),
        *separations(0.1, 0.4),
    )
    other = embedded(
        tmp_path, id_of(2), make_embed_recipe(base={"path": "/models/mine"}), *separations(0.1, 0.4)
    )
    first, second = build_encoder_grid([CellResult("a", unnamed), CellResult("b", other)]).rows
    assert (first.hub_name, second.hub_name) == ("intfloat/e5-large-v2", "")
    assert (first.backbone_info.license, second.backbone_info.architecture) == ("MIT", "unknown")


def test_rows_are_named_by_what_their_cells_share(tmp_path: Path) -> None:
    run = embedded(tmp_path, id_of(1), make_embed_recipe(), *separations(0.1, 0.4))
    built = build_encoder_grid(
        [CellResult("BGE · LoRA · seed=1", run), CellResult("BGE · DoRA · seed=1", run)]
    )
    assert [(info.model, info.state, built.format_row_name(info)) for info in built.rows] == [
        ("BGE", "LoRA", "BGE, LoRA"),
        ("BGE", "DoRA", "BGE, DoRA"),
    ]


def test_all_tables_render_in_every_format(tmp_path: Path) -> None:
    console = rich.console.Console(width=120, file=io.StringIO())
    for at, table in enumerate(
        reports.build_embedding_study_tables(ten_backbones(tmp_path / "runs", 2))
    ):
        console.print(reports.as_rich_table(table))
        assert len(reports.write_table(tmp_path, f"table-{at}", table)) == 3


def test_a_run_of_embed_is_listed_with_its_base_and_its_adapters(tmp_path: Path) -> None:
    whole = make_embed_recipe(adapters=[], base={"path": "/models/mine", "trainable": True})
    embedded(tmp_path, id_of(1), make_embed_recipe(), *separations(0.1, 0.4))
    embedded(tmp_path, id_of(2), whole, *separations(0.1, 0.4))
    listing = runs.find_all_runs(tmp_path)
    lines = [
        dict(zip([c.title for c in table.columns], line, strict=True))
        for table in [reports.build_runs_table(listing)]
        for line in table.cell_texts
    ]
    assert [(line["kind"], line["base"], line["adapters"]) for line in lines] == [
        ("embed", "bge-small-en-v1.5", "lora"),
        ("embed", "mine", "all weights"),
    ]
    facts = {line[0]: line[1] for line in reports.build_run_summary(listing.runs[0]).cell_texts}
    assert (facts["kind"], facts["base"], facts["adapters"]) == (
        "embed",
        "bge-small-en-v1.5",
        "lora",
    )
    assert (
        len(reports.build_run_results_table(listing.runs[0]).rows)
        + len(reports.build_run_subgroups_table(listing.runs[0]).rows)
        == 11
    )


def test_the_recipe_has_the_ten_backbones_with_what_was_published_for_them() -> None:
    """The study's separation is similar less different (equation 3), up to the rounding of all
    three."""
    cells = recipe.load_recipe_cells(
        ROOT / "recipes" / "cardiology-embedding.toml",
        environment={"CARDIOLOGY_BOOKS": "/books", "BACKBONES": "/models"},
    )
    specs = [cell.recipe for cell in cells if isinstance(cell.recipe, recipe.EmbedRecipe)]
    assert [spec.base.backbone for spec in specs] == list(models.BACKBONES)[:10]
    assert {spec.base.path.name for spec in specs} == {
        name.partition("/")[2] for name in list(models.BACKBONES)[:10]
    }
    assert all(set(cell.published) == set(PUBLISHED_ENCODER_KEYS) for cell in cells)
    for cell in cells:
        info = {key: float(cell.published[key]) for key in ("similar", "different", "separation")}
        assert info["similar"] - info["different"] == pytest.approx(info["separation"], abs=0.0015)


def test_a_mean_without_all_ends_has_no_interval() -> None:
    from clinpeft.reports.tables import average_estimates

    assert average_estimates([Estimate(0.25, 0.1, 0.3), Estimate(0.75)]) == Estimate(
        0.5, None, None
    )
