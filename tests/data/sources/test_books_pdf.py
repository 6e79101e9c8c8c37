"""PDF books, set by hand: every line where we want it."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clinpeft.core.errors import SourceError, UsageError
from clinpeft.core.schemas import Attrition
from clinpeft.data import textbooks
from clinpeft.data.textbooks.lines import count_unbroken_words, join_hyphenated_lines


class Set(NamedTuple):
    """A line of print; ``text`` in PDF's standard encoding, where \\xae is the ligature fi."""

    x: float
    y: float
    text: str
    size: float = 10
    bold: bool = False


def _stream(lines: Sequence[Set]) -> bytes:
    shown = []
    for line in lines:
        text = line.text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        shown.append(
            f"BT /{'B' if line.bold else 'F'} {line.size} Tf {line.x} {line.y} Td ({text}) Tj ET"
        )
    content = "\n".join(shown).encode("latin-1")
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)


def write_pdf(
    path: Path,
    pages: Sequence[Sequence[Set]],
    trailer: str = "",
    extra: Sequence[str] = (),
    outline: str = "",
) -> Path:
    """A PDF of 600 x 800 points a page; objects 1 to 4 are catalogue, pages and two fonts."""
    fonts = [
        f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} /Encoding /StandardEncoding >>"
        for name in ("Helvetica", "Helvetica-Bold")
    ]
    numbers = [5 + 2 * at for at in range(len(pages))]
    objects: list[bytes] = [
        f"<< /Type /Catalog /Pages 2 0 R {outline} >>".encode(),
        f"<< /Type /Pages /Kids [{' '.join(f'{number} 0 R' for number in numbers)}] "
        f"/Count {len(pages)} >>".encode(),
        *(font.encode() for font in fonts),
    ]
    for number, lines in zip(numbers, pages, strict=True):
        resources = "/Resources << /Font << /F 3 0 R /B 4 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] {resources} "
            f"/Contents {number + 1} 0 R >>".encode()
        )
        objects.append(_stream(lines))
    objects += [entry.encode() for entry in extra]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = (
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\n"
        f"startxref\n{len(body)}\n%%EOF\n"
    ).encode()
    path.write_bytes(body + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end)
    return path


LEFT, RIGHT = 60, 320
FILLED = "words that fill the whole of this column up"


def column(x: float, top: float, texts: Sequence[str]) -> list[Set]:
    return [Set(x, top - 12 * at, text) for at, text in enumerate(texts)]


def page(number: int, title: Sequence[Set], left: Sequence[str], right: Sequence[str]) -> list[Set]:
    head = [Set(LEFT, 770, f"A Small Heart Book  {number}", 8), Set(300, 30, str(number), 8)]
    # in the file, the right column comes first: reading order is ours to find
    return [*head, *title, *column(RIGHT, 690, right), *column(LEFT, 690, left)]


def small_book(path: Path) -> Path:
    first = page(
        1,
        [Set(LEFT, 730, "Chapter 1 The Heart", 20)],
        [
            "The heart is a muscle that works with inter-",
            "national renown and is followed by a follow-",
            "up of great signi\xaecance. " + "It beats all day.",
        ],
        [
            "It never rests, and " + "needs 10-",
            "20 ml of blood for each and every one of",
            "its many beats, which is not very much for",
        ],
    )
    second = page(
        2,
        [Set(LEFT, 730, "Chapter 2 The Vessels", 20)],
        [
            "So large an organ of the body needs many.",
            "They leave it, and they come back to it too.",
            "Arteries carry blood away from the beating",
        ],
        [
            "heart. A follow-up shows international veins",
            "that bring all of it back to where it began,",
            "over and over, without any rest or pause.",
        ],
    )
    third = page(
        3,
        [Set(LEFT, 730, "References", 20)],
        ["Harvey W. On the motion of heart and blood.", FILLED, FILLED],
        [FILLED, FILLED, FILLED],
    )
    return write_pdf(path, [first, second, third])


def read(path: Path, **options: Any) -> tuple[list[dict[str, Any]], Attrition]:
    attrition = Attrition("books")
    rows = textbooks.read_textbooks(path, attrition, **options).read_all().to_pylist()
    assert attrition.kept_rows == len(rows)
    return rows, attrition


def test_columns_hyphens_ligatures_and_ranges_are_read_as_a_person_would(tmp_path: Path) -> None:
    rows, attrition = read(small_book(tmp_path / "heart.pdf"))
    assert [row["text"] for row in rows if row["chapter"] == "Chapter 1 The Heart"] == [
        "The heart is a muscle that works with international renown and is followed by a "
        "follow-up of great significance. It beats all day.",
        "It never rests, and needs 10-20 ml of blood for each and every one of its many "
        "beats, which is not very much for",
    ]
    assert [row["text"] for row in rows if row["chapter"] == "Chapter 2 The Vessels"] == [
        "So large an organ of the body needs many. They leave it, and they come back to it too. "
        "Arteries carry blood away from the beating heart. A follow-up shows "
        "international veins that bring all of it back to where it began, "
        "over and over, without any rest or pause.",
    ]
    assert {row["location"] for row in rows} == {"page 1", "page 2"}
    assert attrition.dropped_rows == {"running head": 3, "page number": 3, "reference list": 1}


def test_a_paragraph_goes_on_over_the_page(tmp_path: Path) -> None:
    first = [
        Set(60, 700, "This sentence is not at its end when the page is, and so it has to go"),
        Set(300, 30, "1"),
    ]
    second = [
        Set(60, 700, "on here. The number of the page is not part of it, as everybody knows."),
        Set(300, 30, "2"),
    ]
    rows, attrition = read(write_pdf(tmp_path / "long.pdf", [first, second]))
    assert [row["text"] for row in rows] == [
        "This sentence is not at its end when the page is, and so it has to go on here. "
        "The number of the page is not part of it, as everybody knows."
    ]
    assert attrition.dropped_rows == {"page number": 2}


def test_one_column_with_a_gap_and_an_indent_has_three_paragraphs(tmp_path: Path) -> None:
    texts = [
        Set(60, 700, "The first paragraph has one line and it ends before the margin."),
        Set(
            60, 670, "The second stands below a gap, and it is wide enough to fill the line, twice"
        ),
        Set(
            60,
            658,
            "over, and it ends with a full stop on its second line, just at the margin here.",
        ),
        Set(80, 646, "The third one is indented, as in most printed books, and has only a line."),
    ]
    rows, _ = read(write_pdf(tmp_path / "plain.pdf", [texts]))
    assert [row["text"].split()[1] for row in rows] == ["first", "second", "third"]


def test_in_an_indented_book_a_sentence_that_ends_with_the_page_does_not_end_its_paragraph(
    tmp_path: Path,
) -> None:
    first = [
        Set(70, 700, "This line is indented, and so we know how this book begins its paragraphs;")
    ]
    first += [
        Set(60, 688, "and here a sentence, but no paragraph, ends at the very end of a whole page.")
    ]
    second = [
        Set(
            60, 700, "It goes on here, which only the missing indent of this line can tell anybody."
        )
    ]
    second += [
        Set(
            70,
            688,
            "This one is new, and goes on for one more line, which is not indented, just as",
        ),
        Set(60, 676, "it should be."),
    ]
    rows, _ = read(write_pdf(tmp_path / "indents.pdf", [first, second]))
    assert [(row["location"], row["text"].split()[0], row["text"].split()[-1]) for row in rows] == [
        ("page 1", "This", "anybody."),
        ("page 2", "This", "be."),
    ]


def test_the_outline_of_the_file_says_what_is_a_heading(tmp_path: Path) -> None:
    def body(title: str) -> list[Set]:
        return [
            Set(60, 700, title),
            Set(
                60,
                660,
                "This is a paragraph that stands below a title which looks like any other text.",
            ),
        ]

    extra = [
        "<< /Type /Outlines /First 10 0 R /Last 11 0 R /Count 2 >>",
        "<< /Title (Valves) /Parent 9 0 R /Next 11 0 R /Dest [5 0 R /Fit] >>",
        "<< /Title (Walls) /Parent 9 0 R /Prev 10 0 R /Dest [7 0 R /Fit] >>",
    ]
    path = write_pdf(
        tmp_path / "outline.pdf",
        [body("Valves"), body("Walls")],
        extra=extra,
        outline="/Outlines 9 0 R",
    )
    rows, _ = read(path)
    assert [row["chapter"] for row in rows] == ["Valves", "Walls"]


def test_a_bold_line_by_itself_is_a_heading_below_those_in_large_type(tmp_path: Path) -> None:
    text = "A paragraph of ordinary text that goes on for long enough to fill one whole line."
    lines = [
        Set(60, 740, "Chapter 1", 20),
        Set(60, 700, "Valves", 10, True),
        Set(60, 680, text),
        Set(60, 640, "Chapter 2", 20),
        Set(60, 610, text),
    ]
    rows, _ = read(write_pdf(tmp_path / "bold.pdf", [lines]))
    assert [(row["chapter"], row["heading_path"]) for row in rows] == [
        ("Chapter 1", ["Valves"]),
        ("Chapter 2", []),
    ]


def test_an_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    key = "00" * 32
    lock = f"<< /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >>"
    path = write_pdf(
        tmp_path / "locked.pdf",
        [[Set(60, 700, "secret")]],
        trailer=f"/Encrypt {lock} /ID [<{key}> <{key}>]",
    )
    with pytest.raises(SourceError) as caught:
        read(path)
    assert caught.value.location == str(path)
    assert "secret" not in str(caught.value)


def test_a_scan_is_refused_and_what_to_install_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        read(write_pdf(tmp_path / "scan.pdf", [[], [], []]))
    assert "0 of the 3 pages" in error.value.message and "clinpeft[scans]" in error.value.hint


def test_a_page_without_text_among_others_is_counted(tmp_path: Path) -> None:
    _, attrition = read(write_pdf(tmp_path / "plate.pdf", [[Set(60, 700, "A page of text.")], []]))
    assert attrition.dropped_rows == {"page without text": 1}


def test_a_broken_pdf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pdf"
    path.write_bytes(b"%PDF-1.4\n1 0 obj\n<< /Type")
    with pytest.raises(SourceError) as error:
        read(path)
    assert error.value.location == str(path)


def test_a_scan_is_read_by_docling_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pdf(tmp_path / "scan.pdf", [[]])
    with pytest.raises(UsageError) as error:
        read(path, scan_models=tmp_path / "nowhere")
    assert error.value.location == str(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "docling", None)
    with pytest.raises(UsageError) as error:
        read(path, scan_models=tmp_path)
    assert "clinpeft[scans]" in error.value.hint
    modules = {
        name: types.ModuleType(f"docling.{name}")
        for name in (
            "datamodel",
            "datamodel.base_models",
            "datamodel.pipeline_options",
            "document_converter",
        )
    }
    asked: dict[str, Any] = {}

    def pipeline_options(**options: Any) -> None:
        asked.update(options)

    converted = types.SimpleNamespace(
        document=types.SimpleNamespace(
            export_to_markdown=lambda: "# Valves\n\nRead from a picture."
        )
    )
    converter = types.SimpleNamespace(convert=lambda given: converted)
    modules["datamodel.base_models"].InputFormat = types.SimpleNamespace(PDF="pdf")  # type: ignore[attr-defined]
    modules["datamodel.pipeline_options"].PdfPipelineOptions = pipeline_options  # type: ignore[attr-defined]
    modules["document_converter"].DocumentConverter = lambda format_options: converter  # type: ignore[attr-defined]
    modules["document_converter"].PdfFormatOption = lambda pipeline_options: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "docling", types.ModuleType("docling"))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"docling.{name}", module)
    rows, _ = read(path, scan_models=tmp_path)
    assert [(row["chapter"], row["text"]) for row in rows] == [("Valves", "Read from a picture.")]
    assert asked["artifacts_path"] == str(tmp_path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["inter-", "national law"], "international law"),
        (["a follow-", "up visit"], "a follow-up visit"),
        (["of 10-", "20 mg"], "of 10-20 mg"),
        (["the Frank-", "Starling law"], "the Frank-Starling law"),
        (["soft\u00ad", "ware"], "software"),
        (["one line", "and another"], "one line and another"),
    ],
)
def test_words_cut_at_line_ends_are_made_whole(lines: list[str], expected: str) -> None:
    assert (
        join_hyphenated_lines(lines, count_unbroken_words(["The follow-up was short.", *lines]))
        == expected
    )
