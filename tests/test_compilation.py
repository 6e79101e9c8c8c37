"""Whether a run compiles: decided before its first step by what there is to save, remembered, and told by its record."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clinpeft import adapters, models, recipe, training
from clinpeft.models import CompileTiming
from clinpeft.recipe import AdaptRecipe, DifferentialPrivacySpec, LoraSpec
from clinpeft.workflows import compilation
from tests.test_activations import SMOKE, made

compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed"
)


@pytest.fixture
def smoke(tmp_path: Path) -> AdaptRecipe:
    found = recipe.load_recipe_cells(SMOKE)[0].recipe
    assert isinstance(found, AdaptRecipe)
    base = found.base.model_copy(update={"path": models.write_toy_model(tmp_path / "base")})
    return found.model_copy(update={"base": base, "adapters": (LoraSpec(rank=4),)})


def asking(found: AdaptRecipe, **options: object) -> AdaptRecipe:
    return found.model_copy(update={"training": found.training.model_copy(update=options)})


def test_what_is_saved_must_be_twice_what_compiling_took() -> None:
    tried = CompileTiming(
        eager_seconds=0.5, compiled_seconds=0.3, compilation_seconds=10.0
    )  # 0.2 s saved a pass
    assert compilation.decide_from_timing(tried, 101) == compilation.CompileDecision(
        True, "saves some 20 s of the run, and took 10 s"
    )
    assert not compilation.decide_from_timing(tried, 99).compiled
    assert not compilation.decide_from_timing(
        CompileTiming(eager_seconds=0.3, compiled_seconds=0.5, compilation_seconds=0.0), 1000
    ).compiled
    assert compilation.decide_from_timing(
        CompileTiming(0.5, failure_reason="the compiler failed: OSError"), 1e9
    ) == compilation.CompileDecision(False, "the compiler failed: OSError")


def test_a_short_run_is_not_tried(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        models, "measure_compilation", lambda *_: pytest.fail("a run of seconds was tried")
    )
    run, _ = made(smoke, tmp_path / "home")
    assert run.record.compilation == "not compiled: norms and gates take less than 120 s of the run"


def test_a_recipe_may_forbid_it_and_differential_privacy_does(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    monkeypatch.setattr(models, "measure_compilation", lambda *_: pytest.fail("it was tried"))
    run, _ = made(asking(smoke, compilation="never"), tmp_path / "home")
    assert run.record.compilation == "not compiled: asked for in the recipe"
    accelerator = training.create_accelerator()
    stack = adapters.attach_adapters(
        models.load_base_model(smoke.base, accelerator.device), smoke.adapters
    )
    private = asking(smoke, private=DifferentialPrivacySpec(epsilon=8.0))
    found = compilation._decide_without_trial([private], stack, accelerator)
    assert found is not None and not found.compiled and "privacy" in found.reason


def test_a_run_made_again_decides_as_the_first_did(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    answers = iter([CompileTiming(1.0, 2.0, 1.0)])
    monkeypatch.setattr(models, "measure_compilation", lambda *_: next(answers))
    first, told = made(smoke, tmp_path / "home")
    shutil.rmtree(first.folder)
    again, retold = made(smoke, tmp_path / "home")
    assert (
        first.record.compilation == again.record.compilation
        and again.record.compilation.startswith("not compiled: saves some -")
    )
    assert [event.loss for event in told] == [event.loss for event in retold]


def test_a_compiler_that_is_gone_does_not_stop_the_run(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    monkeypatch.setattr(models, "measure_compilation", lambda *_: CompileTiming(9.0, 0.0, 1.0))
    monkeypatch.setattr(
        models, "compile_norms_and_gates", lambda *_: "the compiler failed: OSError"
    )
    run, _ = made(smoke, tmp_path / "home")
    assert (
        run.record.compilation
        == "not compiled: it was found to pay before, and now the compiler failed: OSError"
    )


@compiler
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_a_compiled_run_learns_what_the_other_learns(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, told = made(smoke, tmp_path / "home")
    monkeypatch.setattr(compilation, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    monkeypatch.setattr(compilation, "COMPILE_SAVING_MARGIN", -1e9)
    compiled, retold = made(smoke, tmp_path / "other")
    assert plain.record.compilation.startswith(
        "not compiled"
    ) and compiled.record.compilation.startswith("compiled: saves")
    assert [event.loss for event in retold] == pytest.approx(
        [event.loss for event in told], rel=2e-3
    )
