"""docs/add-a-method.md, word for word: its code as a package of its own, used by name without a change in dct."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dct
from dct.job import State
from dct.organism import DEMO_DIR

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-method.md").read_text(encoding="utf-8")
F64 = torch.float64


def block(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder as `pip install` leaves one behind: the module, and what its pyproject.toml says of entry points."""
    folder = tmp_path / "site"
    info = folder / "power_method-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "power_method.py").write_text(block("python"))
    [(group, lines)] = re.findall(r'\[project\.entry-points\."(.*?)"\]\n(.*)', block("toml"))
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines.replace(chr(34), '')}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: power-method\nVersion: 1.0\n")
    return folder


@pytest.fixture
def here(installed, monkeypatch):
    """The package, for this process too."""
    monkeypatch.syspath_prepend(str(installed))
    yield
    sys.modules.pop("power_method", None)


def test_the_page_adds_a_method_in_under_forty_lines():
    assert len(block("python").strip().splitlines()) < 40


def spectrum() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=F64)).Q for _ in range(2))
    return U @ torch.diag(2.0 ** -torch.arange(12, dtype=F64)) @ V.T


@pytest.mark.usefixtures("here")
def test_its_vectors_are_the_singular_vectors_for_p_2():
    J = spectrum()
    found = dct.fit(lambda x: x @ J.T + x.square() @ J.T, 12, method="power", factors=4, scale=1.0, dtype=F64)
    exact = torch.linalg.svd(J)
    torch.testing.assert_close((found.V * exact.Vh[:4]).sum(1).abs(), torch.ones(4, dtype=F64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.alpha, exact.S[:4], atol=1e-5, rtol=0)
    assert found.signless


@pytest.mark.usefixtures("here")
def test_its_own_option_is_a_keyword():
    """The first vector for p = 4 has a greater 4-norm than the singular vector, which has the greatest 2-norm."""
    J = spectrum()
    by = {p: dct.fit(lambda x: x @ J.T, 12, method="power", factors=1, scale=1.0, p=p, dtype=F64).V for p in (2, 4)}
    assert (by[4] @ J.T).norm(4) > (by[2] @ J.T).norm(4)
    assert (by[4] @ J.T).norm(2) < (by[2] @ J.T).norm(2)


@pytest.mark.usefixtures("here")
def test_it_counts_its_rows_and_resumes_to_the_bit():
    J = spectrum().float()
    states: list[State] = []
    told: list[tuple[str, int, int]] = []
    options = {"method": "power", "factors": 3, "iterations": 5, "scale": 1.0}
    whole = dct.fit(lambda x: x @ J.T, 12, checkpoint=states.append, **options)
    again = dct.fit(lambda x: x @ J.T, 12, resume=states[2], progress=lambda *step: told.append(step), **options)
    assert torch.equal(whole.V, again.V)
    assert torch.equal(whole.objective, again.objective)
    assert told[-1][1] == told[-1][2] > 0


@pytest.mark.skipif(not (DEMO_DIR / "model.safetensors").exists(), reason="no demo model in this installation")
def test_a_stranger_s_method_is_fitted_with_ranked_and_steered_with(installed, workplace):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}

    def run(*words: str, stranger: bool = True) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "dct", *words]
        return subprocess.run(line, capture_output=True, text=True, env=environment if stranger else None)

    words = "--factors 3 --iterations 4 --n 2 --scale 0.4 --out run --json"
    fitted = run("fit", "--method", "power", *words.split())
    assert fitted.returncode == 0, fitted.stderr
    assert "sum of the p-norms" in fitted.stderr
    assert json.loads(fitted.stdout)["info"]["method"] == "power"
    for stranger in (True, False):  # who has no such package can use its factors all the same
        ranked = run("rank", "run", "--screen-only", "--n", "2", "--json", stranger=stranger)
        assert ranked.returncode == 0, ranked.stderr
        assert len(json.loads(ranked.stdout)["vectors"]) == 6
        steered = run(
            *["steer", "run", "--rank", "1", "--n", "1", "--max-new-tokens", "4", "--json"], stranger=stranger
        )
        assert steered.returncode == 0, steered.stderr
    wrong = run("fit", "--method", "nonsense")
    assert wrong.returncode == 2
    assert re.search(r"unknown --method 'nonsense': choose cpe, .*quadratic, power", wrong.stderr)
    missing = run("fit", "--method", "power", stranger=False)
    assert missing.returncode == 2
    assert "unknown --method 'power'" in missing.stderr
