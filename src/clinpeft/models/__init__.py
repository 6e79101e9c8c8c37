"""The frozen base, and the heads that read its vectors: a local folder in, a model that cannot be changed and cannot call home out.

Nothing here reaches the network but ``pull``. A folder is checked before it is loaded, so that what is wrong is said in one sentence; a weight that
the folder lacks is an error with its name, because a base with random weights in it trains without complaint and means nothing.
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
from clinpeft.runtime.kernels import check_kernels_available as refuse_missing_kernels  # noqa: E402
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
    "CompileTiming",
    "WindowPooling",
    "find_backbone",
    "check_model_folder",
    "check_reference_output",
    "compile_norms_and_gates",
    "describe_timing_conditions",
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
    "measure_eager_seconds",
    "sample_reference_tokens",
    "measure_matmul_rate",
    "download_model",
    "quantize_base_model",
    "refuse_missing_kernels",
    "find_compile_targets",
    "save_heads",
    "read_model_shape",
    "compute_model_shape",
    "measure_step_seconds",
    "get_thread_count",
    "measure_compilation",
    "unpack_bundle",
    "verify_bundle",
    "get_stored_weight",
    "write_toy_model",
]
