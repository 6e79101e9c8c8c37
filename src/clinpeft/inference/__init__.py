"""A fitted model and documents -> answers, and the fitted model kept so that it answers again.

``answers`` asks: live, or from what is remembered of the notes; ``kept`` writes and opens what a run needs to be asked later. Texts become vectors in
``encoding``, fast, and in ``learning``, with their gradient; ``encoder`` keeps a model that makes them, ``export`` gives it to sentence-transformers,
``export_onnx`` to another engine.
"""

from clinpeft.inference.classifier_io import LoadedClassifier, load_classifier, save_classifier
from clinpeft.inference.encode import (
    EncodingProgress,
    EncodingSummary,
    encode_texts,
    encode_texts_to_file,
)
from clinpeft.inference.encoder_io import create_random_base, load_encoder, save_encoder
from clinpeft.inference.export import export_sentence_transformer
from clinpeft.inference.onnx_export import OnnxParity, export_onnx
from clinpeft.inference.predict import (
    Float32Array,
    LogitFunction,
    build_cached_logit_function,
    build_gathered_logit_function,
    build_logit_function,
    build_packed_input_function,
    build_prediction_table,
    cache_window_features,
    compute_probabilities,
    concatenate_logits,
    encode_document_windows,
    gather_logits,
)
from clinpeft.inference.profile import EncoderProfile, profile_encoder
from clinpeft.inference.text_batches import (
    TextBatchEncoder,
    build_text_batch_encoder,
    encode_text_batches,
)

__all__ = [
    "LogitFunction",
    "EncodingSummary",
    "Float32Array",
    "TextBatchEncoder",
    "OnnxParity",
    "EncoderProfile",
    "EncodingProgress",
    "LoadedClassifier",
    "encode_texts_to_file",
    "export_sentence_transformer",
    "export_onnx",
    "cache_window_features",
    "concatenate_logits",
    "save_classifier",
    "save_encoder",
    "build_text_batch_encoder",
    "build_logit_function",
    "load_encoder",
    "load_classifier",
    "build_prediction_table",
    "compute_probabilities",
    "profile_encoder",
    "create_random_base",
    "build_packed_input_function",
    "build_cached_logit_function",
    "gather_logits",
    "build_gathered_logit_function",
    "encode_text_batches",
    "encode_texts",
    "encode_document_windows",
]
