"""The frozen base: a local folder in, a model that cannot be changed and cannot call home out.

Nothing here reaches the network but ``pull``. A folder is checked before it is loaded, so that what is wrong is said in one sentence; a weight that
the folder lacks is an error with its name, because a base with random weights in it trains without complaint and means nothing.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
os.environ.update(OFFLINE)  # before the imports below, which read it once, and over whatever the user's shell says: the door is `pull`

import huggingface_hub  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from safetensors import SafetensorError, safe_open  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from clinpeft.errors import BaseModelError, RefusedError, UsageError  # noqa: E402
from clinpeft.recipe import BaseSpec  # noqa: E402

constants.HF_HUB_OFFLINE = True  # for a process that had imported the library before this module

Json = dict[str, Any]
Objective = Literal["causal-lm", "masked-lm"]
Pooling = Literal["last", "cls", "mean"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
VOCABULARY_FILES = TOKENIZER_FILES[:6]
INDEX_FILE = "model.safetensors.index.json"
PULLED = ["config.json", "generation_config.json", "*.safetensors", INDEX_FILE, *TOKENIZER_FILES, "LICENSE*", "README.md"]


@dataclass(frozen=True)
class Family:
    """What is true of every model of one architecture.

    Attributes:
        objective: what its pretraining head answers.
        auto: the transformers class that loads it with that head.
        lora_targets: suffixes of the query and value projections (Hu et al. 2021, section 4.2).
        ia3_targets, ia3_feedforward: regular expressions over whole module names: all that IA3 rescales, and the part of it that is rescaled at
            its input (Liu et al. 2022, equation 1: keys, values, and the activation inside the feed-forward block).
        pooling: where a sentence's vector is read.
        padding_side: where its own tokenizers pad; ``adapters.logits`` takes both.
        reserved_positions: rows of the learned position table that no token uses (RoBERTa starts at padding_idx + 1 = 2). None: rotary positions,
            which have no table to run out of.
        impossible: adapter methods that peft cannot do on it, or does without any effect.
    """

    objective: Objective
    auto: Any
    lora_targets: tuple[str, ...]
    ia3_targets: str
    ia3_feedforward: str
    pooling: Pooling
    padding_side: Literal["left", "right"]
    reserved_positions: int | None = None
    impossible: frozenset[str] = frozenset()


def _decoder(impossible: frozenset[str]) -> Family:
    return Family(
        objective="causal-lm",
        auto=transformers.AutoModelForCausalLM,
        lora_targets=("q_proj", "v_proj"),
        ia3_targets=r".*\.(k_proj|v_proj|down_proj)",
        ia3_feedforward=r".*\.down_proj",
        pooling="last",
        padding_side="right",
        impossible=impossible,
    )


def _encoder(
    reserved_positions: int | None,
    impossible: frozenset[str],
    pooling: Pooling = "cls",
    lora_targets: tuple[str, ...] = ("query", "value"),
    ia3_attention: str = "key|value",
) -> Family:
    return Family(
        objective="masked-lm",
        auto=transformers.AutoModelForMaskedLM,
        lora_targets=lora_targets,
        # `attention.output.dense` ends like the feed-forward's `output.dense`, so the layer number is part of the pattern
        ia3_targets=rf".*\.({ia3_attention}|layer\.\d+\.output\.dense)",
        ia3_feedforward=r".*\.layer\.\d+\.output\.dense",
        pooling=pooling,
        padding_side="right",
        reserved_positions=reserved_positions,
        impossible=impossible,
    )


NO_PROMPT_IN_ATTENTION = frozenset({"adaption-prompt"})
NO_KEYS_FROM_OUTSIDE = frozenset({"adaption-prompt", "prefix"})  # their attention takes no past keys: a prefix is dropped in silence

FAMILIES: dict[str, Family] = {
    "llama": _decoder(frozenset()),
    "mistral": _decoder(frozenset()),
    "qwen2": _decoder(NO_PROMPT_IN_ATTENTION),
    "qwen3": _decoder(NO_PROMPT_IN_ATTENTION),
    "gemma2": _decoder(NO_PROMPT_IN_ATTENTION),
    "bert": _encoder(0, NO_PROMPT_IN_ATTENTION),
    "roberta": _encoder(2, NO_PROMPT_IN_ATTENTION),
    "xlm-roberta": _encoder(2, NO_PROMPT_IN_ATTENTION),
    "mpnet": _encoder(2, NO_KEYS_FROM_OUTSIDE, "mean", ("attn.q", "attn.v"), r"attn\.k|attn\.v"),
    # query, key and value are one projection: LoRA takes it whole, and IA3 cannot leave the queries alone
    "modernbert": _encoder(None, NO_KEYS_FROM_OUTSIDE | {"ia3"}, "cls", ("Wqkv",)),
}


@dataclass
class Base:
    """A frozen model and what it takes to name it.

    Attributes:
        model: the transformers model with its language-modelling head; no parameter of it requires a gradient.
        tokenizer: its own.
        family: what is true of its architecture.
        folder: where it lies.
        sha256: of config, tokenizer and weights, see ``fingerprint``.
        precision: of the weights and the computation.
        precision_reason: why this precision, for the record.
        max_tokens: the longest sequence it will be given; 0 where nobody said.
    """

    model: Any
    tokenizer: Any
    family: Family
    folder: Path
    sha256: str
    precision: torch.dtype
    precision_reason: str
    max_tokens: int = 0

    @property
    def positions(self) -> int | None:
        """How many tokens its learned position table holds; None where there is no table."""
        reserved = self.family.reserved_positions
        return None if reserved is None else int(self.model.config.max_position_embeddings) - reserved


def load(spec: BaseSpec, device: torch.device) -> Base:
    """Load a folder as a frozen base.

    Raises:
        BaseModelError: the folder is not a whole, plain, known model; the message says what is missing and what to do.
    """
    config = check(spec.path)
    family = FAMILIES[config["model_type"]]
    precision, reason = precision_for(spec.precision, device)
    with _quiet():
        tokenizer = _tokenizer(spec.path)
        model = _model(spec.path, family, precision)
    base = Base(model, tokenizer, family, spec.path, fingerprint(spec.path), precision, reason, spec.max_tokens)
    _check_tokens(base)
    _freeze(model)
    model.to(device)
    return base


def meta(config: Any) -> Base:
    """A base of shapes without weights, on the meta device, from a transformers config: enough to count parameters of any size."""
    family = FAMILIES[_known_type(config.model_type, "the given config")]
    with torch.device("meta"):
        model = family.auto.from_config(config)
    _freeze(model)
    return Base(model, None, family, Path("meta"), "", torch.float32, "float32: shapes only")


def _freeze(model: Any) -> None:
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False  # keys and values of a training batch are never read again


def fingerprint(folder: Path) -> str:
    """sha256 (hex) over what decides the numbers: config, tokenizer files, weight index and weights, each under its name, in order of names.

    Raises:
        BaseModelError: there is no such folder.
    """
    _check_there(folder)
    names = {"config.json", INDEX_FILE, *TOKENIZER_FILES}
    chosen = sorted(path for path in folder.iterdir() if path.name in names or path.suffix == ".safetensors")
    whole = hashlib.sha256()
    for path in chosen:
        about = path.stat()
        whole.update(f"{path.name} {_sha256(path, about.st_size, about.st_mtime_ns)}\n".encode())
    return whole.hexdigest()


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size_bytes: int, changed_ns: int) -> str:  # noqa: ARG001 - size and time are part of the key: 13 GB are read once a process
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------------------- checks


def check(folder: Path) -> Json:
    """The config of a folder that can be loaded, without reading its weights.

    Raises:
        BaseModelError: what is missing, where, and the way out.
    """
    _check_there(folder)
    config = _json(folder / "config.json", "no config.json: this is not the folder of a model")
    _known_type(config.get("model_type"), str(folder / "config.json"))
    _check_plain(folder, config)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        way_out = "put the tokenizer's files beside the weights; they are on the model's page"
        raise BaseModelError(f"no tokenizer: none of {', '.join(VOCABULARY_FILES)}", place=str(folder), way_out=way_out)
    _check_weights(folder)
    return config


def _check_there(folder: Path) -> None:
    if folder.is_dir():
        return
    name = "/".join(folder.parts[-2:])
    way_out = (
        f"give a local folder; if {name!r} is a name on the hub, run `clinpeft models pull {name} --to DIR` on a machine with a network, "
        "carry DIR here, and give its path"
    )
    raise BaseModelError(f"there is no folder {str(folder)!r}", place="base.path", way_out=way_out)


def _json(path: Path, missing: str) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(missing, place=str(path.parent), way_out="give the folder that holds config.json") from None
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path.name} cannot be read: {error}", place=str(path), way_out="copy the file again") from error
    if not isinstance(found, dict):
        raise BaseModelError(f"{path.name} is a {type(found).__name__}, not an object", place=str(path), way_out="copy the file again")
    return found


def _known_type(model_type: object, place: str) -> str:
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BaseModelError(f"unknown model_type {model_type!r}", place=place, way_out=f"{hint}known are {', '.join(FAMILIES)}")


def _check_plain(folder: Path, config: Json) -> None:
    """Neither code that comes with the model nor weights that are not numbers."""
    tokenizer = folder / "tokenizer_config.json"
    described = {"config.json": config, "tokenizer_config.json": _json(tokenizer, "") if tokenizer.exists() else {}}
    for name, found in described.items():
        if "auto_map" in found:
            problem = f"auto_map in {name}: this model brings its own Python code, and code from a model folder is never run"
            way_out = "use a model of a known family whose folder has no auto_map"
            raise BaseModelError(problem, place=str(folder / name), way_out=way_out)
    if "quantization_config" in config:
        way_out = "use the model's full-precision folder; adapters are trained on, and merged into, plain weights"
        raise BaseModelError("quantised weights (quantization_config)", place=str(folder / "config.json"), way_out=way_out)


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _no_weights(folder)
    index = folder / INDEX_FILE
    if index.exists():
        listed = set(_json(index, "").get("weight_map", {}).values())
        missing = sorted(listed - {path.name for path in files})
        if missing:
            raise BaseModelError(f"missing weights: {', '.join(missing)}", place=str(folder), way_out="copy the missing files too")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            way_out = "copy it again and compare its size: it is cut short or damaged"
            raise BaseModelError(f"{path.name} cannot be read: {error}", place=str(path), way_out=way_out) from error


def _no_weights(folder: Path) -> BaseModelError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if not pickles:
        return BaseModelError("no weights: no file ends in .safetensors", place=str(folder), way_out="copy the weights into the folder")
    way_out = (
        "convert them where you trust their origin: load the folder with transformers' from_pretrained(..., use_safetensors=False) "
        "and write it with save_pretrained, which gives safetensors"
    )
    return BaseModelError(f"only pickled weights ({', '.join(pickles)}), which can run code when opened", place=str(folder), way_out=way_out)


def _check_tokens(base: Base) -> None:
    """The tokenizer speaks the model's language, and the sequences fit."""
    rows = base.model.get_input_embeddings().num_embeddings
    if len(base.tokenizer) > rows:
        problem = f"the tokenizer has {len(base.tokenizer)} entries, the embedding matrix {rows} rows"
        way_out = "use the tokenizer that came with these weights, without added tokens"
        raise BaseModelError(problem, place=str(base.folder), way_out=way_out)
    if base.family.objective == "masked-lm" and base.tokenizer.mask_token_id is None:
        way_out = "name the mask token in tokenizer_config.json, as on the model's page"
        raise BaseModelError("the tokenizer has no mask token, and an encoder learns language by it", place=str(base.folder), way_out=way_out)
    if base.positions is not None and base.max_tokens > base.positions:
        problem = f"max_tokens = {base.max_tokens}, and this model has positions for {base.positions} tokens"
        raise BaseModelError(problem, place="base.max_tokens", way_out=f"set at most {base.positions}")


# --------------------------------------------------------------------------------------------------------------------------------- loading


def precision_for(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision on a device and the reason, for the record.

    bfloat16 on a processor without instructions for it is emulated: slower than float32 and less exact, so ``auto`` does not take it there.
    """
    if wanted != "auto":
        return getattr(torch, wanted), f"{wanted}: asked for in the recipe"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "bfloat16: this GPU has it") if able else (torch.float32, "float32: this GPU has no bfloat16")
    if device.type != "cpu":
        return torch.float32, f"float32: bfloat16 is not measured on {device.type}"
    capabilities = _instructions()
    for flag, name in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        if capabilities.get(flag):
            return torch.bfloat16, f"bfloat16: this processor has {name}"
    return torch.float32, "float32: this processor has neither AMX nor AVX512-BF16"


def _instructions() -> dict[str, bool]:
    """What this processor can do, by torch's names; older releases have one private question for each."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    asked = {"amx_tile": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {flag: bool(getattr(torch.cpu, question, lambda: False)()) for flag, question in asked.items()}


def _tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        problem = f"the tokenizer cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        way_out = "check that its files are whole; a folder with tokenizer.json needs no further package"
        raise BaseModelError(problem, place=str(folder), way_out=way_out) from error


def _model(folder: Path, family: Family, precision: torch.dtype) -> Any:
    try:
        model, report = family.auto.from_pretrained(
            str(folder),
            dtype=precision,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are named below, with both shapes
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        problem = f"the model cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        raise BaseModelError(problem, place=str(folder), way_out="check config.json against the model's page, and copy the folder again") from error
    _check_report(report, folder)
    return model


def _check_report(report: Json, folder: Path) -> None:
    """Every weight of the model came from the folder, in its shape, and no layer of the folder was left out."""
    mismatched = sorted(
        f"{name} is {tuple(found)} in the folder and {tuple(wanted)} by its config" for name, found, wanted in report["mismatched_keys"]
    )
    if mismatched:
        raise BaseModelError(f"shapes differ: {_some(mismatched)}", place=str(folder), way_out="use the config.json of these weights")
    missing = sorted(report["missing_keys"])
    if missing:
        problem = f"these weights are not in the folder and would be random: {_some(missing)}"
        way_out = "use a folder of the whole model, language-modelling head included"
        raise BaseModelError(problem, place=str(folder), way_out=way_out)
    left_out = sorted(name for name in report["unexpected_keys"] if re.search(r"layers?\.\d+\.", name) and not name.endswith("inv_freq"))
    if left_out:
        problem = f"these layers are in the folder and not in its config: {_some(left_out)}"
        raise BaseModelError(problem, place=str(folder), way_out="use the config.json of these weights")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and reports: what they would say is either an error here or of no interest."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


# --------------------------------------------------------------------------------------------------------------------------------- network


def pull(name: str, folder: Path, snapshot: Callable[..., object] = huggingface_hub.snapshot_download) -> None:
    """Fetch a model from the hub into a folder that everything else can use without a network: the one door of this program.

    An interrupted pull is taken up where it stopped; the folder appears only when it is whole and has passed ``check``.

    Args:
        name: ``owner/model``.
        folder: where to put it; must not exist yet.
        snapshot: what fetches; for tests.

    Raises:
        UsageError: not a name of a hub.
        RefusedError: the folder exists.
        BaseModelError: it cannot be fetched, or what was fetched is not a usable base.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"{name!r} is not a hub name", place="models pull", way_out="write OWNER/MODEL, as on the model's page")
    if folder.exists():
        raise RefusedError(f"{str(folder)!r} exists", place="models pull --to", way_out="name a new folder, or remove this one yourself")
    pulling = folder.with_name(folder.name + ".pulling")
    pulling.mkdir(parents=True, exist_ok=True)
    try:
        with _online():
            snapshot(repo_id=name, local_dir=str(pulling), allow_patterns=PULLED)
    except Exception as error:
        way_out = "check the name, the network, and for gated models your access token; the same command goes on where it stopped"
        raise BaseModelError(
            f"{name} cannot be fetched: {type(error).__name__}: {_first_line(error)}", place=str(pulling), way_out=way_out
        ) from error
    check(pulling)
    shutil.rmtree(pulling / ".cache", ignore_errors=True)
    pulling.rename(folder)


@contextmanager
def _online() -> Iterator[None]:
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = True
