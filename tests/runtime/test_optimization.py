"""Whether a run compiles: decided before its first step by what there is to save, remembered, and
told by its record."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clinpeft import adapters, models, recipe
from clinpeft.recipe import AdaptRecipe, LoraSpec
from clinpeft.runtime import RuntimePolicy, optimization
from clinpeft.runtime import compile as regional_compile
from clinpeft.runtime.compile import CompileTiming
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
        seconds_before=0.5, seconds_after=0.3, compile_seconds=10.0
    )  # 0.2 s saved a pass
    assert optimization.decide_from_timing(tried, 101) == optimization.CompileDecision(
        True, "saves some 20 s of the run, and took 10 s"
    )
    assert not optimization.decide_from_timing(tried, 99).compiled
    assert not optimization.decide_from_timing(
        CompileTiming(seconds_before=0.3, seconds_after=0.5, compile_seconds=0.0), 1000
    ).compiled
    assert optimization.decide_from_timing(
        CompileTiming(0.5, obstacle="the compiler failed: OSError"), 1e9
    ) == optimization.CompileDecision(False, "the compiler failed: OSError")


def test_a_short_run_is_not_tried(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        regional_compile, "time_compilation", lambda *_: pytest.fail("a run of seconds was tried")
    )
    run, _ = made(smoke, tmp_path / "home")
    assert run.record.compilation == "not compiled: norms and gates take less than 120 s of the run"


def test_a_recipe_may_forbid_it_and_differential_privacy_does(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    monkeypatch.setattr(
        regional_compile, "time_compilation", lambda *_: pytest.fail("it was tried")
    )
    run, _ = made(asking(smoke, compilation="never"), tmp_path / "home")
    assert run.record.compilation == "not compiled: asked for in the recipe"
    base = models.load_base_model(smoke.base, models.get_cpu_device())
    stack = adapters.attach_adapters(base, smoke.adapters)
    private = RuntimePolicy(tmp_path, per_subject_gradients=True, micro_batch_tokens=8)
    decision = optimization.decide_compilation(stack, private)
    assert not decision.compiled and "privacy" in decision.reason


def test_a_run_made_again_decides_as_the_first_did(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    answers = iter([CompileTiming(1.0, 2.0, 1.0)])
    monkeypatch.setattr(regional_compile, "time_compilation", lambda *_: next(answers))
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
    monkeypatch.setattr(optimization, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    monkeypatch.setattr(
        regional_compile, "time_compilation", lambda *_: CompileTiming(9.0, 0.0, 1.0)
    )
    monkeypatch.setattr(
        regional_compile, "compile_regions", lambda *_: "the compiler failed: OSError"
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
    monkeypatch.setattr(optimization, "COMPILE_TRIAL_MIN_SECONDS", 0.0)
    monkeypatch.setattr(optimization, "COMPILE_SAVING_MARGIN", -1e9)
    compiled, retold = made(smoke, tmp_path / "other")
    assert plain.record.compilation.startswith(
        "not compiled"
    ) and compiled.record.compilation.startswith("compiled: saves")
    assert [event.loss for event in retold] == pytest.approx(
        [event.loss for event in told], rel=2e-3
    )
