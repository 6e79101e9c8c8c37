"""Whatever stands in a file: it is read, or it is an error of the family with its three parts, and
every row that entered was kept or dropped."""

from __future__ import annotations

import gzip
import io
import json
import random
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clinpeft import recipe as recipes
from clinpeft.core.errors import ClinpeftError, RecipeError
from clinpeft.core.schemas import Attrition
from clinpeft.data import sources, textbooks
from clinpeft.recipe import SourceSpec
from clinpeft.recipe.kinds import RECIPE_CLASSES
from clinpeft.recipe.spec import RecipeSpec
from tests.conftest import ROOT

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Always the same examples: a failure is one for everybody."""


def whole(error: ClinpeftError) -> None:
    """An error has its three parts."""
    assert error.message.strip() and error.location.strip() and error.hint.strip(), repr(error)
    assert error.exit_code in (1, 2, 3, 4, 5)


# recipes ------------------------------------------------------------------------------------------

KEYS = sorted({name for kind in RECIPE_CLASSES.values() for name in kind.model_fields})
INNER = sorted(
    {name for spec in RecipeSpec.__subclasses__() for name in spec.model_fields}
    | {"rank", "method", "path", "grid", "name", "published"}
)
WORDS = [
    "adapt",
    "classify",
    "embed",
    "cohort",
    "lora",
    "prefix",
    "auto",
    "float32",
    "mean",
    "$HOME",
    "$ABSENT/x",
    "../a",
    "",
    "mimic-iv",
    "files",
    "mortality",
]

plain = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(WORDS),
    st.text(max_size=12),
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=3)
    ),
    max_leaves=6,
)
documents = st.dictionaries(
    st.sampled_from([*KEYS, "grid", "search", "compare", "workers"]), values, max_size=6
)


def toml(value: Any) -> str:
    """A value as TOML, inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return (
            '"'
            + "".join(c if c.isalnum() or c in " ./$-" else f"\\U{ord(c):08x}" for c in value)
            + '"'
        )
    return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(repr(value), repr(value))


def read_or_refused(text: str | bytes, folder: Path, overrides: tuple[str, ...] = ()) -> list[Any]:
    path = folder / "a.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        cells = recipes.load_recipe_cells(path, overrides, {"HOME": "/home/somebody"})
    except ClinpeftError as error:
        whole(error)
        return []
    return cells


@quick
@given(document=documents, kind=st.sampled_from([*RECIPE_CLASSES, "adopt", 3]))
@example(document={"grid": {"a": [{"name": 3}]}}, kind="adapt")
@example(document={"grid": {"a": [{"published": 3}]}}, kind="adapt")
@example(document={"grid": 3}, kind="adapt")
@example(document={"name": {"a": 1}}, kind="adapt")
def test_any_document_is_a_recipe_or_an_error_of_the_family(
    document: dict[str, Any], kind: Any, tmp_path: Path
) -> None:
    whole_document = {"kind": kind, **document}
    read_or_refused(
        "\n".join(f"{key} = {toml(value)}" for key, value in whole_document.items()), tmp_path
    )


@quick
@given(text=st.binary(max_size=200) | st.text(max_size=200))
@example(text="kind = 'adapt'\n[grid]\n")
@example(text="\ufeffkind = 'adapt'")
@example(text="a = " + "[" * 5000)
@example(text="kind = 'adapt'\nseed = " + "9" * 5000)
@example(text="kind = 'adapt'\nwhen = 2020-01-01\n")
def test_any_text_is_a_recipe_or_an_error_of_the_family(text: str | bytes, tmp_path: Path) -> None:
    read_or_refused(text, tmp_path)


@quick
@given(
    key=st.sampled_from(
        [
            *KEYS,
            *(
                f"{one}.{two}"
                for one in ("base", "training", "source", "grid", "adapters.0")
                for two in INNER
            ),
        ]
    )
    | st.text(max_size=12),
    value=values,
)
@example(key="adapters.9.rank", value=3)
@example(key="adapters.x.rank", value=3)
@example(key="name.a.b", value=3)
def test_any_override_is_applied_or_an_error_of_the_family(
    key: str, value: Any, tmp_path: Path
) -> None:
    text = (ROOT / "recipes" / "smoke.toml").read_text(encoding="utf-8")
    for said in (f"{key}={toml(value)}", f"{key}={value}", key):
        read_or_refused(text, tmp_path, (said,))


@quick
@given(
    name=st.text(max_size=20),
    path=st.text(min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
    rate=st.floats(1e-9, 1.0),
)
@example(name="\U000e0001 a\x7f\u2028", path="a", seed=0, rate=1e-5)
@example(name='"\\\n\t', path='"', seed=0, rate=0.1)
def test_a_recipe_written_and_read_again_is_the_same(
    name: str, path: str, seed: int, rate: float
) -> None:
    document = {
        "kind": "adapt",
        "name": name,
        "seed": seed,
        "source": {"name": "files", "path": "/" + path, "columns": {"text": name or "a"}},
    }
    document |= {
        "base": {"path": "/base"},
        "adapters": [{"method": "lora", "rank": 2}],
        "training": {"learning_rate": rate},
    }
    try:
        one = recipes.validate_recipe(document, "a test")
    except RecipeError:
        return
    again = recipes.validate_recipe(tomllib.loads(recipes.format_recipe_toml(one)), "a test")
    assert again == one


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_recipe_of_the_project_is_written_and_read_again_the_same(path: Path) -> None:
    for cell in (
        recipes.load_recipe_cells(
            path,
            (),
            dict.fromkeys(("HOME", "CLINPEFT_DATA", "MIMIC", "MIMIC3", "MIMIC4"), "/somewhere"),
        )
        if "$" not in path.read_text()
        else ()
    ):
        assert (
            recipes.validate_recipe(
                tomllib.loads(recipes.format_recipe_toml(cell.recipe)), "a test"
            )
            == cell.recipe
        )


# tables -------------------------------------------------------------------------------------------

HEADER = b"note_id,subject_id,category,text\n"
GOOD = b'n1,1,Surgery,"the patient, a man\nof many lines"\n'


def notes_of(path: Path) -> tuple[Attrition, int]:
    """What became of a file's rows; (0 kept) where it was refused."""
    columns = {name: name for name in ("note_id", "subject_id", "category", "text")}
    spec = SourceSpec(name="files", path=path, columns=columns, max_bad_fraction=1.0)
    read = Attrition("read")
    kept = 0
    try:
        for batch in sources.read_notes(spec, read, path.parent / "cache"):
            kept += len(batch)
    except ClinpeftError as error:
        whole(error)
        return read, -1
    return read, kept


def accounted(path: Path) -> int:
    read, kept = notes_of(path)
    assert kept == -1 or read.entered_rows == kept + sum(
        read.dropped_rows.values()
    ) == read.kept_rows + sum(read.dropped_rows.values())
    return kept


pieces = st.lists(
    st.sampled_from(
        [
            GOOD,
            b'"',
            b",",
            b"\n",
            b"\r",
            b"\r\n",
            b"\x00",
            b"\xff\xfe",
            b'n2,2,,"a"\n',
            b"n3,x,y,z\n",
            b'""',
            b"\t",
            b"a" * 300,
            "é".encode(),
            b"\xe9",
        ]
    )
    | st.binary(max_size=8),
    max_size=12,
)


@quick
@given(
    parts=pieces,
    header=st.sampled_from([HEADER, b"", b"\xef\xbb\xbf" + HEADER]),
    packed=st.booleans(),
    ending=st.sampled_from([".csv", ".tsv", ".csv.gz"]),
)
@example(parts=[GOOD, b'"' * 3, GOOD], header=HEADER, packed=False, ending=".csv")
@example(parts=[GOOD, b"\x00", GOOD], header=HEADER, packed=False, ending=".csv")
def test_any_delimited_bytes_are_rows_kept_and_dropped_or_an_error(
    parts: list[bytes], header: bytes, packed: bool, ending: str, tmp_path: Path
) -> None:
    content = header + b"".join(parts)
    path = tmp_path / f"notes{ending}"
    path.write_bytes(gzip.compress(content) if packed else content)
    accounted(path)


@quick
@given(
    parts=st.lists(
        st.sampled_from(
            [
                b'{"note_id": "n1", "subject_id": 1, "category": "a", "text": "b"}\n',
                b"{}\n",
                b"[1]\n",
                b"null\n",
                b'{"a":\n',
                b'"x"\n',
                b"\n",
                b"1e999\n",
            ]
        )
        | st.binary(max_size=12),
        max_size=8,
    )
)
@example(parts=[b"[" * 100_000])
@example(
    parts=[b'{"note_id": ' + b"9" * 5000 + b', "subject_id": 1, "category": "a", "text": "b"}\n']
)
def test_any_lines_of_json_are_rows_kept_and_dropped_or_an_error(
    parts: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(b"".join(parts))
    accounted(path)


def _damaged(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped, a piece cut out, or the end cut off."""
    done = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        if not done:
            break
        at = draw.randrange(len(done))
        how = draw.choice(["bit", "cut", "end", "double", "zero"])
        if how == "bit":
            done[at] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del done[at : at + draw.randint(1, 40)]
        elif how == "end":
            del done[at:]
        elif how == "double":
            done[at:at] = done[at : at + draw.randint(1, 40)]
        else:
            done[at : at + 8] = b"\0" * 8
    return bytes(done)


def parquet() -> bytes:
    out = io.BytesIO()
    rows = {
        "note_id": ["n1", "n2"] * 20,
        "subject_id": [1, 2] * 20,
        "category": ["a", None] * 20,
        "text": ["the patient is a man", "b" * 100] * 20,
    }
    pq.write_table(pa.table(rows), out, compression="zstd")
    return out.getvalue()


TABLES: dict[str, Callable[[], bytes]] = {
    ".csv": lambda: HEADER + GOOD * 30,
    ".csv.gz": lambda: gzip.compress(HEADER + GOOD * 30),
    ".jsonl": lambda: b'{"note_id": "n1", "subject_id": 1, "category": "a", "text": "b"}\n' * 30,
    ".parquet": parquet,
}


@pytest.mark.parametrize("ending", TABLES)
def test_a_hundred_broken_tables_are_each_accounted_for(ending: str, tmp_path: Path) -> None:
    whole_file, kept = TABLES[ending](), []
    path = tmp_path / f"notes{ending}"
    for seed in range(100):
        path.write_bytes(_damaged(whole_file, random.Random(seed)))
        kept.append(accounted(path))
    path.write_bytes(whole_file)
    assert accounted(path) > 0  # the whole one is read
    assert len(set(kept)) > 1 or ending in (
        ".csv.gz",
        ".parquet",
    )  # and the broken ones are not all alike


# books --------------------------------------------------------------------------------------------

XHTML = (
    b"<html xmlns='http://www.w3.org/1999/xhtml'><body><h1>One</h1><p>The patient is a man "
    b"with heart failure and cough.</p></body></html>"
)
OPF = (
    b"<package xmlns='http://www.idpf.org/2007/opf'><metadata/><manifest><item id='a' "
    b"href='a.xhtml' media-type='application/xhtml+xml'/></manifest>"
    b"<spine><itemref idref='a'/></spine></package>"
)
CONTAINER = (
    b"<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
    b"<rootfile full-path='book.opf' "
    b"media-type='application/oebps-package+xml'/></rootfiles></container>"
)
CNXML = (
    b'<document xmlns="http://cnx.rice.edu/cnxml"><title>One</title><content><para>The patient '
    b"is a man with cough.</para></content></document>"
)


def epub() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {
            "mimetype": b"application/epub+zip",
            "META-INF/container.xml": CONTAINER,
            "book.opf": OPF,
            "a.xhtml": XHTML,
        }.items():
            archive.writestr(name, content)
    return out.getvalue()


def pdf() -> bytes:
    """One page with one line, its table of places right."""
    stream = (
        b"BT /F1 12 Tf 72 700 Td (The patient is a man with heart failure and cough for three "
        b"days.) Tj ET"
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources "
            b"<< /Font << /F1 5 0 R >> >> >>"
        ),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(
        b"%010d 00000 n \n" % location for location in places
    )
    return out + table + b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)


BOOKS: dict[str, Callable[[], bytes]] = {
    ".epub": epub,
    ".pdf": pdf,
    ".html": lambda: XHTML,
    ".cnxml": lambda: CNXML,
    ".md": lambda: (
        b"# One\n\nThe patient is a man.\n\n## Key terms\n\n- **cough**: short breath\n" * 3
    ),
    ".txt": lambda: "The patient is a man — with cough.\n\n".encode() * 5,
}


def passages(path: Path) -> int:
    """How many passages came out; -1 where the book was refused."""
    attrition, kept = Attrition("passages"), 0
    try:
        for batch in textbooks.read_textbooks(path, attrition):
            kept += len(batch)
    except ClinpeftError as error:
        whole(error)
        return -1
    assert attrition.entered_rows == kept + sum(attrition.dropped_rows.values())
    return kept


@pytest.mark.parametrize("ending", BOOKS)
def test_eighty_broken_books_of_each_format_are_read_or_refused(
    ending: str, tmp_path: Path
) -> None:
    whole_file = BOOKS[ending]()
    path = tmp_path / f"book{ending}"
    path.write_bytes(whole_file)
    assert passages(path) > 0
    for seed in range(80):
        path.write_bytes(_damaged(whole_file, random.Random(seed)))
        passages(path)


@quick
@given(
    content=st.binary(max_size=300),
    begin=st.sampled_from(
        [b"", b"PK\x03\x04", b"%PDF-1.7\n", b"<html>", b"\xff\xfe", b"<?xml version='1.0'?>"]
    ),
)
@pytest.mark.parametrize("ending", [*BOOKS, ".xhtml", ""])
def test_any_bytes_are_a_book_or_an_error_of_the_family(
    ending: str, content: bytes, begin: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"book{ending}"
    path.write_bytes(begin + content)
    passages(path)


markup = st.recursive(
    st.text(max_size=8),
    lambda inner: st.tuples(
        st.sampled_from(
            ["p", "h1", "table", "tr", "td", "ul", "li", "math", "para", "section", "title", "note"]
        ),
        st.lists(inner, max_size=3),
    ).map(lambda pair: f"<{pair[0]}>{''.join(pair[1])}</{pair[0]}>"),
    max_leaves=12,
)


@quick
@given(body=markup)
@example(body="<p>" * 3000 + "deep" + "</p>" * 3000)
@example(body="&a;&#0;&#xffffffff;")
@pytest.mark.parametrize(
    ("ending", "frame"),
    [
        (".html", "<html><body>{}</body></html>"),
        (".cnxml", '<document xmlns="http://cnx.rice.edu/cnxml"><content>{}</content></document>'),
    ],
)
def test_any_markup_is_a_book_or_an_error_of_the_family(
    ending: str, frame: str, body: str, tmp_path: Path
) -> None:
    path = tmp_path / f"book{ending}"
    path.write_text(frame.replace("{}", body), encoding="utf-8", errors="replace")
    passages(path)
