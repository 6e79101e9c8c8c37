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
    "Backbone",
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
    "check_model_folder",
    "check_reference_output",
    "choose_precision",
    "compute_model_shape",
    "create_energy_meter",
    "create_meta_model",
    "dequantize_float8",
    "describe_environment",
    "detect_bfloat16_instructions",
    "detect_gpu",
    "download_model",
    "enable_packing",
    "find_backbone",
    "fingerprint_base_model",
    "get_cpu_device",
    "get_stored_weight",
    "get_thread_count",
    "has_packed_attention",
    "load_base_model",
    "load_heads",
    "make_bundle",
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
