"""Numbers as the paper prints them, and tables that survive their renderings."""

from __future__ import annotations

import csv
import errno
import io
from pathlib import Path

import pytest
import rich.console

from clinpeft.core.errors import StorageError
from clinpeft.reports import formats
from clinpeft.reports.tables import (
    Estimate,
    ReportColumn,
    ReportTable,
    as_csv_table,
    as_latex_table,
    as_markdown_table,
    as_rich_table,
    format_cell,
    write_table,
)

TABLE = ReportTable(
    "Results of [bold] & co_1",
    (
        ReportColumn("name", is_text=True),
        ReportColumn("parameters", formats.format_count),
        ReportColumn("perplexity", is_estimate=True),
        ReportColumn("time", formats.format_duration),
    ),
    (
        ("LoRA | r=16", 8_388_608, Estimate(2.2444, 2.2, 2.3), 77_862.4),
        ("[red]prompt, 50%", None, Estimate(4.007), "23:27:28"),
        ("none", 0, None, None),
    ),
    ("Lower is better_.",),
)


@pytest.mark.parametrize(
    ("trained", "of_llama_7b"),
    [
        (8_388_608, ".12%"),
        (1_228_830, ".02%"),
        (5_242_880, ".08%"),
        (16_093_696, ".24%"),
        (2_097_152, ".03%"),
        (61_440, ".00091%"),
        (40_960, ".00061%"),
    ],
)
def test_shares_are_printed_like_the_paper_with_two_digits_below_a_hundredth_percent(
    trained: int, of_llama_7b: str
) -> None:
    """The paper prints the last two with one digit: .0009% and .0006%."""
    assert formats.format_percent(trained / 6_738_415_616) == of_llama_7b


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0, "0%"),
        (0.0123, "1.23%"),
        (1, "100.00%"),
        (0.0001, ".01%"),
        (9.996e-5, ".01%"),
        (9.12e-9, ".00000091%"),
    ],
)
def test_shares_at_the_edges(fraction: float, text: str) -> None:
    assert formats.format_percent(fraction) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.6, "0:01:00"),
        (3_599.4, "0:59:59"),
        (77_862, "21:37:42"),
        (360_000, "100:00:00"),
    ],
)
def test_durations_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert formats.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.2444, "2.244"), (999.94, "999.940"), (999.96, "1,000"), (32_000.4, "32,000")],
)
def test_numbers_lose_their_decimals_from_a_thousand_on(value: float, text: str) -> None:
    assert formats.format_number(value) == text


def test_an_estimate_is_printed_with_its_interval_and_what_is_missing_as_a_dash() -> None:
    rendered = [
        format_cell(value, formats.format_number)
        for value in (
            Estimate(2.2444, 2.2, 2.3),
            Estimate(2.2),
            Estimate(None),
            None,
            "as it is",
            "",
        )
    ]
    assert rendered == ["2.244 (2.200–2.300)", "2.200", "–", "–", "as it is", ""]


def test_markdown_has_a_title_a_line_a_row_and_escapes_its_own_marks() -> None:
    lines = as_markdown_table(TABLE).splitlines()
    assert lines[0] == r"## Results of \[bold\] & co\_1"
    assert lines[2:4] == [
        "| name | parameters | perplexity | time |",
        "| --- | ---: | ---: | ---: |",
    ]
    assert lines[4] == r"| LoRA \| r=16 | 8,388,608 | 2.244 (2.200–2.300) | 21:37:42 |"
    assert lines[6] == "| none | 0 | – | – |"
    assert lines[-1] == r"Lower is better\_."


def test_csv_holds_numbers_in_full_and_an_interval_in_columns_of_its_own() -> None:
    rows = list(csv.reader(io.StringIO(as_csv_table(TABLE))))
    assert rows[0] == [
        "name",
        "parameters",
        "perplexity",
        "perplexity low",
        "perplexity high",
        "time",
    ]
    assert rows[1] == ["LoRA | r=16", "8388608", "2.2444", "2.2", "2.3", "77862.4"]
    assert rows[2] == ["[red]prompt, 50%", "", "4.007", "", "", "23:27:28"]
    assert rows[3] == ["none", "0", "", "", "", ""]


def test_latex_escapes_its_own_marks_and_closes_what_it_opens() -> None:
    text = as_latex_table(TABLE)
    assert r"\caption{Results of [bold] \& co\_1}" in text
    assert r"\begin{tabular}{lrrr}" in text
    assert r"[red]prompt, 50\% & – & 4.007 & 23:27:28 \\" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert (
        as_latex_table(ReportTable("a\\b{c}~^<", (), ())).count(
            r"\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}\textless{}"
        )
        == 1
    )


def test_the_terminal_shows_brackets_as_they_are() -> None:
    console = rich.console.Console(file=io.StringIO(), width=120, record=True)
    console.print(as_rich_table(TABLE))
    rendered = console.export_text()
    assert "Results of [bold] & co_1" in rendered
    assert "[red]prompt, 50%" in rendered
    assert "2.244 (2.200–2.300)" in rendered


def test_a_column_beside_another_stands_under_it_on_a_terminal_and_nowhere_else() -> None:
    columns = (
        ReportColumn("name", is_text=True),
        ReportColumn("time", formats.format_duration),
        ReportColumn("published time", formats.format_duration, parent_title="time"),
    )
    table = ReportTable("t", columns, (("LoRA", 60, "21:37:42"), ("mine", 30, None)))
    console = rich.console.Console(file=io.StringIO(), width=80, record=True)
    console.print(as_rich_table(table))
    lines = [line.split() for line in console.export_text().splitlines()]
    at = lines.index(["LoRA", "0:01:00"])
    assert lines[at + 1 : at + 3] == [["[21:37:42]"], ["mine", "0:00:30"]]
    assert "In square brackets: published time." in " ".join(" ".join(line) for line in lines)
    assert "| LoRA | 0:01:00 | 21:37:42 |" in as_markdown_table(table)


def test_several_columns_stand_under_one_each_with_its_mark() -> None:
    columns = (
        ReportColumn("mortality"),
        ReportColumn(
            "published", formats.format_score, parent_title="mortality", value_prefix="published "
        ),
        ReportColumn("SD", parent_title="mortality", value_prefix="SD "),
    )
    console = rich.console.Console(file=io.StringIO(), width=80, record=True)
    console.print(as_rich_table(ReportTable("t", columns, ((0.7, 0.668, 0.01), (0.8, None, 0.02)))))
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert lines[lines.index("0.700") :][:5] == [
        "0.700",
        "[published 0.6680]",
        "[SD 0.010]",
        "0.800",
        "[SD 0.020]",
    ]
    assert not any("In square brackets" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "<0.001"), (0.0009, "<0.001"), (0.001, "0.001"), (0.0512, "0.051"), (1.0, "1.000")],
)
def test_a_p_value_is_never_printed_as_0(value: float, text: str) -> None:
    assert formats.format_p_value(value) == text


def test_a_table_is_written_in_three_forms_under_a_name_fit_for_files(tmp_path: Path) -> None:
    paths = write_table(tmp_path / "runs", "../paper table/2", TABLE)
    assert [path.relative_to(tmp_path / "runs" / "tables").as_posix() for path in paths] == [
        "paper-table-2.md",
        "paper-table-2.csv",
        "paper-table-2.tex",
    ]
    assert [path.read_text() for path in paths] == [
        as_markdown_table(TABLE),
        as_csv_table(TABLE),
        as_latex_table(TABLE),
    ]


def test_a_full_disk_leaves_the_table_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = write_table(tmp_path, "t", TABLE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"t\.md"):
        write_table(tmp_path, "t", ReportTable("new", (), ()))
    assert path.read_text() == as_markdown_table(TABLE)
