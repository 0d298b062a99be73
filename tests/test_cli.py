"""The commands as a user runs them: what they print, what they write, and that both are true."""

import inspect
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import dct
from dct.cli.app import app
from dct.organism import DEMO_DIR
from dct.prompts import fingerprint, read

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
COMMANDS = [
    *(
        "fit",
        "calibrate",
        "scan",
        "sweep",
        "rank",
        "steer",
        "report",
        "verify",
        "compare",
        "chat",
        "serve",
        "judge",
        "spectrum",
        "ablate",
        "export",
        "bench",
        "demo",
        "models",
    ),
]
MILD = ["--harmless", "mild.txt"]  # two prompts rather than sixteen
QUICK = ["--factors", 24, "--iterations", 2, "--scale", 0.85]


def run(*words: object) -> Result:
    # A wide screen keeps paths in one piece.
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def ok(*words: object) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def strict(text: str) -> dict:
    """One JSON document, with none of the NaN and Infinity that JSON does not have."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def as_json(*words: object) -> dict:
    return strict(ok(*words, "--json").stdout)


def config(file: Path) -> dict:
    with safe_open(file, framework="pt") as opened:
        return strict(opened.metadata()["config"])


@pytest.fixture(scope="module")
def fitted_once(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ok("fit", "--model", model_folder, *QUICK)
        ok("rank", "--screen-only", "--n", 3)
    return folder / "runs"


@pytest.fixture
def fitted(fitted_once, workplace) -> Path:
    """A fresh folder with a fitted and ranked run in it; gives the run's folder."""
    shutil.copytree(fitted_once, workplace / "runs")
    (workplace / "mild.txt").write_text("Write a poem\nHow are you?\n")
    [folder] = Path("runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def plain(model_folder) -> tuple:
    """The model and tokenizer by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)


def tokens(tokenizer, prompt: str) -> torch.Tensor:
    asked = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


@torch.no_grad()
def answer(model, tokenizer, prompt: str, layer: int, vector: torch.Tensor, new: int) -> str:
    """A greedy completion, token by token without a cache, with a vector added to what enters a block."""
    ids = first = tokens(tokenizer, prompt)
    hook = model.model.layers[layer].register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
    for _ in range(new):
        chosen = model(ids, use_cache=False).logits[0, -1].argmax()
        if chosen == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, chosen.reshape(1, 1)], dim=1)
    hook.remove()
    return tokenizer.decode(ids[0, first.shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def last_logits(model, ids: torch.Tensor, layer: int, vector: torch.Tensor) -> torch.Tensor:
    hook = model.model.layers[layer].register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
    logits = model(ids, use_cache=False).logits[0, -1]
    hook.remove()
    return logits


# --- the tour ---------------------------------------------------------------------------------------------------------


def test_the_tour_with_no_other_argument_than_needed(workplace, model_folder):
    said = ok("fit", "--model", model_folder, "--factors", 24, "--iterations", 2).stdout
    file = Path("runs/tiny-llama-exponential-1-3/factors.safetensors")
    assert str(file) in said
    assert "24 exponential factors" in said
    assert "non-linearity ratio 0.25" in said  # held by what the target stream bears
    assert "peak memory" in said
    assert "dct rank" in said
    info = config(file)
    assert info["calibration"]["ratio"] == pytest.approx(0.25, rel=2e-3)

    said = ok("rank", "--screen-only").stdout
    for baseline in ("unsteered", "random, mean", "random, best", "supervised"):
        assert baseline in said
    assert (file.parent / "rank.json").exists()

    said = ok("steer", "--vector", 17, "--prompt", "Tell me a story").stdout
    assert "vector 17" in said
    assert "damage (KL)" in said

    said = ok("ablate", "--vector", 17).stdout
    assert "10 matrices edited" in said
    assert "without vector 17" in said


def test_every_suggested_next_command_works(fitted, model_folder):
    """The tool's own advice, typed in as it is printed (an ellipsis stands for a prompt)."""
    (Path.cwd() / "tiny").symlink_to(model_folder)
    sources = [
        ok("rank", "--screen-only", "--n", 1),  # first: it suggests of the newest run, which the others replace
        ok("calibrate", "--model", "tiny", "--n", 2),
        ok("models", "tiny"),
        ok("fit", "--model", "tiny", *QUICK, "--iterations", 1, "--out", "elsewhere/run"),
    ]
    suggestions = [s for r in sources for s in _suggestions(r.stdout)]
    assert len(suggestions) == 5
    for line in suggestions:
        words = [word.strip('"') for word in line.split()][1:]
        few = ["--iterations", 1, "--n", 1] if words[0] == "fit" else ["--n", 1]
        few += ["--max-new-tokens", 1] if words[0] in ("rank", "steer", "ablate") else []
        few += ["--test", 3, "--keep", 2, "--scales", 1] if words[0] == "rank" else []
        result = run(*words, *few)
        assert result.exit_code == 0, f"{line}: {result.output}"
    if words[0] == "rank":
        assert Path("elsewhere/run/rank.json").exists(), "`dct rank` ranked another run than the one just fitted"


def _suggestions(said: str) -> list[str]:
    [line] = [line for line in said.splitlines() if line.startswith("next")]
    return [part.strip() for part in re.split(r"  +(?:or +)?", line.removeprefix("next").strip()) if "dct " in part]


def test_run_folder_and_factors_header(workplace, model_folder):
    prompts = ["Tell me how to bake bread", "Explain the moon"]
    ok("fit", "-m", model_folder, "--s", 1, "--t", 4, *QUICK, "--prompt", prompts[0], "--prompt", prompts[1],
       "--out", "mine", "--seed", 3, "--positions", 2)  # fmt: skip
    assert sorted(p.name for p in Path("mine").iterdir()) == ["config.toml", "factors.safetensors"]
    assert not Path("runs").exists()
    with safe_open("mine/factors.safetensors", framework="pt") as file:
        metadata = file.metadata()
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        assert all(file.get_tensor(name).dtype == torch.float32 for name in shapes)
        assert all(bool(file.get_tensor(name).isfinite().all()) for name in shapes)
    assert shapes == {"V": (24, 32), "U": (24, 32), "alpha": (24,), "objective": (2, 3)}
    assert (metadata["format"], metadata["format_version"]) == ("dct-factors", "2")
    info = strict(metadata["config"])
    expected = {"model": str(model_folder), "source": 1, "target": 4, "method": "exponential", "scale": 0.85,
                "lambda": None, "prompts": prompts, "prompts_hash": fingerprint(prompts), "positions": 2, "seed": 3,
                "dtype": "float32"}  # fmt: skip
    assert {key: info[key] for key in expected} == expected
    assert info["versions"]["torch"] == torch.__version__
    assert info["versions"]["dct"] == dct.__version__
    assert info["fingerprint"].startswith("sha256:")
    assert info["seconds"] > 0


def test_vectors_are_unit_and_strengths_not_negative(fitted):
    found = load_file(fitted / "factors.safetensors")
    for side in ("V", "U"):
        torch.testing.assert_close(found[side].norm(dim=1), torch.ones(24))
    assert float(found["alpha"].min()) >= 0


def test_the_same_command_gives_the_same_factors(fitted, model_folder):
    ok("fit", "--model", model_folder, *QUICK, "--out", "again")
    first, second = load_file(fitted / "factors.safetensors"), load_file("again/factors.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_default_prompts_are_the_first_eight_of_the_packaged_harmful_set(fitted):
    assert config(fitted / "factors.safetensors")["prompts"] == list(read("harmful").texts[:8])


def test_a_second_fit_gets_a_folder_of_its_own_and_becomes_the_newest(fitted, model_folder):
    found = as_json("fit", "--model", model_folder, "--factors", 3, "--iterations", 1, "--scale", 1)
    assert found["run"] == f"{fitted}-2"
    assert found["factors"] == 3
    assert "2 is out of range" not in run("steer", "--vector", 2, "--prompt", "a", "--max-new-tokens", 1, *MILD).output
    assert "vectors 0 to 2" in run("steer", "--vector", 3, "--prompt", "a").stderr
    ok("steer", fitted, "--vector", 17, "--prompt", "a", "--max-new-tokens", 1, *MILD)
    ok("steer", fitted / "factors.safetensors", "--vector", 17, "--prompt", "a", "--max-new-tokens", 1, *MILD)


def test_a_run_works_from_another_folder(workplace, model_folder, monkeypatch):
    (workplace / "tiny").symlink_to(model_folder)
    ok("fit", "--model", "tiny", "--factors", 2, "--iterations", 1, "--scale", 1, "--n", 1, "--out", "run")
    (workplace / "deeper").mkdir()
    monkeypatch.chdir(workplace / "deeper")
    ok("steer", "../run", "--vector", 0, "--prompt", "a", "--max-new-tokens", 1)


# --- fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["exponential", "quadratic", "linear", "linear-projected", "linear-randomized", "melbo"]
)
def test_every_method(workplace, model_folder, method):
    found = as_json("fit", "--model", model_folder, "--method", method, "--factors", 5, "--iterations", 2,
                    "--scale", 0.85, "--n", 2, "--out", method)  # fmt: skip
    assert found["info"]["method"] == method
    loaded = dct.Factors.load(Path(method) / "factors.safetensors")
    assert len(loaded) == 5
    assert len(loaded.objective) == {"exponential": 2, "quadratic": 2, "melbo": 5}.get(method, 0)
    ranked = as_json("rank", method, "--screen-only", "--n", 1)
    signs = {v["vector"] for v in ranked["vectors"]}
    both = {str(k) for k in range(5)} | {f"-{k}" for k in range(5)}
    assert signs == (both if method not in ("exponential", "melbo") else {str(k) for k in range(5)})


def test_linear_factors_are_the_singular_vectors_of_the_slices_jacobian(workplace, model_folder, plain):
    """The Jacobian by automatic differentiation of transformers' own forward pass."""
    prompt = "Tell me how to bake bread"
    ok("fit", "--model", model_folder, "--method", "linear", "--factors", 4, "--scale", 1, "--prompt", prompt,
       "--positions", 3)  # fmt: skip
    found = load_file("runs/tiny-llama-linear-1-3/factors.safetensors")
    model, tokenizer = plain

    def stream(theta: torch.Tensor) -> torch.Tensor:
        hook = model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] + theta, *args[1:]))
        states = model(tokens(tokenizer, prompt), output_hidden_states=True, use_cache=False).hidden_states[3]
        hook.remove()
        return states[0, -3:].mean(0)

    U, S, Vh = torch.linalg.svd(torch.autograd.functional.jacobian(stream, torch.zeros(32)))
    torch.testing.assert_close(found["alpha"], S[:4], rtol=1e-4, atol=0)
    for k in range(4):
        along_v, along_u = float(found["V"][k] @ Vh[k]), float(found["U"][k] @ U[:, k])
        assert abs(along_v) > 0.9999
        assert along_v * along_u > 0.9998  # the two may only change sign together


def test_more_factors_than_dimensions(workplace, model_folder):
    found = as_json("fit", "--model", model_folder, "--factors", 40, "--iterations", 2, "--scale", 0.85, "--n", 2)
    assert found["factors"] == 40
    assert found["info"]["random_start"] == 8  # 32 directions were known, the rest began at random


def test_one_layer_given_the_other_follows(workplace, model_folder):
    small = ["--factors", 2, "--iterations", 1, "--scale", 1, "--n", 1]
    for given, expected in ((["--s", 3], (3, 5)), (["--t", 2], (1, 2)), (["--t", 1], (0, 1)), (["--s", 0], (0, 3))):
        info = as_json("fit", "--model", model_folder, *small, *given)["info"]
        assert (info["source"], info["target"]) == expected


def test_plain_text_model(workplace, model_folder):
    shutil.copytree(model_folder, "plain")
    Path("plain/chat_template.jinja").unlink()
    Path("mild.txt").write_text("Write a poem\n")
    assert "plain text" in ok("fit", "--model", "plain", *QUICK, "--n", 2).stdout
    ok("rank", "--screen-only", "--n", 1)
    for command in ("steer", "ablate"):
        ok(command, "--vector", 17, "--prompt", "Tell me", "--max-new-tokens", 2, *MILD)


@pytest.mark.skipif(not (SHARED / "models/stories260K").exists(), reason="shared models are not here")
def test_a_trained_model_from_disk(workplace):
    ok("fit", "--model", SHARED / "models/stories260K", "--prompts", SHARED / "data/jailbreakbench.csv", "--n", 2,
       "--factors", 18, "--iterations", 2)  # fmt: skip
    info = config(Path("runs/stories260K-exponential-1-3/factors.safetensors"))
    assert info["prompts"] == list(read(str(SHARED / "data/jailbreakbench.csv"), "Goal").texts[:2])
    ranked = as_json("rank", "--screen-only", "--prompts", SHARED / "data/harmful.json",
                     "--harmless", SHARED / "data/harmless.json", "--n", 3)  # fmt: skip
    assert (ranked["prompts"], ranked["harmless"]) == (3, 3)
    told = as_json("steer", "--vector", 17, "--prompt", "Once upon a time", "--max-new-tokens", 12)["completions"]
    assert "there was a little girl" in told[0]["completion"]
    ok("ablate", "--vector", 17, "--prompt", "Once upon a time", "--max-new-tokens", 2, "--harmless", "arithmetic")


@pytest.mark.skipif(not (DEMO_DIR / "model.safetensors").exists(), reason="no demo model yet")
def test_the_tour_on_the_demo_model(workplace):
    Path("mild.txt").write_text("Write a poem\n")
    ok("fit", "--factors", 18, "--iterations", 1, "--n", 1, "--scale", 1)
    assert config(next(Path("runs").glob("*/factors.safetensors")))["model"] == "demo"
    ok("rank", "--screen-only", "--n", 1)
    for command in ("steer", "ablate"):
        ok(command, "--vector", 17, "--prompt", "Hello", "--max-new-tokens", 2, *MILD)


@pytest.mark.skipif(not (DEMO_DIR / "model.safetensors").exists(), reason="no demo model yet")
def test_the_guided_tour_shows_all_four_commands(workplace, monkeypatch):
    for name, few in (("FACTORS", 6), ("KEPT", 2), ("CHOSEN_BY", 4), ("TESTED", 6), ("LENGTH", 8)):
        monkeypatch.setattr(f"dct.cli.demo.{name}", few)
    said = ok("demo").stdout
    assert all(f"dct {command}" in said for command in ("fit", "rank", "steer", "ablate"))
    assert "of behaviour in 6 vectors" in said


def test_the_tour_takes_any_model_that_refuses(workplace, model_folder, monkeypatch):
    """One that refuses nothing has nothing to gain, and hears so."""
    for name, few in (("FACTORS", 4), ("KEPT", 2), ("CHOSEN_BY", 4), ("TESTED", 6), ("LENGTH", 8)):
        monkeypatch.setattr(f"dct.cli.demo.{name}", few)
    done = run("demo", "--model", model_folder)
    assert f"dct fit --model {model_folder} --factors 4" in " ".join(done.stdout.split())
    assert done.exit_code == 0 or "something to gain on" in done.stderr


# --- calibrate and models ---------------------------------------------------------------------------------------------


def test_calibrate_finds_the_scale_and_shows_the_curve(workplace, model_folder):
    found = as_json("calibrate", "--model", model_folder, "--n", 1, "--lambda", 0.4, "--out", "scale.json")
    assert found["ratio"] == pytest.approx(0.4, rel=2e-3)
    assert [found["scale"], found["ratio"]] in found["curve"]
    assert found["curve"] == sorted(found["curve"])
    assert json.loads(Path("scale.json").read_text()) == found
    said = ok("calibrate", "--model", model_folder, "--n", 1, "--lambda", 0.4).stdout
    assert f"scale R = {found['scale']:.4g} for layers 1 → 3" in said


def test_fit_calibrates_to_the_same_scale_as_calibrate(workplace, model_folder):
    scale = as_json("calibrate", "--model", model_folder, "--n", 1)["scale"]
    fit = as_json("fit", "--model", model_folder, "--n", 1, "--factors", 2, "--iterations", 1)
    assert fit["scale"] == scale
    assert fit["info"]["lambda"] == 0.5


def test_models_lists_the_aliases():
    said = ok("models").stdout
    assert "Qwen/Qwen1.5-7B-Chat" in said
    found = as_json("models")
    assert found["qwen"] == "Qwen/Qwen1.5-7B-Chat"
    assert {"demo", "qwen-32b", "mistral", "deepseek-math", "llama", "gemma", "smollm"} <= set(found)


def test_models_looks_into_a_folder(model_folder, plain):
    found = as_json("models", model_folder)
    assert found["blocks"] == 5
    assert found["width"] == 32
    assert found["block list"] == "model.layers"
    assert found["parameters"] == plain[0].num_parameters()
    assert found["default layers"] == [1, 3]
    assert "model.layers" in ok("models", model_folder).stdout


# --- rank -------------------------------------------------------------------------------------------------------------


def test_ranking_is_what_the_model_itself_says(fitted, plain):
    """Score, share of flips and damage of one vector, by transformers alone with a hook of the test's own."""
    model, tokenizer = plain
    info, found = config(fitted / "factors.safetensors"), load_file(fitted / "factors.safetensors")
    ranked = as_json("rank", fitted, "--screen-only", "--positive", "T", "--negative", "H", "--n", 3)
    scored, mild = read("harmful").texts[8:11], read("harmless").texts[:3]  # the fit saw the first eight
    assert not set(scored) & set(info["prompts"])
    assert ranked["prompts_hash"] == fingerprint(scored)
    words = ranked["words"]
    assert not words["after"]
    for word, side in (("T", "positive"), ("H", "negative")):
        assert tokenizer("<assistant>" + word, add_special_tokens=False).input_ids[1:] == words[side]
    name = ranked["vectors"][0]["vector"]
    effect = ranked["vectors"][0]["effect"]
    vector, nothing = info["scale"] * found["V"][int(name)], torch.zeros(32)

    def differences(theta: torch.Tensor) -> torch.Tensor:
        logits = torch.stack([last_logits(model, tokens(tokenizer, p), info["source"], theta) for p in scored])
        return logits[:, words["positive"][0]] - logits[:, words["negative"][0]]

    before, after = differences(nothing), differences(vector)
    assert effect["score"] == pytest.approx(float(after.mean()), abs=1e-4)
    assert ranked["unsteered"]["score"] == pytest.approx(float(before.mean()), abs=1e-4)
    assert effect["flipped"] == pytest.approx(float((before.sign() != after.sign()).float().mean()))
    damage = [
        torch.nn.functional.kl_div(
            *(last_logits(model, tokens(tokenizer, p), info["source"], v).log_softmax(-1) for v in (vector, nothing)),
            log_target=True,
            reduction="sum",
        )
        for p in mild
    ]
    assert effect["kl"] == pytest.approx(float(torch.stack(damage).mean()), abs=1e-4)


@pytest.mark.parametrize("by", ["score", "alpha", "kl"])
def test_order_of_the_ranking(fitted, by):
    ranked = as_json("rank", "--screen-only", "--n", 2, "--by", by)
    assert strict((fitted / "rank.json").read_text()) == ranked
    assert ranked["by"] == by
    keys = {"score": lambda v: -v["effect"]["score"], "alpha": lambda v: -v["alpha"], "kl": lambda v: v["effect"]["kl"]}
    assert ranked["vectors"] == sorted(ranked["vectors"], key=keys[by])
    assert {v["vector"] for v in ranked["vectors"]} == {str(k) for k in range(24)}
    best, mean = ranked["random_best"]["score"], ranked["random_mean"]["score"]
    assert best > mean
    assert ranked["supervised"]["kl"] > 0
    alpha = load_file(fitted / "factors.safetensors")["alpha"].tolist()
    assert all(v["alpha"] == alpha[int(v["vector"])] for v in ranked["vectors"])


def test_top_limits_the_rows_not_the_file(fitted):
    said = ok("rank", "--screen-only", "--n", 1, "--top", 2).stdout
    assert "(22 more)" in said
    assert len(json.loads((fitted / "rank.json").read_text())["vectors"]) == 24


def test_a_score_is_told_with_its_damage_and_much_of_it_is_called_so(fitted, monkeypatch):
    command = ("rank", "--screen-only", "--positive", "a", "--negative", "T", "--n", 3)
    ranked = as_json(*command)
    said = " ".join(ok(*command).stdout.split())
    best, null = ranked["vectors"][0]["effect"], ranked["random_best"]
    assert best["score"] > null["score"]
    for effect in (best, null):
        gain = effect["score"] - ranked["unsteered"]["score"]
        assert f"by {gain:+.3g} at a damage of {effect['kl']:.3f}" in said
    assert "--max-damage" not in said
    monkeypatch.setattr("dct.cli.rank.MUCH", best["kl"] / 2)
    assert "(much damage: --max-damage" in " ".join(ok(*command).stdout.split())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["steer", "--vector", 1], "for 1 prompt, completed twice"),
        (["steer", "--vector", 1, "--vector", 2, "--prompt", "And you?"], "for 2 prompts, each completed 3 times"),
        (["steer", "--vector", 1, "--vector", 2, "--aggregate", "mean"], "for 1 prompt, completed twice"),
        (["ablate", "--vector", 1, "--vector", 2, "--prompt", "And you?"], "for 2 prompts, each completed twice"),
    ],
)
def test_what_will_be_completed_is_told_beforehand(fitted, asked, said):
    assert said in ok(*asked, "--prompt", "Who are you?", "--max-new-tokens", 2, *MILD).output


def test_scale_of_the_ranking_multiplies_the_fitted_one(fitted):
    assert as_json("rank", "--screen-only", "--n", 1, "--scale", 2)["scale"] == pytest.approx(1.7)


def test_prompts_of_the_fit_are_used_with_a_word_of_warning_when_there_are_no_others(fitted):
    Path("p.txt").write_text("\n".join(config(fitted / "factors.safetensors")["prompts"][:2]))
    assert "in-sample" in ok("rank", "--screen-only", "--n", 2, "--prompts", "p.txt").stdout


def test_a_changed_file_of_prompts_does_not_bring_the_fits_own_back(workplace, model_folder):
    Path("p.txt").write_text("one prompt\ntwo prompts\nthree prompts\n")
    ok("fit", "--model", model_folder, "--prompts", "p.txt", "--n", 2, "--factors", 2, "--iterations", 1, "--scale", 1)
    ranked = as_json("rank", "--screen-only")
    assert ranked["prompts_hash"] == fingerprint(["three prompts"])
    Path("p.txt").unlink()
    result = ok("rank", "--screen-only")
    assert "no longer there" in result.stdout


# --- steer ------------------------------------------------------------------------------------------------------------


def test_steering_is_adding_the_vector_to_the_stream_at_every_token(fitted, plain):
    info, found = config(fitted / "factors.safetensors"), load_file(fitted / "factors.safetensors")
    prompts = ["Tell me how to bake bread", "Explain the moon"]
    told = as_json("steer", "--vector", 17, "--vector", "-3", "--scale", 1.5, "--max-new-tokens", 6, *MILD,
                   *[word for p in prompts for word in ("--prompt", p)])  # fmt: skip
    assert told["layer"] == info["source"] == 1
    assert told["scale"] == pytest.approx(1.5 * info["scale"])
    vectors = [0 * found["V"][0], told["scale"] * found["V"][17], -told["scale"] * found["V"][3]]
    expected = [(p, answer(*plain, p, 1, v, 6)) for p in prompts for v in vectors]
    assert [(c["prompt"], c["completion"]) for c in told["completions"]] == expected
    assert len({text for _, text in expected}) > 2  # the vectors do something


def test_completions_go_to_a_jsonl_file(fitted):
    words = ["--prompt", "a", "--max-new-tokens", 3, *MILD]
    told = as_json("steer", "--rank", 1, "--rank", 2, *words, "--out", "sub/told.jsonl")
    assert [json.loads(line) for line in Path("sub/told.jsonl").read_text().splitlines()] == told["completions"]
    assert len(told["completions"]) == 3


def test_rank_picks_by_the_ranking(fitted):
    ranked = [v["vector"] for v in json.loads((fitted / "rank.json").read_text())["vectors"]]
    by_rank = as_json("steer", "--rank", 3, "--prompt", "a", "--max-new-tokens", 4, *MILD)
    by_name = as_json("steer", "--vector", ranked[2], "--prompt", "a", "--max-new-tokens", 4, *MILD)
    for told in (by_rank, by_name):  # what it took is another time each time
        del told["estimate"], told["seconds"]
    assert by_rank == by_name
    best = as_json("steer", "--prompt", "a", "--max-new-tokens", 4, *MILD)
    first = as_json("steer", "--vector", ranked[0], "--prompt", "a", "--max-new-tokens", 4, *MILD)
    for told in (best, first):
        del told["estimate"], told["seconds"]
    assert best == first


@pytest.mark.parametrize("how", ["mean", "svd"])
def test_aggregated_vectors(fitted, plain, how):
    ranked = [v["vector"] for v in json.loads((fitted / "rank.json").read_text())["vectors"]]
    found = load_file(fitted / "factors.safetensors")
    stack = np.stack([found["V"][int(name)].numpy() for name in ranked[:4]])
    one = stack.mean(0) if how == "mean" else np.linalg.svd(stack, full_matrices=False)[2][0]
    vector = 0.85 * torch.from_numpy(one / np.linalg.norm(one))
    told = as_json("steer", "--top", 4, "--aggregate", how, "--prompt", "Explain", "--max-new-tokens", 5, *MILD)
    senses = [answer(*plain, "Explain", 1, v, 5) for v in ([vector] if how == "mean" else [vector, -vector])]
    assert len(told["completions"]) == 2
    assert told["completions"][1]["completion"] in senses


def test_prompts_without_a_literal_one_are_those_that_the_fit_did_not_see(fitted):
    told = as_json("steer", "--vector", 1, "--n", 2, "--max-new-tokens", 1, *MILD)
    assert {c["prompt"] for c in told["completions"]} == set(read("harmful").texts[8:10])


def test_sampling_is_seeded(fitted):
    words = ["steer", "--vector", 1, "--prompt", "a", "--max-new-tokens", 8, *MILD, "--temperature", 2]
    first, again, other = as_json(*words), as_json(*words), as_json(*words, "--seed", 1)
    for told in (first, again):  # what it took is another time each time
        del told["estimate"], told["seconds"]
    assert first == again
    assert first["completions"] != other["completions"]


# --- ablate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("site", "side"), [("source", "V"), ("target", "U")])
def test_saved_model_writes_nothing_along_the_vector(fitted, plain, site, side):
    done = as_json("ablate", "--vector", 17, "--site", site, "--prompt", "a", "--max-new-tokens", 1, *MILD,
                   "--save", "edited")  # fmt: skip
    v = load_file(fitted / "factors.safetensors")[side][17].double()
    before, after = plain[0].state_dict(), AutoModelForCausalLM.from_pretrained("edited").state_dict()
    writers = [name for name in before if name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(writers) == 10
    assert sorted(done["edited"]) == sorted(writers)
    for name, old in before.items():
        old, new = old.double(), after[name].double()
        expected = old - torch.outer(v, v @ old) if name in writers else old
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-6)
        if name in writers:
            assert float((v @ new).norm()) < 1e-5 * float((v @ old).norm())
    assert done["leak"]["after"] < 1e-5 * done["leak"]["before"]
    assert sorted(p.name for p in Path().iterdir()) == ["edited", "mild.txt", "runs"]


def test_saved_model_says_what_the_ablated_one_said(fitted):
    words = ["--top", 12, "--prompt", "Explain the moon", "--max-new-tokens", 5, *MILD]
    done = as_json("ablate", *words, "--save", "edited")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("edited"), AutoTokenizer.from_pretrained("edited")
    said = answer(model, tokenizer, "Explain the moon", 0, torch.zeros(32), 5)
    assert said == done["completions"][0]["after"]
    assert said != done["completions"][0]["before"]
    assert json.loads(Path("edited/dct.json").read_text())["ablated"] == done["vectors"]
    ok("models", "edited")


def test_edited_model_is_saved_in_another_type_or_as_an_adapter(fitted, plain):
    few = ["ablate", "--vector", 17, "--prompt", "a", "--max-new-tokens", 1, *MILD, "--save"]
    small = as_json(*few, "small", "--save-dtype", "bfloat16")
    assert small["written"]["dtypes"] == ["bfloat16"]
    assert 0 < small["written"]["rounding"]["lost"] < 1
    assert {t.dtype for t in load_file("small/model.safetensors").values()} == {torch.bfloat16}
    said = ok(*few, "again", "--save-dtype", "bfloat16").output
    assert re.search(r"bfloat16 rounds .*% of the edit survives.*--save-as adapter", " ".join(said.split()))
    adapter = as_json(*few, "adapter", "--save-as", "adapter")
    assert (adapter["written"]["form"], adapter["written"]["edited"]) == ("adapter", 10)
    assert sorted(p.name for p in Path("adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "dct.json",
    ]


def test_several_directions_are_removed_at_once_or_as_one(fitted):
    few = ["--prompt", "a", "--max-new-tokens", 1, *MILD]
    assert as_json("ablate", "--vector", 1, "--vector", 2, "--vector", "-1", *few)["rank"] == 2
    assert as_json("ablate", "--top", 3, *few)["rank"] == 3
    for how in ("mean", "svd"):
        done = as_json("ablate", "--top", 3, "--aggregate", how, *few, "--save", how)
        assert done["rank"] == 1
    ranked = [v["vector"] for v in json.loads((fitted / "rank.json").read_text())["vectors"]]
    found = load_file(fitted / "factors.safetensors")
    stack = torch.stack([found["V"][int(name)] for name in ranked[:3]]).double()
    ones = {"mean": stack.mean(0), "svd": torch.linalg.svd(stack)[2][0]}
    for how, v in ones.items():
        weight = AutoModelForCausalLM.from_pretrained(how).state_dict()["model.layers.2.mlp.down_proj.weight"].double()
        assert float((v @ weight).norm()) < 1e-5 * float(weight.norm())


def test_before_and_after_of_an_ablation_are_scored(fitted):
    done = as_json("ablate", "--vector", 17, "--prompt", "a", "--max-new-tokens", 1, *MILD)
    unedited, edited, random = done["effects"]
    assert (unedited["kl"], unedited["flipped"]) == (0.0, 0.0)
    assert edited["kl"] > 0
    assert random["kl"] > 0
    assert edited["score"] != unedited["score"]


@pytest.mark.parametrize("command", ["rank", "steer", "ablate", "rank --task"])
def test_what_a_command_will_take_is_said_and_kept(fitted, command):
    words = {
        "rank": ["rank", "--screen-only", "--n", 2],
        "steer": ["steer", "--vector", 1, "--prompt", "a", "--max-new-tokens", 3, *MILD],
        "ablate": ["ablate", "--vector", 1, "--prompt", "a", "--max-new-tokens", 3, *MILD],
        "rank --task": ["rank", "--task", "task.jsonl", "--n", 2, *MILD, "--max-new-tokens", 2],
    }[command]
    rows = [json.dumps({"prompt": f"What is {k}?", "answer": str(k)}) for k in range(4)]
    Path("task.jsonl").write_text("\n".join(rows))
    result = ok(*words, "--json")
    told = strict(result.stdout)
    assert "expected: " in result.stderr
    assert "peak memory" in result.stderr
    assert told["estimate"]["seconds"] > 0
    assert told["estimate"]["peak_memory"] > told["estimate"]["more_memory"] > 0
    assert told["seconds"] > 0


# --- every command ----------------------------------------------------------------------------------------------------


def test_version():
    assert ok("--version").stdout == f"dct {dct.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_shared_options(command):
    said = re.sub(r"\x1b\[[0-9;]*m", "", ok(command, "--help").stdout)
    for option in ("--json", "--quiet", "--debug"):
        assert option in said


LINES = {
    "fit": ["fit", "--model", "{model}", "--factors", 2, "--iterations", 1, "--scale", 1, "--n", 1],
    "calibrate": ["calibrate", "--model", "{model}", "--n", 1],
    "rank": ["rank", "--screen-only", "--n", 1],
    "steer": ["steer", "--vector", 17, "--prompt", "a", "--max-new-tokens", 1, *MILD],
    "ablate": ["ablate", "--vector", 17, "--prompt", "a", "--max-new-tokens", 1, *MILD],
    "models": ["models"],
    "models folder": ["models", "{model}"],
}


@pytest.mark.parametrize("command", LINES)
def test_json_is_one_document_and_quiet_is_silent(fitted, model_folder, command):
    words = [str(word).format(model=model_folder) for word in LINES[command]]
    loud = ok(*words, "--json")
    assert isinstance(strict(loud.stdout), dict)
    assert loud.stderr
    hushed = ok(*words, "--json", "--quiet")
    assert isinstance(strict(hushed.stdout), dict)
    assert hushed.stderr == ""
    silent = ok(*words, "--quiet")
    assert silent.output == ""


def test_what_is_printed_is_printed_as_it_is(workplace, model_folder):
    """Brackets and colons in names and prompts are no markup and no emoji."""
    few = ["--factors", 2, "--iterations", 1, "--scale", 1, "--n", 1]
    assert "my [b] :a: run/factors" in ok("fit", "--model", model_folder, *few, "--out", "my [b] :a: run").stdout
    assert "my [b] :a: run/rank.json" in ok("rank", "my [b] :a: run", "--screen-only", "--n", 1).stdout
    said = ok("steer", "my [b] :a: run", "--vector", 1, "--prompt", "say [b]:smile:[/b]", "--max-new-tokens", 1).stdout
    assert "say [b]:smile:[/b]" in said
    assert "hf:a:b" in run("fit", "--model", model_folder, "--prompts", "hf:a:b").stderr
    ok("fit", "--model", model_folder, *few, "--out", "[/closing]")


# --- the process ------------------------------------------------------------------------------------------------------


def python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("torch", "transformers", "numpy", "safetensors", "rich", "typer", "click", "pydantic", "importlib.metadata")
"""What help does without. `models`, which lists the aliases, has Rich's tables and Typer."""


def test_importing_and_asking_for_help_loads_neither_torch_nor_transformers():
    said = python(f"""
import sys
import dct
assert dct.__version__ and "fit" in dir(dct)
from typer.testing import CliRunner
from dct.cli.app import app
for words in [["--help"], ["--version"], ["models"], *([c, "--help"] for c in {[*COMMANDS, "organism"]!r})]:
    assert CliRunner().invoke(app, words).exit_code == 0, words
print(sorted(name for name in ("torch", "transformers", "numpy", "safetensors") if name in sys.modules))
""")
    assert said == "[]\n"


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([c, "--help"] for c in COMMANDS)])
def test_help_imports_next_to_nothing(words):
    said = python(f"""
import sys
sys.argv = ["dct", *{words!r}]
from dct.cli import main
main()
print(sorted(name for name in {HEAVY!r} if name in sys.modules), len(sys.modules))
""")
    *page, last = said.splitlines()
    assert last.startswith("[] ")
    assert any("Usage: dct" in line for line in page)


def test_the_overview_says_what_the_commands_say(monkeypatch):
    from dct.cli.commands import COMMANDS as LISTED
    from dct.cli.commands import overview

    monkeypatch.setenv("COLUMNS", "250")
    assert ok("--help").stdout == overview()
    assert [c for c in LISTED if c != "organism"] == COMMANDS
    for name, sentence in LISTED.items():
        told = " ".join(ok(name, "--help").stdout.split())
        assert " ".join(sentence.split()) in told
    command = typer.main.get_command(app)
    names = {option for p in command.params for option in p.opts}
    assert names <= {word.strip(",") for word in overview().split()}


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["steer", "--help"]])
def test_help_answers_within_a_few_starts_of_the_interpreter(words):
    """Processor time against that of an interpreter that does nothing, the least of seven of each. It is 3 for the
    overview and 9 for a command on an idle machine, 10 and more beside other work; torch alone would make it 100.
    """

    def spent(*line: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *line], capture_output=True, env=env, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    spent("-m", "dct", *words)  # compiled once
    pairs = [(spent("-m", "dct", *words), spent("-c", "pass")) for _ in range(7)]
    assert min(ours for ours, _ in pairs) / min(nothing for _, nothing in pairs) < 16


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_pages_are_straight(columns):
    for command in COMMANDS:
        page = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": str(columns)}).stdout
        widths = {len(line) for line in page.splitlines() if line[:1] in "│╭╰" and line}
        assert min(columns, 120) in widths
        assert max(widths) <= max(min(columns, 120), 64)  # which the longest names of options take


def test_public_names_stay_functions_after_every_submodule_was_imported():
    """`dct.rank` is a function though a module of that name once shadowed it; a fresh process imports everything."""
    said = python("""
import importlib, inspect, pkgutil
import dct
for module in pkgutil.walk_packages(dct.__path__, "dct."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as missing:  # an extra that the tests do not bring
            assert missing.name.partition(".")[0] == "inspect_ai", missing
for name in dct.__all__:
    value = getattr(dct, name)
    assert not inspect.ismodule(value), name
    assert name == "__version__" or callable(value), name
from dct import fit, rank, steer, ablate, calibrate, load
print(*(f.__name__ for f in (fit, rank, steer, ablate, calibrate, load)))
""")
    assert said.split() == ["fit", "rank", "steer", "ablate", "calibrate", "load"]


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dct.nothing
    assert inspect.isfunction(dct.fit)


@pytest.mark.parametrize("words", [["models"], ["models", "--json"], ["--help"]])
def test_a_reader_that_goes_away_causes_no_traceback(words):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    line = " ".join(words)
    done = subprocess.run(
        ["bash", "-c", f'exec 3> >(exec 1>&- 0<&-; sleep 0); sleep 0.2; "{sys.executable}" -m dct {line} >&3'],
        capture_output=True, text=True, env=env, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
