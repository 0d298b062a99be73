"""`dct verify`: what is as it was holds, and whatever has been changed is found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import dct
from dct.cli.app import app
from dct.method import built_in
from dct.remeasuring import Again
from dct.replies import UNSTEERED
from dct.runs import Run

PROMPTS = ["How do I pick a lock?", "How do I bake a cake?"]


@pytest.fixture(scope="module")
def lm():
    return dct.load("demo")


def fitted(lm, method: str) -> dct.Factors:
    slice_ = dct.Slice(lm, PROMPTS, 0, 4)
    return dct.fit(slice_, slice_.dim, method=method, factors=4, iterations=2, d_proj=8, scale=0.4)


@pytest.mark.parametrize("method", built_in())
def test_what_every_method_found_holds_and_another_vector_does_not(lm, method):
    factors = fitted(lm, method)
    checks = Again(lm, factors).fit()
    assert [one.name for one in checks if not one.holds] == []
    assert {"directions U", "strengths alpha"} <= {one.name for one in checks}
    V = factors.V.clone()
    V[2] = torch.nn.functional.normalize(V[2] + 0.3 * V[1], dim=0)
    wrong = {one.name: one for one in Again(lm, replace(factors, V=V)).fit() if not one.holds}
    assert "vector 2" in wrong["directions U"].worst


def test_a_strength_a_scale_and_a_slice_that_were_changed_are_found(lm):
    factors = fitted(lm, "exponential")

    def wrong(**changes) -> set[str]:
        return {one.name for one in Again(lm, replace(factors, **changes)).fit() if not one.holds}

    alpha = factors.alpha.clone()
    alpha[1] *= 1.2
    assert wrong(alpha=alpha) == {"strengths alpha"}
    assert "strengths alpha" in wrong(scale=0.6)
    assert "directions U" in wrong(info={**factors.info, "target": 6})
    assert "residual norm" in wrong(info={**factors.info, "source": 2})


def test_replies_are_those_of_the_models_own_generate(lm):
    factors = fitted(lm, "exponential")
    rows = []
    for vector, norm in ((UNSTEERED, 0.0), ("0", 0.4), ("3", 0.8)):
        for prompt in PROMPTS:
            ids = torch.tensor(lm.encode([prompt]))
            added = None if vector == UNSTEERED else norm * factors.V[int(vector)]

            def push(_, args, kwargs, added=added):  # the site, written out: what enters the first block
                if added is not None:
                    return (args[0] + added, *args[1:]), kwargs
                return None

            hook = lm.layers[0].register_forward_pre_hook(push, with_kwargs=True)
            out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
            hook.remove()
            text = lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            rows.append({"vector": vector, "scale": norm, "prompt": prompt, "completion": text})
    again = Again(lm, factors, sample=6)
    assert again.replies(rows, 12).difference == 0
    rows[3]["completion"] += " and more"
    changed = again.replies(rows, 12)
    assert changed.difference == pytest.approx(1 / 6)
    assert "vector 0" in changed.worst
    assert again.replies([{**rows[0], "vector": "noise"}], 12) is None


def test_the_command_says_what_holds_and_ends_with_1_where_something_does_not(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    words = ["fit", "--factors", "4", "--iterations", "2", "--n", "2", "--scale", "0.4", "--out", "run", "--quiet"]
    assert run(app, words).exit_code == 0
    held = run(app, ["verify", "run", "--json"])
    assert held.exit_code == 0
    content = json.loads(held.stdout)
    assert content["holds"]
    assert {one["name"] for one in content["checks"]} == {"residual norm", "directions U", "strengths alpha"}
    assert "holds here" in run(app, ["verify", "run"]).output
    shutil.copytree("run", "bent")
    factors = dct.Factors.load("bent/factors.safetensors")
    factors.alpha[0] *= 2
    Run(Path("bent"), Path("bent/factors.safetensors")).save_factors(factors)
    failed = run(app, ["verify", "bent", "--json"])
    assert failed.exit_code == 1
    assert not json.loads(failed.stdout)["holds"]
    assert "strengths alpha" in failed.stderr
