"""One door to the network: nothing but ``clinpeft models pull`` opens a connection, not even a
library; and no verb unpickles."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clinpeft.core.database import OFFLINE_DUCKDB_SETTINGS
from tests.conftest import ROOT
from tests.trust import toys

HOUSE = ROOT / "src" / "clinpeft"
CONFINE = Path(__file__).with_name("confine.py")
ONLY_DOOR = "models/download.py"
KNOCK = (
    "socket",
    "ssl",
    "urllib.request",
    "urllib3",
    "http.client",
    "http.server",
    "ftplib",
    "smtplib",
    "requests",
    "httpx",
    "aiohttp",
    "huggingface_hub",
)
SWITCHES = {
    ("models/__init__.py", "huggingface_hub"),
    ("models/__init__.py", "huggingface_hub.constants"),
}
"""Where the library that could reach out is told to stay offline."""

# Cards are filled from a template of this package and written to disk: these three classes open no
# connection, and anything else of the library in that file is still an error
CARD_CLASSES = {
    ("reports/cards.py", f"huggingface_hub.{name}")
    for name in ("EvalResult", "ModelCard", "ModelCardData")
}

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def confined(report: Path, *lines: list[object]) -> tuple[int, str, dict[str, int]]:
    """Commands, one after the other, in a process that dies of a socket: exit code, standard error,
    what was counted."""
    asked = [
        sys.executable,
        str(CONFINE),
        str(report),
        *("\x1f".join(map(str, words)) for words in lines),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run(
        asked, capture_output=True, text=True, env=environment, timeout=900, check=False
    )
    return (
        done.returncode,
        done.stderr,
        json.loads(report.read_text(encoding="utf-8")) if report.exists() else {},
    )


@pytest.fixture(scope="module")
def every_verb(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, int]]:
    """Every verb that works on notes or books, on toys, in one process."""
    folder = tmp_path_factory.mktemp("confined")
    recipes, home = toys.write(folder), folder / "home"
    here = ["--home", home]
    verbs = [[verb, recipe, *here] for verb, recipe in recipes.items()]
    cohort = folder / "cohort.toml"
    cohort.write_text(toys.COHORT.format(notes=folder / "notes.csv"), encoding="utf-8")
    return confined(
        folder / "report.json",
        *verbs,
        ["cohort", "build", cohort, *here],
        [
            "predict",
            "classify",
            "--notes",
            folder / "notes.csv",
            "--out",
            folder / "new.parquet",
            *here,
        ],
        ["evaluate", "classify", "--resamples", "100", *here],
        [
            "encode",
            "embed",
            "--texts",
            folder / "notes.csv",
            "--out",
            folder / "vectors.npy",
            *here,
        ],
        ["export", "embed", "--to", folder / "exported", *here],
        ["runs", *here],
        ["runs", "show", "adapt", *here],
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is of Linux")
def test_every_verb_ends_well_where_a_socket_is_the_end_of_the_process(
    every_verb: tuple[int, str, dict[str, int]],
) -> None:
    code, said, seen = every_verb
    assert code == 0, said[-3000:]
    if not seen["filter"]:
        pytest.skip("this system takes no filter from a user")
    assert not [event for event in seen if event.startswith("socket.")], seen


def test_no_verb_starts_a_process_but_git_to_name_the_code(
    every_verb: tuple[int, str, dict[str, int]],
) -> None:
    started = {event for event in every_verb[2] if event.startswith(("subprocess", "os.system"))}
    assert started <= {"subprocess.Popen git"}


def test_no_object_was_made_by_pickle_while_every_verb_ran(
    every_verb: tuple[int, str, dict[str, int]],
) -> None:
    """The interpreter says which class or function a pickle asks for, whoever reads it: nobody read
    one."""
    code, said, seen = every_verb
    assert code == 0, said[-2000:]
    assert not [event for event in seen if event.startswith("pickle.")]


def test_the_interpreter_would_have_said_so(tmp_path: Path) -> None:
    said = (
        "import sys, pickle; sys.addaudithook(lambda event, args: event == 'pickle.find_class' "
        "and print(event)); pickle.loads(pickle.dumps(print))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", said], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "pickle.find_class"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is of Linux")
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_the_filter_would_have_seen_a_socket(family: str, tmp_path: Path) -> None:
    said = (
        f"import sys; sys.path.insert(0, {str(CONFINE.parent)!r}); import confine, socket; "
        "confine.without_internet() or sys.exit(77)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{said}; socket.socket(socket.{family})"],
        capture_output=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this system takes no filter from a user")
    assert done.returncode == -signal.SIGSYS


def test_only_the_door_knows_a_library_of_the_network() -> None:
    found: set[tuple[str, str]] = set()
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {
                (path.relative_to(HOUSE).as_posix(), name)
                for name in names
                for knock in KNOCK
                if name == knock or name.startswith(f"{knock}.")
            }
    wrong = {(file, name) for file, name in found - SWITCHES - CARD_CLASSES if file != ONLY_DOOR}
    assert not wrong, f"these may not reach a network: {sorted(wrong)}"


def test_no_database_fetches_an_extension() -> None:
    """DuckDB would, below Python, where a query names what it has not."""
    opened = {
        path: path.read_text(encoding="utf-8")
        for path in HOUSE.rglob("*.py")
        if "duckdb.connect(" in path.read_text(encoding="utf-8")
    }
    assert opened
    for path, text in opened.items():
        assert "OFFLINE_DUCKDB_SETTINGS" in text, path
    assert OFFLINE_DUCKDB_SETTINGS["autoinstall_known_extensions"] is False
    assert OFFLINE_DUCKDB_SETTINGS["autoload_known_extensions"] is False


def test_the_libraries_are_told_to_stay_offline_before_they_are_imported() -> None:
    """In a process that has none of the variables: they stand when the first library that reads
    them comes in, and that is not before the command."""
    said = f"""
import os, sys
wanted = {OFFLINE!r}
class Watching:
    def find_spec(self, name, path=None, target=None):
        if name in ("transformers", "huggingface_hub", "torch", "peft", "accelerate", "tokenizers", "datasets"):
            missing = [key for key, value in wanted.items() if os.environ.get(key) != value]
            assert not missing, (name, missing)
sys.meta_path.insert(0, Watching())
import clinpeft.cli
assert "transformers" not in sys.modules and "torch" not in sys.modules
sys.argv = ["clinpeft", "--version"]
try: clinpeft.cli.main()
except SystemExit: pass
import clinpeft.workflows, huggingface_hub.constants as constants
assert constants.HF_HUB_OFFLINE and constants.HF_HUB_DISABLE_TELEMETRY
"""  # noqa: E501
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    done = subprocess.run(
        [sys.executable, "-c", said], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_test_that_reaches_out_fails() -> None:
    with pytest.raises(AssertionError, match="tried to reach"), socket.socket() as one:
        one.connect(("192.0.2.1", 80))
    with pytest.raises(AssertionError, match="tried to look up"):
        socket.create_connection(("example.org", 80))
    with (
        pytest.raises(AssertionError, match="tried to reach"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        one.sendto(b"", ("192.0.2.1", 80))


@pytest.mark.local_sockets
def test_a_marked_test_reaches_this_machine_and_no_other() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
    ):
        assert one.getpeername() == server.getsockname()
    with pytest.raises(AssertionError, match="tried to look up"):
        socket.create_connection(("example.org", 80))
