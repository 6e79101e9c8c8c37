"""A report is one page that asks for nothing, and everything on it is a file as well."""

from __future__ import annotations

import dataclasses
import functools
import html.parser
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clinpeft import cli, evaluation, runs
from clinpeft.reports import CellResult
from clinpeft.reports import html as report
from clinpeft.reports.cards import render_adapter_card
from clinpeft.reports.facts import SuppressedRun
from clinpeft.reports.figures.classification import merge_small_bins
from clinpeft.runs.studies import (
    CellPairComparison,
    StudyCell,
    StudyComparison,
    StudyRecord,
    open_study,
)
from tests.reports.conftest import ten_backbones
from tests.reports.invented import NAMES, ODD, answering, grid

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a report, and its page."""
    home = tmp_path_factory.mktemp("report")
    suppress = functools.partial(evaluation.suppress_small_cells, smallest_cell=10)
    entries = [
        dataclasses.replace(
            entry, run=SuppressedRun(entry.run.folder, entry.run.recipe, entry.run.record, suppress)
        )
        for entry in grid(home / "runs")
        if entry.run is not None
    ]
    out = home / "out"
    texts = {"cards/one.md": "a card"}
    contents = report.build_report_contents(entries, "A study")
    assert contents.row_names == NAMES and contents.tasks == ("mortality", "diagnoses")
    paths = report.write_html_report(out, "A study", ["Lead <i>text</i>"], contents, texts)
    assert paths[0] == out / "report.html" and all(path.is_file() for path in paths)
    return out, paths[0].read_text(encoding="utf-8")


class Reader(html.parser.HTMLParser):
    """Tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = Reader()
    reader.feed(page)
    return reader.elements


def test_nothing_on_the_page_points_outside_of_it(written: tuple[Path, str]) -> None:
    elements = tags(written[1])
    references = [
        value
        for _, attributes in elements
        for key, value in attributes.items()
        if key in ("href", "src", "srcset", "action", "data")
    ]
    assert references and all(value is not None and value.startswith("#") for value in references)
    assert (
        not {"link", "img", "iframe", "object"} & {tag for tag, _ in elements}
        and "url(http" not in written[1]
        and "@import" not in written[1]
    )


def test_the_policy_forbids_all_but_the_style_and_the_script_of_the_page(
    written: tuple[Path, str],
) -> None:
    policy = next(
        attributes["content"]
        for tag, attributes in tags(written[1])
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert (
        policy is not None
        and policy.startswith("default-src 'none';")
        and "unsafe" not in policy
        and policy.count("'sha256-") == 2
    )
    assert not any(
        "style" in attributes or any(key.startswith("on") for key in attributes)
        for _, attributes in tags(written[1])
    )


def test_every_text_is_escaped(written: tuple[Path, str]) -> None:
    assert (
        "<b>" not in written[1]
        and "<i>" not in written[1]
        and "LoRA &lt;b&gt;&amp;" in written[1]
        and "Lead &lt;i&gt;" in written[1]
    )


def test_every_id_stands_once_and_every_reference_leads_somewhere(
    written: tuple[Path, str],
) -> None:
    ids = [attributes["id"] for _, attributes in tags(written[1]) if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', written[1])
    assert referred and set(referred) <= set(ids)


def test_tables_have_captions_and_their_headings_a_scope_and_a_button(
    written: tuple[Path, str],
) -> None:
    counted = [tag for tag, _ in tags(written[1])]
    assert counted.count("table") == counted.count("caption") > 5
    scopes = [attributes.get("scope") for tag, attributes in tags(written[1]) if tag == "th"]
    assert set(scopes) == {"col", "row"} and counted.count("button") == scopes.count("col")


def test_every_figure_of_a_question_is_there_in_the_page_and_as_files(
    written: tuple[Path, str],
) -> None:
    out, page = written
    names = [
        f"{task}-{name}"
        for task in ("mortality", "diagnoses")
        for name in ("auroc", "calibration", "decision", "distributions", "subgroups", "attrition")
    ]
    names += [
        "diagnoses-labels",
        "classify-mortality-learning",
        "classify-diagnoses-learning",
        "classify-cost",
    ]
    figures = [attributes["id"] for tag, attributes in tags(page) if tag == "figure"]
    assert sorted(str(name) for name in figures) == sorted(names) and "was not drawn" not in page
    for name in names:
        ET.parse(out / "figures" / f"{name}.svg")
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_table_is_a_file_in_three_formats_with_its_provenance(
    written: tuple[Path, str],
) -> None:
    out, _ = written
    names = {path.stem for path in (out / "tables").glob("*.md")}
    assert {"main-metric-of-every-question", "mortality-every-measure", "cost"} <= names
    for form in ("csv", "tex"):
        assert {path.stem for path in (out / "tables").glob(f"*.{form}")} == names
    text = (out / "tables" / "mortality-every-measure.md").read_text(encoding="utf-8")
    assert (
        "Data: synthetic, fingerprint s1. Split held\\_out, mortality: n = 400. Seed 1, 2. 4 runs."
        in text
    )
    assert "Command: clinpeft classify grid.toml." in text and "Commit unknown" in text


def test_a_group_of_few_people_is_nowhere(written: tuple[Path, str]) -> None:
    out, page = written
    assert "race small" not in page and "0.123" not in page and "sex F" in page
    for path in [*out.rglob("*.svg"), *out.rglob("*.csv"), *out.rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert "race small" not in text and "0.123" not in text, path.name


def test_a_label_of_few_stays_and_small_counts_of_those_who_left_are_not_told(
    written: tuple[Path, str],
) -> None:
    labels = (written[0] / "figures" / "diagnoses-labels.svg").read_text(encoding="utf-8")
    assert ", 038:" in labels and "rare" not in labels
    left = (written[0] / "figures" / "mortality-attrition.svg").read_text(encoding="utf-8")
    assert "&lt;10 no note" in left and "90 newborn" in left


def test_seeds_are_one_row_with_their_range_apart(written: tuple[Path, str]) -> None:
    main = (written[0] / "tables" / "main-metric-of-every-question.csv").read_text(encoding="utf-8")
    row = next(line for line in main.splitlines() if line.startswith("head only"))
    assert ",0.63," in row and "0.62,0.64" in row  # mean, and the range over two seeds
    assert "published 0.7489" in re.sub("<[^>]+>", "", written[1])


def test_who_does_not_beat_tfidf_is_told(written: tuple[Path, str]) -> None:
    text = re.sub("<[^>]+>", " ", written[1])
    assert "does not beat TF-IDF: worse on mortality, diagnoses" in text and "no: worse" in text


def test_energy_that_nobody_measured_is_unknown(written: tuple[Path, str]) -> None:
    assert "Energy is unknown where a run recorded no measured power." in written[1]


def test_marks_have_words_and_lines_the_name_of_their_row(written: tuple[Path, str]) -> None:
    assert "<title>head only: predicted 0.100, observed 0.083, 100 answers</title>" in written[1]
    assert 'data-row="head only"' in written[1]


def test_bins_are_joined_until_each_has_ten_answers() -> None:
    points = [
        {"x": x, "y": share, "n": 100}
        for x, share in ((0.125, 0.5), (0.375, 0.45), (0.625, 0.03), (0.875, 0.02))
    ]
    assert [
        (left, right, round(share, 2)) for left, right, share, _ in merge_small_bins(points)
    ] == [
        (0.0, 0.25, 0.5),
        (0.25, 1.0, 0.5),
    ]
    few = [{"x": x, "y": 0.25, "n": 12} for x in (0.125, 0.375, 0.625, 0.875)]
    assert [(left, right, share) for left, right, share, _ in merge_small_bins(few)] == [
        (0.0, 1.0, 1.0)
    ]
    assert merge_small_bins([{**one, "n": 8} for one in few]) == []


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    entries = [CellResult("head only", answering(tmp_path / "runs", 1, "mortality", 1, 0.7))]
    first, second = (
        report.write_html_report(
            tmp_path / name, "t", [], report.build_report_contents(entries, "t")
        )[0].read_bytes()
        for name in ("a", "b")
    )
    assert first == second


def test_a_grid_of_embeddings_has_its_five_tables_and_thirteen_figures(tmp_path: Path) -> None:
    written = report.build_report_contents(ten_backbones(tmp_path / "runs", 2), "study")
    page = report.render_report_page(
        "study", [], written.sections, written.tasks, written.row_names, "clinpeft"
    )
    for number in (1, 2, 3, 5):
        assert f"<caption>Table {number}:" in page
    assert (
        len([1 for tag, _ in tags(page) if tag == "figure"]) >= 12
        and "Figure 13</strong> was not drawn" in page
    )


def study_of(home: Path) -> StudyRecord:
    entries = grid(home)
    cells = [
        StudyCell(
            id_, entry.name, {}, entry.published, entry.run.id if entry.run else None, "finished"
        )
        for entry, id_ in zip(entries, "abcdefgh", strict=True)
    ]
    row = {
        "name": "auroc_difference",
        "value": 0.1,
        "low": 0.05,
        "high": 0.15,
        "n": 400,
        "group": "b − a",
        "task": "mortality",
        "split": "held_out",
    }
    few = {**row, "value": 0.777, "n_subjects": 7}
    tuning = {**row, "value": 0.888, "split": "tuning"}
    results = tuple({**one, "definition": "d"} for one in (row, tuning))
    pair = CellPairComparison({"task": "mortality", "seed": 1}, "head only", ODD, "a", "b", results)
    small = CellPairComparison(
        {"task": "mortality", "seed": 2}, "head only", ODD, "a", "b", ({**few, "definition": "d"},)
    )
    compare = StudyComparison("LoRA against the head", {}, {}, (pair, small))
    cells += [
        StudyCell("i", "unlucky · mortality", {}, state="failed", reason="no room on the disk"),
        StudyCell("j", "later", {}),
    ]
    return open_study(
        StudyRecord(
            home / "studies" / "grid-1",
            "1",
            "grid",
            "classify",
            "grid.toml",
            "0",
            "now",
            "now",
            tuple(cells),
            (compare,),
        )
    )


def test_the_verb_writes_a_study_and_leaves_the_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study_of(tmp_path / "runs")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli.app, ["report", "grid", "--home", "runs", "--out", "out"])
    assert result.exit_code == 0, result.output
    assert {
        path: path.read_bytes()
        for path in (tmp_path / "runs").rglob("*")
        if path.is_file() and path in before
    } == before
    page = re.sub("<[^>]+>", " ", (tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert (
        "Compared: LoRA against the head" in page
        and "0.100" in page
        and "no room on the disk" in page
        and "1 waiting" in page
    )
    assert "0.777" not in page and "0.888" not in page and "withheld, or not defined" in page
    assert (tmp_path / "out" / "checklist.md").is_file() and len(
        list((tmp_path / "out" / "cards").glob("*.md"))
    ) == 8


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = CliRunner().invoke(
        cli.app, ["report", "grid", "--home", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    assert "clinpeft[figures]" in str(result.exception) and not (tmp_path / "out").exists()


def test_a_run_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    run: runs.Run = answering(tmp_path, 1, "mortality", 1, 0.7)
    result: Any = CliRunner().invoke(
        cli.app,
        ["report", "gird", "--home", str(run.folder.parent), "--out", str(tmp_path / "out")],
    )
    assert "'gird'" in str(result.exception) and "'grid'" in str(result.exception)


def test_a_card_says_how_private_the_training_was(tmp_path: Path) -> None:
    run = answering(tmp_path, 1, "mortality", 1, 0.8)
    assert "differential privacy" not in render_adapter_card(run)
    noise = {"epsilon": 7.98, "delta": 1e-5, "adjacency": "one training subject more or less"}
    card = render_adapter_card(
        dataclasses.replace(
            run, record=run.record.model_copy(update={"differential_privacy": noise})
        )
    )
    assert (
        "- differential privacy: epsilon 7.98, delta 1e-05, for one training subject more or less"
        in card
    )
