"""Loading a folder as a frozen base model.

Every weight must come from the folder in the shape of its config; a weight that is missing is an
error with its name, because transformers would initialize it at random and only log it.
"""

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
    extract_first_line,
    fingerprint_base_model,
)
from clinpeft.recipe import PretrainedModelSpec
from clinpeft.runtime import float8, kernels, last_token_layer, packed_attention

LoadPurpose = Literal["language", "vectors"]
"""What a base is loaded for: ``language`` with its language modeling head, ``vectors`` without."""

Quantization = Literal["none", "float8"]


@dataclass
class FrozenBaseModel:
    """A frozen model with its tokenizer and what identifies it.

    Attributes:
        model: the transformers model of the language modeling class; no parameter requires a
            gradient. Loaded for vectors it has no head, and calling it is an error; call
            ``backbone``.
        tokenizer: of the folder.
        family: properties of its architecture.
        folder: where it was loaded from.
        sha256: by ``fingerprint_base_model``.
        precision: of the weights and the computation.
        precision_reason: why this precision, for the run's record.
        max_tokens: the longest sequence that it will be given; 0 if unknown.
        purpose: what it was loaded for.
        quantization: of the linear layers inside its blocks.
        quantization_reason: the comparison with the unquantized model, for the run's record;
            empty where none was made.
        kernels: implementation of norms and gates, for the run's record.
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
        """The transformers model below the head, with the adapters of ``model`` in it.

        It maps token ids (rows, time) to ``last_hidden_state`` (rows, time, width).
        """
        return self.model.base_model

    @property
    def width(self) -> int:
        """Numbers in the hidden state of a token."""
        return int(self.model.config.hidden_size)

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token of a text."""
        return self.family.reserved_positions or 0

    @property
    def max_positions(self) -> int | None:
        """Tokens for which its learned position table has rows; None without a table."""
        reserved = self.family.reserved_positions
        if reserved is None:
            return None
        return int(self.model.config.max_position_embeddings) - reserved


def load_base_model(
    spec: PretrainedModelSpec, device: torch.device, purpose: LoadPurpose = "language"
) -> FrozenBaseModel:
    """Load a folder as a frozen base.

    Args:
        spec: folder, length of sequences, precision, and quantization.
        device: where to put it.
        purpose: ``vectors`` also accepts a folder without language modeling head, and frees the
            head otherwise. The names of the other parameters remain those of the language model,
            so that an adapter trained for ``language`` fits.

    Raises:
        BaseModelError: the folder is not a complete model folder of a known family; the message
            says what is missing, and the hint what to do.
    """
    # all checks that need no weights come first: they take milliseconds
    config = check_model_folder(spec.path)
    family = MODEL_FAMILIES[config["model_type"]]
    precision, reason = choose_precision(spec.precision, device)
    # a head that is not in the folder is initialized at random before it is freed
    with silence_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = _load_tokenizer(spec.path)
        model = _load_model(spec.path, family, precision, purpose)
    if purpose == "vectors":
        for name, module in list(model.named_children()):
            if module is not model.base_model:
                # an embedding tied to the head belongs to the backbone and stays
                setattr(model, name, _RemovedHead())
        # transformers' own method looks for the output embeddings inside the head
        model.get_output_embeddings = lambda: None
    base = FrozenBaseModel(
        model,
        tokenizer,
        family,
        spec.path,
        sha256=fingerprint_base_model(spec.path),
        precision=precision,
        precision_reason=reason,
        max_tokens=spec.max_tokens,
        purpose=purpose,
        kernels=kernels.install_liger_kernels(model, family.liger_kernels, spec, device),
    )
    # before the transfer to the device, which can take long
    _check_tokenizer(base)
    _freeze_model(model)
    if spec.quantization != "none":
        quantize_base_model(base)
    model.to(device)
    # last, because its check runs the model where it will be used
    enable_packing(base)
    return base


def quantize_base_model(base: FrozenBaseModel) -> None:
    """Quantize the linear layers inside the blocks to float8, in place.

    Embeddings and heads keep their precision.
    """
    float8.quantize_linear_layers(base.backbone, base.family.linear_targets)
    # the record of the run states it
    base.quantization = "float8"


def enable_packing(base: FrozenBaseModel) -> None:
    """Let a base compute many documents packed into one row, if its family supports that.

    Raises:
        BaseModelError: the hidden states of packed documents differ from those of each alone.
    """
    if base.family.supports_packing:
        packed_attention.install_packed_attention(base.model)
        last_token_layer.install_pooled_layer(base.backbone)
        packed_attention.check_packed_attention(
            base.backbone, base.first_position, str(base.folder)
        )


class _RemovedHead(torch.nn.Module):
    """Replaces the language modeling head; an identity would let hidden states pass for logits."""

    def forward(self, *args: object) -> torch.Tensor:  # noqa: ARG002 - arguments differ by head
        raise RefusedError(
            "this base was loaded for vectors, without its language modeling head",
            location="models.load",
            hint='load it for purpose "language", or call its backbone',
        )


def create_meta_model(config: Any) -> FrozenBaseModel:
    """Return a base on the meta device, which has shapes but no weights.

    This is enough to count the parameters of a model of any size.

    Args:
        config: of transformers.
    """
    family = MODEL_FAMILIES[check_model_type(config.model_type, "the given config")]
    # no memory is allocated and no random number drawn
    with torch.device("meta"):
        model = family.auto_class.from_config(config)
    _freeze_model(model)
    reason = "float32: shapes only"
    return FrozenBaseModel(model, None, family, Path("meta"), "", torch.float32, reason)


def _freeze_model(model: Any) -> None:
    # adapters add their own parameters, which do require gradients
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False  # keys and values of a training batch are never read again


def _check_tokenizer(base: FrozenBaseModel) -> None:
    """Check that tokenizer and model fit, and that the model has positions for its sequences."""
    num_rows = base.model.get_input_embeddings().num_embeddings
    # fewer entries are fine: many models pad their embedding matrix
    if len(base.tokenizer) > num_rows:
        raise BaseModelError(
            f"the tokenizer has {len(base.tokenizer)} entries, the embedding matrix {num_rows}",
            location=str(base.folder),
            hint="use the tokenizer that came with these weights, without added tokens",
        )
    is_masked = base.purpose == "language" and base.family.objective == "masked-lm"
    if is_masked and base.tokenizer.mask_token_id is None:
        raise BaseModelError(
            "the tokenizer has no mask token, which masked language modeling needs",
            location=str(base.folder),
            hint="name the mask token in tokenizer_config.json, as on the model's page",
        )
    if base.max_positions is not None and base.max_tokens > base.max_positions:
        raise BaseModelError(
            f"max_tokens = {base.max_tokens}, and this model has {base.max_positions} positions",
            location="base.max_tokens",
            hint=f"set at most {base.max_positions}",
        )


def choose_precision(requested: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the precision for a device, and the reason for the run's record.

    ``auto`` takes bfloat16 only where the device has instructions for it: emulated bfloat16 is
    slower than float32 and less exact.

    Args:
        requested: ``auto``, ``float32`` or ``bfloat16``.
        device: where the model will be.
    """
    if requested != "auto":
        return getattr(torch, requested), f"{requested}: set in the recipe"
    # newer GPUs (compute capability 8.0) have bfloat16; others emulate it
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16: this GPU has it"
        return torch.float32, "float32: this GPU has no bfloat16"
    if device.type != "cpu":
        return torch.float32, f"float32: bfloat16 is not measured on {device.type}"
    capabilities = read_cpu_capabilities()
    for flag, name in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512-BF16")):
        if capabilities.get(flag):
            return torch.bfloat16, f"bfloat16: this processor has {name}"
    return torch.float32, "float32: this processor has neither AMX nor AVX512-BF16"


def read_cpu_capabilities() -> dict[str, Any]:
    """Return the capabilities of the CPU by torch's names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    # older releases of torch have a private function for each
    functions = {"amx_tile": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {
        flag: bool(getattr(torch.cpu, function, lambda: False)())
        for flag, function in functions.items()
    }


def _load_tokenizer(folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {extract_first_line(error)}"
        raise BaseModelError(
            f"the tokenizer cannot be loaded: {reason}",
            location=str(folder),
            hint="check that its files are complete; a folder with tokenizer.json needs no "
            "further package",
        ) from error


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
            ignore_mismatched_sizes=True,  # the check below names them with both shapes
            output_loading_info=True,
        )
    # a lack of memory is not an error of the folder
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {extract_first_line(error)}"
        raise BaseModelError(
            f"the model cannot be loaded: {reason}",
            location=str(folder),
            hint="check config.json against the model's page, and copy the folder again",
        ) from error
    # for vectors only the backbone has to be complete
    required_prefix = f"{model.base_model_prefix}." if purpose == "vectors" else ""
    _check_loading_report(report, folder, required_prefix)
    return model


def _check_loading_report(report: JsonObject, folder: Path, required_prefix: str) -> None:
    """Check that weights and config of a folder agree.

    Args:
        report: ``output_loading_info`` of transformers.
        folder: of the model.
        required_prefix: prefix of the weights that must come from the folder.
    """
    mismatched = sorted(
        f"{name} is {tuple(actual)} in the folder and {tuple(expected)} by its config"
        for name, actual, expected in report["mismatched_keys"]
    )
    missing = sorted(name for name in report["missing_keys"] if name.startswith(required_prefix))
    # weights of whole layers, not of a pooler or another head; `inv_freq` is a computed buffer
    unused = sorted(
        name
        for name in report["unexpected_keys"]
        if re.search(r"layers?\.\d+\.", name) and not name.endswith("inv_freq")
    )
    config_hint = "use the config.json of these weights"
    missing_hint = f"use a folder of the whole model{'' if required_prefix else ', head included'}"
    for names, message, hint in (
        (mismatched, "shapes differ", config_hint),
        (missing, "these weights are not in the folder and would be random", missing_hint),
        (unused, "these layers are in the folder and not in its config", config_hint),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise BaseModelError(
                f"{message}: {', '.join(names[:5])}{more}", location=str(folder), hint=hint
            )


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Suppress progress bars and log messages of transformers; what matters is checked instead."""
    # both settings are global, so they are restored
    level = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()
