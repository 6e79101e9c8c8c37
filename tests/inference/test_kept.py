"""What is kept of a run answers again, on its own base, or is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clinpeft import adapters, inference, models
from clinpeft.core.errors import AdapterError, ClinpeftError, RefusedError
from clinpeft.core.schemas import LabelSpace
from clinpeft.inference.classifier_io import _compute_reference_logits
from clinpeft.models import Head
from clinpeft.recipe import EncoderModelSpec, LoraSpec
from tests.conftest import MakeFolder

CPU = torch.device("cpu")
WIDTHS = {"two": 2, "four": 4, "many": 711, "most": 1266}


def spec(folder: Path) -> EncoderModelSpec:
    return EncoderModelSpec(path=folder, max_tokens=16, precision="float32")


def asked(name: str, classes: int) -> LabelSpace:
    return LabelSpace(
        name,
        "multilabel",
        tuple(f"c{at}" for at in range(classes)),
        ("icd9",) * classes,
        (1,) * classes,
        "auroc_macro",
    )


@pytest.fixture(scope="module")
def base(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads of very different widths above two adapters that say something."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    stack = adapters.attach_adapters(
        models.load_base_model(spec(base), CPU, "vectors"),
        [LoraSpec(rank=2), LoraSpec(rank=2)],
        seed=1,
    )
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.1)
    heads = {name: Head(32, classes, seed=classes).eval() for name, classes in WIDTHS.items()}
    inference.save_classifier(
        folder,
        stack,
        heads,
        {name: asked(name, classes) for name, classes in WIDTHS.items()},
        "mean",
        "mean",
    )
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_heads_of_every_width_answer_the_probe_bit_for_bit(run: Path, base: Path) -> None:
    served = inference.load_classifier(run, spec(base), CPU)
    saved = models.load_heads(run)
    assert (
        saved.reference_output is not None
        and {name: head.num_classes for name, head in served.heads.items()} == WIDTHS
    )
    now = _compute_reference_logits(
        served.stack, served.heads, served.pooling, "mean", saved.reference_output.input_ids
    )
    assert all(torch.equal(now[name], saved.reference_output.logits[name]) for name in WIDTHS)
    assert served.label_spaces["most"] == asked("most", 1266)
    assert not any(parameter.requires_grad for parameter in served.stack.base.model.parameters())


def test_another_base_is_refused_by_its_hash(run: Path, toy_llama: MakeFolder) -> None:
    with pytest.raises(RefusedError, match="trained on a base of sha256"):
        inference.load_classifier(run, spec(toy_llama(seed=1)), CPU)


@pytest.mark.parametrize("name", ["head.safetensors", "adapters/2-lora/adapter_model.safetensors"])
def test_numbers_that_were_changed_are_refused(copied: Path, base: Path, name: str) -> None:
    tensors = load_file(copied / name)
    save_file(
        {key: tensor + 1e-6 for key, tensor in tensors.items()},
        copied / name,
        metadata={"format": "pt"},
    )
    with pytest.raises(RefusedError, match="is not the file that was written"):
        inference.load_classifier(copied, spec(base), CPU)


@pytest.mark.parametrize(
    "name", ["head.json", "head.safetensors", "adapters/1-lora/adapter_model.safetensors"]
)
def test_a_missing_file_is_an_error(copied: Path, base: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(AdapterError, match=Path(name).name):
        inference.load_classifier(copied, spec(base), CPU)


@pytest.mark.parametrize("gone", ["adapters", "adapters/2-lora"])
def test_an_adapter_that_was_left_behind_is_found_out(copied: Path, base: Path, gone: str) -> None:
    shutil.rmtree(copied / gone)
    with pytest.raises(ClinpeftError, match=r"probe|of a stack of 2"):
        inference.load_classifier(copied, spec(base), CPU)


def test_missing_keys_of_an_adapter_are_an_error_even_where_the_hash_was_made_to_fit(
    copied: Path, base: Path
) -> None:
    folder = copied / "adapters" / "2-lora"
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, weights, metadata={"format": "pt"})
    about = json.loads((folder / "clinpeft.json").read_text(encoding="utf-8"))
    about["files"]["adapter_model.safetensors"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "clinpeft.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(AdapterError, match="1 missing"):
        inference.load_classifier(copied, spec(base), CPU)


def test_a_trained_base_is_kept_whole_and_stands_for_the_one_of_the_recipe(
    toy_bert: Path, tmp_path: Path
) -> None:
    loaded = models.load_base_model(spec(toy_bert), CPU, "vectors")
    stack = adapters.attach_adapters(loaded, (), base_trainable=True)
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.mul_(1.1)
    stack.train(False)
    heads, questions = {"two": Head(32, 2, seed=3).eval()}, {"two": asked("two", 2)}
    inference.save_classifier(tmp_path / "run", stack, heads, questions, "cls", "mean")
    ids = models.sample_reference_tokens(loaded, 5)
    before = _compute_reference_logits(stack, heads, "cls", "mean", ids)
    served = inference.load_classifier(tmp_path / "run", spec(toy_bert), CPU)
    assert torch.equal(
        _compute_reference_logits(served.stack, served.heads, "cls", "mean", ids)["two"],
        before["two"],
    )
    bare = adapters.attach_adapters(models.load_base_model(spec(toy_bert), CPU, "vectors"), ())
    assert not torch.allclose(
        _compute_reference_logits(bare, heads, "cls", "mean", ids)["two"], before["two"], atol=1e-4
    )
