"""Inference with trained models: predictions of classifiers, and vectors of texts.

```
predict.py      documents -> logits -> table of predictions    classifier_io.py  save and load
encode.py       texts -> vectors, for inference                encoder_io.py     save and load
text_batches.py texts -> vectors with gradient, for training   export.py         to others' formats
vector_files.py vectors -> .npy or Parquet                     onnx_export.py    to an ONNX graph
profile.py      speed and memory of an encoder
```
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
    "EncoderProfile",
    "EncodingProgress",
    "EncodingSummary",
    "Float32Array",
    "LoadedClassifier",
    "LogitFunction",
    "OnnxParity",
    "TextBatchEncoder",
    "build_cached_logit_function",
    "build_gathered_logit_function",
    "build_logit_function",
    "build_packed_input_function",
    "build_prediction_table",
    "build_text_batch_encoder",
    "cache_window_features",
    "compute_probabilities",
    "concatenate_logits",
    "create_random_base",
    "encode_document_windows",
    "encode_text_batches",
    "encode_texts",
    "encode_texts_to_file",
    "export_onnx",
    "export_sentence_transformer",
    "gather_logits",
    "load_classifier",
    "load_encoder",
    "profile_encoder",
    "save_classifier",
    "save_encoder",
]
