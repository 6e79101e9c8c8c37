"""The frozen base, and the heads that read its vectors: a local folder in, a model that cannot be changed and cannot call home out.

Nothing here reaches the network but ``pull``. A folder is checked before it is loaded, so that what is wrong is said in one sentence; a weight that
the folder lacks is an error with its name, because a base with random weights in it trains without complaint and means nothing.
"""

from __future__ import annotations

from clinpeft.models.bundle import Bundle, make_bundle, unpack_bundle, verify_bundle
from clinpeft.models.download import pull
from clinpeft.models.embedding_config import BACKBONES, Backbone, Manner, backbone_of, manner_of
from clinpeft.models.families import FAMILIES, Family, Objective, Pooling
from clinpeft.models.folder import check, fingerprint
from clinpeft.models.head_io import Asked, SavedHeads, load_heads, save_head
from clinpeft.models.heads import Head, Heads, WindowPooling
from clinpeft.models.load import Base, Purpose, flatten, load, meta, precision_for, quantize
from clinpeft.models.pooling import native_pooling, pool, pool_spans, pooling_of
from clinpeft.models.reference_output import Place, Probe, check_probe, place_now, probe_ids
from clinpeft.models.roofline import (
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
from clinpeft.models.toy_model import write_tiny
from clinpeft.runtime.energy import Meter, meter
from clinpeft.runtime.float8 import Float8, Float8Linear, dequantized, weight_of
from clinpeft.runtime.last_token_layer import Ends, ends
from clinpeft.runtime.packed_attention import Spans, flattens, one_row

__all__ = [
    "BACKBONES",
    "FAMILIES",
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
    "WindowPooling",
    "backbone_of",
    "check",
    "check_probe",
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
    "probe_ids",
    "product_rate",
    "pull",
    "quantize",
    "save_head",
    "shape",
    "shape_of",
    "step_seconds",
    "threads",
    "unpack_bundle",
    "verify_bundle",
    "weight_of",
    "write_tiny",
]
