"""Measure the package: size, function bodies, private functions, comments, names, imports.

    .venv/bin/python scripts/code_metrics.py [SRC]

Prints a Markdown table of two columns for docs/architecture.md. Lines are counted after
``ruff format --line-length 100``, so that a tree written at another width compares.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import Counter
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse_package(folder: Path) -> dict[Path, tuple[str, ast.Module]]:
    """Path relative to ``folder`` -> text and syntax tree of each file, at 100 columns."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "package")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        ruff = Path(sys.executable).with_name("ruff")
        command = [str(ruff), "format", "--quiet", "--isolated", "--line-length", "100", str(copy)]
        subprocess.run(command, check=True)
        texts = {path.relative_to(copy): path.read_text("utf-8") for path in copy.rglob("*.py")}
    return {path: (text, ast.parse(text)) for path, text in sorted(texts.items())}


def count_body_lines(function: Function) -> int:
    """Lines of a body without its docstring."""
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def count_comment_lines(text: str) -> int:
    """Lines that hold a comment, ``noqa`` and ``type: ignore`` apart."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = (token for token in tokens if token.type == tokenize.COMMENT)
    return len({t.start[0] for t in comments if not re.match(r"#\s*(noqa|type:)", t.string)})


def list_public_names(tree: ast.Module) -> list[str]:
    """Functions and classes that a module defines at its top level, private ones apart."""
    return [
        node.name
        for node in tree.body
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
    ]


def count_recipe_checks(text: str) -> int:
    """``isinstance`` checks against a class of recipes."""
    return len(re.findall(r"isinstance\([^()]*(?:\([^()]*\))?[^()]*Recipe\b", text))


def measure_import_seconds(package: Path) -> float:
    """Median of five imports of the package in new processes."""
    script = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import {package.name}"
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", script], check=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_package(folder: Path) -> dict[str, str]:
    """Every figure of the table by its name."""
    files = parse_package(folder)
    lines = sum(len(text.splitlines()) for text, _ in files.values())
    functions = [n for _, tree in files.values() for n in ast.walk(tree) if isinstance(n, Function)]
    bodies = sorted(count_body_lines(function) for function in functions)
    private, once = 0, 0
    for text, tree in files.values():
        for node in tree.body:
            if isinstance(node, Function) and re.match(r"_[a-z]", node.name):
                private += 1
                once += len(re.findall(rf"\b{node.name}\b", text)) == 2
    defined = Counter(name for _, tree in files.values() for name in list_public_names(tree))
    comments = sum(count_comment_lines(text) for text, _ in files.values())
    return {
        "files": str(len(files)),
        "lines at 100 columns": f"{lines:,}",
        "function body, median lines": f"{statistics.median(bodies):.0f}",
        "function body, 90th percentile": str(bodies[int(0.9 * len(bodies))]),
        "function body, longest": str(bodies[-1]),
        "private functions in 1,000 lines": f"{1000 * private / lines:.1f}",
        "private functions named once after their definition": f"{once / max(private, 1):.0%}",
        "lines with a comment": f"{comments / lines:.1%}",
        "public names defined more than once": str(sum(n > 1 for n in defined.values())),
        "`isinstance` on recipes": str(sum(count_recipe_checks(t) for t, _ in files.values())),
        "seconds to import the package": f"{measure_import_seconds(folder):.2f}",
    }


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "src/clinpeft").resolve()
    print("| figure | value |\n|---|---|")
    for name, value in measure_package(folder).items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
