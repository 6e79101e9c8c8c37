"""The licence of every package that a default installation brings, and whether it may be there.

    .venv/bin/python scripts/licences.py

Read are the declarations of the installed packages: the SPDX expression, else the classifiers, else
the first line of the free text. GPL and AGPL are refused, and so is a package that declares
nothing; LGPL, MPL and EPL are named, because they bind changes to their own files.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
LINKING_EXCEPTION = re.compile(r"GPL-3\.0-or-later WITH GCC-exception-3\.1")
STRONG = re.compile(r"(?<!L)\bA?GPL|GNU (?:Affero )?General Public|Affero", re.IGNORECASE)
WEAK = re.compile(
    r"\bLGPL|Lesser General Public|\bMPL|Mozilla Public|\bEPL|Eclipse Public", re.IGNORECASE
)
REFUSED = ("refused", "undeclared")


@dataclass(frozen=True)
class Package:
    """An installed package: its canonical name, its version, what it declares, what it asks for
    here."""

    name: str
    version: str
    licence: str
    requires: tuple[str, ...]

    @property
    def standing(self) -> str:
        """``permissive``, ``weak`` copyleft, ``refused`` or ``undeclared``."""
        said = LINKING_EXCEPTION.sub("", self.licence)
        if not said.strip(" /"):
            return "undeclared"
        choices = re.split(r"\s+OR\s+", said) if " AND " not in said else [said]
        if all(STRONG.search(choice) for choice in choices):
            return "refused"
        return (
            "weak"
            if all(STRONG.search(choice) or WEAK.search(choice) for choice in choices)
            else "permissive"
        )


def canonical(name: str) -> str:
    """The name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(found: Distribution) -> str:
    """What a package declares, in a line; empty where it declares nothing."""
    about = found.metadata
    if "License-Expression" in about:
        return str(about["License-Expression"])
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    free = str(about["License"]).strip().partition("\n")[0] if "License" in about else ""
    return " / ".join(dict.fromkeys(part for part in (*classified, free) if part))


def package(name: str) -> Package:
    """An installed package.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = distribution(name)
    asked = [Requirement(line) for line in found.requires or []]
    here = tuple(
        sorted(
            {
                canonical(one.name)
                for one in asked
                if one.marker is None or one.marker.evaluate({"extra": ""})
            }
        )
    )
    return Package(canonical(name), found.version, licence_of(found), here)


def roots() -> list[str]:
    """What the project itself asks for, without extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return [canonical(Requirement(line).name) for line in project["dependencies"]]


def closure(names: Iterable[str]) -> dict[str, Package]:
    """These packages and all that they ask for, in order of names; what is asked for and not
    installed is left out."""
    found: dict[str, Package] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            found[name] = package(name)
        except PackageNotFoundError:
            continue
        todo += found[name].requires
    return dict(sorted(found.items()))


def main() -> None:
    """Print the table; exit 1 where a licence is refused."""
    found = closure(roots())
    for one in found.values():
        print(f"{one.name:28} {one.version:18} {one.standing:11} {one.licence}")
    wrong = [one for one in found.values() if one.standing in REFUSED]
    weak = [one.name for one in found.values() if one.standing == "weak"]
    print(
        f"\n{len(found)} packages; weak copyleft: {', '.join(weak) or 'none'}; refused: "
        f"{', '.join(one.name for one in wrong) or 'none'}"
    )
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
