"""Runs the cells of docs/notebook.ipynb in order, and writes down what they put out: in the notebook, and in
docs/notebook.md for readers of the site.

    python tools/notebook.py
"""

import ast
import io
import json
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


def put_out(cells: list[dict[str, Any]]) -> list[str | None]:
    """What each cell prints, its last expression included, run in a folder of its own; None for text."""
    names: dict[str, Any] = {}
    found: list[str | None] = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for cell in cells:
                found.append(_run("".join(cell["source"]), names) if cell["cell_type"] == "code" else None)
        finally:
            os.chdir(before)
    return found


def _run(code: str, names: dict[str, Any]) -> str:
    tree, said = ast.parse(code), io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(said):
        exec(compile(tree, "notebook", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
            if value is not None:
                print(value)
    return said.getvalue()


def with_outputs(notebook: dict[str, Any], outputs: list[str | None]) -> dict[str, Any]:
    """The notebook with what its cells put out."""
    cells = []
    for number, (cell, text) in enumerate(zip(notebook["cells"], outputs, strict=True)):
        cell = {"id": f"cell-{number}", **cell}
        if text is not None:
            stream = {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}
            cell |= {"execution_count": None, "outputs": [stream] if text else []}
        cells.append(cell)
    return {**notebook, "cells": cells}


def page(notebook: dict[str, Any]) -> str:
    """The notebook as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        if cell["outputs"]:
            parts.append("```text\n" + "".join(cell["outputs"][0]["text"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    made = with_outputs(notebook, put_out(notebook["cells"]))
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    NOTEBOOK.with_suffix(".md").write_text(page(made), encoding="utf-8")


if __name__ == "__main__":
    main()
