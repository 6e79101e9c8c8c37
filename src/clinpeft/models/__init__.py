"""Frozen base models, and the heads that predict from their vectors.

A local folder becomes a model that cannot be changed and does not reach the network; only
``download_model`` does. A folder is checked before it is loaded, so that every error is specific,
and a missing weight is an error with its name: a base with random weights would train without an
error, and its outputs would mean nothing.
"""

from __future__ import annotations

import os

OFFLINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
CPU_CACHE_CAPACITIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}
"""How many compiled products oneDNN keeps, and how many of them PyTorch keeps, in place of 1,024 each. Rows without padding have a new number of
tokens nearly every time, so that both only fill: in long runs they held more memory than the model. Fewer than 256 would make short documents slower,
of which every length has its own products of attention. Read at the first product; a value of the shell's stays."""

os.environ.update(
    OFFLINE_ENVIRONMENT
)  # before the imports below, which read it once, and over whatever the user's shell says: the door is `pull`
os.environ.update(
    {name: os.environ.get(name, value) for name, value in CPU_CACHE_CAPACITIES.items()}
)

from huggingface_hub import constants  # noqa: E402

from clinpeft.models.bundle import ModelBundle, make_bundle, unpack_bundle, verify_bundle  # noqa: E402
from clinpeft.models.download import download_model  # noqa: E402
from clinpeft.models.embedding_config import (
    BACKBONES,
    Backbone,
    EmbeddingConfig,
    find_backbone,
    resolve_embedding_config,
)  # noqa: E402
from clinpeft.models.families import MODEL_FAMILIES, ModelFamily, PretrainingObjective, PoolingMode  # noqa: E402
from clinpeft.models.folder import check_model_folder, fingerprint_base_model  # noqa: E402
from clinpeft.models.head_io import HeadConfig, SavedHeads, load_heads, save_heads  # noqa: E402
from clinpeft.models.heads import Head, TaskHeads, WindowPooling  # noqa: E402
from clinpeft.models.load import (
    FrozenBaseModel,
    LoadPurpose,
    enable_packing,
    load_base_model,
    create_meta_model,
    choose_precision,
    quantize_base_model,
)  # noqa: E402
from clinpeft.models.pooling import (
    read_pooling_mode,
    pool_hidden_states,
    pool_packed_hidden_states,
    resolve_pooling_mode,
)  # noqa: E402
from clinpeft.models.reference_output import (
    ComputeEnvironment,
    ReferenceOutput,
    check_reference_output,
    describe_environment,
    sample_reference_tokens,
)  # noqa: E402
from clinpeft.models.roofline import (  # noqa: E402
    GpuProperties,
    ModelShape,
    get_cpu_device,
    detect_gpu,
    detect_bfloat16_instructions,
    measure_matmul_rate,
    read_model_shape,
    compute_model_shape,
    measure_step_seconds,
    get_thread_count,
)
from clinpeft.models.toy_model import write_toy_model  # noqa: E402
from clinpeft.runtime.compile import (
    CompileTiming,
    compile_norms_and_gates,
    describe_timing_conditions,
    measure_eager_seconds,
    find_compile_targets,
    measure_compilation,
)  # noqa: E402
from clinpeft.runtime.energy import EnergyMeter, create_energy_meter  # noqa: E402
from clinpeft.runtime.float8 import Float8Weight, Float8Linear, dequantize_float8, get_stored_weight  # noqa: E402
from clinpeft.runtime.kernels import check_kernels_available  # noqa: E402
from clinpeft.runtime.last_token_layer import PooledTokens, select_pooled_tokens  # noqa: E402
from clinpeft.runtime.packed_attention import (
    SequenceLengths,
    has_packed_attention,
    build_packed_inputs,
)  # noqa: E402

constants.HF_HUB_OFFLINE = True  # for a process that had imported the library before this module

__all__ = [
    "BACKBONES",
    "MODEL_FAMILIES",
    "OFFLINE_ENVIRONMENT",
    "Backbone",
    "CompileTiming",
    "ComputeEnvironment",
    "EmbeddingConfig",
    "EnergyMeter",
    "Float8Linear",
    "Float8Weight",
    "FrozenBaseModel",
    "GpuProperties",
    "Head",
    "HeadConfig",
    "LoadPurpose",
    "ModelBundle",
    "ModelFamily",
    "ModelShape",
    "PooledTokens",
    "PoolingMode",
    "PretrainingObjective",
    "ReferenceOutput",
    "SavedHeads",
    "SequenceLengths",
    "TaskHeads",
    "WindowPooling",
    "build_packed_inputs",
    "check_kernels_available",
    "check_model_folder",
    "check_reference_output",
    "choose_precision",
    "compile_norms_and_gates",
    "compute_model_shape",
    "create_energy_meter",
    "create_meta_model",
    "dequantize_float8",
    "describe_environment",
    "describe_timing_conditions",
    "detect_bfloat16_instructions",
    "detect_gpu",
    "download_model",
    "enable_packing",
    "find_backbone",
    "find_compile_targets",
    "fingerprint_base_model",
    "get_cpu_device",
    "get_stored_weight",
    "get_thread_count",
    "has_packed_attention",
    "load_base_model",
    "load_heads",
    "make_bundle",
    "measure_compilation",
    "measure_eager_seconds",
    "measure_matmul_rate",
    "measure_step_seconds",
    "pool_hidden_states",
    "pool_packed_hidden_states",
    "quantize_base_model",
    "read_model_shape",
    "read_pooling_mode",
    "resolve_embedding_config",
    "resolve_pooling_mode",
    "sample_reference_tokens",
    "save_heads",
    "select_pooled_tokens",
    "unpack_bundle",
    "verify_bundle",
    "write_toy_model",
]
