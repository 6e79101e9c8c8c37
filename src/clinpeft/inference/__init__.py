"""A fitted model and documents -> answers, and the fitted model kept so that it answers again.

``answers`` asks: live, or from what is remembered of the notes; ``kept`` writes and opens what a run needs to be asked later. Texts become vectors in
``encoding``, fast, and in ``learning``, with their gradient; ``encoder`` keeps a model that makes them, ``export`` gives it to sentence-transformers,
``export_onnx`` to another engine.
"""

from clinpeft.inference.classifier_io import Served, keep, open_run
from clinpeft.inference.encode import Encoded, Progress, encode, vectors
from clinpeft.inference.encoder_io import keep_encoder, open_encoder, random_base
from clinpeft.inference.export import export
from clinpeft.inference.onnx_export import Parity, export_onnx
from clinpeft.inference.predict import (
    Answer,
    Floats,
    features,
    joined,
    live,
    predictions,
    probabilities,
    reading,
    remembered,
    scores,
    shared,
    window_vectors,
)
from clinpeft.inference.profile import Profile, profile
from clinpeft.inference.text_batches import Learning, learning, text_vectors

__all__ = [
    "Answer",
    "Encoded",
    "Floats",
    "Learning",
    "Parity",
    "Profile",
    "Progress",
    "Served",
    "encode",
    "export",
    "export_onnx",
    "features",
    "joined",
    "keep",
    "keep_encoder",
    "learning",
    "live",
    "open_encoder",
    "open_run",
    "predictions",
    "probabilities",
    "profile",
    "random_base",
    "reading",
    "remembered",
    "scores",
    "shared",
    "text_vectors",
    "vectors",
    "window_vectors",
]
