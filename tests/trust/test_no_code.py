"""No code comes out of data: weights are safetensors, settings are TOML and JSON, and nothing makes
objects of bytes that somebody else wrote."""

from __future__ import annotations

import ast
import json
import pickle
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from clinpeft import adapters, models
from clinpeft.core.errors import AdapterError, BaseModelError, ClinpeftError
from clinpeft.core.schemas import Attrition
from clinpeft.data import sources, textbooks
from clinpeft.models.folder import check_model_folder
from clinpeft.recipe import LanguageModelSpec, LoraSpec, SourceSpec
from tests.conftest import ROOT, MakeFolder

HOUSE = ROOT / "src" / "clinpeft"

MAKES_OBJECTS = {
    *(
        "pickle",
        "cPickle",
        "_pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
        "copyreg",
        "code",
        "codeop",
        "runpy",
        "imp",
    ),
    *(
        "yaml",
        "ruamel",
        "jsonpickle",
        "torch.load",
        "torch.jit.load",
        "torch.hub",
        "numpy.lib.npyio",
        "pandas",
        "lxml.objectify",
    ),
}
"""Modules and functions that run, or may run, what they read."""

BUILT_IN = {"eval", "exec", "compile", "__import__"}


def complaints(text: str, file: str = "a.py") -> Iterator[str]:
    """What a file does that would make code, or any object, of data."""
    tree = ast.parse(text)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or alias.name.partition(".")[0]: alias.name
                if alias.asname
                else alias.name.partition(".")[0]
                for alias in node.names
            }
            yield from (
                f"{file}:{node.lineno}: {alias.name}"
                for alias in node.names
                if _makes_objects(alias.name)
            )
        elif isinstance(node, ast.ImportFrom):
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
            yield from (
                f"{file}:{node.lineno}: {node.module}.{alias.name}"
                for alias in node.names
                if _makes_objects(f"{node.module}.{alias.name}")
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{file}:{node.lineno}: {said}" for said in _of_call(node, known))
        elif isinstance(node, ast.Attribute) and _makes_objects(_dotted(node, known)):
            yield f"{file}:{node.lineno}: {_dotted(node, known)}"


def _makes_objects(dotted: str) -> bool:
    return any(dotted == name or dotted.startswith(f"{name}.") for name in MAKES_OBJECTS)


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or (
        parts and node.id not in known
    ):  # of a value, not of a module
        return ""
    return ".".join([known.get(node.id, node.id), *reversed(parts)])


def _of_call(node: ast.Call, known: dict[str, str]) -> Iterator[str]:
    name = _dotted(node.func, known)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in BUILT_IN:
        yield name
    if name in ("numpy.load", "numpy.lib.format.read_array") and not _is(
        given.get("allow_pickle"), False
    ):
        yield f"{name} without allow_pickle=False"
    if "trust_remote_code" in given and not _is(given["trust_remote_code"], False):
        yield "trust_remote_code"
    if (
        name.rpartition(".")[2] == "from_pretrained"
        and "transformers" in name
        and not _is(given.get("trust_remote_code"), False)
    ):
        yield f"{name} without trust_remote_code=False"
    if given.get("shell") is not None and not _is(given["shell"], False):
        yield "a shell"
    if name in ("os.system", "os.popen"):
        yield name


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_of_the_package_makes_code_or_objects_of_data() -> None:
    found = [
        said
        for path in sorted(HOUSE.rglob("*.py"))
        for said in complaints(path.read_text(encoding="utf-8"), str(path.relative_to(HOUSE)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('a')",
        "import torch as t\nt.load('a')",
        "from torch import load",
        "import numpy as np\nnp.load('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained('a', "
            "trust_remote_code=True)"
        ),
        "from transformers import AutoModel\nAutoModel.from_pretrained('a')",
        "eval('1')",
        "import yaml",
        "import subprocess\nsubprocess.run('a', shell=True)",
        "import os\nos.system('a')",
    ],
)
def test_the_search_would_have_found_it(text: str) -> None:
    assert list(complaints(text))


@pytest.mark.parametrize(
    "text",
    [
        "import numpy as np\nnp.load('a', allow_pickle=False)",
        "import json\njson.loads('1')",
        "model.eval()",
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained('a', "
            "trust_remote_code=False)"
        ),
    ],
)
def test_the_search_finds_nothing_else(text: str) -> None:
    assert not list(complaints(text))


# files that would run -----------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "weights.pickle"],
)
def test_a_base_of_pickled_weights_is_refused_and_nothing_in_it_runs(
    name: str, toy_llama: MakeFolder, tmp_path: Path
) -> None:
    folder = toy_llama()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"w": Bomb(tmp_path / "ran")}))
    with pytest.raises(BaseModelError, match="weights") as raised:
        check_model_folder(folder)
    assert "safetensors" in str(raised.value) and not (tmp_path / "ran").exists()


def test_safetensors_are_read_where_pickled_weights_lie_beside_them(
    toy_llama: MakeFolder, tmp_path: Path
) -> None:
    folder = toy_llama()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Bomb(tmp_path / "ran")}))
    models.load_base_model(LanguageModelSpec(path=folder), torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_base_that_brings_code_is_refused(toy_llama: MakeFolder, tmp_path: Path) -> None:
    folder = toy_llama()
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(about | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}), encoding="utf-8"
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(BaseModelError, match="code from a model folder is never run"):
        models.load_base_model(LanguageModelSpec(path=folder), torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_an_adapter_of_pickled_weights_is_refused(toy_llama: MakeFolder, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}',
        encoding="utf-8",
    )
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"w": Bomb(tmp_path / "ran")}))
    with pytest.raises(AdapterError):
        adapters.attach_adapters(
            models.load_base_model(LanguageModelSpec(path=toy_llama()), torch.device("cpu")),
            [LoraSpec(from_run="given")],
            0,
            {"given": folder},
        )
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.array([Bomb(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects|allow_pickle"):
        np.load(path, mmap_mode="r", allow_pickle=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".tsv"])
def test_a_pickle_under_the_name_of_a_table_is_an_error(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"notes{ending}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    spec = SourceSpec(
        name="files",
        path=path,
        columns={"note_id": "note_id", "subject_id": "subject_id", "text": "text"},
    )
    with pytest.raises(ClinpeftError):
        sources.read_notes(spec, Attrition("read"), tmp_path).read_all()
    assert not (tmp_path / "ran").exists()


# archives and XML ---------------------------------------------------------------------------------


def refused(path: Path) -> ClinpeftError:
    attrition = Attrition("passages")
    with pytest.raises(ClinpeftError) as raised:
        for _ in textbooks.read_textbooks(path, attrition):
            pass
    return raised.value


def epub(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


CONTAINER = b'<container><rootfiles><rootfile full-path="book.opf"/></rootfiles></container>'


@pytest.mark.parametrize(
    "name", ["../../outside.xhtml", "/etc/outside.xhtml", "C:/outside.xhtml", "a/../../outside"]
)
def test_an_archive_that_leads_out_of_itself_is_refused(name: str, tmp_path: Path) -> None:
    error = refused(epub(tmp_path / "book.epub", {"META-INF/container.xml": CONTAINER, name: b"x"}))
    assert error.exit_code == 4 and "leads out" in error.message


def test_an_archive_that_grows_a_thousand_times_is_refused(tmp_path: Path) -> None:
    error = refused(
        epub(
            tmp_path / "book.epub",
            {"META-INF/container.xml": CONTAINER, "bomb.xhtml": b"0" * (1 << 23)},
        )
    )
    assert error.exit_code == 4 and "unpack to" in error.message


def test_xml_names_no_file_of_this_machine_and_grows_no_entities(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden vermilion accordion", encoding="utf-8")
    head = (
        f'<!DOCTYPE d [<!ENTITY s SYSTEM "file://{secret}"><!ENTITY a "{"x" * 1000}"><!ENTITY '
        f'b "{"&a;" * 1000}"><!ENTITY c "{"&b;" * 1000}">]>'
    )
    body = (
        '<title>One</title><content><para id="p">&s; &c; words enough to stand '
        "here</para></content>"
    )
    path = tmp_path / "one.cnxml"
    path.write_text(
        f'{head}<document xmlns="http://cnx.rice.edu/cnxml">{body}</document>', encoding="utf-8"
    )
    try:
        table = textbooks.read_textbooks(path, Attrition("passages")).read_all()
    except ClinpeftError:
        return
    said = " ".join(table["text"].to_pylist())
    assert "vermilion" not in said and len(said) < 10_000


def test_recipes_and_settings_are_toml_and_json() -> None:
    """What the package ships is read by these two as well."""
    for path in [*ROOT.glob("recipes/*.toml"), *HOUSE.rglob("*.toml")]:
        tomllib.loads(path.read_text(encoding="utf-8"))
    assert not [
        path
        for ending in ("*.pkl", "*.pickle", "*.pt", "*.bin", "*.yaml", "*.yml", "*.npy")
        for path in HOUSE.rglob(ending)
    ]
