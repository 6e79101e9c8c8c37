"""The frozen base, and the heads that read its vectors: a local folder in, a model that cannot be changed and cannot call home out.

Nothing here reaches the network but ``pull``. A folder is checked before it is loaded, so that what is wrong is said in one sentence; a weight that
the folder lacks is an error with its name, because a base with random weights in it trains without complaint and means nothing.
"""

from __future__ import annotations

import os

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
REMEMBERED = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}
"""How many compiled products oneDNN keeps, and how many of them PyTorch keeps, in place of 1,024 each. Rows without padding have a new number of
tokens nearly every time, so that both only fill: in long runs they held more memory than the model. Fewer than 256 would make short documents slower,
of which every length has its own products of attention. Read at the first product; a value of the shell's stays."""

os.environ.update(
    OFFLINE
)  # before the imports below, which read it once, and over whatever the user's shell says: the door is `pull`
os.environ.update({name: os.environ.get(name, value) for name, value in REMEMBERED.items()})

from huggingface_hub import constants  # noqa: E402

from clinpeft.models.bundle import Bundle, make_bundle, unpack_bundle, verify_bundle  # noqa: E402
from clinpeft.models.download import pull  # noqa: E402
from clinpeft.models.embedding_config import BACKBONES, Backbone, Manner, backbone_of, manner_of  # noqa: E402
from clinpeft.models.families import FAMILIES, Family, Objective, Pooling  # noqa: E402
from clinpeft.models.folder import check, fingerprint  # noqa: E402
from clinpeft.models.head_io import Asked, SavedHeads, load_heads, save_head  # noqa: E402
from clinpeft.models.heads import Head, Heads, WindowPooling  # noqa: E402
from clinpeft.models.load import Base, Purpose, flatten, load, meta, precision_for, quantize  # noqa: E402
from clinpeft.models.pooling import native_pooling, pool, pool_spans, pooling_of  # noqa: E402
from clinpeft.models.reference_output import Place, Probe, check_probe, place_now, probe_ids  # noqa: E402
from clinpeft.models.roofline import (  # noqa: E402
    Gpu,
    Shape,
    cpu,
    gpu,
    instructions,
    product_rate,
    shape,
    shape_of,
    step_seconds,
    threads,
)
from clinpeft.models.toy_model import write_tiny  # noqa: E402
from clinpeft.runtime.compile import Tried, compile_regions, conditions, present, regions, tried  # noqa: E402
from clinpeft.runtime.energy import Meter, meter  # noqa: E402
from clinpeft.runtime.float8 import Float8, Float8Linear, dequantized, weight_of  # noqa: E402
from clinpeft.runtime.kernels import refuse_missing as refuse_missing_kernels  # noqa: E402
from clinpeft.runtime.last_token_layer import Ends, ends  # noqa: E402
from clinpeft.runtime.packed_attention import Spans, flattens, one_row  # noqa: E402

constants.HF_HUB_OFFLINE = True  # for a process that had imported the library before this module

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "OFFLINE",
    "Asked",
    "Backbone",
    "Base",
    "Bundle",
    "Ends",
    "Family",
    "Float8",
    "Float8Linear",
    "Gpu",
    "Head",
    "Heads",
    "Manner",
    "Meter",
    "Objective",
    "Place",
    "Pooling",
    "Probe",
    "Purpose",
    "SavedHeads",
    "Shape",
    "Spans",
    "Tried",
    "WindowPooling",
    "backbone_of",
    "check",
    "check_probe",
    "compile_regions",
    "conditions",
    "cpu",
    "dequantized",
    "ends",
    "fingerprint",
    "flatten",
    "flattens",
    "gpu",
    "instructions",
    "load",
    "load_heads",
    "make_bundle",
    "manner_of",
    "meta",
    "meter",
    "native_pooling",
    "one_row",
    "place_now",
    "pool",
    "pool_spans",
    "pooling_of",
    "precision_for",
    "present",
    "probe_ids",
    "product_rate",
    "pull",
    "quantize",
    "refuse_missing_kernels",
    "regions",
    "save_head",
    "shape",
    "shape_of",
    "step_seconds",
    "threads",
    "tried",
    "unpack_bundle",
    "verify_bundle",
    "weight_of",
    "write_tiny",
]
