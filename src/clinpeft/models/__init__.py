"""Frozen base models, and the heads that predict from their vectors.

A local folder becomes a model that cannot be changed and does not reach the network; only
``download_model`` does. A folder is checked before it is loaded, so that every error is specific,
and a missing weight is an error with its name: a base with random weights would train without an
error, and its outputs would mean nothing.
"""

from __future__ import annotations

from clinpeft.models.bundle import ModelBundle, make_bundle, unpack_bundle, verify_bundle
from clinpeft.models.download import download_model
from clinpeft.models.embedding_config import (
    BACKBONES,
    Backbone,
    EmbeddingConfig,
    find_backbone,
    resolve_embedding_config,
)
from clinpeft.models.families import MODEL_FAMILIES, ModelFamily, PoolingMode, PretrainingObjective
from clinpeft.models.folder import check_model_folder, fingerprint_base_model
from clinpeft.models.head_io import HeadConfig, SavedHeads, load_heads, save_heads
from clinpeft.models.heads import Head, TaskHeads, WindowPooling
from clinpeft.models.load import (
    FrozenBaseModel,
    LoadPurpose,
    choose_precision,
    create_meta_model,
    enable_packing,
    load_base_model,
    quantize_base_model,
)
from clinpeft.models.pooling import (
    pool_hidden_states,
    pool_packed_hidden_states,
    read_pooling_mode,
    resolve_pooling_mode,
)
from clinpeft.models.reference_output import (
    ComputeEnvironment,
    ReferenceOutput,
    check_reference_output,
    describe_environment,
    sample_reference_tokens,
)
from clinpeft.models.roofline import (
    GpuProperties,
    ModelShape,
    compute_model_shape,
    detect_bfloat16_instructions,
    detect_gpu,
    get_cpu_device,
    get_thread_count,
    measure_matmul_rate,
    measure_step_seconds,
    read_model_shape,
)
from clinpeft.models.toy_model import write_toy_model
from clinpeft.runtime.energy import EnergyMeter, create_energy_meter
from clinpeft.runtime.float8 import Float8Linear, Float8Weight, dequantize_float8, get_stored_weight
from clinpeft.runtime.last_token_layer import PooledTokens, select_pooled_tokens
from clinpeft.runtime.packed_attention import (
    SequenceLengths,
    build_packed_inputs,
    has_packed_attention,
)

__all__ = [
    "BACKBONES",
    "MODEL_FAMILIES",
    "HeadConfig",
    "Backbone",
    "FrozenBaseModel",
    "ModelBundle",
    "PooledTokens",
    "ModelFamily",
    "Float8Weight",
    "Float8Linear",
    "GpuProperties",
    "Head",
    "TaskHeads",
    "EmbeddingConfig",
    "EnergyMeter",
    "PretrainingObjective",
    "ComputeEnvironment",
    "PoolingMode",
    "ReferenceOutput",
    "LoadPurpose",
    "SavedHeads",
    "ModelShape",
    "SequenceLengths",
    "WindowPooling",
    "find_backbone",
    "check_model_folder",
    "check_reference_output",
    "get_cpu_device",
    "dequantize_float8",
    "select_pooled_tokens",
    "fingerprint_base_model",
    "enable_packing",
    "has_packed_attention",
    "detect_gpu",
    "detect_bfloat16_instructions",
    "load_base_model",
    "load_heads",
    "make_bundle",
    "resolve_embedding_config",
    "create_meta_model",
    "create_energy_meter",
    "read_pooling_mode",
    "build_packed_inputs",
    "describe_environment",
    "pool_hidden_states",
    "pool_packed_hidden_states",
    "resolve_pooling_mode",
    "choose_precision",
    "sample_reference_tokens",
    "measure_matmul_rate",
    "download_model",
    "quantize_base_model",
    "save_heads",
    "read_model_shape",
    "compute_model_shape",
    "measure_step_seconds",
    "get_thread_count",
    "unpack_bundle",
    "verify_bundle",
    "get_stored_weight",
    "write_toy_model",
]
