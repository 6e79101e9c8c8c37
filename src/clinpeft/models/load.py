"""A folder in, a frozen base out: every weight of it from the folder, in its shape, or an error with its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.utils import logging as transformers_logging

from clinpeft.core.errors import BaseModelError, RefusedError
from clinpeft.models.families import MODEL_FAMILIES, ModelFamily, check_model_type
from clinpeft.models.folder import (
    JsonObject,
    check_model_folder,
    fingerprint_base_model,
    extract_first_line,
)
from clinpeft.recipe import PretrainedModelSpec
from clinpeft.runtime import float8, kernels, last_token_layer, packed_attention

LoadPurpose = Literal["language", "vectors"]
"""What a base is loaded for: to say what it thinks of words, by its language-modelling head, or to give vectors, without that head."""

Quantization = Literal["none", "float8"]


@dataclass
class FrozenBaseModel:
    """A frozen model and what it takes to name it.

    Attributes:
        model: the transformers model of the language-modelling class; no parameter of it requires a gradient. Of a base for vectors the head is
            gone, and calling ``model`` is an error; ``backbone`` is what answers.
        tokenizer: its own.
        family: what is true of its architecture.
        folder: where it lies.
        sha256: of config, tokenizer and weights, see ``fingerprint``.
        precision: of the weights and the computation.
        precision_reason: why this precision, for the record.
        max_tokens: the longest sequence it will be given; 0 where nobody said.
        purpose: what it was loaded for.
        quantization: of the linear layers inside its blocks.
        quantization_reason: what was measured before it was trusted, for the record; empty where nothing was.
        kernels: whose norms and gates it has, for the record.
    """

    model: Any
    tokenizer: Any
    family: ModelFamily
    folder: Path
    sha256: str
    precision: torch.dtype
    precision_reason: str
    max_tokens: int = 0
    purpose: LoadPurpose = "language"
    quantization: Quantization = "none"
    quantization_reason: str = ""
    kernels: str = kernels.TORCH_KERNELS

    @property
    def backbone(self) -> Any:
        """The transformers model below the head: token ids to ``last_hidden_state`` (rows, time, width). Adapters on ``model`` work in it."""
        return self.model.base_model

    @property
    def width(self) -> int:
        """Numbers in the vector of a token."""
        return int(self.model.config.hidden_size)

    @property
    def first_position(self) -> int:
        """Of the first token of a text, as the position table counts."""
        return self.family.reserved_positions or 0

    @property
    def max_positions(self) -> int | None:
        """How many tokens its learned position table holds; None where there is no table."""
        reserved = self.family.reserved_positions
        return (
            None if reserved is None else int(self.model.config.max_position_embeddings) - reserved
        )


def load_base_model(
    spec: PretrainedModelSpec, device: torch.device, purpose: LoadPurpose = "language"
) -> FrozenBaseModel:
    """Load a folder as a frozen base.

    Args:
        spec: which folder, how long its sequences are, in which precision, and whether quantized.
        device: where to.
        purpose: ``vectors`` takes a folder without language-modelling head too, and frees the head where there is one. The names of the other
            parameters stay those of the language model, so that an adapter that learned language fits.

    Raises:
        BaseModelError: the folder is not a whole, plain, known model; the message says what is missing and what to do.
    """
    config = check_model_folder(spec.path)
    family = MODEL_FAMILIES[config["model_type"]]
    precision, reason = choose_precision(spec.precision, device)
    with (
        silence_transformers(),
        torch.random.fork_rng(devices=[]),
    ):  # a head that is not in the folder is drawn at random before it is freed
        tokenizer = _load_tokenizer(spec.path)
        model = _load_model(spec.path, family, precision, purpose)
    if purpose == "vectors":
        _remove_head(model)
    installed = kernels.install_liger_kernels(model, family, spec, device)
    base = FrozenBaseModel(
        model,
        tokenizer,
        family,
        spec.path,
        fingerprint_base_model(spec.path),
        precision,
        reason,
        spec.max_tokens,
        purpose,
        kernels=installed,
    )
    _check_tokenizer(base)
    _freeze_model(model)
    if spec.quantization != "none":
        quantize_base_model(base)
    model.to(device)
    enable_packing(base)
    return base


def quantize_base_model(base: FrozenBaseModel) -> None:
    """The linear layers inside the blocks in float8 from here on, in place (``float8``); embeddings and heads stay as they are."""
    float8.quantize_linear_layers(base.backbone, base.family.linear_targets)
    base.quantization = "float8"


def enable_packing(base: FrozenBaseModel) -> None:
    """Let many documents stand in one row of a base whose family can do that.

    Raises:
        BaseModelError: its documents are not the same in one row as alone.
    """
    if base.family.supports_packing:
        packed_attention.install_packed_attention(base.model)
        last_token_layer.install_pooled_layer(base.backbone)
        packed_attention.check_packed_attention(
            base.backbone, base.first_position, str(base.folder)
        )


class _RemovedHead(torch.nn.Module):
    """Where the language-modelling head was: a silent stand-in would let vectors pass for logits."""

    def forward(self, *args: object) -> torch.Tensor:  # noqa: ARG002 - every head has its own arguments
        hint = "load it for language, or ask its backbone"
        raise RefusedError(
            "this base was loaded for vectors, and its language-modelling head is gone",
            location="models.load",
            hint=hint,
        )


def _remove_head(model: Any) -> None:
    """Everything but the backbone gives its memory back; an embedding that the head was tied to belongs to the backbone and stays."""
    for name, part in list(model.named_children()):
        if part is not model.base_model:
            setattr(model, name, _RemovedHead())
    model.get_output_embeddings = (
        _get_no_output_embeddings  # transformers' own looks for them inside the head
    )


def _get_no_output_embeddings() -> None:
    return None


def create_meta_model(config: Any) -> FrozenBaseModel:
    """A base of shapes without weights, on the meta device, from a transformers config: enough to count parameters of any size."""
    family = MODEL_FAMILIES[check_model_type(config.model_type, "the given config")]
    with torch.device("meta"):
        model = family.auto_class.from_config(config)
    _freeze_model(model)
    return FrozenBaseModel(
        model, None, family, Path("meta"), "", torch.float32, "float32: shapes only"
    )


def _freeze_model(model: Any) -> None:
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False  # keys and values of a training batch are never read again


def _check_tokenizer(base: FrozenBaseModel) -> None:
    """The tokenizer speaks the model's language, and the sequences fit."""
    rows = base.model.get_input_embeddings().num_embeddings
    if len(base.tokenizer) > rows:
        message = (
            f"the tokenizer has {len(base.tokenizer)} entries, the embedding matrix {rows} rows"
        )
        hint = "use the tokenizer that came with these weights, without added tokens"
        raise BaseModelError(message, location=str(base.folder), hint=hint)
    if (
        base.purpose == "language"
        and base.family.objective == "masked-lm"
        and base.tokenizer.mask_token_id is None
    ):
        hint = "name the mask token in tokenizer_config.json, as on the model's page"
        raise BaseModelError(
            "the tokenizer has no mask token, and an encoder learns language by it",
            location=str(base.folder),
            hint=hint,
        )
    if base.max_positions is not None and base.max_tokens > base.max_positions:
        message = f"max_tokens = {base.max_tokens}, and this model has positions for {base.max_positions} tokens"
        raise BaseModelError(
            message, location="base.max_tokens", hint=f"set at most {base.max_positions}"
        )


def choose_precision(requested: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The precision on a device and the reason, for the record.

    bfloat16 on a processor without instructions for it is emulated: slower than float32 and less exact, so ``auto`` does not take it there.
    """
    if requested != "auto":
        return getattr(torch, requested), f"{requested}: asked for in the recipe"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            (torch.bfloat16, "bfloat16: this GPU has it")
            if able
            else (torch.float32, "float32: this GPU has no bfloat16")
        )
    if device.type != "cpu":
        return torch.float32, f"float32: bfloat16 is not measured on {device.type}"
    capabilities = read_cpu_capabilities()
    for flag, name in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        if capabilities.get(flag):
            return torch.bfloat16, f"bfloat16: this processor has {name}"
    return torch.float32, "float32: this processor has neither AMX nor AVX512-BF16"


def read_cpu_capabilities() -> dict[str, bool]:
    """What this processor can do, by torch's names; older releases have one private question for each."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    asked = {"amx_tile": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {
        flag: bool(getattr(torch.cpu, question, lambda: False)())
        for flag, question in asked.items()
    }


def _load_tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        message = (
            f"the tokenizer cannot be loaded: {type(error).__name__}: {extract_first_line(error)}"
        )
        hint = (
            "check that its files are whole; a folder with tokenizer.json needs no further package"
        )
        raise BaseModelError(message, location=str(folder), hint=hint) from error


def _load_model(
    folder: Path, family: ModelFamily, precision: torch.dtype, purpose: LoadPurpose
) -> Any:
    try:
        model, report = family.auto_class.from_pretrained(
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
        message = f"the model cannot be loaded: {type(error).__name__}: {extract_first_line(error)}"
        raise BaseModelError(
            message,
            location=str(folder),
            hint="check config.json against the model's page, and copy the folder again",
        ) from error
    _check_loading_report(
        report, folder, f"{model.base_model_prefix}." if purpose == "vectors" else ""
    )
    return model


def _check_loading_report(report: JsonObject, folder: Path, required_prefix: str) -> None:
    """Every weight whose name begins with ``required_prefix`` came from the folder, all in their shape, and no layer of the folder was left out."""
    mismatched = sorted(
        f"{name} is {tuple(found)} in the folder and {tuple(wanted)} by its config"
        for name, found, wanted in report["mismatched_keys"]
    )
    if mismatched:
        raise BaseModelError(
            f"shapes differ: {_join_first_names(mismatched)}",
            location=str(folder),
            hint="use the config.json of these weights",
        )
    missing = sorted(name for name in report["missing_keys"] if name.startswith(required_prefix))
    if missing:
        message = (
            f"these weights are not in the folder and would be random: {_join_first_names(missing)}"
        )
        hint = f"use a folder of the whole model{'' if required_prefix else ', language-modelling head included'}"
        raise BaseModelError(message, location=str(folder), hint=hint)
    left_out = sorted(
        name
        for name in report["unexpected_keys"]
        if re.search(r"layers?\.\d+\.", name) and not name.endswith("inv_freq")
    )
    if left_out:
        message = (
            f"these layers are in the folder and not in its config: {_join_first_names(left_out)}"
        )
        raise BaseModelError(
            message, location=str(folder), hint="use the config.json of these weights"
        )


def _join_first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Without the library's bars and reports: what they would say is either an error here or of no interest."""
    level, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
