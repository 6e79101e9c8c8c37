"""Recalibration: a known temperature is found, steps mend what they are fitted on, and what cannot
be fitted is left and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import special

from clinpeft.core import schemas
from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import ProblemType
from clinpeft.evaluation.classification.calibration import compute_clipped_logits
from clinpeft.evaluation.classification.logistic import fit_logistic_regression
from clinpeft.evaluation.classification.recalibration import recalibrate_predictions
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from tests.evaluation.test_discrimination import asked, listed, predictions

HALF = 1500
SPLITS = ["tuning"] * HALF + ["held_out"] * HALF
CLASSES: dict[ProblemType, int] = {"binary": 2, "multiclass": 3, "multilabel": 3}


def answered(
    kind: ProblemType, temperature: float, seed: int = 0, with_logits: bool = True
) -> pa.Table:
    """Logits that are ``temperature`` times those that the truth is drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (2 * HALF, CLASSES[kind]))
    truth = (
        listed(rng.random(logits.shape) < special.expit(logits))
        if kind == "multilabel"
        else (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    )
    link = LINKS[kind]
    columns = {"logits": (temperature * logits).astype(np.float32).tolist()} if with_logits else {}
    return predictions(
        list(truth), link(temperature * logits).astype(np.float32), split=SPLITS, **columns
    )


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(special.softmax(logits, axis=1))


LINKS: dict[ProblemType, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "binary": _softmax,
    "multiclass": _softmax,
    "multilabel": lambda logits: np.asarray(special.expit(logits)),
}


def listed_column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.array(table[name].to_pylist(), np.float64)


@pytest.mark.parametrize("kind", list(CLASSES))
@pytest.mark.parametrize("with_logits", [True, False])
def test_a_known_temperature_is_found(kind: ProblemType, with_logits: bool) -> None:
    table = answered(kind, 2.0, with_logits=with_logits)
    mended, said = recalibrate_predictions(table, asked(kind, CLASSES[kind]), "temperature")
    temperature = float(said.split()[1])
    assert temperature == pytest.approx(2.0, rel=0.1)
    assert said == f"temperature {temperature:.3g} fitted on {HALF} tuning stays"
    if with_logits:
        assert listed_column(mended, "logits") * temperature == pytest.approx(
            listed_column(table, "logits"), rel=5e-3
        )
        assert listed_column(mended, "probabilities") == pytest.approx(
            LINKS[kind](listed_column(mended, "logits")), abs=1e-6
        )
    else:
        assert mended["logits"].null_count == len(mended)


@pytest.mark.parametrize("how", ["temperature", "isotonic"])
def test_held_out_answers_become_better_calibrated(how: Any) -> None:
    question, table = asked("binary", 2), answered("binary", 2.5)
    mended, _ = recalibrate_predictions(table, question, how)
    slopes = []
    for one in (table, mended):
        found = extract_scored_predictions(one, question, "held_out")
        slopes.append(
            fit_logistic_regression(
                compute_clipped_logits(np.clip(found.scores[:, 1], 0.01, 0.99)),
                found.truth[:, 1],
                fit_slope=True,
            )[1]
        )
    assert slopes[0] < 0.6
    assert 0.8 < slopes[1] < 1.2


def test_only_probabilities_and_logits_change_and_the_metadata_stays() -> None:
    table = answered("binary", 2.0).replace_schema_metadata({b"question": b"{}"})
    for how in ("temperature", "isotonic"):
        mended, _ = recalibrate_predictions(table, asked("binary", 2), how)
        assert mended.schema.metadata == table.schema.metadata
        assert mended.schema.equals(schemas.PREDICTION_SCHEMA)
        changed = {"probabilities", "logits"}
        assert all(
            mended[name].equals(table[name])
            for name in schemas.PREDICTION_SCHEMA.names
            if name not in changed
        )
        assert not mended["probabilities"].equals(table["probabilities"])


def test_none_changes_nothing() -> None:
    table = answered("binary", 2.0)
    assert recalibrate_predictions(table, asked("binary", 2), "none") == (table, "not recalibrated")


def test_isotonic_steps_are_those_worked_out_by_hand() -> None:
    """Ten stays each at 0.2, 0.4 and 0.6, of whom 5, 3 and 9 had it: the first two are pooled at 8
    in 20."""
    told = np.repeat([0.2, 0.4, 0.6], 10)
    truth = np.concatenate([np.arange(10) < 5, np.arange(10) < 3, np.arange(10) < 9]).astype(int)
    table = predictions(
        [*truth.tolist(), 0, 0],
        np.stack([1 - np.append(told, [0.5, 0.99]), np.append(told, [0.5, 0.99])], axis=1),
        split=["tuning"] * 30 + ["held_out"] * 2,
    )
    mended, said = recalibrate_predictions(table, asked("binary", 2), "isotonic")
    found = listed_column(mended, "probabilities")
    assert found[:, 1] == pytest.approx(
        np.append(np.repeat([0.4, 0.4, 0.9], 10), [0.65, 0.9]), abs=1e-6
    )  # between steps a line, beyond them the last
    assert found.sum(axis=1) == pytest.approx(np.ones(32))
    assert mended["logits"].null_count == 32
    assert said == "isotonic regression of 2 classes fitted on 30 tuning stays"


def test_isotonic_probabilities_of_several_classes_sum_to_1() -> None:
    mended, _ = recalibrate_predictions(
        answered("multiclass", 2.0), asked("multiclass", 3), "isotonic"
    )
    assert listed_column(mended, "probabilities").sum(axis=1) == pytest.approx(
        np.ones(2 * HALF), abs=1e-6
    )


def test_labels_that_too_few_tuning_stays_have_are_left_and_counted() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((60, 2)).astype(np.float32)
    truth = np.stack([rng.random(60) < scores[:, 0], np.arange(60) < 9], axis=1)
    table = predictions(listed(truth), scores, split=["tuning"] * 50 + ["held_out"] * 10)
    mended, said = recalibrate_predictions(table, asked("multilabel", 2), "isotonic")
    assert (
        said == "isotonic regression of 1 classes fitted on 50 tuning stays, "
        "1 classes with fewer than 10 stays for or against left as they are"
    )
    found = listed_column(mended, "probabilities")
    assert found[:, 1] == pytest.approx(scores[:, 1])
    assert (found[:, 0] != scores[:, 0]).any()


@pytest.mark.parametrize("how", ["temperature", "isotonic"])
def test_tuning_stays_of_one_class_change_nothing_and_it_is_said(how: Any) -> None:
    table = predictions([0] * 20 + [1], np.full((21, 2), 0.5), split=["tuning"] * 20 + ["held_out"])
    mended, said = recalibrate_predictions(table, asked("binary", 2), how)
    assert mended.equals(table)
    assert "20 tuning stays" in said


@pytest.mark.parametrize("how", ["temperature", "isotonic"])
def test_without_a_tuning_stay_there_is_nothing_to_fit_on(how: Any) -> None:
    table = predictions([0, 1], np.full((2, 2), 0.5))
    with pytest.raises(RecipeError, match=r"where: evaluation\.recalibration"):
        recalibrate_predictions(table, asked("binary", 2), how)


def test_a_temperature_without_end_stops_at_the_limit_and_says_so() -> None:
    certain = np.repeat([[0.6, 0.4], [0.4, 0.6]], 20, axis=0)
    table = predictions([0] * 20 + [1] * 20, certain, split=["tuning"] * 40)
    _, said = recalibrate_predictions(table, asked("binary", 2), "temperature")
    assert said == "temperature 0.05 fitted on 40 tuning stays, the end of where it is looked for"
