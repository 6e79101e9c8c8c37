"""What every room's tests share: no network, toy models of true architectures, a dozen invented
notes, and the real data where it is at hand."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}  # before anything imports a library that reads them

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).parent.parent

WORDS = (
    "the patient is a year old man woman with known heart failure who came to hospital "
    "because of short breath and cough for three days "
    "no fever chest pain was found on exam lungs clear legs swollen given furosemide "
    "oxygen at home stable discharged follow up in clinic"
).split()


LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", ""}


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that talk to a server which they started themselves; and a list of the
    errors that were met, where it is asked for."""
    config.addinivalue_line(
        "markers", "local_sockets: this test may open sockets on this machine, and on no other"
    )
    if listed := os.environ.get("CLINPEFT_ERROR_PATHS"):
        _list_errors(Path(listed))


UNCHECKED = Path(__file__).with_name("unchecked_tests.txt")
"""Tests that were not all seen to pass since the rewrite of version 0.7: a path or the
beginning of one, a line each. They run, and a failure is reported as expected, not as an error.
The list shrinks, and never grows."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that were not seen to pass."""
    prefixes = tuple(UNCHECKED.read_text(encoding="utf-8").split())
    for item in items:
        if item.nodeid.startswith(prefixes):
            reason = f"not seen to pass since 0.7, see {UNCHECKED.name}"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))


def _list_errors(listed: Path) -> None:
    """Write the place in the package where each error of the family is made, once, to a file:
    ``scripts/error_paths.py`` says which are missing."""
    from clinpeft.core.errors import ClinpeftError

    make, seen = ClinpeftError.__init__, set[str]()

    def noting(self: ClinpeftError, message: str, *, location: str, hint: str) -> None:
        frame = sys._getframe(1)
        said = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if said not in seen:
            seen.add(said)
            with listed.open("a", encoding="utf-8") as file:
                file.write(said + "\n")
        make(self, message, location=location, hint=hint)

    ClinpeftError.__init__ = noting  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection, or the look-up of a name, anywhere in the suite is a failure; sockets of the
    file system are none, and ``local_sockets`` asks for those of this machine."""
    local = request.node.get_closest_marker("local_sockets") is not None
    lookup, connect, connect_ex, sendto = (
        socket.getaddrinfo,
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.socket.sendto,
    )

    def allowed(host: object) -> bool:
        return local and (
            host is None or (host.decode() if isinstance(host, bytes) else host) in LOCAL
        )

    def check(family: int, address: Any) -> None:
        if family != getattr(socket, "AF_UNIX", None) and not allowed(
            address[0] if isinstance(address, tuple) else address
        ):
            raise AssertionError(f"a test tried to reach {address!r}")

    def looking_up(host: Any, *args: Any, **more: Any) -> Any:
        if not allowed(host):
            raise AssertionError(f"a test tried to look up {host!r}")
        return lookup(host, *args, **more)

    def connecting(self: socket.socket, address: Any) -> None:
        check(self.family, address)
        connect(self, address)

    def connecting_ex(self: socket.socket, address: Any) -> int:
        check(self.family, address)
        return connect_ex(self, address)

    def sending(self: socket.socket, *args: Any) -> int:
        check(self.family, args[-1])
        return sendto(self, *args)

    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    monkeypatch.setattr(socket.socket, "connect_ex", connecting_ex)
    monkeypatch.setattr(socket.socket, "sendto", sending)


@pytest.fixture(autouse=True)
def _plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """``precision = "auto"`` means float32 in every test, also on a processor with bfloat16, so
    that exactness is tested alike everywhere."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {}, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real open data, which is no part of the project."""
    folder = Path(os.environ.get("CLINPEFT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            "the open data sets are not beside the checkout; set CLINPEFT_DATA to their folder"
        )
    return folder


@pytest.fixture(scope="session")
def small_base() -> Path:
    """The trained base that comes with the project."""
    return ROOT / "assets" / "small-base"


def toy_tokenizer(special: dict[str, str], pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """One token a word over ``WORDS``."""
    entries = list(dict.fromkeys([*special.values(), "<unk>", *WORDS]))
    words = Tokenizer(
        models.WordLevel({entry: at for at, entry in enumerate(entries)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


MakeFolder = Callable[..., Path]


def write_toy_llama(folder: Path, seed: int = 0, pad_is_eos: bool = False) -> Path:
    """A random LLaMA of 2 layers, width 32, and its tokenizer."""
    special = {"bos_token": "<s>", "eos_token": "</s>"} | (
        {} if pad_is_eos else {"pad_token": "<pad>"}
    )
    tokenizer = toy_tokenizer(special, pad_is_eos)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_toy_bert(folder: Path) -> Path:
    """A random BERT of 2 layers, width 32, and its tokenizer."""
    tokenizer = toy_tokenizer(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_llama(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """A folder with a random LLaMA of 2 layers, width 32, and its tokenizer."""

    def make(seed: int = 0, pad_is_eos: bool = False) -> Path:
        return write_toy_llama(tmp_path_factory.mktemp("llama"), seed, pad_is_eos)

    return make


@pytest.fixture(scope="session")
def toy_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 2 layers, width 32, and its tokenizer."""
    return write_toy_bert(tmp_path_factory.mktemp("bert"))
