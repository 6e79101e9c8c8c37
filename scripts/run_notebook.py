"""Execute a notebook without Jupyter, and write what its cells show into it.

    .venv/bin/python scripts/run_notebook.py examples/first-adapter.ipynb

Cells run in one namespace from the folder of the repository. The last expression of a cell is shown
as HTML where it has ``_repr_html_``, as PNG where it is a matplotlib figure, and as text otherwise.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run_cell(source: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one cell: its outputs, in the notebook's format."""
    tree, stdout = ast.parse(source), io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        exec(compile(tree, "cell", "exec"), namespace)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if stdout.getvalue():
        text = stdout.getvalue().splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is not None:
        outputs.append({"output_type": "execute_result", "metadata": {}, "data": show(value)})
    return outputs


def show(value: object) -> dict[str, Any]:
    """A value by MIME type."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    if html:
        data["text/html"] = html.splitlines(keepends=True)
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80)
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        data["text/plain"] = ["<Figure>"]
    return data


def run_notebook(path: Path, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run all cells of a notebook: the notebook with new outputs."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell["execution_count"] = number
            cell["outputs"] = run_cell("".join(cell["source"]), namespace)
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = number
    return notebook


def main() -> None:
    """Run the notebook named on the command line, and write it."""
    path = Path(sys.argv[1])
    notebook = run_notebook(path, {"__name__": "__main__"})
    path.write_text(json.dumps(notebook, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
