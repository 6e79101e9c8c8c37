"""Books made by hand in every format but PDF, what must be refused, and the two real ones."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clinpeft.core.errors import RefusedError, SourceError
from clinpeft.core.schemas import PASSAGE_SCHEMA, Attrition
from clinpeft.data import textbooks
from clinpeft.data.textbooks import archive
from clinpeft.data.textbooks.outline import find_heading_role
from clinpeft.data.textbooks.passages import normalize_passage_text

Rows = list[dict[str, Any]]


def read(path: Path) -> tuple[Rows, Attrition]:
    attrition = Attrition("books")
    found = textbooks.read_textbooks(path, attrition).read_all()
    assert found.schema == PASSAGE_SCHEMA
    assert attrition.entered_rows == attrition.kept_rows + attrition.dropped_rows.total()
    assert attrition.kept_rows == found.num_rows
    rows = found.to_pylist()
    assert len({row["passage_id"] for row in rows}) == len(rows)
    return rows, attrition


def said(rows: Rows, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in rows]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


MODULE = """<?xml version="1.0" encoding="utf-8"?>
<document xmlns="http://cnx.rice.edu/cnxml">
<title>Valves</title>
<metadata xmlns:md="http://cnx.rice.edu/mdml"><md:content-id>m2</md:content-id>
<md:abstract><para id="a1">By the end of this section, you will be able to:</para>
<list id="a2"><item>Name the valves</item><item>Place them</item></list></md:abstract>
</metadata>
<content>
<para id="p1">Valves keep blood going <emphasis>one way</emphasis>.
<link target-id="f1" document=""/><emphasis>a</emphasis> shows 10<sup>9</sup> cells.</para>
<section id="s1"><title>The Mitral Valve</title>
<para id="p2">It has two cusps.</para>
<note id="n1" class="everyday"><title>Repair</title><para id="p3">It can be repaired.</para></note>
<figure id="f1"><title>Four valves</title><media alt="x"><image src="x.jpg"/></media>
<caption>The valves from above.</caption></figure>
<table id="t1"><title>Cusps</title><tgroup><tbody>
<row><entry>mitral</entry><entry>2</entry></row>
<row><entry>aortic</entry><entry>3</entry></row></tbody></tgroup></table>
<equation id="e1"/>
</section>
<section id="s2" class="summary"><title>Chapter Review</title>
<para id="p4">Four valves, one way.</para></section>
<section id="s3" class="multiple-choice"><title>Review</title>
<exercise id="x1"><problem id="x1p"><para id="x1a">Which valve is on the left?</para>
<list id="x1l"><item>tricuspid</item><item>mitral</item></list></problem>
<solution id="x1s"><para id="x1b">B</para></solution></exercise></section>
<section id="s4" class="references"><para id="p5">Nobody A. (1999).</para></section>
</content>
<glossary><definition id="d1"><term>cusp</term>
<meaning id="d1m">flap of a valve</meaning></definition></glossary>
</document>"""

COLLECTION = """<col:collection xmlns="c" xmlns:col="http://cnx.rice.edu/collxml"
xmlns:md="http://cnx.rice.edu/mdml">
<col:metadata><md:title>A Heart Book</md:title></col:metadata>
<col:content><col:module document="m1"/>
<col:subcollection><md:title>Unit</md:title><col:content>
<col:subcollection><md:title>The Heart</md:title>
<col:content><col:module document="m2"/></col:content></col:subcollection></col:content>
</col:subcollection></col:content></col:collection>"""


def openstax(folder: Path) -> Path:
    preface = (
        '<document xmlns="http://cnx.rice.edu/cnxml"><title>Preface</title>'
        '<content><para id="q">About us.</para></content></document>'
    )
    write(
        folder / "heart.collection.xml",
        COLLECTION.replace("<col:metadata>", "<metadata>").replace(
            "</col:metadata>", "</metadata>"
        ),
    )
    write(folder / "modules" / "m1.cnxml", preface)
    write(folder / "modules" / "m2" / "index.cnxml", MODULE)
    write(folder / "ATTRIBUTION.md", "Not a book.")
    return folder


def test_an_openstax_book_is_read_element_by_element(tmp_path: Path) -> None:
    rows, attrition = read(openstax(tmp_path))
    assert said(rows, "kind", "location", "title", "text") == [
        ("lead-in", "m2#a1", None, "By the end of this section, you will be able to:"),
        ("objective", "m2#a2", None, "Name the valves\nPlace them"),
        ("paragraph", "m2#p1", None, "Valves keep blood going one way. Figure a shows 10⁹ cells."),
        ("paragraph", "m2#p2", None, "It has two cusps."),
        ("paragraph", "m2#p3", None, "It can be repaired."),
        ("caption", "m2#f1", "Four valves", "The valves from above."),
        ("table", "m2#t1", "Cusps", "mitral | 2\naortic | 3"),
        ("summary", "m2#p4", None, "Four valves, one way."),
        ("question", "m2#x1", None, "Which valve is on the left?"),
        ("answer", "m2#x1s", None, "mitral"),
        ("definition", "m2#d1", "cusp", "flap of a valve"),
    ]
    assert {row["book"] for row in rows} == {"A Heart Book"}
    assert {row["chapter"] for row in rows} == {"The Heart"}
    by_place = {row["location"]: row for row in rows}
    assert by_place["m2#p3"]["heading_path"] == ["Valves", "The Mitral Valve", "Repair"]
    assert by_place["m2#p3"]["section"] == "A Heart Book/m2/s1/n1"
    assert by_place["m2#a2"]["section"] == by_place["m2#p4"]["section"] == "A Heart Book/m2"
    assert by_place["m2#p1"]["refers_to"] == by_place["m2#f1"]["names"] == ["m2#f1"]
    assert by_place["m2#x1s"]["refers_to"] == by_place["m2#x1"]["names"] == ["m2#x1"]
    assert attrition.dropped_rows == {
        "front matter": 1,
        "equation outside a paragraph": 1,
        "option of a multiple-choice question": 2,
        "reference list": 1,
    }


def test_a_module_that_the_collection_lists_must_be_there(tmp_path: Path) -> None:
    (openstax(tmp_path) / "modules" / "m1.cnxml").unlink()
    with pytest.raises(SourceError, match="module 'm1'"):
        read(tmp_path)


def test_a_module_may_not_lie_outside_its_folder(tmp_path: Path) -> None:
    write(openstax(tmp_path) / "heart.collection.xml", COLLECTION.replace('"m1"', '"../secret"'))
    with pytest.raises(SourceError, match="secret"):
        read(tmp_path)


PAGE = """<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">
<head><title/></head><body>
<h1>{title}</h1>
<p>Blood&nbsp;flows, see <a href="#fig1">the figure</a> and Table 1.2.</p>
<div>Loose text<br/>here.<p>And CO<sub>2</sub>.</p></div>
<h2>Parts</h2><ul><li>left</li><li>right</li></ul>
<figure id="fig1"><img src="a.png" alt=""/><figcaption>Figure 1.1. The heart.</figcaption></figure>
<table><caption>Table 1.2. Sizes</caption><tr><th>side</th><td>cm</td></tr></table>
<dl><dt>cusp</dt><dd>flap</dd></dl>
<h2>References</h2><p>Nobody 1999.</p>
<aside epub:type="footnote"><p>1. A note.</p></aside>
</body></html>"""

CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>An EPUB</dc:title></metadata>
<manifest><item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="a" href="text/a.xhtml" media-type="application/xhtml+xml"/>
<item id="b" href="text/b%20b.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>"""


def files_of_an_epub() -> dict[str, str]:
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/nav.xhtml": "<html><body><nav><a href='text/a.xhtml'>One</a></nav></body></html>",
        "OEBPS/text/a.xhtml": PAGE.format(title="One"),
        "OEBPS/text/b b.xhtml": PAGE.format(title="Two"),
    }


def zipped(path: Path, files: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


EXPECTED_PAGE = [
    ("paragraph", None, "Blood flows, see the figure and Table 1.2."),
    ("paragraph", None, "Loose text here."),
    ("paragraph", None, "And CO₂."),
    ("list", None, "left\nright"),
    ("caption", None, "Figure 1.1. The heart."),
    ("table", "Table 1.2. Sizes", "side | cm"),
    ("definition", "cusp", "flap"),
]


def test_an_epub_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    rows, attrition = read(zipped(tmp_path / "book.epub", files_of_an_epub()))
    assert said(rows, "kind", "title", "text") == EXPECTED_PAGE * 2
    assert said(rows, "book", "chapter") == [("An EPUB", "One")] * 7 + [("An EPUB", "Two")] * 7
    assert rows[3]["heading_path"] == ["Parts"]
    assert rows[0]["refers_to"] == ["OEBPS/text/a.xhtml#fig1", "table 1.2"]
    assert "OEBPS/text/a.xhtml#fig1" in rows[4]["names"]
    assert attrition.dropped_rows == {"table of contents": 1, "reference list": 2, "footnote": 2}


def test_html_that_is_no_xml_is_read_as_a_browser_would(tmp_path: Path) -> None:
    text = (
        "<!DOCTYPE html><title>Loose</title><h1>One</h1><p>First<p>Second "
        "&eacute;<script>no</script><h1>Two</h1><p>Third"
    )
    rows, _ = read(write(tmp_path / "page.html", text))
    assert said(rows, "book", "chapter", "text") == [
        ("Loose", "One", "First"),
        ("Loose", "One", "Second é"),
        ("Loose", "Two", "Third"),
    ]


MARKDOWN = """---
title: A Markdown Book
---
# The Heart

Learning Objectives
-------------------

- Name the parts
- Place them

## Walls

They are *thick*, see [the picture](#walls) and Figure 1.
Still the same paragraph.

Figure 1. The walls.

| side | mm |
|------|----|
| left | 10 |

```
code
```

## Summary

Thick walls.

## Glossary

**septum**: the wall between

- apex: the tip

cusp
: flap of a valve

# The Vessels

Q: What carries blood away?

A: The arteries.

## References

1. Nobody, 1999.
"""


def test_markdown_is_read_with_its_lists_tables_and_definitions(tmp_path: Path) -> None:
    rows, attrition = read(write(tmp_path / "book.md", MARKDOWN))
    assert said(rows, "kind", "chapter", "title", "text") == [
        ("objective", "The Heart", None, "Name the parts\nPlace them"),
        (
            "paragraph",
            "The Heart",
            None,
            "They are thick, see the picture and Figure 1. Still the same paragraph.",
        ),
        ("caption", "The Heart", None, "Figure 1. The walls."),
        ("table", "The Heart", None, "side | mm\nleft | 10"),
        ("summary", "The Heart", None, "Thick walls."),
        ("definition", "The Heart", "septum", "the wall between"),
        ("definition", "The Heart", "apex", "the tip"),
        ("definition", "The Heart", "cusp", "flap of a valve"),
        ("question", "The Vessels", None, "What carries blood away?"),
        ("answer", "The Vessels", None, "The arteries."),
    ]
    assert rows[1]["refers_to"] == ["#walls", "figure 1"]
    assert rows[2]["names"] == ["figure 1"]
    assert rows[0]["section"] == rows[4]["section"] == "A Markdown Book/1"
    assert rows[1]["section"] == "A Markdown Book/1/2"
    assert rows[9]["refers_to"] == rows[8]["names"]
    assert attrition.dropped_rows == {"front matter": 1, "code": 1, "reference list": 1}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Table 1 lists the causes of chest pain.", "paragraph"),
        ("Figure 2.3 and Table 4 show what is left.", "paragraph"),
        ("Fig. 7a shows the valve.", "paragraph"),
        ("Table 1 Causes of chest pain", "caption"),
        ("FIGURE 2.3. The walls.", "caption"),
        ("figure 2: the walls", "caption"),
        ("Fig. 7a (left) The valve", "caption"),
        ("Table 3 | mean of all", "caption"),
        ("Figure 4 — the valve", "caption"),
    ],
)
def test_a_paragraph_that_begins_with_a_table_is_a_caption_only_where_a_title_follows(
    text: str, kind: str, tmp_path: Path
) -> None:
    rows, _ = read(write(tmp_path / "book.md", f"# The Heart\n\n{text}\n"))
    assert said(rows, "kind") == [(kind,)]


def test_an_entry_of_a_glossary_and_a_question_with_its_answer_are_sections_of_their_own(
    tmp_path: Path,
) -> None:
    rows, _ = read(write(tmp_path / "book.md", ENTRIES))
    by_text = {row["text"]: row["section"] for row in rows}
    assert by_text["of one heart"] == "book/1" and by_text["Thick walls."] == "book/1"
    assert by_text["What beats?"] == by_text["The heart."] == "book/1/2/entry 1"
    assert by_text["What flows?"] == by_text["The blood."] == "book/1/2/entry 2"
    assert (
        by_text["the wall between"] == "book/1/3/entry 3"
        and by_text["the tip"] == "book/1/3/entry 4"
    )
    assert by_text["a pulse"] == "book/3/entry 5"
    assert {row["chapter"] for row in rows if row["text"] != "a pulse"} == {
        "The Heart",
        "The Vessels",
    }


ENTRIES = """# The Heart

of one heart

## Summary

Thick walls.

## Review questions

Question: What beats?

Answer: The heart.

Question: What flows?

Answer: The blood.

## Key terms

- septum: the wall between
- apex: the tip

# The Vessels

Arteries and veins.

# Glossary

- beat: a pulse
"""


TEXT = """Preface

We thank everybody.

Chapter 1: The Heart

The heart is a mus-
cle. It beats.

1.1 Valves

- mitral
- aortic

CHAPTER II. THE VESSELS

Arteries and veins.
"""


def test_plain_text_is_read_by_the_form_of_its_lines(tmp_path: Path) -> None:
    rows, attrition = read(write(tmp_path / "book.txt", TEXT))
    assert said(rows, "chapter", "heading_path", "kind", "text") == [
        ("The Heart", [], "paragraph", "The heart is a muscle. It beats."),
        ("The Heart", ["Valves"], "list", "mitral\naortic"),
        ("THE VESSELS", [], "paragraph", "Arteries and veins."),
    ]
    assert attrition.dropped_rows == {"front matter": 1}


@pytest.mark.parametrize(
    ("encoding", "noted"), [("utf-8-sig", None), ("utf-16", "utf-16"), ("cp1252", "cp1252")]
)
def test_a_book_in_another_encoding_is_read_and_noted(
    tmp_path: Path, encoding: str, noted: str | None
) -> None:
    path = write(tmp_path / "book.md", "# Café\n\nNaïve “quotes” – and so on.\n", encoding)
    rows, attrition = read(path)
    assert said(rows, "chapter", "text") == [("Café", "Naïve “quotes” – and so on.")]
    assert attrition.locations == ({f"read as {noted}": [str(path)]} if noted else {})
    assert not attrition.dropped_rows


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"PNG\x00\x01\x02")
    with pytest.raises(SourceError) as error:
        read(path)
    assert error.value.location == str(path)


EXTERNAL = '<!DOCTYPE document [<!ENTITY x SYSTEM "{path}">]>'
BILLION = '<!DOCTYPE document [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("kind", ["cnxml", "epub", "html", "utf-16"])
@pytest.mark.parametrize(
    "declared", [EXTERNAL, BILLION, '<!DOCTYPE document [<!ENTITY % x SYSTEM "{path}"> %x;]>']
)
def test_xml_that_declares_entities_is_refused_and_nothing_of_them_is_read(
    tmp_path: Path, kind: str, declared: str
) -> None:
    secret = write(tmp_path / "secret.txt", "the-secret")
    doctype = declared.format(path=secret)
    module = (
        f'{doctype}<document xmlns="http://cnx.rice.edu/cnxml"><content><para '
        f'id="a">&x; text</para></content></document>'
    )
    page = doctype + PAGE.format(title="One")
    path = {
        "cnxml": lambda: write(tmp_path / "book.cnxml", module),
        "utf-16": lambda: write(tmp_path / "book.cnxml", module, "utf-16"),
        "epub": lambda: zipped(
            tmp_path / "book.epub", files_of_an_epub() | {"OEBPS/text/a.xhtml": page}
        ),
        "html": lambda: write(tmp_path / "book.html", page),
    }[kind]()
    with pytest.raises(SourceError) as caught:
        read(path)
    assert "entities" in caught.value.message
    assert "the-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "missing", ["META-INF/container.xml", "OEBPS/book.opf", "OEBPS/text/a.xhtml"]
)
def test_an_epub_without_one_of_its_parts_is_refused(tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in files_of_an_epub().items() if name != missing}
    with pytest.raises(SourceError, match=r"not in the archive|names no package"):
        read(zipped(tmp_path / "book.epub", files))


def test_a_broken_epub_is_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.epub", files_of_an_epub()).read_bytes()
    path = tmp_path / "half.epub"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError) as error:
        read(path)
    assert error.value.location == str(path)
    damaged = tmp_path / "damaged.epub"
    at = whole.index(b"OEBPS/text/a.xhtml") + 40
    damaged.write_bytes(
        whole[:at] + bytes(255 - byte for byte in whole[at : at + 60]) + whole[at + 60 :]
    )
    with pytest.raises(SourceError) as error:
        read(damaged)
    assert error.value.location.startswith(f"{damaged}: ")


def test_an_epub_under_lock_is_refused_and_one_with_scrambled_fonts_is_read(tmp_path: Path) -> None:
    scrambled = (
        '<encryption><EncryptedData><EncryptionMethod Algorithm="{}"/></EncryptedData></encryption>'
    )
    fonts = {"META-INF/encryption.xml": scrambled.format("http://www.idpf.org/2008/embedding")}
    assert read(zipped(tmp_path / "fonts.epub", files_of_an_epub() | fonts))[0]
    locked = {
        "META-INF/encryption.xml": scrambled.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc")
    }
    with pytest.raises(SourceError) as error:
        read(zipped(tmp_path / "locked.epub", files_of_an_epub() | locked))
    assert error.value.location == str(tmp_path / "locked.epub")


@pytest.mark.parametrize("name", ["../evil.xhtml", "/etc/evil", "a\\..\\..\\evil", "C:/evil"])
def test_an_archive_whose_names_lead_out_of_it_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedError) as error:
        read(zipped(tmp_path / "book.epub", files_of_an_epub() | {name: "x"}))
    assert error.value.location == str(tmp_path / "book.epub")


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(
        tmp_path / "bomb.epub", files_of_an_epub() | {"OEBPS/text/a.xhtml": b"0" * 4_000_000}
    )
    with pytest.raises(RefusedError) as error:
        read(bomb)
    assert "4,000,000" in error.value.message
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(RefusedError) as error:
        read(zipped(tmp_path / "large.epub", files_of_an_epub()))
    assert "1,000" in error.value.message


def test_more_bytes_than_a_page_can_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ARCHIVE_FILE_BYTES", 10)
    with pytest.raises(RefusedError) as error:
        read(zipped(tmp_path / "book.epub", files_of_an_epub()))
    assert "10 bytes" in error.value.message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", ""),
        ("a.txt", " \n\n"),
        ("a.html", ""),
        ("a.md", "# Index\n\nvalve, 12\n"),
        ("a.cnxml", "<document/>"),
    ],
)
def test_an_empty_book_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(SourceError) as error:
        read(write(tmp_path / name, text))
    assert error.value.location == str(tmp_path / name)


def test_xml_that_is_not_well_formed_is_refused_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        read(write(tmp_path / "a.cnxml", "<document><secretword></document>"))
    assert "line 1" in caught.value.message
    assert "secretword" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_folder_holds_a_book_a_file_and_is_looked_into(tmp_path: Path) -> None:
    openstax(tmp_path / "openstax")
    write(tmp_path / "b.md", "# One\n\nText.\n")
    write(tmp_path / "README.md", "# Not a book\n\nText.\n")
    write(tmp_path / "notes.csv", "a,b\n")
    rows, _ = read(tmp_path)
    assert list(dict.fromkeys(row["book"] for row in rows)) == ["b", "A Heart Book"]


def test_a_folder_without_a_book_and_a_file_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert error.value.location == str(tmp_path)
    with pytest.raises(SourceError) as error:
        read(write(tmp_path / "a.docx", "text"))
    assert error.value.location == str(tmp_path / "a.docx")
    with pytest.raises(SourceError) as error:
        read(tmp_path / "nothing")
    assert error.value.location == str(tmp_path / "nothing")


def test_a_file_without_an_ending_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "page", "  <!DOCTYPE html><h1>One</h1><p>Text.")
    assert said(read(path)[0], "text") == [("Text.",)]


def test_ids_stay_when_the_rest_of_the_book_changes_and_the_fingerprint_does_not(
    tmp_path: Path,
) -> None:
    first = write(tmp_path / "a" / "book.md", "# One\n\nSame.\n\nSame.\n\nOther.\n")
    ids = [row["passage_id"] for row in read(first)[0]]
    print_before = textbooks.fingerprint_textbooks(first)
    assert len(set(ids)) == 3
    second = write(tmp_path / "b" / "book.md", "# One\n\nSame.\n\nSame.\n\nOther.\n\nNew.\n")
    assert [row["passage_id"] for row in read(second)[0]][:3] == ids
    assert textbooks.fingerprint_textbooks(second) != print_before
    assert (
        textbooks.fingerprint_textbooks(write(tmp_path / "c" / "book.md", first.read_text()))
        == print_before
    )


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("References", "reference list"),
        ("12.4 References", "reference list"),
        ("INDEX", "index"),
        ("Chapter 3: Index cases", ""),
        ("Table of Contents", "table of contents"),
        ("Preface to the second edition", "front matter"),
        ("The Heart", ""),
    ],
)
def test_a_heading_says_what_its_part_is_for(title: str, expected: str) -> None:
    assert find_heading_role(title).drop_reason == expected


def test_ligatures_are_spelled_out_and_raised_numbers_stay() -> None:
    assert (
        normalize_passage_text("signi\ufb01cant\u00ad \u00a0 10⁹/l\u200b µg ½")
        == "significant 10⁹/l µg ½"
    )


@pytest.mark.parametrize("folder", ["openstax_anatomy_physiology_2e", "openstax_nursing"])
def test_the_real_books_hold_what_others_found_in_them(
    folder: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import books_openstax

    try:
        rows, _ = read(shared_data / folder)
        recalls = books_openstax.recalls(shared_data / folder, rows)
    finally:
        sys.modules.pop("books_openstax", None)
    assert [recall.name for recall in recalls] == ["passages", "glossary"]
    assert all(recall.asked > 500 and recall.value >= 0.98 for recall in recalls), recalls
