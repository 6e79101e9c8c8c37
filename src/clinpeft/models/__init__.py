"""The frozen base, and the heads that read its vectors: a local folder in, a model that cannot be changed and cannot call home out.

Nothing here reaches the network but ``pull``. A folder is checked before it is loaded, so that what is wrong is said in one sentence; a weight that
the folder lacks is an error with its name, because a base with random weights in it trains without complaint and means nothing.
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
from clinpeft.models.families import MODEL_FAMILIES, ModelFamily, PretrainingObjective, PoolingMode
from clinpeft.models.folder import check_model_folder, fingerprint_base_model
from clinpeft.models.head_io import HeadConfig, SavedHeads, load_heads, save_heads
from clinpeft.models.heads import Head, TaskHeads, WindowPooling
from clinpeft.models.load import (
    FrozenBaseModel,
    LoadPurpose,
    enable_packing,
    load_base_model,
    create_meta_model,
    choose_precision,
    quantize_base_model,
)
from clinpeft.models.pooling import (
    read_pooling_mode,
    pool_hidden_states,
    pool_packed_hidden_states,
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
    get_cpu_device,
    detect_gpu,
    detect_bfloat16_instructions,
    measure_matmul_rate,
    read_model_shape,
    compute_model_shape,
    measure_step_seconds,
    get_thread_count,
)
from clinpeft.models.toy_model import write_toy_model
from clinpeft.runtime.energy import EnergyMeter, create_energy_meter
from clinpeft.runtime.float8 import Float8Weight, Float8Linear, dequantize_float8, get_stored_weight
from clinpeft.runtime.last_token_layer import PooledTokens, select_pooled_tokens
from clinpeft.runtime.packed_attention import (
    SequenceLengths,
    has_packed_attention,
    build_packed_inputs,
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
