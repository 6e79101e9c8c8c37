"""Documents to answers: the same live and from what is remembered, however they are grouped, and a table that says what was asked."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clinpeft import adapters, inference, models, tokenization, training
from clinpeft.adapters import Stack
from clinpeft.core import schemas
from clinpeft.core.errors import TrainingError
from clinpeft.core.schemas import LabelSpace, ProblemType
from clinpeft.models import Head
from clinpeft.recipe import EncoderModelSpec, LoraSpec, TruncationSpec
from clinpeft.tokenization import EncodedDocuments, IndexArray
from tests.conftest import WORDS, MakeFolder

CPU = torch.device("cpu")
CREW = training.create_accelerator()


def question(kind: ProblemType = "multiclass") -> LabelSpace:
    return LabelSpace("asked", kind, ("a", "b", "c"), ("", "", ""), (1, 1, 1), "auroc_ovo")


@pytest.fixture(scope="module")
def stack(toy_llama: MakeFolder) -> Stack:
    return adapters.attach_adapters(
        models.load_base_model(
            EncoderModelSpec(path=toy_llama(), max_tokens=12, precision="float32"), CPU, "vectors"
        ),
        [LoraSpec(rank=2)],
    )


@pytest.fixture(scope="module")
def documents(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> EncodedDocuments:
    """Twenty notes of 4 to 29 words, in windows of up to 12 tokens."""
    folder, rng, rows = tmp_path_factory.mktemp("documents"), np.random.default_rng(0), range(20)
    known = {
        "subject_id": list(rows),
        "stay_id": [100 + row for row in rows],
        "prediction_time": [datetime(2150, 1, 1) for _ in rows],
        "split": ["train"] * 12 + ["held_out"] * 8,
        "label": [row % 3 for row in rows],
        "text": [" ".join(rng.choice(WORDS, rng.integers(4, 30))) for _ in rows],
    }
    pq.write_table(
        schemas.build_arrow_table(schemas.COHORT_SCHEMA, known), folder / "cohort.parquet"
    )
    reading = TruncationSpec(keep="windows", overlap_tokens=2)
    return tokenization.encode_documents(
        folder / "cohort.parquet",
        stack.base.tokenizer,
        reading,
        12,
        "causal-lm",
        folder / "encoded",
    )


@pytest.fixture
def head(stack: Stack) -> Head:
    return Head(stack.base.width, 3, seed=4).eval()


def whole(some: IndexArray) -> list[IndexArray]:
    return [some]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_remembered_vectors_answer_as_the_model_does(
    stack: Stack,
    documents: EncodedDocuments,
    head: Head,
    tmp_path: Path,
    pool: models.WindowPooling,
) -> None:
    assert len(documents.lengths) > len(documents.tokens_total)  # several windows a document
    chosen = np.array([7, 0, 19, 3])
    vectors = inference.cache_window_features(
        stack, documents, "last", 64, CPU, tmp_path / "features.npy"
    )
    with torch.inference_mode():
        live = inference.build_logit_function(stack, documents, head, "last", pool, CPU)(chosen)
        again = inference.build_cached_logit_function(vectors, documents, head, pool, CPU)(chosen)
    assert vectors.shape == (len(documents.lengths), 32) and torch.allclose(live, again, atol=1e-6)


def test_vectors_are_read_once_and_a_file_that_was_cut_off_is_not_taken_for_them(
    stack: Stack, documents: EncodedDocuments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache" / "features.npy"
    with monkeypatch.context() as patched:
        patched.setattr(
            tokenization, "group_documents", lambda *_: [np.arange(3), None]
        )  # dies after the first batch
        with pytest.raises(TypeError):
            inference.cache_window_features(stack, documents, "last", 64, CPU, path)
    assert not path.exists()
    made = np.array(inference.cache_window_features(stack, documents, "last", 64, CPU, path))
    monkeypatch.setattr(adapters, "compute_hidden_states", None)  # nothing is asked a second time
    assert np.array_equal(
        made, inference.cache_window_features(stack, documents, "last", 64, CPU, path)
    )


def test_scores_come_in_the_order_asked_however_they_are_grouped(
    stack: Stack, documents: EncodedDocuments, head: Head
) -> None:
    answer = inference.build_logit_function(stack, documents, head, "mean", "mean", CPU)
    chosen = np.array([15, 2, 9, 4, 11])
    at_once = inference.gather_logits(answer, 3, whole, CREW, chosen)
    apart = inference.gather_logits(
        answer, 3, lambda some: [np.array([document]) for document in sorted(some)], CREW, chosen
    )
    assert np.allclose(at_once, apart, atol=1e-6)
    assert np.allclose(
        at_once[3], inference.gather_logits(answer, 3, whole, CREW, np.array([4]))[0], atol=1e-6
    )


def test_one_of_several_sums_to_one_and_labels_stand_alone() -> None:
    logits = np.array([[0.0, np.log(3.0), np.log(4.0)], [800.0, 0.0, -800.0]], np.float32)
    assert inference.compute_probabilities(logits, question())[0] == pytest.approx(
        [1 / 8, 3 / 8, 4 / 8], rel=1e-5
    )
    assert inference.compute_probabilities(logits, question())[1].tolist() == [1.0, 0.0, 0.0]
    alone = inference.compute_probabilities(logits, question("multilabel"))
    assert alone[0] == pytest.approx([1 / 2, 3 / 4, 4 / 5], rel=1e-5) and alone[1].tolist() == [
        1.0,
        0.5,
        0.0,
    ]


def test_the_table_holds_truth_answer_and_question(documents: EncodedDocuments) -> None:
    chosen, logits = np.array([13, 12]), np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], np.float32)
    found = inference.build_prediction_table(documents, chosen, logits, question())
    assert found.schema.equals(schemas.PREDICTION_SCHEMA, check_metadata=False)
    assert LabelSpace.from_json(json.loads(found.schema.metadata[b"question"])) == question()
    assert found["stay_id"].to_pylist() == [113, 112] and found["label"].to_pylist() == [1, 0]
    assert found["logits"].to_pylist() == logits.tolist()
    assert found["tokens"].to_pylist() == documents.tokens_total[chosen].tolist()


def test_a_logit_that_is_no_number_is_refused_by_its_stay(documents: EncodedDocuments) -> None:
    logits = np.zeros((2, 3), np.float32)
    logits[1, 2] = np.nan
    with pytest.raises(
        TrainingError, match="1 of 2 documents have logits that are not all numbers"
    ) as raised:
        inference.build_prediction_table(documents, np.array([13, 12]), logits, question())
    assert raised.value.location == "stay_id 112"


def test_no_document_gives_an_empty_table(documents: EncodedDocuments) -> None:
    assert (
        len(
            inference.build_prediction_table(
                documents, np.array([], np.int64), np.zeros((0, 3), np.float32), question()
            )
        )
        == 0
    )
