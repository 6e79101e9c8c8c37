"""Kernels of liger, without a GPU: what is refused, what liger is asked for, and that nobody but
the given model gets it."""

from __future__ import annotations

import copy
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from clinpeft import models
from clinpeft.core.errors import BaseModelError, UsageError
from clinpeft.models import MODEL_FAMILIES
from clinpeft.recipe import PretrainedModelSpec
from clinpeft.runtime import kernels
from tests.models.test_families import SETTINGS, SHAPE

CUDA = torch.device("cuda")
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
GATES = dict.fromkeys(KNOWN, "swiglu") | {"gemma2": "geglu"}
IDS = torch.arange(3, 12)[None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A package that does what liger 0.8.5 does to LLaMA, and remembers what it was asked for: it
    halves the norms."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def applied(model_type: str, **options: Any) -> None:
        calls.append((model_type, options))
        model = options["model"]
        here: Any = sys.modules[type(model).__module__]
        if model_type == "llama":
            here.LlamaRMSNorm = here.LlamaMLP = torch.nn.Identity
        norm = model.base_model.norm
        norm.__dict__["forward"] = (
            lambda self, hidden: type(self).forward(self, hidden) / 2
        ).__get__(norm)

    known = {name: lambda name=name, **options: applied(name, **options) for name in KNOWN}
    package, inner, patch = (
        ModuleType(name)
        for name in (
            "liger_kernel",
            "liger_kernel.transformers",
            "liger_kernel.transformers.monkey_patch",
        )
    )
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = known  # type: ignore[attr-defined]
    inner.monkey_patch = patch  # type: ignore[attr-defined]
    for module in (package, inner, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "LIGER_PACKAGE", "torch")  # which is installed, and has a version
    monkeypatch.setattr(kernels, "LIGER_DISTRIBUTION", "torch")
    return calls


def toy(family: str) -> Any:
    config = transformers.AutoConfig.for_model(family, **SHAPE, **SETTINGS.get(family, {}))
    torch.manual_seed(0)
    return MODEL_FAMILIES[family].auto_class.from_config(config).eval()


def refuse(spec: PretrainedModelSpec, device: torch.device) -> None:
    kernels.check_kernels_available(
        spec, device, KNOWN, lambda: str(models.check_model_folder(spec.path)["model_type"])
    )


def liger(folder: Path) -> PretrainedModelSpec:
    return PretrainedModelSpec(path=folder, kernels="liger")


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.base_model(input_ids=IDS).last_hidden_state
    return found


def test_nothing_of_liger_is_imported_with_clinpeft() -> None:
    assert not [name for name in sys.modules if name.startswith("liger_kernel")]


def test_a_processor_is_refused_with_the_value_the_place_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='kernels = "liger" on cpu') as caught:
        refuse(
            liger(tmp_path / "nothing there"), torch.device("cpu")
        )  # before the folder is looked at
    assert caught.value.location == "base.kernels" and '"torch"' in caught.value.hint


def test_a_package_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LIGER_PACKAGE", "no_package_of_this_name")
    with pytest.raises(UsageError, match="liger-kernel is not installed") as caught:
        refuse(liger(tmp_path / "nothing there"), CUDA)
    assert 'pip install "clinpeft[gpu]"' in caught.value.hint


@pytest.mark.usefixtures("asked")
def test_a_family_without_kernels_is_refused_and_the_others_are_named(tmp_path: Path) -> None:
    refuse(liger(models.write_toy_model(tmp_path / "llama")), CUDA)
    encoder = models.write_toy_model(tmp_path / "bert")
    (encoder / "config.json").write_text(
        (encoder / "config.json").read_text().replace('"llama"', '"bert"')
    )
    with pytest.raises(BaseModelError, match="bert model, for which there are none") as caught:
        refuse(liger(encoder), CUDA)
    assert caught.value.location == "base.kernels" and caught.value.hint.endswith(", ".join(KNOWN))


def test_the_families_with_kernels_are_those_that_liger_knows() -> None:
    assert tuple(name for name, family in MODEL_FAMILIES.items() if family.liger_kernels) == KNOWN


@pytest.mark.parametrize("family", KNOWN)
def test_liger_is_asked_for_norms_and_gates_and_for_no_rotation_and_no_loss(
    family: str, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    model = toy(family)
    assert (
        kernels.install_liger_kernels(
            model, MODEL_FAMILIES[family].liger_kernels, liger(Path("toy")), CUDA
        )
        == f"torch {metadata.version('torch')}"
    )
    wanted = {
        "rope": False,
        "rms_norm": True,
        GATES[family]: True,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    assert asked == [(family, {"model": model, **wanted})]


def test_the_given_model_alone_gets_them(asked: list[tuple[str, dict[str, Any]]]) -> None:
    before = dict(vars(modeling_llama))
    model, other = toy("llama"), toy("llama")
    plain = answer(model)
    kernels.install_liger_kernels(
        model, MODEL_FAMILIES["llama"].liger_kernels, liger(Path("toy")), CUDA
    )
    assert vars(modeling_llama) == before
    torch.testing.assert_close(answer(model), plain / 2)
    assert [name for name, _ in asked] == ["llama"]
    torch.testing.assert_close(answer(other), plain)
    torch.testing.assert_close(answer(toy("llama")), plain)  # made afterwards
    torch.testing.assert_close(answer(copy.deepcopy(model)), plain / 2)
    assert vars(modeling_llama) == before


@pytest.mark.parametrize(("spec", "device"), [("torch", "cuda"), ("liger", "cpu")])
def test_a_model_stays_as_it_is_where_none_are_asked_for_or_a_run_is_read_elsewhere(
    spec: str, device: str, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    found = kernels.install_liger_kernels(
        toy("llama"),
        MODEL_FAMILIES["llama"].liger_kernels,
        PretrainedModelSpec(path=Path("toy"), kernels=spec),  # type: ignore[arg-type]
        torch.device(device),
    )
    assert found == "torch" and not asked


def test_a_probe_of_an_older_version_was_answered_by_torch() -> None:
    location = models.ComputeEnvironment("2.13", "5.17", "cpu", "AVX2", 2, "float32")
    older = {name: value for name, value in location.as_json().items() if name != "kernels"}
    assert models.ComputeEnvironment.from_json(older) == location
    assert (
        models.ComputeEnvironment.from_json({**older, "kernels": "liger-kernel 0.8.5"}) != location
    )
