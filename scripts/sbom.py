"""The bill of materials of a default installation: CycloneDX 1.6, as JSON, from what is installed.

    .venv/bin/python scripts/sbom.py sbom.cdx.json

The same installation gives the same file: no time, and a serial number made of the content.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lock
from licences import Package, canonical, closure, roots

import clinpeft

SPDX = re.compile(r"[A-Za-z0-9.+-]+")
KNOWN_BY_CLASSIFIER = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Classifiers that name one licence without doubt."""


def purl(name: str, version: str) -> str:
    """The package URL; a local part of a version is part of it."""
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def licences(one: Package) -> list[dict[str, Any]]:
    """As CycloneDX takes it: an SPDX id, an SPDX expression, or the words that were declared."""
    said = KNOWN_BY_CLASSIFIER.get(one.licence, one.licence)
    if re.search(r" (?:AND|OR|WITH) ", said):
        return [{"expression": said}]
    if not said:
        return []
    return (
        [{"license": {"id": said}}]
        if (SPDX.fullmatch(said) and "-" in said) or said in ("MIT", "ISC")
        else [{"license": {"name": said}}]
    )


def component(one: Package, accepted: Mapping[str, list[str]]) -> dict[str, Any]:
    """One library, with the digests of the files that the lock accepts for it."""
    ref = purl(one.name, one.version)
    digests = [
        {"name": "clinpeft:lock:sha256", "value": digest} for digest in accepted.get(one.name, [])
    ]
    return {
        "type": "library",
        "bom-ref": ref,
        "name": one.name,
        "version": one.version,
        "purl": ref,
        **({"licenses": licences(one)} if licences(one) else {}),
        **({"properties": digests} if digests else {}),
    }


def bill(
    found: Mapping[str, Package], asked: list[str], accepted: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The whole document."""
    own = purl("clinpeft", clinpeft.__version__)
    refs = {name: purl(one.name, one.version) for name, one in found.items()}
    dependencies = [{"ref": own, "dependsOn": sorted(refs[name] for name in asked if name in refs)}]
    dependencies += [
        {
            "ref": refs[name],
            "dependsOn": sorted(refs[other] for other in one.requires if other in refs),
        }
        for name, one in found.items()
    ]
    content = {
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "clinpeft",
                "version": clinpeft.__version__,
                "purl": own,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": [component(one, accepted) for one in found.values()],
        "dependencies": dependencies,
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **content,
    }


def main() -> None:
    """Write the file that is named."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else sys.exit("scripts/sbom.py FILE")
    text = (Path(__file__).parents[1] / lock.LOCK).read_text(encoding="utf-8")
    accepted = {canonical(lock.name(entry)): lock.hashes(entry) for entry in lock.entries(text)}
    asked = roots()
    whole = bill(closure(asked), asked, accepted)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(whole['components'])} components")


if __name__ == "__main__":
    main()
