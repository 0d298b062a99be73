"""An option is declared once: its flag, variable, TOML key, record and Python default are the same declaration."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_origin

import pytest
import torch
from typer.testing import CliRunner

import dct
from dct import settings
from dct.cli.app import Application, app
from dct.cli.commands import COMMANDS
from dct.cli.config import read_config
from dct.cli.flags import flagged
from dct.cli.signature import Parameter, command_page, parameters
from dct.declaration import Settings, key
from dct.errors import UsageError
from dct.recipe import Recipe

GROUPS = [kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings)]


def commands() -> Iterator[tuple[str, object]]:
    """Every command by what the user types."""
    from importlib import import_module

    for name in COMMANDS:
        module = import_module(f"dct.cli.{name}")
        for sub, function in getattr(module, "COMMANDS", {"": getattr(module, name, None)}).items():
            yield f"{name} {sub}".strip(), function


def run(*words: object, **env: str):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250", **env})


def click_command(name: str):
    group = Application(name="dct")
    found = group.get_command(None, name.split()[0])
    return found.get_command(None, name.split()[1]) if " " in name else found


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_option_of_every_command_has_its_variable_and_its_key(name):
    """By construction: Typer's own parameters are those of the declarations, with variable and key."""
    declared = {p.name: p for p in parameters(dict(commands())[name]) if not p.positional}
    built = {p.name: p for p in click_command(name).params if p.param_type_name == "option" and p.name != "help"}
    assert declared.keys() == built.keys()
    for option, one in built.items():
        parameter = declared[option]
        assert one.envvar == parameter.variable
        assert parameter.flags[0].split("/")[0] in one.opts
        assert parameter.key in {key(field) for field in fields(parameter.group)}
    assert len({p.variable for p in declared.values()}) == len(declared)
    assert len({(p.group.table, p.key) for p in declared.values()}) == len(declared)


def test_a_variable_means_the_same_in_every_command():
    meanings: dict[str, set[tuple[str, str]]] = {}
    for _, function in commands():
        for p in parameters(function):
            if p.group is not None:
                meanings.setdefault(p.variable, set()).add((p.group.table, p.key))
    assert {variable for variable, found in meanings.items() if len(found) > 1} == set()


def test_where_a_command_writes_is_set_by_a_variable_of_its_own():
    out = {name: p.variable for name, function in commands() for p in parameters(function) if p.name == "out"}
    assert out["fit"] == "DCT_FIT_OUT"
    assert len(set(out.values())) == len(out)


def test_help_shows_panels_choices_and_five_options_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    page = command_page("dct fit", dict(commands())["fit"])
    titles = [line.split("─ ")[1].split(" ─")[0] for line in page.splitlines() if line.startswith("╭")]
    assert titles == ["Set these first", "Model", "Slice", "Prompts", "Fit", "Work", "Output"]
    first = page.split("╰")[0]
    assert [flag in first for flag in ("--model", "--source", "--target", "--factors", "--prompts")] == [True] * 5
    assert first.count("--") == 7  # with --s and --t
    assert "projected | random; default: projected" in page


def test_the_command_reference_is_what_the_commands_say():
    page = Path(__file__).parents[1] / "docs" / "commands.py"
    done = subprocess.run([sys.executable, str(page), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_option_without_its_value_lists_what_there_is(workplace):
    assert run("fit", "--method").stderr.startswith("error: --method: choose cpe, exponential, ")
    assert run("steer", "--tokens").stderr == "error: --tokens: choose all, prompt, generated\n"


def value_of(p: Parameter) -> object:
    """Some value of an option that is not its default."""
    known = {
        "positions": 2,
        "processes": 2,
        "scales": (0.5, 2.0),
        "widths": (16, 32),
        "true": (0.5, 8.0),
        "learned": (1.5,),
        "maps": ("gated", "noise"),
        "memory": "2GB",
        "band": "2-5",
        "vector": ["3", "-4"] if p.kind == list[str] | None else "3",
        "rank": 5 if p.kind is int else [2, 1],
        "prompt": ["How?", "Why? `x`"],
        "method_options": {"p": 4.0},
        "judge_option": ["refused=sorry"],
        "model": ["a", "b"] if get_origin(get_args(p.kind)[0] if get_args(p.kind) else p.kind) is list else "a",
    }
    several = {"source": (2, "all"), "target": (8, "+4"), "n": (4, 8), "seed": (1, 2), "ratio": (0.5,), "scale": (2.0,)}
    if p.name in several and p.declared.parse is not None:
        return several[p.name]
    if p.name in known:
        return known[p.name]
    names = getattr(p.declared.check, "listed", None)
    if names:
        return next(name for name in names if name != p.default)
    if p.kind in (bool, bool | None):
        return not p.default
    if p.kind in (int, int | None):
        return (p.default or 0) + 3
    if p.kind in (float, float | None):
        return 0.25
    return "some text"


@pytest.mark.parametrize("group", [g for g in GROUPS if g not in (Settings,) and "Output" not in g.__name__])
def test_a_record_holds_every_option_through_toml_and_json(group, tmp_path):
    import tomli_w

    from dct.cli.signature import _options

    told = list(_options(group))
    values = {p.name: value_of(p) for p in told}
    made = group(**values)
    text = tomli_w.dumps({group.table: made.record()})
    (tmp_path / "c.toml").write_text(text)
    read = read_config(tmp_path / "c.toml", told)
    assert read.keys() == values.keys()
    assert group(**read) == made
    assert group.recorded(json.loads(json.dumps(made.record()))) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[fit]\nfactor = 3", "no key 'factor' in"),
        ("[fitt]\nfactors = 3", r"no table \[fitt\]"),
        ("factors = 3", r"no table \[factors\]"),
        ("[fit]\nfactors = 3.5", "factors = 3.5 is no int"),
        ("[fit]\nfactors = true", "factors = True is no int"),
        ("[fit]\nfactors = '3'", "factors = '3' is no int"),
        ("[fit]\nfactors = 0", "--factors must be from 1 .*from c.toml"),
        ("[fit]\nmethod = 'cubic'", "unknown --method 'cubic'.*from c.toml"),
        ("[slice]\npositions = 0", "--positions must be a number or `all`"),
        ("[fit", "is no TOML"),
        ("[output]\nquiet = 1", "quiet = 1 is no bool"),
        ("[model]\nmodel = ['a']", "is no str"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(workplace, text, says):
    import re

    Path("c.toml").write_text(text)
    result = run("fit", "--config", "c.toml")
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert re.search(says, line), line


def test_the_command_line_comes_before_variables_and_these_before_the_file(workplace):
    Path("c.toml").write_text("[fit]\nfactors = 0\niterations = 0\nd_proj = 0\n")

    def complaint(*words: str, **env: str) -> str:
        return run("fit", "--config", "c.toml", *words, **env).stderr

    assert "--d-proj must" not in complaint("--d-proj", "4", "--factors", "2", "--iterations", "0")
    assert "(from c.toml)" in complaint("--d-proj", "4", DCT_ITERATIONS="2")
    assert "--factors must be from 1 to 1,000,000: got -3 (from DCT_FACTORS)" in complaint(DCT_FACTORS="-3")
    assert "got -4\n" in complaint("--factors", "-4", DCT_FACTORS="-3")


def test_a_file_may_serve_several_commands(workplace):
    Path("c.toml").write_text("[model]\nmodel = 'nowhere-to-be-found'\n[rank]\ntop = 3\n[fit]\nfactors = 3\n")
    for command in ("fit", "calibrate", "bench"):
        assert "nowhere-to-be-found" in run(command, "--config", "c.toml").stderr


def test_a_python_user_reads_arguments_and_a_user_of_the_command_line_flags():
    with pytest.raises(UsageError, match="`beta` must be positive") as raised:
        settings.FitSettings(beta=-1.0)
    assert raised.value.argument == "beta"
    assert flagged(str(raised.value)).startswith("--beta must be positive")
    said = 'lower `scale`, pass `orthogonalize="soft"` or `ratio`; `dct rank` and `unknown` stay, `reply_prefix` too'
    assert flagged(said) == (
        "lower --scale, pass --orthogonalize soft or --lambda; `dct rank` and `unknown` stay, --reply-prefix too"
    )


def test_settings_that_do_not_exist_are_refused_by_name():
    with pytest.raises(UsageError, match=r"unknown argument 'factor': choose .*factors"):
        settings.FitSettings().changed(factor=3)
    with pytest.raises(UsageError, match=r"unknown key 'factor' in \[fit\]"):
        settings.FitSettings.recorded({"factor": 3})


@pytest.mark.parametrize("method", ["exponential", "quadratic", "linear", "melbo"])
def test_the_config_of_a_finished_run_repeats_it_bit_for_bit(workplace, method):
    small = ["--method", method, "--factors", 3, "--iterations", 2, "--n", 2, "--seed", 7, "--d-proj", 5]
    first = run("fit", *small, "--out", "one")
    assert first.exit_code == 0, first.output
    again = run("fit", "--config", "one/config.toml", "--out", "two")
    assert again.exit_code == 0, again.output
    one, two = dct.Factors.load("one/factors.safetensors"), dct.Factors.load("two/factors.safetensors")
    assert one.scale == two.scale
    for name in ("V", "U", "alpha", "objective"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert Path("one/config.toml").read_bytes() == Path("two/config.toml").read_bytes()


def test_a_recipe_follows_the_model_and_the_prompts_out_of_the_folder(workplace, model_folder):
    Path("mine.txt").write_text("One?\nTwo?\nThree?\n")
    local = os.path.relpath(model_folder)
    result = run("fit", "--model", local, "--prompts", "mine.txt", "--factors", 2, "--iterations", 1, "--scale", 0.5,
                 "--n", 2, "--out", "one")  # fmt: skip
    assert result.exit_code == 0, result.output
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    try:
        again = run("fit", "--config", "../one/config.toml", "--out", "two")
        assert again.exit_code == 0, again.output
        assert Path("two/config.toml").read_bytes() == Path("../one/config.toml").read_bytes()
    finally:
        os.chdir("..")


def test_a_recipe_is_that_of_the_state_it_was_saved_in():
    recipe = Recipe(fit=settings.FitSettings(method="quadratic", beta=0.5, factors=5, iterations=4, seed=3, ratio=0.3))
    recipe = Recipe(
        settings.ModelSettings(model="m", dtype="float32", memory="4GB", revision="r"),
        settings.FitSliceSettings(source=1, target=3, positions="all", compile="on"),
        settings.FitPromptSettings(
            prompt=["a", "b"], n=2, column="c", system="s", reply_prefix="", escape_control=False
        ),
        recipe.fit,
    )
    options = {k: v for k, v in vars(recipe.fit).items() if k not in ("ratio", "batch", "scale")}
    config = {
        "model": "m",
        "loading": recipe.loading(),
        "source": 1,
        "target": 3,
        "prompts": ["a", "b"],
        "column": "c",
        "system": "s",
        "positions": "all",
        "lambda": 0.3,
        "batch": None,
        "compile": "on",
        "options": options,
    }
    assert Recipe.of_state(config) == recipe
