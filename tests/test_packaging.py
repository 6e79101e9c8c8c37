"""What is installed, and how: the lock, the versions, the licences, the targets of make."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import install
import lock
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import clinpeft

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = lock.entries(LOCK)
ASKED = [
    Requirement(line)
    for line in (
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["build-system"]["requires"],
    )
]


def pinned(entry: str) -> Requirement:
    return Requirement(entry.partition(" \\\n")[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_names_no_host_and_no_index() -> None:
    lines = [
        line
        for line in LOCK.splitlines()
        if not re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line)
    ]
    assert not [
        line
        for line in lines
        if not re.fullmatch(r"[a-z0-9-]+==[\w.]+(?: ; [\w.'<>=! ()]+)? \\", line)
    ]
    assert "://" not in LOCK
    assert "--index" not in LOCK
    assert "--find-links" not in LOCK


def test_every_entry_is_pinned_and_hashed() -> None:
    assert len(ENTRIES) > 50
    for entry in ENTRIES:
        assert [specifier.operator for specifier in pinned(entry).specifier] == ["=="]
        assert lock.hashes(entry)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_locked_once_within_its_range(python: str) -> None:
    """On Linux x86-64, for each supported Python: the entries whose marker applies are one for a
    package."""
    platform = {
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    told = {key: str(value) for key, value in default_environment().items()}
    environment = {
        **told,
        **platform,
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    applying = [
        entry
        for entry in map(pinned, ENTRIES)
        if entry.marker is None or entry.marker.evaluate(environment)
    ]
    versions = {entry.name: next(iter(entry.specifier)).version for entry in applying}
    assert len(versions) == len(applying)
    for asked in ASKED:
        assert asked.specifier.contains(versions[asked.name]), asked


def test_what_is_installed_beside_the_tests_is_what_is_locked() -> None:
    """Unless the suite runs in somebody's own environment, which it may: then this says nothing."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not running in the environment that make builds")
    versions = {
        canonical(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()
    }
    environment = {key: str(value) for key, value in default_environment().items()}
    wanted = [
        entry
        for entry in map(pinned, install.for_the_processor(LOCK))
        if entry.marker is None or entry.marker.evaluate(environment)
    ]
    assert not [
        str(entry)
        for entry in wanted
        if not entry.specifier.contains(versions[entry.name].partition("+")[0])
        and entry.name != "torch"
    ]


EMACS_MODE_UNDER_GPL = "docutils"
"""Development only, for the documentation site: what it has under the GPL is an Emacs mode."""


def test_no_locked_package_is_under_gpl_or_agpl() -> None:
    found = {canonical(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    checked = [found[lock.name(entry)] for entry in ENTRIES if lock.name(entry) in found]
    assert len(checked) > 40
    refused = {d.metadata["Name"] for d in checked if copyleft(licence_of(d))}
    assert refused <= {EMACS_MODE_UNDER_GPL}
    docutils = Path(str(found[EMACS_MODE_UNDER_GPL].locate_file("docutils"))).rglob("*.el")
    assert not list(docutils)


def licence_of(distribution: importlib.metadata.Distribution) -> str:
    """What a package declares, in a line: the expression, else the classifiers and the first line
    of the free text."""
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classified = [
        line for line in metadata.get_all("Classifier") or [] if line.startswith("License")
    ]
    free = metadata["License"].partition("\n")[0] if "License" in metadata else ""
    return " / ".join([*classified, free])


def copyleft(licence: str) -> bool:
    return bool(
        re.search(
            r"\bA?GPL|GNU (Affero )?General",
            re.sub(r"GPL-3\.0-or-later WITH GCC-exception-3\.1", "", licence),
        )
    )


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("AGPL-3.0", True),
        ("MIT AND GPL-2.0-only", True),
        ("License :: OSI Approved :: GNU General Public License v3", True),
        ("MIT", False),
    ],
)
def test_a_copyleft_licence_would_be_seen(licence: str, expected: bool) -> None:
    assert copyleft(licence) is expected


def test_the_version_is_the_changelogs_newest() -> None:
    newest = re.search(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert newest is not None
    assert newest.group(1) == clinpeft.__version__


def test_the_licence_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    )


def test_the_dependencies_are_those_chosen() -> None:
    chosen = {
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "safetensors",
        "duckdb",
        "pyarrow",
        "numpy",
        "scipy",
        "scikit-learn",
        "filelock",
        "huggingface-hub",
        "jinja2",
    }
    assert {Requirement(line).name for line in PROJECT["project"]["dependencies"]} == chosen | {
        "pydantic",
        "typer",
        "rich",
        "pypdfium2",
        "lxml",
        "filelock",
    }


def test_the_processors_form_of_the_lock_has_no_cuda_and_the_other_torch() -> None:
    digest = "a" * 64
    whole = (
        f"numpy==2.0 ; python_full_version < '3.12' \\\n    --hash=sha256:{digest}\n"
        f"nvidia-nccl-cu13==2.3 \\\n    --hash=sha256:{digest}\n"
        f"cuda-toolkit==13 ; sys_platform == 'linux' \\\n    --hash=sha256:{digest}\n"
        f"torch==2.13.0 \\\n    --hash=sha256:{digest}\ntriton==3.9 \\\n    "
        f"--hash=sha256:{digest}\n"
    )
    assert [entry.split(" \\")[0] for entry in install.for_the_processor(whole)] == [
        "numpy==2.0 ; python_full_version < '3.12'",
        "torch==2.13.0+cpu",
    ]
    assert all(lock.hashes(entry) == [digest] for entry in install.for_the_processor(whole))


def test_the_lock_learns_the_processor_build_and_does_not_forget_it(tmp_path: Path) -> None:
    wheel = tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
    wheel.write_bytes(b"a wheel")
    (tmp_path / "torch-2.12.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(
        b"another version"
    )
    fresh = (
        f"numpy==2.0 \\\n    --hash=sha256:{'b' * 64}\ntorch==2.13.0 \\\n    "
        f"--hash=sha256:{'f' * 64} \\\n    --hash=sha256:{'0' * 64}\n"
    )
    learned = lock.locked(fresh, "", "2.13.0", [tmp_path])
    both = ["0" * 64, hashlib.sha256(b"a wheel").hexdigest(), "f" * 64]
    assert [lock.hashes(entry) for entry in lock.entries(learned)] == [["b" * 64], sorted(both)]
    assert lock.locked(fresh, learned, "2.13.0", []) == learned
    assert (
        lock.locked(fresh, learned.replace("2.13.0", "2.12.0"), "2.13.0", []).count("sha256") == 3
    )


def test_install_refuses_a_build_that_does_not_exist() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "install.py"), "rocm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "TORCH=rocm" in done.stderr
    assert "hint" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_a_target_prints_every_target() -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^  make ([\w-]+)", printed, flags=re.MULTILINE)) == {
        *(
            "help",
            "install",
            "quickstart",
            "test",
            "lint",
            "format",
            "bench",
            "soak",
            "docs",
            "lock",
            "licences",
            "sbom",
            "audit-deps",
            "clean",
        )
    }


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_what_is_missing_when_there_is_no_python(tmp_path: Path) -> None:
    for file in (
        "Makefile",
        "pyproject.toml",
        "requirements.lock",
        "scripts/install.py",
        "scripts/lock.py",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    shell = Path(shutil.which("sh") or "/bin/sh")
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "sh").symlink_to(shell)
    make = shutil.which("make") or "make"
    done = subprocess.run(
        [make, "install"],
        cwd=tmp_path,
        env={"PATH": str(bare)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no Python of version 3.11 or newer" in done.stderr


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8").rstrip().endswith("\nmake test")
