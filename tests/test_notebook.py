"""The notebook in docs: its cells run, and what it shows is what they put out."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from dct.organism import DEMO_DIR

ROOT = Path(__file__).parent.parent


def tool():
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "tools" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shape(text: str) -> list[str]:
    """Lines without their numbers, which differ between machines, nor what the model says."""
    return [
        re.sub(r"[-+\d.e]+", "#", re.split(r"  ->  |such as: |: {1,}(?=[A-Z])", line)[0]) for line in text.splitlines()
    ]


@pytest.mark.skipif(not (DEMO_DIR / "model.safetensors").exists(), reason="no demo model in this installation")
def test_its_cells_put_out_what_it_shows():
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    for cell, text in zip(notebook["cells"], tool().put_out(notebook["cells"]), strict=True):
        if text is not None:
            shown = "".join("".join(one["text"]) for one in cell["outputs"])
            assert len(shape(text)) > 0
            assert [line.split() for line in shape(text)] == [line.split() for line in shape(shown)]


def test_the_page_is_made_of_the_notebook():
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    assert (ROOT / "docs/notebook.md").read_text(encoding="utf-8") == tool().page(notebook)
