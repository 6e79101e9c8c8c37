"""Licences and the bill of materials: what is declared is read rightly, and the document has what
CycloneDX 1.6 requires."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import licences
import pytest
import sbom

ROOT = Path(__file__).parents[1]

DECLARED = [
    ("MIT", "permissive"),
    ("BSD License", "permissive"),
    ("GPL-2.0-only", "refused"),
    ("AGPL-3.0", "refused"),
    ("GNU Affero General Public License v3", "refused"),
    ("GNU General Public License v3 (GPLv3)", "refused"),
    ("MIT AND GPL-2.0-only", "refused"),
    ("MIT OR GPL-2.0-only", "permissive"),
    ("LGPL-3.0-or-later", "weak"),
    ("GNU Lesser General Public License v2 (LGPLv2)", "weak"),
    ("MPL-2.0 AND MIT", "weak"),
    ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", "permissive"),
    ("", "undeclared"),
]


@pytest.mark.parametrize(("licence", "standing"), DECLARED)
def test_a_licence_stands_where_it_belongs(licence: str, standing: str) -> None:
    assert licences.Package("a", "1", licence, ()).standing == standing


def test_no_package_of_a_default_installation_is_refused() -> None:
    found = licences.closure(licences.roots())
    assert set(licences.roots()) <= set(found)
    assert len(found) > 30
    assert not [
        (one.name, one.licence) for one in found.values() if one.standing in licences.REFUSED
    ]


def test_the_extras_are_no_part_of_a_default_installation() -> None:
    assert not {"pytest", "mypy", "docling", "matplotlib"} & set(licences.roots())


def test_a_refused_licence_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        licences, "closure", lambda _: {"bad": licences.Package("bad", "1", "AGPL-3.0", ())}
    )
    with pytest.raises(SystemExit) as left:
        licences.main()
    assert left.value.code == 1
    assert "refused: bad" in capsys.readouterr().out


def test_the_bill_of_materials_has_what_the_schema_requires(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "sbom.py", tmp_path / "sbom.cdx.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert (whole["bomFormat"], whole["specVersion"], whole["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        whole["serialNumber"],
    )
    refs = [one["bom-ref"] for one in whole["components"]]
    assert len(refs) == len(set(refs)) > 30
    for one in (whole["metadata"]["component"], *whole["components"]):
        assert {"type", "name", "version", "purl"} <= set(one)
        for entry in one.get("licenses", []):
            assert set(entry) in ({"license"}, {"expression"})
            assert "expression" in entry or set(entry["license"]) in ({"id"}, {"name"})
    known = {*refs, whole["metadata"]["component"]["bom-ref"]}
    assert {entry["ref"] for entry in whole["dependencies"]} == known
    assert all(set(entry["dependsOn"]) <= known for entry in whole["dependencies"])


def test_the_same_installation_gives_the_same_bill() -> None:
    found = {
        "b": licences.Package("b", "1.0+cpu", "MIT", ("c",)),
        "c": licences.Package("c", "2", "Apache Software License", ()),
    }
    first, second = (sbom.bill(found, ["b"], {"b": ["0" * 64]}) for _ in range(2))
    assert first == second
    assert [one["purl"] for one in first["components"]] == ["pkg:pypi/b@1.0%2Bcpu", "pkg:pypi/c@2"]
    assert [one["licenses"] for one in first["components"]] == [
        [{"license": {"id": "MIT"}}],
        [{"license": {"id": "Apache-2.0"}}],
    ]
    assert first["dependencies"][1] == {
        "ref": "pkg:pypi/b@1.0%2Bcpu",
        "dependsOn": ["pkg:pypi/c@2"],
    }
    other = sbom.bill({**found, "c": licences.Package("c", "3", "MIT", ())}, ["b"], {})
    assert other["serialNumber"] != first["serialNumber"]
