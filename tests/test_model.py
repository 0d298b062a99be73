"""What is asked of a model before anything is computed: its blocks, its layers, its tokens, its identity."""

import copy
import shutil

import pytest
import torch
from conftest import CONFIGS, DEPTH, VOCABULARY, WIDTH, random_model
from tokenizers import processors

import dct
from dct import DctError, UsageError
from dct.loading import load, resolve
from dct.model import check_layers, default_layers, find_layers


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


@pytest.fixture(scope="module")
def plain(make_lm, tokenizer) -> dct.LanguageModel:
    lm = make_lm("llama")
    lm.tokenizer = copy.deepcopy(tokenizer)
    lm.tokenizer.chat_template = None
    return lm


def text_ids(lm: dct.LanguageModel, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_blocks_are_found_by_their_number(architecture):
    model = random_model(architecture)
    path, layers = find_layers(model)
    assert layers is model.get_submodule(path)
    assert len(layers) == DEPTH
    assert all("Layer" in type(block).__name__ or "Block" in type(block).__name__ for block in layers)


def test_two_lists_of_the_same_length_are_not_guessed_between():
    model = random_model("llama")
    model.model.adapters = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(DEPTH))
    with pytest.raises(DctError, match="2 lists of 5 blocks") as caught:
        find_layers(model)
    assert "model.layers (5)" in str(caught.value)
    assert "model.adapters (5)" in str(caught.value)
    assert find_layers(model, "model.layers")[1] is model.model.layers


def test_no_list_of_the_right_length_names_the_candidates():
    model = random_model("llama")
    del model.model.layers[0]
    with pytest.raises(DctError, match=r"no list of 5 blocks.*`layers`.*model\.layers \(4\)"):
        find_layers(model)


def test_named_override_that_does_not_exist_names_the_candidates():
    with pytest.raises(DctError, match=r"'model\.blocks'.*model\.layers \(5\)"):
        find_layers(random_model("llama"), "model.blocks")


def test_named_override_is_used(tokenizer):
    model = random_model("llama")
    model.model.adapters = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(DEPTH))
    lm = dct.LanguageModel(model, tokenizer, layers_path="model.layers")
    assert lm.layers is model.model.layers


def test_models_known_to_need_others_have_their_own_default_layers():
    assert default_layers(12, "demo") == (0, 8)
    assert default_layers(12, "another") == default_layers(12) == (4, 8)


@pytest.mark.parametrize("depth", range(1, 65))
def test_default_layers_are_a_third_and_ten_blocks_on_or_two_thirds(depth):
    source, target = default_layers(depth)
    check_layers(source, target, depth)
    assert source == depth // 3
    assert target == min(source + 10, depth * 2 // 3) or (depth < 3 and target == source + 1)


@pytest.mark.parametrize(("source", "target"), [(2, 2), (3, 1), (-1, 2)])
def test_layers_out_of_order_are_wrong_usage(source, target):
    with pytest.raises(UsageError):
        check_layers(source, target, DEPTH)


def test_target_may_be_the_depth_and_no_more():
    check_layers(0, DEPTH, DEPTH)
    with pytest.raises(DctError, match="at most 5"):
        check_layers(0, DEPTH + 1, DEPTH)


def test_description_is_what_the_config_says(lm):
    described = lm.describe()
    assert described["blocks"] == DEPTH
    assert described["width"] == WIDTH
    assert described["type"] == "llama"
    assert described["layers"] == "model.layers"
    assert described["dtype"] == "float32"
    assert described["template"] == "chat"
    assert described["parameters"] == sum(p.numel() for p in lm.model.parameters())


def test_model_is_frozen_and_in_evaluation_mode(tokenizer):
    model = random_model("llama").train()
    dct.LanguageModel(model, tokenizer)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_chat_template_up_to_where_the_answer_begins(lm):
    assert lm.render("Hi") == "<s><user>Hi<assistant>"
    assert lm.render("Hi", "Be brief.") == "<s><system>Be brief.<user>Hi<assistant>"
    assert lm.tokens("Hi") == text_ids(lm, "<s><user>Hi<assistant>")
    assert lm.tokens("Hi").count(lm.tokenizer.bos_token_id) == 1


def test_what_opens_a_reply(lm, plain):
    assert lm.opening == text_ids(lm, "<assistant>")
    assert plain.opening == []


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'] }}", "{{ messages[0]['content'] }}{{ '' if add_generation_prompt else '!' }}"],
)
def test_a_template_that_opens_no_reply(lm, tokenizer, template):
    closed = copy.copy(lm)
    closed.tokenizer = copy.deepcopy(tokenizer)
    closed.tokenizer.chat_template = template
    assert closed.opening == []


def test_plain_text_without_a_template(plain):
    assert plain.render("Hi") == "Hi"
    assert plain.render("Hi", "Be brief.") == "Be brief.\n\nHi"
    assert plain.tokens("Hi") == text_ids(plain, "Hi")
    assert plain.describe()["template"] == "plain"


def adding(lm: dct.LanguageModel, template: str) -> dct.LanguageModel:
    """The same model with a tokenizer that puts special tokens around every text."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return dct.LanguageModel(lm.model, tokenizer)


def test_plain_text_gets_the_special_tokens_of_its_tokenizer(plain):
    assert adding(plain, "<s> $A").tokens("Hi") == [1, *text_ids(plain, "Hi")]


def test_chat_text_gets_no_special_tokens_twice(lm):
    assert adding(lm, "<s> $A").tokens("Hi") == text_ids(lm, "<s><user>Hi<assistant>")


def test_a_template_that_takes_no_system_message(lm, make_lm, tokenizer):
    strict = make_lm("llama")
    strict.tokenizer = copy.deepcopy(tokenizer)
    strict.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    assert strict.render("Hi") == "Hi"
    with pytest.raises(DctError, match=r"no system message.*`system`"):
        strict.render("Hi", "Be brief.")


def test_prompts_are_encoded_whole_and_unpadded(lm, prompts):
    rows = lm.encode(prompts)
    assert rows == [text_ids(lm, f"<s><user>{p}<assistant>") for p in prompts]
    assert len({len(row) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no prompts"),
        (["fine", ""], "prompt 2 of 2 is empty"),
        (["  \n"], "prompt 1 of 1 is empty"),
        (["fine", "x" * 300], "prompt 2 has 303 tokens .* reads 256"),
    ],
)
def test_unusable_prompts_are_named(lm, given, message):
    with pytest.raises(DctError, match=message):
        lm.encode(given)


def test_a_prompt_as_long_as_the_context_is_fine(lm):
    assert len(lm.encode(["x" * 253])[0]) == 256


def test_continuation_of_a_chat_is_the_word_right_behind_the_template(lm):
    assert lm.continuation("Sure") == text_ids(lm, "Sure")
    assert lm.continuation("Sure", "Be brief.") == text_ids(lm, "Sure")


def test_continuation_of_plain_text_has_a_space_before_it(plain):
    assert plain.continuation("Sure") == text_ids(plain, " Sure") != text_ids(plain, "Sure")


@pytest.mark.parametrize("template", ["<s> $A", "$A </s>", "<s> $A </s>"])
def test_continuation_has_no_special_tokens(plain, template):
    assert adding(plain, template).continuation("Sure") == text_ids(plain, " Sure")


def test_continuation_when_the_template_ends_inside_a_token(lm, make_lm, tokenizer):
    """A template that ends in "S": "Sure" would merge into it, so the word is tokenised on its own."""
    merged = make_lm("llama")
    merged.tokenizer = copy.deepcopy(tokenizer)
    merged.tokenizer.chat_template = "{{ messages[0]['content'] }}T"
    assert merged.continuation("ell") == text_ids(lm, "ell")  # "T" + "ell" would become "Te", "l", "l"


def test_decoding_leaves_special_tokens_out(lm):
    assert lm.decode([1, 3, *text_ids(lm, "How is Four"), 2]) == "How is Four"


def test_fingerprint_tells_weights_apart(make_lm):
    assert make_lm("llama").fingerprint == make_lm("llama").fingerprint
    assert make_lm("llama").fingerprint != make_lm("llama", seed=1).fingerprint
    assert make_lm("llama").fingerprint != make_lm("qwen2").fingerprint


def test_fingerprint_of_a_folder_does_not_depend_on_the_dtype(model_folder):
    full, half = load(str(model_folder), dtype="float32"), load(str(model_folder), dtype="bfloat16")
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert full.fingerprint == half.fingerprint
    assert full.fingerprint.startswith("sha256:")


def test_fingerprint_of_a_folder_follows_its_weights_and_not_its_place(model_folder, tmp_path, tokenizer):
    copied, other = tmp_path / "copied", tmp_path / "other"
    shutil.copytree(model_folder, copied)
    shutil.copytree(model_folder, other)
    random_model("llama", seed=1).save_pretrained(other)
    prints = [load(str(folder)).fingerprint for folder in (model_folder, copied, other)]
    assert prints[0] == prints[1] != prints[2]


def test_folder_is_loaded_as_it_was_saved(model_folder):
    lm = load(str(model_folder), device="cpu")
    wanted = random_model("llama")
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, wanted(ids).logits)
    assert (lm.dtype, str(lm.device), lm.depth) == (torch.float32, "cpu", DEPTH)
    assert len(lm.tokenizer) == VOCABULARY


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "abacus"}])
def test_unknown_dtype_or_device_is_wrong_usage(model_folder, options):
    with pytest.raises(UsageError, match="unknown `"):
        load(str(model_folder), **options)


def test_damaged_folder(model_folder, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(DctError, match=r"cannot load the model in .*damaged"):
        load(str(folder))


def test_unknown_model(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DctError, match="nobody/nothing"):
        load("nobody/nothing")


def test_aliases_and_other_names():
    assert resolve("qwen") == "Qwen/Qwen1.5-7B-Chat"
    assert resolve("some/model") == "some/model"
