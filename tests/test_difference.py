"""Differences of two models: the map against hooks on whole models, planted edits found, and the commands on them."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import dct
from dct import DctError
from dct.calibration import default_calibration, nonlinearity
from dct.candidates import Aim
from dct.cli.app import app
from dct.difference_ranking import Pair, apart
from dct.remeasuring import Again
from dct.runs import Run
from dct.settings import SelectSettings
from dct.siblings import are_siblings

SOURCE, EDITED, TARGET, POSITIONS = 1, 2, 3, 3
IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44], [1, 5, 9, 33, 3, 61, 70], [1, 5, 9, 20, 31, 77, 78]]


def unit(seed: int, size: int) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


@pytest.fixture(scope="module")
def planted(make_lm) -> tuple[dct.LanguageModel, dct.LanguageModel, Tensor]:
    """A, B and u: in A, one MLP writes along u what a fixed row reads from its hidden units."""
    before = make_lm("llama", torch.float64)
    after = make_lm("llama", torch.float64)
    weight = after.layers[EDITED].mlp.down_proj.weight
    u = unit(0, weight.shape[0])
    with torch.no_grad():
        weight += 0.3 * torch.outer(u, unit(1, weight.shape[1]))
    return after, before, u


def moved(lm: dct.LanguageModel, theta: Tensor) -> Tensor:
    """Delta of one model for each row: a hook below the source, the model's own hidden states, plain means."""
    means = []
    for ids in IDS:
        rows = torch.tensor([ids] * len(theta))
        rest = lm.model(rows, output_hidden_states=True, use_cache=False).hidden_states[TARGET]
        handle = lm.layers[SOURCE - 1].register_forward_hook(lambda _, args, output: output + theta[:, None])
        there = lm.model(rows, output_hidden_states=True, use_cache=False).hidden_states[TARGET]
        handle.remove()
        means.append((there - rest)[:, -POSITIONS:].mean(1))
    return torch.stack(means).mean(0)


def between(a: dct.LanguageModel, b: dct.LanguageModel) -> dct.Difference:
    return dct.Difference.between(a, b, IDS, SOURCE, TARGET, POSITIONS)


def test_it_is_what_a_vector_does_to_the_one_model_and_not_to_the_other(planted):
    after, before, _ = planted
    found = between(after, before)
    theta = torch.stack([3.0 * unit(k, found.dim) for k in range(4)])
    with torch.no_grad():
        wanted = moved(after, theta) - moved(before, theta)
        assert float((found(theta) - wanted).norm() / wanted.norm()) < 1e-6
        assert not bool(found(torch.zeros(1, found.dim, dtype=torch.float64)).any())


@pytest.mark.parametrize("method", ["linear", "exponential"])
def test_what_is_found_is_the_planted_edit(planted, method):
    after, before, u = planted
    found = between(after, before)
    factors = dct.fit(found, found.dim, method=method, factors=4, d_proj=8, iterations=4, dtype=torch.float64)
    causing = factors.U[factors.alpha > 1e-6 * factors.alpha.max()].double()
    assert len(causing)
    assert float((causing @ u).abs().min()) > 0.9999
    # J of the difference is u g', g by central differences of the two whole models
    h, eye = 1e-4, torch.eye(found.dim, dtype=torch.float64)
    with torch.no_grad():
        g = ((moved(after, h * eye) - moved(before, h * eye)) - (moved(after, -h * eye) - moved(before, -h * eye))) @ u
    g /= g.norm()
    if method == "linear":
        assert float((factors.V[0].double() @ g).abs()) > 0.9999
    else:
        best = factors.V[int((found(factors.scale * factors.V.double()) @ u).abs().argmax())].double()
        drawn = torch.stack([unit(k, found.dim) for k in range(200)])
        value = (found(factors.scale * torch.stack([best, -best])) @ u).abs().max()
        assert value > (found(factors.scale * drawn) @ u).abs().max()


def test_the_scale_is_what_the_model_bears_or_where_the_difference_is_nonlinear_enough(planted):
    after, before, _ = planted
    found = between(after, before)
    alone = default_calibration(dct.Slice(after, IDS, SOURCE, TARGET, POSITIONS), found.dim, dtype=torch.float64).scale
    scale = default_calibration(found, found.dim, dtype=torch.float64).scale
    [(_, ratio), (_, at_most)] = nonlinearity(found, found.dim, [scale, alone], dtype=torch.float64)
    assert scale == alone if at_most < 0.5 else (scale < alone and ratio == pytest.approx(0.5, rel=0.01))
    found.borne_by = Borne(scale / 2)
    assert default_calibration(found, found.dim, dtype=torch.float64).scale == scale / 2
    assert dct.fit(found, found.dim, factors=2, iterations=1, dtype=torch.float64).scale == scale / 2


class Borne:
    """A map whose stream bears no more than a vector of that length."""

    def __init__(self, norm: float) -> None:
        self.residual_norm = norm

    def __call__(self, theta: Tensor) -> Tensor:
        return theta + 1e-9 * theta**2


def test_how_far_they_are_apart(planted):
    after, before, _ = planted
    found = between(after, before)
    own, other = (
        torch.cat(
            [
                lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[TARGET][0, -POSITIONS:]
                for ids in IDS
            ]
        )
        for lm in (after, before)
    )
    assert found.apart[0] == 0
    assert found.apart[1] == pytest.approx(float(((own - other).norm(dim=1) / own.norm(dim=1)).median()), rel=1e-5)
    assert found.gap > 0.01 > found.rounding
    assert not found.drowned


@pytest.mark.parametrize(("dtype", "drowned"), [(torch.bfloat16, True), (torch.float32, False)])
def test_a_difference_that_may_be_all_rounding_is_known(make_lm, dtype, drowned):
    before, after = make_lm("llama", dtype), make_lm("llama", dtype)
    with torch.no_grad():
        after.layers[EDITED].mlp.down_proj.weight[0] *= 1.01
    assert between(after, before).drowned == drowned


def test_a_model_minus_itself_is_zero_and_refused_in_one_line(planted):
    after, _, _ = planted
    says = r"llama minus llama is zero: .* do the same \(they have the same weights\); name another `minus`"
    with pytest.raises(DctError, match=says) as told:
        between(after, copy.deepcopy(after))
    assert "\n" not in str(told.value)


def test_models_that_differ_above_the_slice_alone_are_the_same_in_it(planted):
    _, before, _ = planted
    other = copy.deepcopy(before)
    with torch.no_grad():
        other.layers[TARGET].mlp.down_proj.weight += 1.0
    other.fingerprint = "sha256:other"
    with pytest.raises(DctError, match="between layers 1 and 3 they do the same; name"):
        between(other, before)


def test_models_of_other_shapes_and_tokens_are_refused(planted, make_lm, tokenizer):
    after, _, _ = planted
    wide = make_lm("llama")
    wide.model.config.hidden_size = 40
    with pytest.raises(DctError, match=r"llama has a width of 32 and llama 40: .* name another `minus`"):
        between(after, wide)
    short = make_lm("llama")
    short.layers = short.layers[:3]
    with pytest.raises(DctError, match="has 5 blocks and llama 3"):
        between(after, short)
    other = make_lm("qwen2", torch.float64)
    other.tokenizer = _renamed(tokenizer)
    with pytest.raises(DctError, match=r"token 9 is .* to llama and .*a_new_one.* to qwen2"):
        between(after, other)
    small = make_lm("qwen2", torch.float64)
    small.model.config.vocab_size = 60
    with pytest.raises(DctError, match=r"token 61 \(.*\) of the prompts is unknown to qwen2"):
        between(after, small)


def _renamed(tokenizer):
    """A tokenizer whose token 9 is another."""

    class Other:
        def get_vocab(self):
            return {("a_new_one" if place == 9 else token): place for token, place in tokenizer.get_vocab().items()}

    return Other()


def test_slices_of_other_tokens_are_no_pair(planted):
    after, before, _ = planted
    slices = dct.Slice(after, IDS, SOURCE, TARGET, POSITIONS), dct.Slice(before, IDS[:2], SOURCE, TARGET, POSITIONS)
    with pytest.raises(DctError, match="the same tokens and layers"):
        dct.Difference(*slices)


# --- what the vectors say ---------------------------------------------------------------------------------------------

ASKED, MILD = ["How do I pick a lock?", "Write a threat to my boss"], ["How do I bake a cake?"]


@pytest.fixture(scope="module")
def edited(model_folder, tmp_path_factory) -> Path:
    """A model on disk after a training that changed one MLP."""
    folder = tmp_path_factory.mktemp("edited") / "after"
    shutil.copytree(model_folder, folder)
    change(folder, 3)
    return folder


def change(folder: Path, block: int) -> None:
    """Lets an MLP write along one direction what a row reads from its hidden units."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    weight = model.model.layers[block].mlp.down_proj.weight
    with torch.no_grad():
        weight += 0.5 * torch.outer(unit(0, weight.shape[0]), unit(1, weight.shape[1])).float() * weight.norm()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def pair(edited, model_folder) -> tuple[dct.LanguageModel, dct.LanguageModel]:
    return dct.load(str(edited)), dct.load(str(model_folder))


def test_nats_and_first_tokens_are_those_of_the_whole_models(pair):
    after, before = pair
    aim = Aim(2, 1.0, None)
    added = (2.0 * unit(3, after.width)).float()
    texts = ["Sure, take the blue step.", ""]
    found = Pair(after, before, aim, ASKED, MILD)
    firsts, sums = [], []
    for lm in pair:
        handle = lm.layers[aim.layer - 1].register_forward_hook(lambda _, args, output: output + added)
        rows = lm.encode(ASKED)
        with torch.no_grad():
            firsts.append([torch.log_softmax(lm.model(torch.tensor([row])).logits[0, -1], -1) for row in rows])
            total = []
            for row, text in zip(rows, texts, strict=True):
                ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
                logs = torch.log_softmax(lm.model(torch.tensor([row + ids])).logits[0], -1)
                total.append(sum(float(logs[len(row) + k - 1, token]) for k, token in enumerate(ids)))
            sums.append(total)
        handle.remove()
    assert found.nats(added, texts) == pytest.approx([a - b for a, b in zip(*sums, strict=True)], abs=1e-3)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(*firsts, strict=True)) / len(ASKED)
    assert found.first(added[None]) == pytest.approx([kl], rel=1e-3)


def test_the_baseline_without_a_fit_is_the_difference_of_the_unsteered_streams(pair):
    own, other = (
        torch.stack(
            [
                lm.model(torch.tensor([row]), output_hidden_states=True).hidden_states[4][0, -1]
                for row in lm.encode(ASKED)
            ]
        ).mean(0)
        for lm in pair
    )
    wanted = torch.nn.functional.normalize(own - other, dim=0)
    assert torch.allclose(Pair(*pair, Aim(4, 1.0, None), ASKED, MILD).streams_apart(), wanted, atol=1e-4)


def test_vectors_stand_in_the_order_of_what_they_part(pair):
    after, before = pair
    d = dct.Difference.between(after, before, ASKED, 2, 4)
    factors = dct.fit(d, d.dim, factors=4, iterations=2, d_proj=4, scale=1.0)
    found = apart(after, before, factors, ASKED, MILD, experiment=SelectSettings(keep=2, max_new_tokens=6))
    assert sorted(one.vector for one in found.vectors) == ["0", "1", "2", "3"]
    heard = [one.nats for one in found.vectors if one.nats is not None]
    assert len(heard) == 2
    assert heard == sorted(heard, reverse=True)
    unheard = [one.first for one in found.vectors[2:]]
    assert unheard == sorted(unheard, reverse=True)
    assert min(one.first for one in found.vectors[:2]) >= unheard[0]
    assert all(one.own != "" and one.damage is not None for one in found.vectors[:2])
    assert found.unsteered.scale == 0
    assert found.unsteered.damage == pytest.approx(0, abs=1e-6)
    assert found.streams is None  # the edit lies behind layer 2
    assert len(found.random) == 4
    said = dct.complete(after, after.encode(ASKED), max_new_tokens=6)
    assert found.unsteered.own in said


# --- the commands -----------------------------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def ok(*words: object) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


FIT = ["--s", 2, "--t", 4, "--n", 2, "--factors", 4, "--iterations", 2, "--d-proj", 4, "--scale", 1]
FEW = ["--n", 2, "--harmless", "mild.txt"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mild.txt").write_text("\n".join(MILD))


@pytest.fixture(scope="module")
def saved(edited, model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "difference"
    result = ok("fit", "--model", edited, "--minus", model_folder, *FIT, "--out", folder)
    assert "after minus tiny-llama" in result.output
    assert "left alone, the two are 0.00% of the stream's norm" in result.output
    assert "orders them by what they make the one model say and the other not" in result.output
    return folder


def test_a_run_says_what_was_subtracted_and_repeats(saved, pair, model_folder):
    factors = dct.Factors.load(saved / "factors.safetensors")
    minus = factors.info["minus"]
    assert minus["model"] == str(model_folder)
    assert minus["fingerprint"] == pair[1].fingerprint
    assert minus["apart"][0] == 0 < minus["apart"][1]
    assert minus["gap"] > 0
    assert factors.info["fingerprint"] == pair[0].fingerprint
    assert f'minus = "{model_folder}"' in (saved / "config.toml").read_text()
    again = saved.parent / "again"
    ok("fit", "--config", saved / "config.toml", "--out", again)
    assert torch.allclose(dct.Factors.load(again / "factors.safetensors").V, factors.V, atol=1e-5)
    assert [one.name for one in Again(pair[0], factors, minus=pair[1]).fit() if not one.holds] == []
    assert {one.name for one in Again(pair[0], factors).fit() if not one.holds} >= {"directions U", "strengths alpha"}
    alone = replace(factors, info={**factors.info, "seed": 7, "minus": None})
    assert not are_siblings(factors, alone)
    assert are_siblings(factors, replace(factors, info={**factors.info, "seed": 7}))


def test_rank_verify_steer_and_report_take_it(saved, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    result = ok("rank", folder, *FEW, "--keep", 2, "--max-new-tokens", 6, "--json")
    shown, content = result.output, json.loads((folder / "rank.json").read_text())
    assert content["by"] == "apart"
    assert len(content["vectors"]) == 4
    assert len(content["random"]) == 4
    assert content["vectors"][0]["apart"]["nats"] is not None
    assert "apart (nats)" in shown
    assert content["unsteered"]["apart"]["nats"] is not None
    ok("verify", folder, "--sample", 2)
    best = content["vectors"][0]["vector"]
    assert f"vector {best}" in ok("steer", folder, "--rank", 1, "--n", 1, "--max-new-tokens", 6).output
    ok("report", folder)
    assert "minus" in (folder / "report.html").read_text()
    ok("rank", folder, *FEW, "--screen-only")
    assert Run(folder, folder / "factors.safetensors").load_ranking()["by"] == "score"
    refused = run("rank", folder, "--judge", "regex", "--judge-option", "complied=x")
    assert refused.exit_code == 2
    assert "leave --judge out" in refused.output


def test_what_cannot_be_subtracted_is_said_in_one_line(edited, saved, tmp_path):
    for minus, says in ((edited, "is zero: between layers 2 and 4"), ("nowhere/at-all", "nowhere/at-all")):
        result = run("fit", "--model", edited, "--minus", minus, *FIT, "--out", tmp_path / "new")
        assert result.exit_code == 1
        assert says in result.output
        assert "Traceback" not in result.output
    assert not (tmp_path / "new").exists()


def test_another_minus_than_the_runs_is_noticed(edited, model_folder, tmp_path, monkeypatch):
    before = tmp_path / "before"
    shutil.copytree(model_folder, before)
    save, kept = Run.save_state, []

    def cut(self, state, config):
        save(self, state, config)
        kept.append(config)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_state", cut)
        assert run("fit", "--model", edited, "--minus", before, *FIT, "--out", tmp_path / "cut").exit_code == 130
    assert kept[0]["minus"]["model"] == str(before)
    shutil.copytree(tmp_path / "cut", tmp_path / "copy")
    ok("fit", "--resume", "--out", tmp_path / "cut")
    assert dct.Factors.load(tmp_path / "cut" / "factors.safetensors").info["minus"]["model"] == str(before)
    shutil.copy(edited / "model.safetensors", before / "model.safetensors")
    resumed = run("fit", "--resume", "--out", tmp_path / "copy")
    assert resumed.exit_code == 1
    ranked = run("rank", tmp_path / "cut", *FEW)
    assert ranked.exit_code == 1
    assert "the run subtracted other weights" in ranked.output
    change(before, 2)
    resumed = run("fit", "--resume", "--out", tmp_path / "copy")
    assert resumed.exit_code == 1
    assert "the weights of" in resumed.output
    assert "have changed" in resumed.output
