"""Use of a finished run of ``embed``: texts to vectors, retrieval of a new set, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from clinpeft import adapters, inference, models, runs, training
from clinpeft.adapters import Stack
from clinpeft.data.retrieval import beir
from clinpeft.data.synthetic import handbook
from clinpeft.inference import EncodingProgress, EncodingSummary, OnnxParity
from clinpeft.models import EmbeddingConfig
from clinpeft.recipe import EmbedRecipe
from clinpeft.runs import Run
from clinpeft.workflows.embedding_evaluation import evaluate_retrieval_set
from clinpeft.workflows.embedding_results import ADAPTED_STATE, ZERO_SHOT_STATE
from clinpeft.workflows.encoder import create_encode_function
from clinpeft.workflows.new_texts import check_is_new, read_new_texts
from clinpeft.workflows.workflow import require_recipe

PARITY_SAMPLE_TEXTS = 48  # texts on which another engine is compared


def evaluate_run_retrieval(home: Path, run_name: str, folder: Path, resamples: int) -> pa.Table:
    """Evaluate a run of ``embed`` on a retrieval set, beside its base and beside words alone.

    Args:
        home: folder of all runs.
        run_name: the run.
        folder: a set in BEIR layout; its name is that of the task.
        resamples: bootstrap resamples of queries, or of what they belong to.

    Returns:
        Table of schema ``METRIC_RESULT_SCHEMA``.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        SourceError: the set cannot be read.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    recipe = require_recipe(run, EmbedRecipe, "evaluate", "holds no encoder")
    runs.check_model_files(run)
    retrieval_set, device = beir.read_beir(folder), training.create_accelerator().device
    stack, embedding_config = inference.load_encoder(run.folder, recipe.base, device)
    base = adapters.attach_adapters(models.load_base_model(recipe.base, device, "vectors"), ())
    encoders = {
        ZERO_SHOT_STATE: create_encode_function(base, embedding_config),
        ADAPTED_STATE: create_encode_function(stack, embedding_config),
    }
    spec = recipe.evaluation.model_copy(update={"resamples": resamples})
    return evaluate_retrieval_set(
        folder.resolve().name, retrieval_set, encoders, embedding_config, spec, recipe.split.seed
    )


def encode_text_file(
    home: Path,
    run_name: str,
    texts_path: Path,
    out: Path,
    on_progress: Callable[[EncodingProgress], None],
) -> EncodingSummary:
    """Encode texts as vectors by a run of ``embed``.

    Args:
        home: folder of all runs.
        run_name: the run.
        texts_path: a file with a column ``text``, in any format of the source ``files``.
        out: ``.npy`` or ``.parquet`` file of vectors, which is written whole or not at all.
        on_progress: called with the progress.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        RefusedError: ``out`` exists.
        InputError: the texts cannot be read, one is empty, or there is none.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    recipe = require_recipe(run, EmbedRecipe, "encode", "holds no encoder")
    check_is_new(out, "encode --out")
    runs.check_model_files(run)
    device = training.create_accelerator().device
    stack, embedding_config = inference.load_encoder(run.folder, recipe.base, device)
    return inference.encode_texts_to_file(
        stack,
        embedding_config,
        read_new_texts(
            texts_path,
            {},
            home / "cache",
            "cannot be encoded",
            "leave them out, and count them",
        ),
        out,
        embedding_config.document_prompt,
        on_progress=on_progress,
    )


def export_run_encoder(
    home: Path,
    run_name: str,
    folder: Path,
    format_card: Callable[[Run], str],
    *,
    merge_adapters: bool,
    base_name: str = "",
) -> Path:
    """Export a run of ``embed`` as a folder that ``SentenceTransformer(folder)`` opens.

    Args:
        home: folder of all runs.
        run_name: the run.
        folder: a new folder.
        format_card: run -> its model card.
        merge_adapters: whether the whole model is written, or the adapter alone.
        base_name: of an adapter alone, where its reader finds the base.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        RefusedError: ``folder`` exists.
        AdapterError: the adapter cannot stand alone.
    """
    run, stack, embedding_config = _load_run_encoder(home, run_name, folder)
    inference.export_sentence_transformer(
        stack, embedding_config, folder, format_card(run), merge_adapters, base_name
    )
    return folder


def export_run_to_onnx(home: Path, run_name: str, folder: Path) -> OnnxParity:
    """Export a run of ``embed`` as an ONNX graph from token ids to vectors.

    It is written only if it gives the vectors of the run on paragraphs of the synthetic hospital's
    handbook (so that no book has to be at hand) and on a text that is too long.

    Raises:
        UsageError: there is no such run, it holds no encoder, or a package is not installed.
        RefusedError: ``folder`` exists, or the graph gives other vectors.
        AdapterError: an adapter cannot be merged.
    """
    _, stack, embedding_config = _load_run_encoder(home, run_name, folder)
    parts = [part for part in handbook.compose_handbook().split("\n\n") if part[0].isalpha()]
    sample = [*parts[:: len(parts) // PARITY_SAMPLE_TEXTS], " ".join(parts)]
    texts = [embedding_config.document_prompt + part for part in sample]
    return inference.export_onnx(stack, embedding_config, folder, texts)


def _load_run_encoder(
    home: Path, run_name: str, folder: Path
) -> tuple[Run, Stack, EmbeddingConfig]:
    """A run of ``embed`` and its encoder, to be written to a folder that does not exist."""
    run = runs.find_run(home, run_name, finished_only=True)
    recipe = require_recipe(run, EmbedRecipe, "export", "holds no encoder")
    check_is_new(folder, "export --out")
    runs.check_model_files(run)
    device = training.create_accelerator().device
    return run, *inference.load_encoder(run.folder, recipe.base, device)
