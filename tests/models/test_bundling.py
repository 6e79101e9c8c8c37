"""Bundles: what was packed comes out, to the byte, and nothing else gets in."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clinpeft import models
from clinpeft.core.errors import BaseModelError, InputError, RefusedError
from clinpeft.models import bundle
from tests.conftest import MakeFolder


@pytest.fixture
def base(toy_llama: MakeFolder, tmp_path: Path) -> Path:
    folder = tmp_path / "toy-llama"
    shutil.copytree(toy_llama(), folder)
    return folder


@pytest.fixture
def packed(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text('kind = "adapt"\n')
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").write_bytes(b"a wheel")
    (wheels / "notes.csv").write_text("stays outside")
    models.make_bundle(base, [tmp_path / "mine.toml"], wheels, tmp_path / "bundle.tar")
    return tmp_path / "bundle.tar"


def members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            yield member, file.read() if file else b""


def rewritten(
    path: Path,
    change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]],
) -> Path:
    found = change(list(members(path)))
    other = path.with_name("other.tar")
    with tarfile.open(other, "w") as tar:
        for member, content in found:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return other


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def promised(
    found: list[tuple[tarfile.TarInfo, bytes]], name: str, content: bytes
) -> list[tuple[tarfile.TarInfo, bytes]]:
    """With one more file that the manifest knows too: by somebody who writes manifests."""
    import hashlib

    about = json.loads(found[0][1])
    about["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return [(found[0][0], json.dumps(about).encode()), *found[1:], (named(name), content)]


def test_what_was_packed_comes_out_and_the_base_loads(
    packed: Path, base: Path, tmp_path: Path
) -> None:
    said = models.verify_bundle(packed)
    assert said.base_sha256 == models.fingerprint_base_model(base)
    assert {
        "recipes/mine.toml",
        "wheels/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl",
        "base/toy-llama/model.safetensors",
    } <= set(said.files)
    assert not [name for name in said.files if "notes" in name]
    models.unpack_bundle(packed, tmp_path / "inside")
    assert models.fingerprint_base_model(
        tmp_path / "inside" / "base" / "toy-llama"
    ) == models.fingerprint_base_model(base)
    assert (tmp_path / "inside" / "recipes" / "mine.toml").read_text() == 'kind = "adapt"\n'
    assert (
        models.check_model_folder(tmp_path / "inside" / "base" / "toy-llama")["model_type"]
        == "llama"
    )


def test_the_same_files_give_the_same_bundle_and_no_name_of_a_user(
    packed: Path, base: Path, tmp_path: Path
) -> None:
    models.make_bundle(base, [tmp_path / "mine.toml"], tmp_path / "wheels", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()
    assert {
        (member.uname, member.gname, member.uid, member.mtime) for member, _ in members(packed)
    } == {("", "", 0, 0)}


def test_pickles_and_code_of_a_base_are_not_packed(base: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "modeling.py", "optimizer.pt"):
        (base / name).write_bytes(b"code")
    said = models.make_bundle(base, [], None, tmp_path / "bundle.tar")
    assert not [name for name in said.files if name.endswith((".bin", ".py", ".pt"))]


BAD: dict[
    str,
    tuple[
        Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]], str
    ],
] = {
    "a way out": (lambda found: [*found, (named("../outside.toml"), b"x")], "leads out"),
    "a way out below": (
        lambda found: promised(found, "base/toy-llama/../../outside.toml", b"x"),
        "leads out",
    ),
    "an absolute name": (lambda found: promised(found, "/etc/outside.toml", b"x"), "leads out"),
    "a drive": (lambda found: promised(found, "C:/outside.toml", b"x"), "leads out"),
    "a backslash": (lambda found: promised(found, "recipes\\..\\outside.toml", b"x"), "leads out"),
    "a symbolic link": (
        lambda found: [*found, (named("recipes/a.toml", tarfile.SYMTYPE, "/etc/passwd"), b"")],
        "no plain file but a link",
    ),
    "a hard link": (
        lambda found: [*found, (named("recipes/a.toml", tarfile.LNKTYPE, "manifest.json"), b"")],
        "no plain file but a link",
    ),
    "a device": (
        lambda found: [*found, (named("recipes/a.toml", tarfile.CHRTYPE), b"")],
        "no plain file but a device",
    ),
    "a pipe": (
        lambda found: [*found, (named("recipes/a.toml", tarfile.FIFOTYPE), b"")],
        "no plain file but a device or a pipe",
    ),
    "a folder": (
        lambda found: [*found, (named("recipes", tarfile.DIRTYPE), b"")],
        "no plain file but a folder",
    ),
    "pickled weights": (
        lambda found: promised(found, "base/toy-llama/pytorch_model.bin", b"x"),
        "has no place in a bundle",
    ),
    "code of a base": (
        lambda found: promised(found, "base/toy-llama/modeling.py", b"x"),
        "has no place in a bundle",
    ),
    "a file nobody promised": (
        lambda found: [*found, (named("recipes/a.toml"), b"x")],
        "is not in its manifest",
    ),
    "a file twice": (
        lambda found: [*found, found[-1]],
        "is not in its manifest, or is there twice",
    ),
    "a file less": (lambda found: found[:-1], "1 files of its manifest are not in it"),
    "a byte changed": (
        lambda found: [*found[:-1], (found[-1][0], b"z" + found[-1][1][1:])],
        "is not the file that was packed",
    ),
    "a byte more": (lambda found: [*found[:-1], (found[-1][0], found[-1][1] + b"z")], "bytes, and"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_what_is_not_what_was_packed_is_refused_and_leaves_nothing(
    packed: Path,
    tmp_path: Path,
    change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]],
    said: str,
) -> None:
    other = rewritten(packed, change)
    before = set(tmp_path.rglob("*"))
    looks: tuple[Callable[[Path], object], ...] = (
        models.verify_bundle,
        lambda path: models.unpack_bundle(path, tmp_path / "inside"),
    )
    for look in looks:
        with pytest.raises(RefusedError, match=said) as refused:
            look(other)
        assert refused.value.exit_code == 4
    assert set(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "outside.toml").exists()


def test_a_base_that_brings_code_by_its_config_is_refused_though_the_manifest_knows_it(
    packed: Path, tmp_path: Path
) -> None:
    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
        kept = [
            (member, content)
            for member, content in found
            if member.name != "base/toy-llama/config.json"
        ]
        config = next(
            content for member, content in found if member.name == "base/toy-llama/config.json"
        )
        return promised(
            kept,
            "base/toy-llama/config.json",
            json.dumps({**json.loads(config), "auto_map": {"AutoModel": "modeling.Toy"}}).encode(),
        )

    with pytest.raises(BaseModelError, match="auto_map"):
        models.unpack_bundle(rewritten(packed, change), tmp_path / "inside")
    assert not (tmp_path / "inside").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no tar at all" * 100, b"\x1f\x8b\x08compressed"],
    ids=["empty", "text", "compressed"],
)
def test_what_is_no_bundle_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.tar").write_bytes(content)
    with pytest.raises(InputError, match="this is no bundle"):
        models.verify_bundle(tmp_path / "bundle.tar")


def test_a_bundle_cut_short_is_no_bundle(packed: Path) -> None:
    whole = packed.read_bytes()
    for share in (0.1, 0.5, 0.9):
        packed.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises((InputError, RefusedError)):
            models.verify_bundle(packed)


def test_what_cannot_be_packed_says_why(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recipe file"):
        models.make_bundle(base, [tmp_path / "missing.toml"], None, tmp_path / "bundle.tar")
    (tmp_path / "wheels").mkdir()
    with pytest.raises(InputError, match="there are no wheels") as empty:
        models.make_bundle(base, [], tmp_path / "wheels", tmp_path / "bundle.tar")
    assert "pip download" in empty.value.hint
    (tmp_path / "there.tar").write_bytes(b"")
    with pytest.raises(RefusedError, match="exists"):
        models.make_bundle(base, [], None, tmp_path / "there.tar")
    assert not list(tmp_path.glob(".*"))


def test_a_hub_name_where_a_folder_is_expected_says_what_to_run_outside_and_how_to_carry_it_in(
    tmp_path: Path,
) -> None:
    with pytest.raises(BaseModelError) as missing:
        models.check_model_folder(Path("meta-llama/Llama-2-7b-hf"))
    for said in (
        "clinpeft models pull meta-llama/Llama-2-7b-hf --to DIR",
        "clinpeft bundle make --base DIR",
        "clinpeft bundle unpack",
    ):
        assert said in missing.value.hint


def test_the_names_that_may_be_packed_are_those_that_are_pulled() -> None:
    assert set(models.checks.TOKENIZER_FILES) <= bundle.BUNDLED_BASE_FILES
