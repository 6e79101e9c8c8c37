"""Differential privacy by subject: what is clipped, what is drawn, how much noise, what is spent,
and that a stopped run draws the same again."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clinpeft import recipe, runs, training, workflows
from clinpeft.core.errors import (
    ClinpeftError,
    InputError,
    InterruptedRunError,
    RecipeError,
    TrainingError,
    UsageError,
)
from clinpeft.recipe import (
    AdaptRecipe,
    ClassifierTrainingSpec,
    ClassifyRecipe,
    DifferentialPrivacySpec,
    LossSpec,
)
from clinpeft.training import ClippingStats, PrivacyMechanism, Trainable
from clinpeft.training.differential_privacy import compute_epsilon, compute_noise_multiplier
from clinpeft.workflows import RunContext, differential_privacy
from tests.conftest import WORDS
from tests.training.test_classification import ACCELERATOR, TRUTH, VECTORS, parameter, task_data

WHO = np.array(
    [3, 3, 3, 1, 1, 7, 7, 7, 7, 8, 8, 9]
)  # of the first nine, which are learned from: subjects 1, 3 and 7
SPEC = ClassifierTrainingSpec(
    batch_notes=5, learning_rate=1e-2, epochs=4, evaluations=4, checkpoints=8, warmup_fraction=0.0
)
SILENT = PrivacyMechanism(
    epsilon=1,
    delta=1e-5,
    clip_norm=0.5,
    noise_multiplier=0.0,
    sampling_rate=1.0,
    subjects=3,
    subjects_per_step=3,
    steps=4,
    most_items=4,
)


def build_trainable(weights: torch.nn.Parameter) -> Trainable:
    return training.build_classification_trainable(
        [task_data(weights, TRUTH)],
        {"w": weights},
        lambda _: None,
        LossSpec(),
        SPEC,
        7,
        ACCELERATOR,
    )


def wide(people: int, size: int = 1, items: int = 1) -> Trainable:
    """``items`` documents for each of so many people, and a number of which nothing is asked but
    0."""
    weights = torch.nn.Parameter(torch.zeros(size))

    def backward(chosen: Any, step: int) -> tuple[float, float]:
        weights.grad = torch.zeros(size)
        weights.grad[0] = float(len(chosen))
        return float(len(chosen)), float(len(chosen))

    return Trainable(
        {"w": weights}, lambda _: [np.arange(people * items)], len, backward, lambda _: None
    )


def gradient(weights: torch.nn.Parameter) -> torch.Tensor:
    assert weights.grad is not None
    return weights.grad


# clipping -----------------------------------------------------------------------------------------


def by_hand(weights: torch.Tensor, documents: Sequence[int], clip_norm: float) -> torch.Tensor:
    """The gradient of one subject's summed loss, scaled down to the norm."""
    copy = weights.detach().clone().requires_grad_()
    (actual,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(
            VECTORS[list(documents)] @ copy, TRUTH[list(documents)], reduction="sum"
        ),
        copy,
    )
    return actual * min(1.0, clip_norm / float(actual.norm()))


@pytest.mark.parametrize("clip_norm", [0.1, 1.5, 1e6])
def test_a_step_is_the_sum_of_what_autograd_gives_for_each_subject_alone_clipped(
    clip_norm: float,
) -> None:
    weights, counts = parameter(), ClippingStats()
    silent = replace(SILENT, clip_norm=clip_norm)
    summed, targets = training.make_trainable_private(
        build_trainable(weights), WHO, silent, 5, counts
    ).backward(np.arange(9), 1)
    wanted = sum(by_hand(weights, some, clip_norm) for some in ([3, 4], [0, 1, 2], [5, 6, 7, 8]))
    assert torch.allclose(gradient(weights), torch.as_tensor(wanted), atol=1e-6)
    assert targets == 3  # people, and not documents, however many there are
    mean = torch.nn.functional.cross_entropy(VECTORS[:9] @ weights.detach(), TRUTH[:9])
    assert summed / targets == pytest.approx(float(mean), rel=1e-5)
    assert (counts.sampled_subjects, counts.clipped_subjects) == (
        3,
        {0.1: 3, 1e6: 0}.get(clip_norm, counts.clipped_subjects),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    who=st.lists(st.integers(0, 5), min_size=9, max_size=9),
    left_out=st.integers(0, 8),
    clip_norm=st.floats(0.01, 3.0),
    scale=st.floats(0.1, 1e3),
)
def test_without_one_subject_the_sum_differs_by_no_more_than_the_norm(
    who: list[int], left_out: int, clip_norm: float, scale: float
) -> None:
    weights = torch.nn.Parameter(parameter().detach() * scale)
    people = np.array([*who, 6, 6, 6])
    one = training.make_trainable_private(
        build_trainable(weights), people, replace(SILENT, clip_norm=clip_norm), 5, ClippingStats()
    )
    one.backward(np.arange(9), 1)
    whole = gradient(weights).clone()
    one.backward(np.flatnonzero(people[:9] != who[left_out]), 1)
    assert float((whole - gradient(weights)).norm()) <= clip_norm * (1 + 1e-5)


def test_a_subject_whose_gradient_is_no_number_stops_the_run(tmp_path: Path) -> None:
    broken = wide(4)

    def backward(chosen: Any, step: int) -> tuple[float, float]:
        broken.parameters["w"].grad = torch.full((1,), math.nan)
        return 1.0, 1.0

    confined = training.make_trainable_private(
        replace(broken, backward=backward),
        np.arange(4),
        replace(SILENT, subjects=4, subjects_per_step=4),
        5,
        ClippingStats(),
    )
    with pytest.raises(TrainingError, match="nan") as error:
        training.run_training(confined, SPEC, ACCELERATOR, tmp_path)
    assert error.value.location.startswith("step 1 of")


def test_noise_does_not_hide_an_adapter_that_is_not_there() -> None:
    dead = wide(4)

    def backward(chosen: Any, step: int) -> tuple[float, float]:
        dead.parameters["w"].grad = torch.zeros(1)
        return 1.0, 1.0

    confined = training.make_trainable_private(
        replace(dead, backward=backward),
        np.arange(4),
        replace(SILENT, noise_multiplier=1.0),
        5,
        ClippingStats(),
    )
    with pytest.raises(TrainingError, match="4 subjects") as error:
        confined.backward(np.arange(4), 1)
    assert error.value.location == "step 1"


# draws --------------------------------------------------------------------------------------------


def test_the_noise_has_the_standard_deviation_that_is_counted_with() -> None:
    size = 40_000
    bare, loud = wide(4, size), replace(SILENT, clip_norm=0.5, noise_multiplier=3.0)
    weights, confined = (
        bare.parameters["w"],
        training.make_trainable_private(bare, np.arange(4), loud, 5, ClippingStats()),
    )
    noises = []
    for step in (1, 2, 1):
        confined.backward(
            np.zeros(0, np.int64), step
        )  # nobody is drawn, and the noise comes all the same
        noises.append(gradient(weights).clone())
    assert torch.equal(noises[0], noises[2]) and not torch.equal(noises[0], noises[1])
    for noise in noises[:2]:
        assert float(noise.std()) == pytest.approx(1.5, rel=0.02)  # four standard errors are 1.4 %
        assert abs(float(noise.mean())) < 4 * 1.5 / math.sqrt(size)
    assert abs(float((noises[0] * noises[1]).mean())) < 4 * 1.5**2 / math.sqrt(size)
    training.make_trainable_private(bare, np.arange(4), loud, 6, ClippingStats()).backward(
        np.zeros(0, np.int64), 1
    )
    assert not torch.equal(
        gradient(weights), noises[0]
    )  # the noise is of the secret, not of the step alone


def test_a_step_draws_every_subject_on_its_own_with_all_that_it_has() -> None:
    people, items = 300, 3
    who = np.repeat(np.arange(people), items)[np.random.default_rng(1).permutation(people * items)]
    confined = training.make_trainable_private(
        wide(people, items=items),
        who,
        replace(SILENT, subjects=people, subjects_per_step=30, sampling_rate=0.1),
        5,
        ClippingStats(),
    )
    steps = [step for number in range(60) for step in confined.make_epoch_batches(number)]
    assert len(steps) == 60 * 10
    assert all((np.bincount(who[step], minlength=people) % items == 0).all() for step in steps)
    times = np.array([np.bincount(who[step], minlength=people) // items for step in steps])
    assert times.max() == 1  # of one step
    sizes, each = times.sum(1), times.sum(0)
    assert sizes.mean() == pytest.approx(30, abs=4 * math.sqrt(27 / 600))
    assert sizes.var() == pytest.approx(
        27, rel=0.25
    )  # a binomial's; steps of a fixed size have none
    assert each.var() == pytest.approx(
        54, rel=0.35
    )  # 600 draws of 0.1; epochs that draw everybody once have none
    again = confined.make_epoch_batches(3)
    assert all(
        np.array_equal(one, other)
        for one, other in zip(confined.make_epoch_batches(3), again, strict=True)
    )
    assert not all(
        np.array_equal(one, other)
        for one, other in zip(confined.make_epoch_batches(4), again, strict=True)
    )


def test_a_stopped_run_goes_on_with_the_same_draws_and_ends_in_the_same_bits(
    tmp_path: Path,
) -> None:
    def fitted(folder: Path, stop_after: int = 0, secret: int = 1 << 200) -> torch.Tensor:
        weights = parameter()
        noise = replace(
            SILENT, noise_multiplier=1.0, subjects_per_step=1, sampling_rate=1 / 3, steps=12
        )
        seen: list[int] = []
        watch = training.TrainingCallbacks(
            on_step=lambda event: seen.append(event.step),
            should_stop=lambda: bool(stop_after) and seen[-1] >= stop_after,
        )
        training.run_training(
            training.make_trainable_private(
                build_trainable(weights), WHO, noise, secret, ClippingStats()
            ),
            SPEC,
            ACCELERATOR,
            folder,
            watch,
        )
        assert stop_after or seen[-1] == 12
        return weights.detach().clone()

    undisturbed = fitted(tmp_path / "whole")
    for stop_after in (3, 7):
        with pytest.raises(InterruptedRunError):
            fitted(tmp_path / "stopped", stop_after)
    assert torch.equal(fitted(tmp_path / "stopped"), undisturbed)
    assert not torch.equal(fitted(tmp_path / "other", secret=2), undisturbed)


# accounting ---------------------------------------------------------------------------------------


@pytest.fixture
def opacus() -> Any:
    return pytest.importorskip(
        "opacus", reason="opacus counts what is spent: pip install clinpeft[private]"
    )


def renyi(rate: float, sigma: float, order: float) -> float:
    """Of a step, by integrating its definition on a fine grid, and not by the series of the
    accountant."""
    z = np.linspace(-40 * sigma, 40 * sigma + 60, 400_001)
    logs = order * np.logaddexp(
        math.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + (2 * z - 1) / (2 * sigma**2)
    )
    logs += -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    top = logs.max()
    return float(top + math.log(np.exp(logs - top).sum() * (z[1] - z[0]))) / (order - 1)


ORDERS = [*np.arange(1.5, 12, 0.1), *range(12, 64)]


def test_what_is_spent_is_what_the_definition_gives_and_what_was_published(opacus: Any) -> None:
    rate, sigma, steps, delta = (
        256 / 60_000,
        1.1,
        60 * 60_000 // 256,
        1e-5,
    )  # the DP-SGD tutorial of TensorFlow Privacy
    spent = [steps * renyi(rate, sigma, order) for order in ORDERS]
    older = min(
        one - math.log(delta) / (order - 1) for one, order in zip(spent, ORDERS, strict=True)
    )
    assert older == pytest.approx(3.0, abs=0.03)  # as published, by the older conversion
    newer = min(
        one - (math.log(delta) + math.log(order)) / (order - 1) + math.log((order - 1) / order)
        for one, order in zip(spent, ORDERS, strict=True)
    )
    assert compute_epsilon(sigma, rate, steps, delta) == pytest.approx(newer, rel=2e-3)


def test_when_everybody_is_in_every_step_it_is_the_gaussian_mechanism(opacus: Any) -> None:
    sigma, steps, delta = 20.0, 100, 1e-6
    orders = np.linspace(1.5, 200, 100_000)
    closed = (
        steps * orders / (2 * sigma**2)
        - (math.log(delta) + np.log(orders)) / (orders - 1)
        + np.log((orders - 1) / orders)
    )
    assert compute_epsilon(sigma, 1.0, steps, delta) == pytest.approx(closed.min(), rel=1e-3)


def test_less_epsilon_is_more_noise_and_what_is_spent_is_within_a_hundredth_of_what_was_asked(
    opacus: Any,
) -> None:
    sigmas = [
        compute_noise_multiplier(epsilon, 1e-5, 0.05, 200) for epsilon in (20.0, 8.0, 1.0, 0.1)
    ]
    assert sigmas == sorted(sigmas) and sigmas[0] > 0 and sigmas[-1] > 5 * sigmas[0]
    for epsilon, sigma in zip((20.0, 8.0, 1.0, 0.1), sigmas, strict=True):
        assert 0.99 * epsilon <= compute_epsilon(sigma, 0.05, 200, 1e-5) <= epsilon
        assert (
            compute_epsilon(sigma, 0.05, 100, 1e-5) < 0.9 * epsilon
            and compute_epsilon(sigma, 0.05, 0, 1e-5) == 0
        )


def test_the_record_says_what_was_asked_and_what_was_spent(opacus: Any) -> None:
    people = 50
    noise = training.calibrate_privacy_mechanism(
        wide(people, items=2),
        np.repeat(np.arange(people), 2),
        DifferentialPrivacySpec(epsilon=3, subjects_per_step=5, delta=1e-3),
        SPEC,
    )
    assert (noise.subjects, noise.sampling_rate, noise.steps, noise.most_items) == (
        50,
        0.1,
        40,
        2,
    )  # 4 epochs of 10 steps
    summary = training.summarize_privacy_spending(noise, 40, ClippingStats(10, 4))
    assert (
        summary["epsilon_asked"] == 3
        and 2.97 <= summary["epsilon"] <= 3
        and summary["clipped_share_not_private"] == 0.4
    )
    assert json.loads(json.dumps(summary)) == summary
    for steps, wrong in (
        (80, noise),
        (20, noise),
        (40, replace(noise, noise_multiplier=noise.noise_multiplier / 2)),
    ):
        with pytest.raises(TrainingError, match="target is 3"):
            training.summarize_privacy_spending(wrong, steps, ClippingStats())


def test_too_few_subjects_and_a_delta_that_promises_nothing_are_refused(opacus: Any) -> None:
    for spec, fragment in (
        (
            DifferentialPrivacySpec(epsilon=3, subjects_per_step=51),
            "50 training subjects are fewer",
        ),
        (DifferentialPrivacySpec(epsilon=3, subjects_per_step=5, delta=0.02), "delta = 0.02"),
    ):
        with pytest.raises(InputError, match=fragment):
            training.calibrate_privacy_mechanism(wide(50), np.arange(50), spec, SPEC)
    with pytest.raises(UsageError) as error:
        compute_noise_multiplier(1e-9, 1e-9, 1.0, 10**6)
    assert error.value.location == "training.differential_privacy.epsilon"


def test_without_opacus_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(UsageError, match=r"clinpeft\[private\]"):
        training.check_opacus_installed()


# recipes ------------------------------------------------------------------------------------------

SOURCE = """[source]
name = "files"
path = "{notes}"
columns = {{ note_id = "note_id", subject_id = "subject_id", text = "text", category = "category" }}
"""
CLASSIFY = (
    'kind = "classify"\n'
    + SOURCE
    + """
[task]
name = "note_category"
[split]
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{base}"
max_tokens = 24
precision = "float32"
[training]
learning_rate = 2e-2
max_steps = 6
micro_batch_tokens = 256
evaluations = 2
checkpoints = 3
[training.differential_privacy]
epsilon = 8
delta = 1e-3
subjects_per_step = 12
[evaluation]
resamples = 100
subgroups = false
baselines = false
"""
)
ADAPT = (
    'kind = "adapt"\n'
    + SOURCE
    + """
[corpus]
deduplicate = "none"
[split]
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{base}"
max_tokens = 24
precision = "float32"
[[adapters]]
method = "lora"
rank = 2
[training]
learning_rate = 1e-2
evaluations = 1
checkpoints = 2
[training.differential_privacy]
epsilon = 4
delta = 1e-3
subjects_per_step = 12
[evaluation]
resamples = 100
max_notes = 8
"""
)


def read(
    text: str, changes: dict[str, dict[str, Any]] | None = None, **places: object
) -> AdaptRecipe | ClassifyRecipe:
    document = tomllib.loads(text.format(**{"notes": "notes.csv", "base": "base", **places}))
    for table, keys in (changes or {}).items():
        document[table] = document.get(table, {}) | keys
    actual = recipe.validate_recipe(document, "test")
    assert isinstance(actual, AdaptRecipe | ClassifyRecipe)
    return actual


def check(private: AdaptRecipe | ClassifyRecipe, accelerator: Any = ACCELERATOR) -> None:
    requirements = (
        differential_privacy.list_corpus_requirements(private)
        if isinstance(private, AdaptRecipe)
        else differential_privacy.list_classifier_requirements(private)
    )
    run_context: Any = SimpleNamespace(accelerator=accelerator)
    differential_privacy.check_differential_privacy(private, run_context, requirements)


@pytest.mark.parametrize(
    ("text", "changes", "location"),
    [
        (CLASSIFY, {"base": {"trainable": True}}, "base.trainable"),
        (CLASSIFY, {"loss": {"class_weights": "balanced"}}, "loss.class_weights"),
        (CLASSIFY, {"loss": {"shuffled_labels": True}}, "loss.shuffled_labels"),
        (CLASSIFY, {"training": {"head_epochs": 1}}, "training.head_epochs"),
        (CLASSIFY, {"training": {"patience": 2}}, "training.patience"),
        (ADAPT, {"corpus": {"deduplicate": "near"}}, "corpus.deduplicate"),
        (ADAPT, {"split": {"by": "note"}}, "split.by"),
    ],
)
def test_what_lets_one_subject_touch_anothers_gradient_is_refused(
    text: str, changes: dict[str, dict[str, Any]], location: str
) -> None:
    private = read(text, changes)
    with pytest.raises(RecipeError) as error:
        check(private)
    assert error.value.location == location
    without = private.model_copy(
        update={"training": private.training.model_copy(update={"differential_privacy": None})}
    )
    check(without)


def test_several_processes_are_refused() -> None:
    with pytest.raises(RecipeError, match="2 processes") as error:
        check(read(CLASSIFY), SimpleNamespace(num_processes=2))
    assert error.value.location == "torchrun"


def test_embed_has_no_such_table_and_joint_courses_want_none() -> None:
    with pytest.raises(RecipeError, match=r"training\.differential_privacy"):
        recipe.validate_recipe(
            {"kind": "embed", "training": {"differential_privacy": {"epsilon": 1}}}, "test"
        )
    adapter = {"adapters": [{"method": "lora"}]}
    private = recipe.validate_recipe(
        read(CLASSIFY).model_dump(mode="json", exclude_none=True) | adapter, "test"
    )
    assert isinstance(private, ClassifyRecipe) and not workflows.can_train_jointly([private])
    assert workflows.can_train_jointly(
        [private.model_copy(update={"training": ClassifierTrainingSpec()})]
    )
    assert (
        training.make_trainable_private(
            build_trainable(parameter()), WHO, SILENT, 5, ClippingStats()
        ).joint_step
        is None
    )


def test_a_private_run_says_what_its_adapters_learned_before() -> None:
    plain = read(ADAPT).model_copy(update={"training": recipe.TrainingSpec()})
    summary = differential_privacy.collect_privacy_notices(
        read(CLASSIFY), {"one": read(ADAPT), "two": plain}
    )
    assert (
        "epsilon 4" in summary[0]
        and "add up" in summary[0]
        and "without differential privacy" in summary[1]
    )
    assert not differential_privacy.collect_privacy_notices(plain, {"two": plain})


# verbs --------------------------------------------------------------------------------------------


def write_notes(path: Path, people: int = 60) -> Path:
    rng, lines = np.random.default_rng(0), ["note_id,subject_id,category,text"]
    for at in range(2 * people):
        category, sign = (("Cardiology", "furosemide"), ("Surgery", "pain"))[at % 2]
        lines.append(f"n{at},{at % people},{category},{' '.join([*rng.choice(WORDS, 8), sign])}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_context(secret: int = 1, stop_after: int = 0) -> RunContext:
    seen: list[int] = []
    return RunContext(
        Path(),
        on_step=lambda event: seen.append(event.step),
        should_stop=lambda: bool(stop_after) and seen[-1] >= stop_after,
        draw_noise_seed=lambda: secret.to_bytes(32, "big"),
    )


@pytest.mark.parametrize("adapted", [False, True], ids=["head alone, on kept vectors", "adapter"])
def test_a_private_classifier_records_what_it_spent_and_a_stopped_one_ends_in_the_same_bytes(
    opacus: Any, adapted: bool, toy_bert: Path, tmp_path: Path
) -> None:
    document = read(CLASSIFY, notes=write_notes(tmp_path / "notes.csv"), base=toy_bert).model_dump(
        mode="json", exclude_none=True
    )
    private = recipe.validate_recipe(
        document | {"adapters": [{"method": "lora", "rank": 2}] if adapted else []}, "test"
    )
    assert isinstance(private, ClassifyRecipe)
    whole = workflows.train_classifier(private, replace(make_context(), home=tmp_path / "whole"))
    summary = whole.record.differential_privacy
    assert summary is not None and summary["epsilon_asked"] == 8 and 7.92 <= summary["epsilon"] <= 8
    assert summary["noise_multiplier"] > 0 and summary["steps"] == 6 and summary["most_items"] == 2
    assert not (
        whole.folder / differential_privacy.NOISE_SEED_PATH
    ).exists()  # else the noise could be drawn again
    with pytest.raises(InterruptedRunError):
        workflows.train_classifier(
            private, replace(make_context(stop_after=3), home=tmp_path / "stopped")
        )
    assert (tmp_path / "stopped" / whole.id / differential_privacy.NOISE_SEED_PATH).exists()
    again = workflows.train_classifier(
        private, replace(make_context(secret=2), home=tmp_path / "stopped")
    )  # the secret is the one that it was begun with
    assert (
        again.record.differential_privacy is not None
        and again.record.differential_privacy["epsilon"] == summary["epsilon"]
    )
    for path in whole.folder.rglob("*.safetensors"):
        if "checkpoints" not in path.parts:
            assert (
                path.read_bytes() == (again.folder / path.relative_to(whole.folder)).read_bytes()
            ), path
    assert (
        runs.read_run(again.folder).record.differential_privacy == again.record.differential_privacy
    )


def test_a_run_whose_secret_is_gone_does_not_go_on_with_other_noise(
    opacus: Any, toy_bert: Path, tmp_path: Path
) -> None:
    private = read(CLASSIFY, notes=write_notes(tmp_path / "notes.csv"), base=toy_bert)
    assert isinstance(private, ClassifyRecipe)
    with pytest.raises(InterruptedRunError):
        workflows.train_classifier(
            private, replace(make_context(stop_after=3), home=tmp_path / "runs")
        )
    (secret,) = (tmp_path / "runs").glob(f"*/{differential_privacy.NOISE_SEED_PATH}")
    secret.unlink()
    with pytest.raises(InputError, match="cannot be drawn again"):
        workflows.train_classifier(private, replace(make_context(), home=tmp_path / "runs"))


def test_a_private_language_adapter_records_what_it_spent(
    opacus: Any, toy_bert: Path, tmp_path: Path
) -> None:
    private = read(ADAPT, notes=write_notes(tmp_path / "notes.csv"), base=toy_bert)
    assert isinstance(private, AdaptRecipe)
    run = workflows.adapt_language_model(private, replace(make_context(), home=tmp_path / "runs"))
    summary = run.record.differential_privacy
    assert (
        summary is not None
        and 3.96 <= summary["epsilon"] <= 4
        and summary["steps"] == 3
        and not (run.folder / differential_privacy.NOISE_SEED_PATH).exists()
    )
    assert "loss" in (run.folder / "log.jsonl").read_text(encoding="utf-8")


def test_a_recipe_without_the_table_trains_as_before() -> None:
    with pytest.raises(ClinpeftError):
        read(
            CLASSIFY, {"training": {"differential_privacy": {"delta": 1e-5}}}
        )  # an epsilon is never assumed
    bare = build_trainable(parameter())
    run: Any = type(
        "R", (), {"recipe": read(ADAPT).model_copy(update={"training": recipe.TrainingSpec()})}
    )
    private_trainable = differential_privacy.apply_differential_privacy(
        bare, WHO, run, make_context()
    )
    assert private_trainable.trainable is bare and private_trainable.mechanism is None
