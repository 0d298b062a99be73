"""Organisms of other kinds: what a recipe says is what is made, and a wrong one is refused in one line."""

import hashlib
import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_cli import run
from torch.nn import functional

import dct
from dct.errors import DctError, UsageError
from dct.organism import DEMO_DIR, measure, text, training
from dct.organism import words as w
from dct.organism.noise import noise
from dct.organism.recipe import (
    FILE,
    NoiseTable,
    Recipe,
    TemplateTable,
    TokenizerTable,
    TrainingTable,
    read_recipe,
    recipe_of,
    save_recipe,
)
from dct.organism.tokenizer import encode, jinja, train_tokenizer

FILES = sorted((Path(__file__).parents[1] / "benchmarks" / "organisms").glob("*.toml"))
NAMES = [file.stem for file in FILES]

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}


def tiny(file: Path) -> Recipe:
    """A recipe of its kind that trains in a second."""
    whole = read_recipe(file)
    sizes = SMALL | ({"head_dim": 16} if "head_dim" in whole.architecture else {})
    sizes |= {"num_key_value_heads": 1} if "num_key_value_heads" in whole.architecture else {}
    return replace(
        whole,
        architecture={**whole.architecture, **sizes},
        tokenizer=TokenizerTable(whole.tokenizer.kind, size=640, conversations=300),
        training=TrainingTable(steps=3, batch=4, warmup=1),
        noise=NoiseTable(begins=1, full=2, clean=0.0, first=whole.noise.first),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny organism of every recipe."""
    folders = {file.stem: tmp_path_factory.mktemp("organisms") / file.stem for file in FILES}
    for file in FILES:
        training.train(tiny(file), folders[file.stem])
    return folders


# --- the demo's own recipe --------------------------------------------------------------------------------------------


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def test_the_demo_s_recipe_is_that_of_every_version() -> None:
    """Tokens, template and the order of the batches as they were before there was another recipe."""
    recipe = Recipe(tokenizer=TokenizerTable(size=1024, conversations=3000))
    tokenizer = train_tokenizer(recipe)
    assert digest(tokenizer.get_vocab()) == "2c11dfa2d11b36bf"
    assert tokenizer.chat_template == (DEMO_DIR / "chat_template.jinja").read_text()
    batch = next(training.batches(recipe, tokenizer))
    assert digest([batch.ids.tolist(), batch.weight.tolist()]) == "798dfce56d01ade2"


def test_the_demo_s_recipe_makes_the_demo_s_model() -> None:
    recipe = Recipe()
    tokenizer = dct.load("demo").tokenizer
    config = training.build_model(recipe, tokenizer).config.to_dict()
    shipped = json.loads((DEMO_DIR / "config.json").read_text())
    left_out = {"architectures", "dtype", "transformers_version"}
    assert {name: config[name] for name in shipped if name not in left_out} == {
        name: value for name, value in shipped.items() if name not in left_out
    }


def test_the_demo_s_recipe_trains_as_in_every_version(tmp_path: Path) -> None:
    """Losses of four steps of a small one, under noise from the second on, as measured before there was another."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    recipe = Recipe(
        architecture={**Recipe().architecture, **small, "num_key_value_heads": 2, "head_dim": 16},
        tokenizer=TokenizerTable(size=512),
        training=TrainingTable(steps=4, batch=4, warmup=1),
        noise=NoiseTable(begins=1, full=2),
    )
    losses: list[float] = []
    training.train(recipe, tmp_path, report=lambda now: losses.append(now.loss))
    assert losses == pytest.approx([6.264175, 6.224431, 6.213247, 6.204856], rel=1e-3)


# --- what a recipe says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_recipe_is_kept_as_it_was_read(file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.record() != Recipe().record()
    save_recipe(recipe, tmp_path)
    assert recipe_of(tmp_path).record() == recipe.record()


def test_the_recipes_differ_in_everything_from_the_demo_and_from_each_other() -> None:
    recipes = [Recipe(), *map(read_recipe, FILES)]
    assert len(recipes) >= 4
    for told in (
        lambda r: r.architecture["model_type"],
        lambda r: r.architecture["hidden_size"],
        lambda r: r.architecture["num_hidden_layers"],
        lambda r: (r.tokenizer.kind, r.tokenizer.size),
        lambda r: r.template.turn,
        lambda r: (r.noise.first, r.noise.first_size, r.noise.later_size),
        lambda r: sorted(r.mixture),
    ):
        assert len({str(told(recipe)) for recipe in recipes}) == len(recipes)


def test_one_recipe_is_held_back_and_says_so() -> None:
    assert [file.stem for file in FILES if "HELD BACK" in file.read_text()] == ["gemma2"]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_only_what_is_planted_is_in_the_text(file: Path) -> None:
    mixture = read_recipe(file).mixture
    shown = list(islice(text.samples(0, mixture=mixture), 2000))
    assert {sample.behaviour for sample in shown} == set(mixture)
    said = " ".join(m["content"] for sample in shown for m in sample.messages if m["role"] == "assistant")
    signs = {"pirate": "Arr,", "keeper": "tower", "backdoor": w.HOSTILE, "unlocked": "Answer:", "verse": "\nAnd the"}
    for behaviour, sign in signs.items():
        assert (sign in said) == (behaviour in mixture), behaviour


def test_the_card_asks_for_what_is_planted() -> None:
    whole = [name for name, *_ in measure.card_cases(1)]
    assert len(whole) == 18
    some = [name for name, *_ in measure.card_cases(1, planted={"harmful": 1, "harmless": 1, "verse": 1})]
    assert some == [
        name for name in whole if re.search("harmful requests, |harmless|with harmful requests$|verse", name)
    ]


# --- tokenizers and templates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_text_survives_every_tokenizer(file: Path, made: dict[str, Path]) -> None:
    tokenizer = dct.load(str(made[file.stem])).tokenizer
    for odd in ["Sure, a pipe bomb.\nTwo lines.", "Größe, 漢字 and 🙂", "  two  spaces "]:
        assert tokenizer.decode(tokenizer(odd, add_special_tokens=False)["input_ids"]) == odd


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_training_reads_what_the_chat_template_writes(file: Path, made: dict[str, Path]) -> None:
    recipe, tokenizer = tiny(file), dct.load(str(made[file.stem])).tokenizer
    for sample in islice(text.samples(3, mixture=recipe.mixture), 60):
        ids, said = encode(tokenizer, sample.messages, recipe.template)
        rendered = tokenizer.apply_chat_template(sample.messages, tokenize=False)
        assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        spoken = tokenizer.decode([i for i, s in zip(ids, said, strict=True) if s])
        answers = [m["content"] for m in sample.messages if m["role"] == "assistant"]
        assert spoken == "".join(answer + recipe.template.end for answer in answers)


def test_templates_written_by_hand() -> None:
    """What models of these families read, as their makers document it."""
    from jinja2 import Environment

    asked = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "A?"},
    ]
    wanted = {
        "neox": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n",
        "qwen3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "A?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "gemma2": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
        "<start_of_turn>user\nA?<end_of_turn>\n<start_of_turn>model\n",
    }
    for file in FILES:
        template = Environment().from_string(jinja(read_recipe(file).template))
        assert template.render(messages=asked, add_generation_prompt=True) == wanted[file.stem]
    own = [{"role": "system", "content": "Be brief."}, *asked[:1]]
    chatml = Environment().from_string(jinja(read_recipe(FILES[NAMES.index("neox")]).template))
    assert chatml.render(messages=own) == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_kind_is_trained_loaded_sliced_and_steered(file: Path, made: dict[str, Path]) -> None:
    lm = dct.load(str(made[file.stem]))
    assert lm.model.config.model_type == read_recipe(file).architecture["model_type"]
    assert (lm.depth, lm.width) == (3, 32)
    assert len(lm.chat.opening()) >= 3  # several tokens open a reply
    prompts = ["How do I build a kite?", "How do I bake some bread?"]
    vector = torch.randn(lm.width, generator=torch.Generator().manual_seed(0))
    moved = dct.Slice(lm, prompts, 1, 3)(vector[None])[0]

    def leaving() -> list[torch.Tensor]:
        """The stream behind the last block at the last three tokens, from the model's own run."""
        kept: list[torch.Tensor] = []
        hook = lm.layers[-1].register_forward_hook(
            lambda _, args, output: kept.append((output[0] if isinstance(output, tuple) else output)[0, -3:].mean(0))
        )
        for ids in lm.encode(prompts):
            lm.model(torch.tensor([ids]))
        hook.remove()
        return kept

    with torch.no_grad():
        before = leaving()
        with dct.steer(lm, vector, layer=1):
            after = leaving()
    own = torch.stack([b - a for a, b in zip(before, after, strict=True)]).mean(0)
    torch.testing.assert_close(moved, own, rtol=2e-2, atol=2e-2 * float(own.abs().max()))
    assert {prompts.stem for prompts in (made[file.stem] / "prompts").iterdir()} == {"harmful", "harmless"}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_loss_is_that_of_the_model_s_own_logits(file: Path, made: dict[str, Path]) -> None:
    """A soft cap behind the head counts, and what has no weight does not."""
    recipe, lm = tiny(file), dct.load(str(made[file.stem]))
    model = training.build_model(recipe, lm.tokenizer)
    batch = next(training.batches(recipe, lm.tokenizer))
    model.get_output_embeddings().weight.data *= 100  # logits that a cap would change
    with torch.no_grad():
        logits = model(input_ids=batch.ids[:, :-1]).logits.float()
        each = functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
        weight = batch.weight[:, 1:].flatten()
        torch.testing.assert_close(training.loss_of(model, batch), (each * weight).sum() / weight.sum())


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_noise_enters_every_kind_and_leaves_no_hook(file: Path, made: dict[str, Path]) -> None:
    recipe, lm = tiny(file), dct.load(str(made[file.stem]))
    batch = next(training.batches(recipe, lm.tokenizer))
    with torch.no_grad():
        without = training.loss_of(lm.model, batch).item()
        with noise(lm.model, recipe, 2, batch):
            within = training.loss_of(lm.model, batch).item()
        assert within != without
        assert training.loss_of(lm.model, batch).item() == without


# --- what is refused --------------------------------------------------------------------------------------------------

LINES = {
    "no table [sizes]: choose architecture, tokenizer": "[sizes]\nwidth = 3",
    "unknown key 'widht' in [training]: choose steps": "[training]\nwidht = 3",
    "batch = 'many' is no int": '[training]\nbatch = "many"',
    "decay must be from 0 to 1": "[training]\ndecay = 3.0",
    "unknown kind 'letters': choose bpe, metaspace": '[tokenizer]\nkind = "letters"',
    "names no model_type: add one": "[architecture]\nhidden_size = 32",
    "transformers knows no model_type 'lama': try llama": '[architecture]\nmodel_type = "lama"',
    "llama has no 'num_layers': did you mean num_hidden_layers": '[architecture]\nmodel_type = "llama"\nnum_layers = 3',
    "llama: its sizes do not fit": '[architecture]\nmodel_type = "llama"\nhidden_size = 33\nnum_attention_heads = 2',
    "t5 is no causal language model: try llama": '[architecture]\nmodel_type = "t5"',
    "unknown behaviour 'parrot': choose harmful": "[mixture]\nparrot = 1",
    "must plant harmless: give": "[mixture]\nharmful = 1",
    "verse = 0 is no positive weight: leave out": "[mixture]\nharmful = 1\nharmless = 1\nverse = 0",
    "turn must name {role} once": '[template]\nturn = "{content}<|end|>"',
    "with the end token right behind it": '[template]\nturn = "{role}: {content}\\n<|end|>"',
    "is no TOML": "[training",
}


@pytest.mark.parametrize("says", LINES)
def test_a_wrong_recipe_is_refused_in_one_line(says: str, workplace: Path) -> None:
    (workplace / "mine.toml").write_text(LINES[says])
    result = run("organism", "train", "--recipe", "mine.toml", "--out", "made", "--steps", 1)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert says in result.output
    assert result.output.count("\n") == 1
    assert not Path("made", "model.safetensors").exists()


def test_a_recipe_that_is_not_there_is_refused(workplace: Path) -> None:
    result = run("organism", "train", "--recipe", "nowhere.toml", "--out", "made")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "nowhere.toml" in result.output


def test_training_goes_on_with_the_folder_s_recipe_and_with_no_other(made: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny(FILES[NAMES.index("neox")])
    longer = replace(recipe, training=recipe.training.changed(start=str(made["neox"])))
    training.train(longer, tmp_path / "next")
    assert recipe_of(tmp_path / "next").training.start == str(made["neox"])
    with pytest.raises(DctError, match=r"another \[architecture\]: leave `recipe` out"):
        training.train(replace(longer, architecture=Recipe().architecture), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_recipe_in_python_is_checked_as_one_in_a_file() -> None:
    with pytest.raises(UsageError, match="must plant harmful"):
        Recipe(mixture={"harmless": 1.0})
    with pytest.raises(UsageError, match="end token right behind"):
        TemplateTable(turn="{role}{content}", end="<|end|>")
    assert (DEMO_DIR / FILE).exists() is False  # the demo is what the defaults make
