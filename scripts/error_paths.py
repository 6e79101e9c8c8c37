"""Which places that make an error the tests have met: ``CLINPEFT_ERROR_PATHS=met.txt make test``,
then ``python scripts/error_paths.py met.txt``."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1] / "src" / "clinpeft"


def made() -> dict[str, range]:
    """Every place in the package that makes an error of the family -> the lines that it spans."""
    family = {
        node.name
        for node in ast.parse((HOUSE / "errors.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in family
            ):
                found[f"{path.relative_to(HOUSE).as_posix()}:{node.lineno}"] = range(
                    node.lineno, (node.end_lineno or node.lineno) + 1
                )
    return found


def main() -> None:
    met: dict[str, set[int]] = {}
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        file, _, number = line.rpartition(":")
        if Path(file).is_relative_to(HOUSE):
            met.setdefault(Path(file).relative_to(HOUSE).as_posix(), set()).add(int(number))
    places = made()
    missing = [
        location
        for location, lines in places.items()
        if not met.get(location.rpartition(":")[0], set()) & set(lines)
    ]
    print("\n".join(missing))
    print(
        f"{len(places) - len(missing)} of {len(places)} places that make an error were met "
        f"({(len(places) - len(missing)) / len(places):.0%})"
    )


if __name__ == "__main__":
    main()
