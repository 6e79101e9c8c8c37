"""Texts to vectors with MiniLM: clinpeft beside sentence-transformers on torch, ONNX and OpenVINO, texts a second on three mixes of lengths.

    python benchmarks/encode.py --out results --minutes 2

``short``: questions of 6 to 16 words; ``mixed``: 8 to 200 words, evenly on a logarithmic scale; ``long``: 150 to 400 words, of which the model
reads 256 tokens. The vectors of every arm are compared with those of the first (torch, float32): the least cosine of any text. A step is all texts
once, and the first reading is left out, so that what is compiled or exported does not count; it shows in the time to the first step.

The ONNX and OpenVINO backends want an older transformers than clinpeft does (optimum-onnx 0.1: below 4.58), and so an environment of their own:

    python -m venv peers && peers/bin/pip install "sentence-transformers[onnx,openvino]"
    python benchmarks/encode.py --python ONNX=peers/bin/python --python OpenVINO=peers/bin/python
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _side_by_side as side
import numpy as np

MAX_TOKENS, TEXTS, READINGS = 256, 600, 3
MIXES = {"short": (6, 16), "mixed": (8, 200), "long": (150, 400)}
BATCH = 32
ROWS = 4096


def prepare(mix: str, work: Path, quick: bool) -> None:
    """The texts."""
    import _texts

    rng, (least, most) = np.random.default_rng(0), MIXES[mix]
    words = np.exp(rng.uniform(np.log(least), np.log(most), 40 if quick else TEXTS)).astype(int)
    texts = list(dict.fromkeys(_texts.of_lengths(words.tolist())))
    (work / "texts.json").write_text(
        json.dumps({"texts": texts, "readings": 2 if quick else READINGS})
    )
    about = {
        "texts": f"{len(texts)} of {_texts.histogram(words.tolist())} words",
        "limit": f"{MAX_TOKENS} tokens",
    }
    (work / "about.json").write_text(json.dumps(about))


def _timed(
    encode: Callable[[list[str]], Any], work: Path, reading: str = "", precision: str = ""
) -> side.Measured:
    """``precision``: of the matrix products, whose rate alone is the limit that an arm is held to; empty: not told."""
    kept = json.loads((work / "texts.json").read_text())
    measured = side.Measured("texts", [], [], reading=reading)
    for _ in range(kept["readings"]):
        began = time.perf_counter()
        vectors = np.asarray(encode(kept["texts"]), dtype=np.float32)
        measured.seconds.append(time.perf_counter() - began)
        measured.amounts.append(float(len(kept["texts"])))
        measured.first_step_seconds = measured.first_step_seconds or side.since_start()
    measured.peak_bytes = side.peak_bytes()
    measured.roofline = _limit(kept["texts"], precision) if precision else None
    path = work / "vectors.npy"
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if not path.exists():
        np.save(path, unit)
    measured.end["1 - least cosine"] = float(1 - (unit * np.load(path)).sum(axis=1).min())
    return measured


def _limit(texts: list[str], precision: str) -> float:
    """Texts a second of the matrix products of all their tokens, padding apart."""
    import _texts
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(_texts.minilm()))
    tokens = sum(map(len, tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]))
    seconds = side.roofline(
        side.linear_shapes(_texts.minilm(), classes=1), ROWS, precision, backward=False
    )
    return len(texts) / (seconds * tokens / ROWS)


def ours(precision: Any, work: Path) -> side.Measured:
    """What ``clinpeft encode`` does, without reading and writing files."""
    import _texts
    import torch

    from clinpeft import adapters, inference, models
    from clinpeft.inference import encode_texts_to_file as encoding
    from clinpeft.recipe import PretrainedModelSpec

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = models.load_base_model(
        PretrainedModelSpec(path=_texts.minilm(), max_tokens=MAX_TOKENS), device, "vectors"
    )
    stack, embedding_config = (
        adapters.attach_adapters(base, ()),
        models.EmbeddingConfig("mean", max_tokens=MAX_TOKENS),
    )
    # made once a command, as a peer's model is loaded once: bfloat16 is compared with float32 on a sample of the texts
    with mock.patch.object(encoding, "engine", cache_of_one(encoding.engine)):
        named = str(models.choose_precision(precision, device)[0]).removeprefix("torch.")
        return _timed(
            lambda texts: inference.encode_texts(
                stack, embedding_config, texts, precision=precision
            ),
            work,
            precision,
            named,
        )


def cache_of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls it once, and gives that answer again and again."""
    found: list[Any] = []

    def again(*given: Any) -> Any:
        if not found:
            found.append(function(*given))
        return found[0]

    return again


def theirs(
    work: Path, precision: str = "float32", backend: str = "torch", quantized: str = ""
) -> side.Measured:
    """sentence-transformers with one of its backends, exported and quantized by its own functions."""
    import _texts
    import torch
    from sentence_transformers import SentenceTransformer

    folder = work / f"{backend}{quantized}"
    if backend == "torch":
        model = SentenceTransformer(
            str(_texts.minilm()),
            model_kwargs={"dtype": getattr(torch, precision)},
            local_files_only=True,
        )
    elif not folder.exists():
        model = SentenceTransformer(str(_texts.minilm()), backend=backend, local_files_only=True)
        model.save_pretrained(str(folder))
    if backend != "torch":
        options: dict[str, Any] = {}
        if quantized:
            from sentence_transformers import export_dynamic_quantized_onnx_model

            if not list(folder.glob("onnx/*qint8*")):
                plain = SentenceTransformer(str(folder), backend=backend, local_files_only=True)
                export_dynamic_quantized_onnx_model(plain, quantized, str(folder))
            options = {"file_name": str(next(folder.glob("onnx/*qint8*")).relative_to(folder))}
        model = SentenceTransformer(
            str(folder), backend=backend, model_kwargs=options, local_files_only=True
        )
    model.max_seq_length = MAX_TOKENS
    limited = precision if backend == "torch" else ""
    return _timed(
        lambda texts: model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        ),
        work,
        precision=limited,
    )


ARMS = {
    "sentence-transformers, torch float32": theirs,
    "sentence-transformers, torch bfloat16": partial(theirs, precision="bfloat16"),
    "sentence-transformers, ONNX int8": partial(theirs, backend="onnx", quantized="avx512_vnni"),
    "sentence-transformers, OpenVINO": partial(theirs, backend="openvino"),
    "clinpeft, float32": partial(ours, "float32"),
    "clinpeft": partial(ours, "auto"),
}

BENCHMARK = side.Benchmark(
    file="encode.py",
    about="Texts to vectors with MiniLM, texts a second",
    workloads={mix: partial(prepare, mix) for mix in MIXES},
    arms=ARMS,
    peers=[name for name in ARMS if not name.startswith("clinpeft")],
    goals=(
        "Goals: at least 4 × the default (the first arm), 1.3 × the best backend, least cosine 0.999 to float32.",
    ),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
