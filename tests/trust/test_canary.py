"""No words of a note: a sentence that stands in every note and every book is looked for in all that
any verb says or writes, however it ends."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import re
import signal
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft import training
from clinpeft.cli import exit as ending
from clinpeft.cli import progress
from clinpeft.core.errors import ClinpeftError, InputError, RefusedError
from clinpeft.data import sources
from clinpeft.training import checkpoint
from tests.conftest import write_toy_llama
from tests.test_classify import Said, clinpeft
from tests.trust import toys

WORDS = [
    word.lower() for word in toys.CANARY.split() if len(word) > 5
]  # zebulon quixmarrow vermilion accordion

DECLARED = re.compile(
    # what is derived from notes and books, within the home
    r"cache/(corpus|cohort|tokens|documents|pairs|passages|books|shelf|handbook)[^/]*/.*"
    r"|cohorts/[^/]+/(cohort\.parquet|meds/data/.*|leakage\.json)"
)
"""The text outputs that docs/trust.md declares: everything else must be free of text."""


def holding(root: Path) -> Iterator[str]:
    """Files below a folder, or their names, in which a word of the canary stands; tables are read,
    since their bytes are compressed."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if any(word in name.lower() for word in WORDS):
            yield f"the name {name}"
        if path.is_file() and not DECLARED.fullmatch(name) and (found := _spoken(path)):
            yield f"{name}: {found}"


def _spoken(path: Path) -> str:
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    said = content.decode("utf-8", "ignore") + content.decode("utf-16-le", "ignore")
    if content[:4] == b"PAR1":
        table = pq.read_table(path)
        said += json.dumps(table.to_pylist(), default=str) + str(
            table.schema.to_string(truncate_metadata=False)
        )
    plain = unicodedata.normalize("NFKC", said).lower()
    return next((word for word in WORDS if word in plain), "")


def test_the_audit_of_a_cohort_holds_single_words_of_many_people_and_no_two_in_a_row(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort.toml"
    cohort.write_text(
        toys.COHORT.format(notes=recipes["adapt"].parent / "notes.csv"), encoding="utf-8"
    )
    assert clinpeft("cohort", "build", cohort, "--home", tmp_path).code == 0
    told = (tmp_path / "cohorts" / "cohort" / "leakage.json").read_text(encoding="utf-8").lower()
    assert "hides a" not in told and not [
        pair for pair in itertools.pairwise(WORDS) if " ".join(pair) in told
    ]


def silent(said: Said, *roots: Path) -> None:
    """Neither what was said nor what was written holds a word of the canary."""
    told = (said.out + said.err).lower()
    assert not [word for word in WORDS if word in told], said
    found = [line for root in roots if root.exists() for line in holding(root)]
    assert not found, found


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return toys.write(tmp_path_factory.mktemp("planted"), planted=toys.CANARY)


@pytest.fixture(scope="module")
def home(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished run of each verb."""
    home = tmp_path_factory.mktemp("home")
    for verb, recipe in recipes.items():
        said = clinpeft(verb, recipe, "--home", home)
        assert said.code == 0, said.err
        silent(said, home)
    return home


def test_the_canary_is_in_what_was_read_and_the_search_finds_it(
    recipes: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    folder = recipes["adapt"].parent
    assert "notes.csv: zebulon" in list(holding(folder)) and "book.md: zebulon" in list(
        holding(folder)
    )
    kept = [
        path
        for path in home.rglob("*.parquet")
        if DECLARED.fullmatch(path.relative_to(home).as_posix()) and _spoken(path)
    ]
    assert kept, "the declared caches hold no text: the search is blind"
    pq.write_table(
        pa.table({"a": [[{"b": toys.CANARY}]]}), tmp_path / "a.parquet", compression="zstd"
    )
    (tmp_path / "Quixmarrow").write_bytes(gzip.compress(b"vermilion"))
    assert len(list(holding(tmp_path))) == 3


def test_only_the_owner_may_look_into_runs_and_caches(home: Path) -> None:
    for folder in [home / "cache", *(run.parent for run in home.glob("*/run.json"))]:
        assert folder.stat().st_mode & 0o077 == 0, folder


def _later(recipes: dict[str, Path], home: Path, out: Path) -> dict[str, list[object]]:
    folder, here = recipes["adapt"].parent, ["--home", home]
    cohort = folder / "cohort.toml"
    cohort.write_text(toys.COHORT.format(notes=folder / "notes.csv"), encoding="utf-8")
    return {
        "cohort": ["cohort", "build", cohort, *here],
        "predict": [
            "predict",
            "classify",
            "--notes",
            folder / "notes.csv",
            "--out",
            out / "new.parquet",
            *here,
        ],
        "evaluate": ["evaluate", "classify", "--resamples", "100", "--to", out / "scores", *here],
        "encode": [
            "encode",
            "embed",
            "--texts",
            folder / "notes.csv",
            "--out",
            out / "vectors.parquet",
            *here,
        ],
        "export": ["export", "embed", "--to", out / "exported", *here],
        "runs list": ["runs", *here],
        "runs show": ["runs", "show", "adapt", *here],
        "runs compare": ["runs", "compare", "classify", "classify", *here],
    }


@pytest.mark.parametrize(
    "verb",
    ["cohort", "predict", "evaluate", "encode", "export", "runs list", "runs show", "runs compare"],
)
def test_no_verb_says_or_writes_a_word_of_a_note(
    verb: str, recipes: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    said = clinpeft(*_later(recipes, home, tmp_path)[verb])
    assert said.code == 0, said.err
    silent(said, home, tmp_path)


# error paths --------------------------------------------------------------------------------------


def _break_rows(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Quotes that are never closed, in a third of the notes."""
    broken = recipe.parent / "broken.csv"
    lines = (recipe.parent / "notes.csv").read_text(encoding="utf-8").splitlines()
    broken.write_text(
        "\n".join(line if at % 3 else line.replace(",", ',"', 3) for at, line in enumerate(lines)),
        encoding="utf-8",
    )
    return [f"source.path={broken}"]


def _no_header(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    headless = recipe.parent / "headless.csv"
    headless.write_text(
        "\n".join((recipe.parent / "notes.csv").read_text(encoding="utf-8").splitlines()[1:]),
        encoding="utf-8",
    )
    return [f"source.path={headless}"]


def _columns_swapped(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text where a number, a time and a category are expected."""
    return [
        (
            'source.columns={ note_id = "text", subject_id = "text", time = "text", category = '
            '"text", text = "category" }'
        )
    ]


def _bad_bytes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    bad = recipe.parent / "bytes.csv"
    bad.write_bytes(
        (recipe.parent / "notes.csv").read_bytes().replace(b"vermilion", b"vermilion \xff\xfe\x00")
    )
    return [f"source.path={bad}"]


def _as_parquet(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = recipe.parent / "notes.parquet"
    path.write_bytes((recipe.parent / "notes.csv").read_bytes())
    return [f"source.path={path}"]


def _as_json(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = recipe.parent / "notes.jsonl"
    path.write_bytes((recipe.parent / "notes.csv").read_bytes())
    return [f"source.path={path}"]


def _nan(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["training.learning_rate=1e30", "training.clip_norm=1e30"]


def _no_base(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return [f"base.path={recipe.parent / 'no-base'}"]


def _stopped(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said = progress.format_step

    def interrupt(event: training.StepEvent) -> str:
        if event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return said(event)

    monkeypatch.setattr(progress, "format_step", interrupt)
    return []


def _at_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def interrupt(event: training.StepEvent) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "format_step", interrupt)
    return []


def _disk_full(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    return []


def _quoting(*_: object, **__: object) -> None:
    raise ValueError(f"could not convert {toys.CANARY!r}")


def _library_quotes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An error that nobody foresaw, whose message is a note."""
    monkeypatch.setattr(training, "run_training", _quoting)
    return []


def _source_quotes(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sources, "read_notes", _quoting)
    return []


TROUBLE: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], list[str]], set[int]]] = {
    "broken quotes": (_break_rows, {3}),
    "no header": (_no_header, {3}),
    "columns swapped": (_columns_swapped, {0, 2, 3}),
    "bytes that are no text": (_bad_bytes, {0, 3}),
    "not the Parquet it says": (_as_parquet, {3}),
    "not the JSON it says": (_as_json, {3}),
    "a loss that is no number": (_nan, {1}),
    "no base": (_no_base, {2, 3}),
    "SIGTERM": (_stopped, {5}),
    "Ctrl-C twice": (_at_once, {5}),
    "a full disk": (_disk_full, {1}),
    "a library that quotes": (_library_quotes, {1}),
    "a source that quotes": (_source_quotes, {1}),
}
"""What goes wrong -> how, and the exit codes that are right."""


ALSO_OF_CLASSIFY = (
    "broken quotes",
    "columns swapped",
    "a loss that is no number",
    "a library that quotes",
)
"""Where its way differs from that of adapt."""


@pytest.mark.parametrize(
    ("verb", "trouble"),
    [
        *(("adapt", trouble) for trouble in TROUBLE),
        *(("classify", trouble) for trouble in ALSO_OF_CLASSIFY),
    ],
)
def test_no_error_says_or_writes_a_word_of_a_note(
    verb: str,
    trouble: str,
    recipes: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cause, codes = TROUBLE[trouble]
    changes = cause(recipes[verb], monkeypatch)
    said = clinpeft(
        verb,
        recipes[verb],
        "--home",
        tmp_path / "home",
        *(word for change in changes for word in ("--set", change)),
    )
    assert said.code in codes, (said.code, said.err)
    assert not said.code or "hint:" in said.err
    assert "Traceback" not in said.err
    silent(said, tmp_path / "home")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("#", "#" * 20),
        lambda text: text.encode().decode("latin-1").replace(".", "\x00"),
        lambda text: "<html><body><p>" + text,
        lambda text: f"{toys.CANARY}\n" * 3,
        lambda text: text.replace("\n", ""),
    ],
)
def test_no_damaged_book_puts_a_word_of_it_anywhere(
    damage: Callable[[str], str], recipes: dict[str, Path], tmp_path: Path
) -> None:
    book = tmp_path / "book.md"
    book.write_text(
        damage((recipes["embed"].parent / "book.md").read_text(encoding="utf-8")), encoding="utf-8"
    )
    said = clinpeft(
        "embed", recipes["embed"], "--home", tmp_path / "home", "--set", f"source.path={book}"
    )
    assert said.code in (0, 3) and "Traceback" not in said.err, said.err
    silent(said, tmp_path / "home")


@pytest.mark.parametrize("verb", ["predict", "encode", "evaluate"])
@pytest.mark.parametrize("ending_", [".csv", ".jsonl", ".parquet"])
def test_no_verb_quotes_a_file_of_notes_that_it_cannot_use(
    verb: str, ending_: str, recipes: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    bad = tmp_path / f"notes{ending_}"
    bad.write_text(f'"{toys.CANARY},"{toys.CANARY}\n{toys.CANARY}"\n' * 4, encoding="utf-8")
    asked = {
        "predict": ["predict", "classify", "--notes", bad, "--out", tmp_path / "out.parquet"],
        "encode": ["encode", "embed", "--texts", bad, "--out", tmp_path / "out.npy"],
        "evaluate": ["evaluate", bad],
    }[verb]
    said = clinpeft(*asked, "--home", home)
    assert said.code in (2, 3), said
    bad.unlink()
    silent(said, home, tmp_path)


def test_a_wrong_base_is_refused_without_a_word_of_a_note(
    recipes: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    other = write_toy_llama(tmp_path / "other", seed=7)
    stack = '[{ method = "lora", from_run = "adapt" }]'
    said = clinpeft(
        "classify",
        recipes["classify"],
        "--home",
        home,
        "--set",
        f"base.path={other}",
        "--set",
        f"adapters={stack}",
    )
    assert said.code == 4, said.err
    silent(said, home)


def test_what_nobody_foresaw_says_where_and_not_what(tmp_path: Path) -> None:
    def inner(note: str) -> None:
        raise KeyError(note)

    try:
        inner(toys.CANARY)
    except KeyError as error:
        told = ending.to_clinpeft_error(error)
    assert type(told) is ClinpeftError and told.exit_code == 1
    assert (
        told.message == "an unforeseen KeyError"
        and "test_canary.py" in told.location
        and "inner" in told.location
    )
    assert "Zebulon" not in str(told) and ending.TRACEBACK_VARIABLE in told.hint


def test_a_file_that_the_system_does_not_open_says_its_name_and_the_reason(tmp_path: Path) -> None:
    closed = ending.to_clinpeft_error(
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))
    )
    absent = ending.to_clinpeft_error(
        FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "a"))
    )
    assert isinstance(closed, RefusedError) and isinstance(absent, InputError)
    assert closed.location == absent.location == str(tmp_path / "a")


def test_a_developer_may_see_the_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ending.TRACEBACK_VARIABLE, "1")
    try:
        _quoting()
    except ValueError as error:
        assert ending.print_error(error) == 1
    assert "Zebulon" in capsys.readouterr().err
