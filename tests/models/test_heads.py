"""Heads and their folder."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from clinpeft import models
from clinpeft.core.errors import AdapterError, InputError, RefusedError, StorageError, UsageError
from clinpeft.core.schemas import LabelSpace
from clinpeft.models import HeadConfig, Head, TaskHeads, ComputeEnvironment, ReferenceOutput
from clinpeft.models import head_io as store
from clinpeft.recipe import PretrainedModelSpec

CPU = torch.device("cpu")
SIZES = {"mortality": 2, "stay.length": 4, "icd_coding": 711, "icd_coding 10": 1266}
PLACE = ComputeEnvironment("2.13.0", "5.23.0", "cpu", "AVX512", 2, "float32")


def question(name: str, classes: int) -> LabelSpace:
    names = tuple(f"class {at} “é”" for at in range(classes))
    return LabelSpace(
        name,
        "multilabel" if classes > 4 else "multiclass",
        names,
        ("",) * classes,
        (7,) * classes,
        "auroc_macro",
    )


def heads_of(sizes: dict[str, int], width: int = 8) -> dict[str, Head]:
    return {
        name: Head(width, classes, 0.25, seed=at)
        for at, (name, classes) in enumerate(sizes.items())
    }


def asked_of(sizes: dict[str, int]) -> dict[str, HeadConfig]:
    return {
        name: HeadConfig(question(name, classes), "mean", "max") for name, classes in sizes.items()
    }


def probe_of(sizes: dict[str, int]) -> ReferenceOutput:
    generator = torch.Generator().manual_seed(5)
    logits = {name: torch.randn(3, classes, generator=generator) for name, classes in sizes.items()}
    return ReferenceOutput(torch.randint(50, (3, 6), generator=generator), logits, PLACE)


# ------------------------------------------------------------------------------------------------------------------------------------ heads


def identity(classes: int = 2) -> Head:
    head = Head(classes, classes, seed=0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(classes))
        head.linear.bias.copy_(torch.arange(classes) * 100.0)
    return head


def test_a_documents_logits_are_the_mean_or_the_maximum_of_its_windows() -> None:
    vectors, document = torch.tensor([[1.0, 8.0], [5.0, 2.0], [3.0, 5.0]]), torch.tensor([1, 0, 1])
    assert identity()(vectors, document, 2, "mean").tolist() == [[5.0, 102.0], [2.0, 106.5]]
    assert identity()(vectors, document, 2, "max").tolist() == [[5.0, 102.0], [3.0, 108.0]]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_one_window_a_document_is_the_linear_layer_to_the_bit(
    pooling: models.WindowPooling,
) -> None:
    head, vectors = (
        Head(8, 1266, seed=3),
        torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),
    )
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(
        head(vectors, order, 5, pooling)[order],
        torch.nn.functional.linear(vectors, head.linear.weight, head.linear.bias),
    )


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_gradients_reach_every_window_that_counts(pooling: models.WindowPooling) -> None:
    vectors = torch.randn(
        6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    head, document = Head(3, 2, seed=1).double(), torch.tensor([0, 0, 0, 1, 2, 2])

    def answer(given: torch.Tensor) -> torch.Tensor:
        logits = head.linear(given)
        parts = [logits[document == at] for at in range(3)]
        return torch.stack([part.mean(0) if pooling == "mean" else part.amax(0) for part in parts])

    single, given = Head(3, 2, seed=1), vectors.detach().float().requires_grad_()
    single(given, document, 3, pooling).square().sum().backward()
    (expected,) = torch.autograd.grad(answer(vectors).square().sum(), vectors)
    assert given.grad is not None
    torch.testing.assert_close(given.grad.double(), expected, atol=1e-6, rtol=0)


def test_a_head_computes_in_float32_whatever_is_around_it() -> None:
    vectors, head = torch.tensor([[1.0 + 2**-7, 1.0]]).bfloat16(), identity()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(vectors, torch.tensor([0]), 1, "mean")
    assert (
        logits.dtype == torch.float32
        and logits[0, 1].item() == 101.0
        and logits[0, 0].item() == 1.0 + 2**-7
    )


def test_first_weights_are_small_seeded_and_touch_no_global_generator() -> None:
    before = torch.get_rng_state()
    head, again, other = Head(384, 1266, seed=7), Head(384, 1266, seed=7), Head(384, 1266, seed=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(head.linear.weight, again.linear.weight) and not torch.equal(
        head.linear.weight, other.linear.weight
    )
    assert (
        abs(head.linear.weight.std().item() - 0.02) < 1e-4
        and abs(head.linear.weight.mean().item()) < 1e-4
    )
    assert not head.linear.bias.any() and head.linear.weight.dtype == torch.float32
    assert (head.width, head.num_classes) == (384, 1266)


def test_dropout_falls_on_the_vector_while_training_and_never_else() -> None:
    head = Head(4, 4, dropout=0.5)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(4))
    vectors, document = torch.ones(64, 4), torch.arange(64)
    torch.manual_seed(0)
    assert set(head.train()(vectors, document, 64, "mean").flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(head.eval()(vectors, document, 64, "mean"), vectors)


def test_nothing_is_kept_per_token_for_many_labels() -> None:
    sizes: list[int] = []

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    head, vectors = Head(8, 1266), torch.randn(6, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        head(vectors, torch.tensor([0, 0, 1, 1, 2, 2]), 3, "max")
    assert max(sizes) <= max(6 * 1266, head.linear.weight.numel())


@pytest.mark.parametrize(
    ("document", "documents", "said"),
    [
        ([0, 0, 2], 3, r"without windows: \[1\]"),
        ([0, 1, 3], 3, r"without document: \[2\]"),
        ([0, 1, -1], 2, r"without document: \[2\]"),
    ],
)
def test_a_document_without_windows_or_a_window_without_document_is_an_error(
    document: list[int], documents: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Head(2, 2)(torch.zeros(3, 2), torch.tensor(document), documents, "mean")


def test_heads_are_a_mapping_under_any_name_and_a_module() -> None:
    names = ["a.b", "a%2Eb", "type", "keys", "", "note_category", "ü 10%"]
    heads = TaskHeads({name: Head(4, at + 2, seed=at) for at, name in enumerate(names)})
    assert list(heads) == names and len(heads) == 7 and "keys" in heads and "absent" not in heads
    assert [head.num_classes for head in heads.values()] == [2, 3, 4, 5, 6, 7, 8]
    assert len(dict(heads.named_parameters())) == 14 and all(
        head.training for head in heads.values()
    )
    assert not any(head.training for head in heads.eval().values())
    again = copy.deepcopy(heads)
    again.load_state_dict(heads.state_dict())
    assert again != heads and again in {again} and list(again) == names
    with pytest.raises(KeyError):
        heads["absent"]
    with pytest.raises(UsageError, match="no head"):
        TaskHeads({})


# ------------------------------------------------------------------------------------------------------------------------------------ saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.save_heads(
        tmp_path / "head",
        heads_of(SIZES),
        asked_of(SIZES),
        "b" * 64,
        probe_of(SIZES),
        {"adapters": ["c" * 64]},
    )
    return tmp_path / "head"


def test_heads_of_2_4_711_and_1266_classes_come_back_to_the_bit(folder: Path) -> None:
    found, wanted, probe = models.load_heads(folder, "b" * 64), heads_of(SIZES), probe_of(SIZES)
    assert list(found.heads) == list(SIZES) and found.head_configs == asked_of(SIZES)
    assert (found.base_sha256, found.metadata) == ("b" * 64, {"adapters": ["c" * 64]})
    for name, head in wanted.items():
        assert (
            torch.equal(found.heads[name].linear.weight, head.linear.weight)
            and found.heads[name].dropout.p == 0.25
        )
        assert not found.heads[name].training
    assert (
        found.reference_output is not None
        and torch.equal(found.reference_output.input_ids, probe.input_ids)
        and found.reference_output.environment == PLACE
    )
    assert all(
        torch.equal(found.reference_output.logits[name], probe.logits[name]) for name in SIZES
    )


def test_heads_of_several_widths_without_probe_come_back(tmp_path: Path) -> None:
    sizes = {"a": 2, "b": 3}
    models.save_heads(
        tmp_path,
        TaskHeads({"a": Head(4, 2, seed=1), "b": Head(16, 3, seed=2)}),
        asked_of(sizes),
        "",
    )
    found = models.load_heads(tmp_path)
    assert (
        [head.width for head in found.heads.values()] == [4, 16]
        and found.reference_output is None
        and found.metadata == {}
    )


def test_the_same_heads_are_the_same_files(folder: Path, tmp_path: Path) -> None:
    models.save_heads(
        tmp_path / "again",
        heads_of(SIZES),
        asked_of(SIZES),
        "b" * 64,
        probe_of(SIZES),
        {"adapters": ["c" * 64]},
    )
    for name in ("head.json", "head.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["head.json", "head.safetensors"]


def test_a_write_that_fails_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        models.save_heads(folder, heads_of({"a": 2}), asked_of({"a": 2}), "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_write_cut_off_between_the_two_files_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store._write_file
    monkeypatch.setattr(
        store,
        "_write_file",
        lambda path, content: real(path, content) if path.suffix == ".safetensors" else None,
    )
    models.save_heads(folder, heads_of({"a": 2}), asked_of({"a": 2}), "")
    with pytest.raises(RefusedError, match="not the file that was written"):
        models.load_heads(folder)


def test_heads_questions_and_probe_must_be_about_the_same(tmp_path: Path) -> None:
    for heads, asked, probe in [
        (heads_of({"a": 2}), asked_of({"a": 3}), None),
        (heads_of({"a": 2}), asked_of({"b": 2}), None),
        (heads_of({"a": 2}), asked_of({"a": 2}), probe_of({"a": 3})),
        ({}, {}, None),
    ]:
        with pytest.raises(UsageError, match="classes"):
            models.save_heads(tmp_path / "head", heads, asked, "", probe)
    assert not (tmp_path / "head").exists()


def test_another_base_is_refused(folder: Path) -> None:
    with pytest.raises(RefusedError, match="sha256 bbbbbbbbbbbb, and the base is aaaaaaaaaaaa"):
        models.load_heads(folder, "a" * 64)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    described = json.loads((folder / "head.json").read_text())
    change(described)
    (folder / "head.json").write_text(json.dumps(described))


def rehash(folder: Path) -> None:
    import hashlib

    digest = hashlib.sha256((folder / "head.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda described: described.update(weights_sha256=digest))


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=f"no {name}"):
        models.load_heads(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tasks": 3}', "\xff"])
def test_a_description_that_is_none_is_an_error(folder: Path, text: str) -> None:
    (folder / "head.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AdapterError, match=r"head\.json cannot be read"):
        models.load_heads(folder)


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda described: described["tasks"]["mortality"].pop("question"),
    lambda described: described["tasks"]["mortality"]["question"].pop("classes"),
    lambda described: described["tasks"]["mortality"]["question"].update(colour="red"),
    lambda described: described["tasks"]["mortality"].update(pooling="auto"),
    lambda described: described["tasks"]["mortality"].update(window_pooling="median"),
    lambda described: described["tasks"]["mortality"].update(width="wide"),
    lambda described: described["tasks"]["mortality"].update(dropout=2.0),
    lambda described: described["tasks"].update(mortality=[]),
    lambda described: described["probe"].update(input_ids=[[1], [2, 3]]),
    lambda described: described["probe"]["location"].pop("threads"),
    lambda described: described.pop("base_sha256"),
    lambda described: described.update(about=3),
]


@pytest.mark.parametrize("at", range(len(CHANGES)))
def test_a_description_with_something_wrong_is_an_error(folder: Path, at: int) -> None:
    edit(folder, CHANGES[at])
    with pytest.raises(AdapterError, match=r"head\.json cannot be read"):
        models.load_heads(folder)


def test_one_changed_bit_of_the_numbers_is_refused(folder: Path) -> None:
    numbers = bytearray((folder / "head.safetensors").read_bytes())
    numbers[-1] ^= 1
    (folder / "head.safetensors").write_bytes(numbers)
    with pytest.raises(RefusedError, match="not the file that was written"):
        models.load_heads(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.pop("head.stay.length.bias"),
            r"head.stay.length.bias is missing for \(4,\)",
        ),
        (
            lambda tensors: tensors.pop("probe.mortality"),
            r"probe.mortality is missing for \(3, 2\)",
        ),
        (lambda tensors: tensors.update(extra=torch.ones(1)), r"extra is \(1,\) for nothing"),
        (
            lambda tensors: tensors.update({"head.mortality.weight": torch.ones(3, 8)}),
            r"head.mortality.weight is \(3, 8\) for \(2, 8\)",
        ),
        (
            lambda tensors: tensors.update({"head.mortality.bias": torch.ones(2).bfloat16()}),
            "bfloat16 for torch.float32",
        ),
    ],
)
def test_numbers_that_do_not_fit_their_description_are_named(
    folder: Path, change: Callable[[Any], object], said: str
) -> None:
    tensors = load_file(folder / "head.safetensors")
    change(tensors)
    save_file(tensors, folder / "head.safetensors")
    rehash(folder)
    with pytest.raises(AdapterError, match=said):
        models.load_heads(folder)


def test_numbers_that_are_no_safetensors_and_no_task_at_all_are_errors(folder: Path) -> None:
    (folder / "head.safetensors").write_bytes(b"not numbers")
    rehash(folder)
    with pytest.raises(AdapterError, match=r"head\.safetensors cannot be read"):
        models.load_heads(folder)
    (folder / "head.safetensors").write_bytes(save({}))
    rehash(folder)
    edit(folder, lambda described: described.update(tasks={}))
    with pytest.raises(AdapterError, match="no task"):
        models.load_heads(folder)


# ------------------------------------------------------------------------------------------------------------------------------------ probe


def test_the_same_answers_in_the_same_place_pass_and_one_bit_is_refused() -> None:
    probe = probe_of({"a": 4, "b": 2})
    models.check_reference_output(probe, dict(probe.logits), PLACE)
    now = {name: logits.clone() for name, logits in probe.logits.items()}
    now["b"][1, 1] = torch.nextafter(now["b"][1, 1], torch.tensor(torch.inf))
    with pytest.raises(
        RefusedError, match=r"answers of b to the probe differ by .*in the same place"
    ):
        models.check_reference_output(probe, now, PLACE)
    models.check_reference_output(probe, now, dataclasses.replace(PLACE, threads=8))


def test_elsewhere_a_thousandth_of_the_largest_logit_passes() -> None:
    probe, there = (
        ReferenceOutput(
            torch.zeros(1, 1, dtype=torch.int64), {"a": torch.tensor([[-10.0, 1.0]])}, PLACE
        ),
        dataclasses.replace(PLACE, device="cuda"),
    )
    models.check_reference_output(probe, {"a": torch.tensor([[-10.0, 1.0099]])}, there)
    with pytest.raises(
        RefusedError, match=r"differ by 0\.0\d+ .*device cpu -> cuda.* 0\.01 would pass"
    ):
        models.check_reference_output(probe, {"a": torch.tensor([[-10.0, 1.0101]])}, there)
    coarse = dataclasses.replace(PLACE, precision="bfloat16")
    models.check_reference_output(probe, {"a": torch.tensor([[-10.0, 1.25]])}, coarse)
    with pytest.raises(RefusedError, match="precision float32 -> bfloat16"):
        models.check_reference_output(probe, {"a": torch.tensor([[-10.0, 1.35]])}, coarse)


@pytest.mark.parametrize("location", [PLACE, dataclasses.replace(PLACE, device="cuda")])
def test_an_answer_that_is_no_number_is_refused(location: ComputeEnvironment) -> None:
    probe = probe_of({"a": 4})
    with pytest.raises(RefusedError, match="differ by nan"):
        models.check_reference_output(probe, {"a": torch.full((3, 4), torch.nan)}, location)


def test_other_tasks_or_shapes_are_an_error() -> None:
    for now in ({}, {"b": torch.zeros(3, 4)}, {"a": torch.zeros(3, 5)}):
        with pytest.raises(AdapterError, match="probe has answers"):
            models.check_reference_output(probe_of({"a": 4}), now, PLACE)


def test_the_probe_finds_another_base_out(toy_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Saved with one base and asked of it again, loaded anew: to the bit. Asked of another: refused."""
    one, again, other = (
        models.load_base_model(PretrainedModelSpec(path=folder, max_tokens=16), CPU, "vectors")
        for folder in [toy_llama()] * 2 + [toy_llama(seed=1)]
    )
    head = Head(32, 3, seed=0)

    def answers(base: models.FrozenBaseModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = torch.ones_like(ids)
        with torch.no_grad():
            vectors = models.pool_hidden_states(
                base.backbone(input_ids=ids, attention_mask=mask).last_hidden_state, mask, "last"
            )
            return {"a": head(vectors, torch.arange(len(ids)), len(ids), "mean")}

    ids = models.sample_reference_tokens(one, seed=4)
    assert (
        models.describe_environment(one).precision == "float32"
        and models.describe_environment(one).threads == torch.get_num_threads()
    )
    models.save_heads(
        tmp_path,
        {"a": head},
        asked_of({"a": 3}),
        one.sha256,
        ReferenceOutput(ids, answers(one, ids), models.describe_environment(one)),
    )
    probe = models.load_heads(tmp_path, again.sha256).reference_output
    assert probe is not None
    models.check_reference_output(
        probe, answers(again, probe.input_ids), models.describe_environment(again)
    )
    with pytest.raises(RefusedError, match="in the same place"):
        models.check_reference_output(
            probe, answers(other, probe.input_ids), models.describe_environment(other)
        )


def test_probe_tokens_are_ordinary_seeded_and_no_longer_than_the_base_reads(toy_bert: Path) -> None:
    base = models.load_base_model(PretrainedModelSpec(path=toy_bert, max_tokens=16), CPU)
    ids = models.sample_reference_tokens(base, seed=4, rows=50)
    assert ids.shape == (50, 16) and ids.dtype == torch.int64
    special = set(base.tokenizer.all_special_ids)
    assert set(ids.flatten().tolist()) == set(range(len(base.tokenizer))) - special
    assert torch.equal(
        ids, models.sample_reference_tokens(base, seed=4, rows=50)
    ) and not torch.equal(ids, models.sample_reference_tokens(base, seed=5, rows=50))
