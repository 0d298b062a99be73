"""The Python interface, as the documentation shows it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dct
from dct.organism import DEMO_DIR


def test_the_tour_in_python(model_folder, prompts, workplace):
    """What the package's docstring and the README show; then the same file on the command line."""
    lm = dct.load(str(model_folder))
    slice_ = dct.Slice(lm, prompts, source=1, target=4)
    scale = dct.calibrate(slice_, slice_.dim, ratio=0.5).scale
    factors = dct.fit(slice_, slice_.dim, method="exponential", factors=24, scale=scale, iterations=2, seed=0)
    assert factors.V.shape == (24, lm.width)
    assert factors.U.shape == (24, lm.width)
    assert factors.alpha.shape == (24,)
    assert factors.objective.shape == (2, 3)
    assert factors.scale == scale
    factors.save("factors.safetensors")
    loaded = dct.Factors.load("factors.safetensors")
    assert torch.equal(loaded.V, factors.V)
    assert loaded.info["source"] == 1
    assert loaded.info["prompts"] == prompts

    ranking = dct.rank(lm, factors, prompts, positive="Sure", negative="Sorry")
    assert len(ranking.vectors) == 24
    ids = lm.encode(prompts[:1])
    plain = lm.model(torch.tensor(ids)).logits
    with dct.steer(lm, factors.V[17] * factors.scale, layer=1):
        steered = lm.model(torch.tensor(ids)).logits
    with dct.ablate(lm, factors.V[:8]):
        ablated = lm.model(torch.tensor(ids)).logits
    assert not torch.allclose(steered, plain)
    assert not torch.allclose(ablated, plain)
    assert torch.equal(lm.model(torch.tensor(ids)).logits, plain)

    done = subprocess.run(
        [sys.executable, "-m", "dct", "rank", "factors.safetensors", "--n", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (DEMO_DIR / "model.safetensors").exists(), reason="no demo model in this installation")
def test_the_readme_s_python_runs(capsys):
    """The README's code block as it stands, on the demo model."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("[") >= 2  # two lists of completions


def test_factors_of_a_map_that_says_nothing_need_the_layer(make_lm, prompts):
    lm = make_lm("llama")
    factors = dct.fit(lambda x: x + x.square(), lm.width, factors=4, scale=1.0, iterations=1)
    with pytest.raises(dct.UsageError, match="source"):
        dct.rank(lm, factors, prompts)
    assert len(dct.rank(lm, factors, prompts, source=2).vectors) == 4
