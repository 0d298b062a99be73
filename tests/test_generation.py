"""Completions, against transformers' own `generate` on one prompt at a time and against a loop without a cache."""

import json

import pytest
import torch
from conftest import CONFIGS, VOCABULARY, WIDTH, random_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

import dct
from dct import DctError
from dct.generation import complete, drops_rows, end_ids

# Mixed lengths, so that batches are padded, and longer than the sliding window of 6.
IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44, 45], [1, 5, 66, 67], [1, 80, 81, 82, 83, 84, 85]]
NEW = 10


@pytest.fixture(scope="module")
def numbers() -> PreTrainedTokenizerFast:
    """A tokenizer whose text shows every token: id 17 is the word "t17"."""
    core = Tokenizer(models.WordLevel({f"t{k}": k for k in range(VOCABULARY)}, unk_token="t3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="t0", bos_token="t1", eos_token="t2")


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request, numbers) -> dct.LanguageModel:
    return dct.LanguageModel(random_model(request.param, seed=2), numbers, request.param)


@pytest.fixture
def llama(numbers) -> dct.LanguageModel:
    return dct.LanguageModel(random_model("llama", seed=2), numbers, "llama")


def vectors(rows: int = len(IDS)) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))


def greedy(lm: dct.LanguageModel, ids: list[int], theta: Tensor | None = None, layer: int = 0, new: int = NEW) -> str:
    """Greedy completion without a cache, theta added to the output of the block below by a plain hook."""
    added = []

    def add(_, args, output):
        added.append(1)
        return (output[0] + theta, *output[1:]) if isinstance(output, tuple) else output + theta

    handle = None if theta is None else lm.layers[layer - 1].register_forward_hook(add)
    row = list(ids)
    with torch.no_grad():
        for _ in range(new):
            row.append(int(lm.model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
            if row[-1] == lm.tokenizer.eos_token_id:
                break
    if handle is not None:
        handle.remove()
    return lm.tokenizer.decode(row[len(ids) :], skip_special_tokens=True)


def test_a_batch_of_mixed_lengths_is_one_by_one_generation(lm):
    wanted = []
    for ids in IDS:
        out = lm.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, pad_token_id=0)
        wanted.append(lm.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    assert complete(lm, IDS, max_new_tokens=NEW) == wanted


def test_steered_completions_are_steered_throughout(lm):
    """Each row under its own vector, at padding-free prompt and every generated token."""
    theta = 3 * vectors()
    got = complete(lm, IDS, theta, layer=2, max_new_tokens=NEW)
    assert got == [greedy(lm, ids, v, 2) for ids, v in zip(IDS, theta, strict=True)]
    assert got != complete(lm, IDS, max_new_tokens=NEW)


def test_zero_vectors_leave_rows_unsteered(llama):
    theta = torch.stack([torch.zeros(WIDTH), 5 * vectors()[0], torch.zeros(WIDTH)])
    plain, steered = complete(llama, IDS, max_new_tokens=NEW), complete(llama, IDS, theta, 2, max_new_tokens=NEW)
    assert steered[0] == plain[0]
    assert steered[1] != plain[1]
    assert steered[2] == plain[2]


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batches_keep_rows_and_vectors_together(llama, batch):
    theta = 3 * vectors(5)
    ids = [*IDS, *IDS[:2]]
    wanted = [greedy(llama, row, v, 2) for row, v in zip(ids, theta, strict=True)]
    assert complete(llama, ids, theta, 2, max_new_tokens=NEW, batch=batch) == wanted


def test_running_out_of_memory_halves_the_batch(llama, monkeypatch):
    wanted = complete(llama, IDS, vectors(), 2, max_new_tokens=NEW)
    generate, sizes = llama.model.generate, []

    def small_memory(ids, **options):
        sizes.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(ids, **options)

    monkeypatch.setattr(llama.model, "generate", small_memory)
    assert complete(llama, IDS, vectors(), 2, max_new_tokens=NEW) == wanted
    assert sizes == [3, 1, 1, 1]


def test_running_out_of_memory_with_one_row_is_an_error(llama, monkeypatch):
    def no_memory(*args, **options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(llama.model, "generate", no_memory)
    with pytest.raises(DctError, match="out of memory"):
        complete(llama, IDS[:1])


def test_streaming_ends_with_the_completion(llama):
    seen: dict[int, list[str]] = {}
    texts = complete(
        llama, IDS, vectors(), 2, max_new_tokens=NEW, batch=2, on_token=lambda k, t: seen.setdefault(k, []).append(t)
    )
    assert [seen[k][-1] for k in range(len(IDS))] == texts
    assert texts == complete(llama, IDS, vectors(), 2, max_new_tokens=NEW)
    assert all(len(growing) > 1 for growing in seen.values())


@pytest.fixture
def third_token_ends(llama) -> tuple[dct.LanguageModel, list[int]]:
    """A model for which the third token that it says after the first prompt is an end of sequence."""
    with torch.no_grad():
        out = llama.model.generate(torch.tensor([IDS[0]]), do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    said = out[0, len(IDS[0]) :].tolist()
    assert said[2] not in said[:2]
    llama.model.generation_config.eos_token_id = [2, said[2]]
    return llama, said


def test_completion_stops_before_an_end_token(third_token_ends):
    """Any of the model's end tokens, in one row while the others go on."""
    lm, said = third_token_ends
    seen: dict[int, str] = {}
    texts = complete(lm, IDS, max_new_tokens=NEW, on_token=seen.__setitem__)
    assert texts[0] == lm.tokenizer.decode(said[:2], skip_special_tokens=True)
    assert seen[0] == texts[0]
    assert [len(text.split()) for text in texts] == [2, NEW, NEW]


def test_rows_that_have_ended_are_dropped(lm, monkeypatch):
    """The others go on as if they had been alone, each under its own vector, in a batch that has become thinner."""
    theta = 3 * vectors()
    alone = [greedy(lm, ids, v, 2).split() for ids, v in zip(IDS, theta, strict=True)]
    end = next(word for word in alone[1] if word not in alone[2])  # ends the second row; the third goes on
    wanted = [" ".join(words[: words.index(end)] if end in words else words) for words in alone]
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", int(end[1:]))
    drops_rows(lm)  # tried once, with rows of its own
    rows: list[int] = []
    handle = lm.layers[0].register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    try:
        assert complete(lm, IDS, theta, 2, max_new_tokens=NEW) == wanted
    finally:
        handle.remove()
    assert wanted[1] != wanted[2]
    assert rows[0] == 3 or not lm.ignores_padding
    assert rows[-1] < rows[0] or not lm.drops_rows
    assert lm.drops_rows


def test_a_cache_that_cannot_drop_rows_goes_on_with_all(llama, monkeypatch):
    theta = 3 * vectors()
    wanted = complete(llama, IDS, theta, 2, max_new_tokens=NEW)
    llama.drops_rows = None
    monkeypatch.delattr("transformers.cache_utils.Cache.batch_select_indices")
    assert complete(llama, IDS, theta, 2, max_new_tokens=NEW) == wanted
    assert llama.drops_rows is False


def test_a_cache_that_drops_the_wrong_rows_is_found_out(llama, monkeypatch):
    theta = 3 * vectors()
    wanted = complete(llama, IDS, theta, 2, max_new_tokens=NEW)
    llama.drops_rows = None
    right = DynamicCache.batch_select_indices
    monkeypatch.setattr(
        "transformers.cache_utils.Cache.batch_select_indices", lambda cache, kept: right(cache, kept - 1)
    )
    assert complete(llama, IDS, theta, 2, max_new_tokens=NEW) == wanted
    assert llama.drops_rows is False


def test_end_tokens_are_the_models_and_the_tokenizers(third_token_ends):
    lm, said = third_token_ends
    assert end_ids(lm) == {2, said[2]}
    lm.model.generation_config.eos_token_id = None
    assert end_ids(lm) == {lm.tokenizer.eos_token_id}


def test_number_of_new_tokens(llama):
    assert complete(llama, IDS, max_new_tokens=3) == [greedy(llama, ids, new=3) for ids in IDS]


def test_sampling_is_reproducible_by_seed(llama):
    def drawn(seed: int, temperature: float = 1.0) -> list[str]:
        return complete(llama, IDS, max_new_tokens=NEW, temperature=temperature, seed=seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, 1e-4) == complete(llama, IDS, max_new_tokens=NEW)


def test_model_is_left_unsteered(llama):
    before = complete(llama, IDS, max_new_tokens=NEW)
    complete(llama, IDS, 5 * vectors(), 2, max_new_tokens=NEW)
    assert complete(llama, IDS, max_new_tokens=NEW) == before


def test_the_head_reads_contiguous_rows(llama):
    """A strided view under frozen weights costs a copy of the head for each row (49 s instead of 0.1 s for 64 rows of a
    model of half a billion parameters in bfloat16, and 17 GB)."""
    head, seen = llama.model.get_output_embeddings(), []
    handle = head.register_forward_hook(lambda module, args, out: seen.append(args[0].is_contiguous()))
    complete(llama, IDS[:2], max_new_tokens=3)
    handle.remove()
    assert seen
    assert all(seen)
    assert not head._forward_pre_hooks


def test_one_vector_for_each_prompt(llama):
    with pytest.raises(DctError, match="2 vectors for 3 prompts"):
        complete(llama, IDS, vectors(2))


def test_nothing_to_complete(llama):
    assert complete(llama, []) == []


# --- a checkpoint's own settings --------------------------------------------------------------------------------------

SETTINGS = [
    {"repetition_penalty": 5.0},
    {"no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 3.0},
    {"guidance_scale": 3.0},
    {"num_beams": 4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    {"num_return_sequences": 2, "num_beams": 2},
    {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    {"stop_strings": ["t1", "t2"]},
    {"suppress_tokens": list(range(4, 250))},
    {"begin_suppress_tokens": list(range(4, 250))},
    {"bad_words_ids": [[k] for k in range(4, 250)]},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": 2},
    {"exponential_decay_length_penalty": (1, 3.0)},
    {"min_length": 60},
    {"min_new_tokens": 60},
    {"max_length": 3},
    {"max_time": 1e-6},
    {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.1, "typical_p": 0.2, "min_p": 0.5},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"sequence_bias": [[[9], 100.0]]},
    {"watermarking_config": {"bias": 20.0, "seeding_scheme": "lefthash"}},
    {"prompt_lookup_num_tokens": 3},
    {"use_cache": False},
    {"remove_invalid_values": True, "renormalize_logits": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: next(iter(s)))
def test_greedy_is_greedy_whatever_the_checkpoint_prefers(llama, settings):
    """Against a loop over the model's own forward; steering of the generated tokens alone needs the cache."""
    wanted = [greedy(llama, ids) for ids in IDS]
    theta = 3 * vectors()
    steered = complete(llama, IDS, theta, 2, tokens="prompt", max_new_tokens=NEW)
    own = llama.model.generation_config
    for name, value in settings.items():
        setattr(own, name, value)
    before = own.to_dict()
    assert complete(llama, IDS, max_new_tokens=NEW) == wanted
    assert complete(llama, IDS, theta, 2, tokens="prompt", max_new_tokens=NEW) == steered
    assert llama.model.generation_config is own
    assert own.to_dict() == before


def test_the_checkpoints_settings_come_back_after_an_error(llama, monkeypatch):
    own = llama.model.generation_config

    def broken(*args, **options):
        raise ValueError("broken")

    monkeypatch.setattr(llama.model, "generate", broken)
    with pytest.raises(ValueError, match="broken"):
        complete(llama, IDS)
    assert llama.model.generation_config is own


def test_sampling_is_from_the_whole_distribution(llama):
    """First tokens drawn at temperature 2 follow softmax(logits / 2): transformers' own shortlist of 50 is not taken,
    nor the checkpoint's of one."""
    llama.model.generation_config.top_k = 1
    llama.model.generation_config.top_p = 0.1
    rows = 1000
    said = complete(llama, [IDS[1]] * rows, max_new_tokens=1, temperature=2.0, batch=rows)
    with torch.no_grad():
        wanted = torch.softmax(llama.model(torch.tensor([IDS[1]])).logits[0, -1] / 2, dim=-1)
    got = torch.zeros(VOCABULARY)
    for text in said:
        got[int(text[1:]) if text else 2] += 1 / rows  # special tokens are not written: t0 to t2
    got[:3], wanted[:3] = 0, 0
    assert int((got > 0).sum()) > 100
    assert float((got - wanted).abs().sum()) < 0.5  # sampling noise of 1,000 draws from 300 words


def test_greedy_is_greedy_from_a_folder(llama, tmp_path):
    """The settings as users meet them: in `generation_config.json`."""
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    written = {"repetition_penalty": 4.0, "num_beams": 3, "no_repeat_ngram_size": 1, "eos_token_id": [2, 7]}
    (tmp_path / "generation_config.json").write_text(json.dumps(written))
    lm = dct.load(str(tmp_path), device="cpu")
    assert end_ids(lm) == {2, 7}
    assert complete(lm, IDS, max_new_tokens=NEW) == [greedy(llama, ids) for ids in IDS]
