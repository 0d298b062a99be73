"""Steering, against the model's own hidden states with the vector added by a hook on the block below."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers
from conftest import CONFIGS, DEPTH, WIDTH
from torch import Tensor

import dct
from dct import DctError, UsageError

IDS = [1, 5, 9, 20, 31, 7, 8, 9, 44]


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request, make_lm) -> dct.LanguageModel:
    return make_lm(request.param)


@pytest.fixture
def llama(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


def vector(seed: int = 0, norm: float = 3.0) -> Tensor:
    drawn = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return norm * drawn / drawn.norm()


def logits(lm: dct.LanguageModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0]


@contextmanager
def by_hand(lm: dct.LanguageModel, theta: Tensor, layer: int) -> Iterator[None]:
    """Adds theta to what the block below `layer` puts out."""

    def add(_, args, output):
        return (output[0] + theta, *output[1:]) if isinstance(output, tuple) else output + theta

    handle = lm.layers[layer - 1].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def assert_close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("layer", [1, DEPTH - 1])
def test_steering_adds_to_hidden_states(lm, layer):
    """All hidden states above the layer and the logits are those of the vector added by hand, none below changes."""
    ids = torch.tensor([IDS])
    with torch.no_grad():
        plain = lm.model(ids, output_hidden_states=True)
        with dct.steer(lm, vector(), layer):
            got = lm.model(ids, output_hidden_states=True)
        with by_hand(lm, vector(), layer):
            wanted = lm.model(ids, output_hidden_states=True)
    for index in range(layer):
        assert torch.equal(got.hidden_states[index], plain.hidden_states[index])
    for index in range(layer + 1, DEPTH + 1):
        assert_close(got.hidden_states[index], wanted.hidden_states[index])
    assert_close(got.logits, wanted.logits)
    assert not torch.allclose(got.logits, plain.logits, atol=0.05)


def test_steering_the_first_block_adds_to_the_embeddings(lm):
    """transformers scales Gemma's embeddings before `inputs_embeds`, so adding there is adding to hidden_states[0]."""
    with torch.no_grad():
        embedded = lm.model.get_input_embeddings()(torch.tensor([IDS]))
        entered = lm.model(torch.tensor([IDS]), output_hidden_states=True).hidden_states[0]
        if not torch.allclose(entered, embedded, rtol=1e-3) and lm.name.startswith("gemma"):
            pytest.skip("this version of transformers scales what it is given for embeddings")
        wanted = lm.model(inputs_embeds=embedded + vector()).logits[0]
    with dct.steer(lm, vector(), 0):
        assert_close(logits(lm, IDS), wanted)


def test_generated_tokens_are_steered_like_the_prompt(lm):
    """Cached generation, token by token, against recomputing everything without a cache."""
    ids, cache = list(IDS), None
    for _ in range(8):  # past the sliding window
        with torch.no_grad(), dct.steer(lm, vector(), 2):
            new = ids if cache is None else ids[-1:]
            out = lm.model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        with by_hand(lm, vector(), 2):
            wanted = logits(lm, ids)[-1]
        assert_close(out.logits[0, -1], wanted)
        ids.append(int(wanted.argmax()))


def entering(lm: dct.LanguageModel, layer: int, ids: Tensor, **options: object) -> Tensor:
    """What the block really takes in, whoever hooked it before."""
    seen = []

    def look(_, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = lm.layers[layer].register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        lm.model(ids, use_cache=False, **options)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_steered(lm, side):
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])
    mask = mask if side == "left" else mask.flip(1)
    ids = torch.tensor([IDS[:8], IDS[1:]]) * mask
    before = entering(lm, 1, ids, attention_mask=mask)
    with dct.steer(lm, vector(), 1):
        change = entering(lm, 1, ids, attention_mask=mask) - before
    assert_close(change, mask[..., None] * vector())


def test_padding_is_not_steered_when_the_mask_comes_by_position(llama):
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    ids = torch.tensor([IDS[:5]]) * mask
    seen = []
    with dct.steer(llama, vector(), 0):
        handle = llama.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        llama.model(ids, mask)
        handle.remove()
    assert_close(seen[0] - llama.model.get_input_embeddings()(ids), mask[..., None] * vector())


def test_no_mask_steers_every_token(llama):
    """A batch after one with padding is not taken for padded."""
    with dct.steer(llama, vector(), 2):
        padded = torch.tensor([[0, 0, *IDS]])
        llama.model(padded, attention_mask=(padded > 0).long())
        got = logits(llama, [5, 6, *IDS])
    with by_hand(llama, vector(), 2):
        assert_close(got, logits(llama, [5, 6, *IDS]))


def test_each_row_has_its_own_vector_and_padding_changes_nothing(lm):
    """A left-padded batch under one vector a row, against each prompt alone under its own."""
    prompts, vectors = [IDS, IDS[:4], [1, 70, 71, 72, 73, 74]], torch.stack([vector(k) for k in range(3)])
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), dct.steer(lm, vectors, 2):
        got = lm.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
    for row, prompt, theta in zip(got, prompts, vectors, strict=True):
        with by_hand(lm, theta, 2):
            assert_close(row, logits(lm, prompt)[-1])


def test_vectors_of_two_contexts_add_up(llama):
    with dct.steer(llama, vector(1), 2), dct.steer(llama, vector(2), 2):
        got = logits(llama, IDS)
    with by_hand(llama, vector(1) + vector(2), 2):
        assert_close(got, logits(llama, IDS))


def test_parameters_are_never_touched(make_lm):
    """Not even GPT-2's biases, which other tools steer by."""
    lm = make_lm("gpt2")
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    with dct.steer(lm, vector(), 2):
        logits(lm, IDS)
        assert all(torch.equal(p, before[name]) for name, p in lm.model.state_dict().items())
    assert all(torch.equal(p, before[name]) for name, p in lm.model.state_dict().items())


def test_model_is_restored(lm):
    before = logits(lm, IDS)
    with dct.steer(lm, vector(), 1):
        logits(lm, IDS)
    assert torch.equal(logits(lm, IDS), before)


def test_model_is_restored_after_an_exception(lm):
    before = logits(lm, IDS)
    with pytest.raises(KeyboardInterrupt), dct.steer(lm, vector(), 1):
        raise KeyboardInterrupt
    assert torch.equal(logits(lm, IDS), before)
    assert not lm.model._forward_pre_hooks
    assert not any(block._forward_pre_hooks for block in lm.layers)


def test_half_precision_adds_in_float32(make_lm):
    """A vector far below bfloat16's spacing must not be rounded before it is added."""
    lm = make_lm("llama", torch.bfloat16)
    theta = vector(norm=1.0) * 1.0037  # bfloat16 cannot hold its entries
    before = entering(lm, 1, torch.tensor([IDS]))
    with dct.steer(lm, theta, 1):
        after = entering(lm, 1, torch.tensor([IDS]))
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (before.float() + theta).bfloat16())


@pytest.mark.parametrize("layer", [-1, DEPTH])
def test_layer_outside_the_model_is_wrong_usage(llama, layer):
    with pytest.raises(UsageError, match=f"0 to {DEPTH - 1}"), dct.steer(llama, vector(), layer):
        pass


@pytest.mark.parametrize("theta", [torch.ones(WIDTH + 1), torch.ones(2, WIDTH - 1), torch.full((WIDTH,), torch.nan)])
def test_unfit_vectors_are_refused(llama, theta):
    with pytest.raises(DctError), dct.steer(llama, theta, 1):
        pass


def test_as_many_vectors_as_rows(llama):
    before = logits(llama, IDS)
    with (
        pytest.raises(DctError, match="2 steering vectors for a batch of 1"),
        dct.steer(llama, torch.ones(2, WIDTH), 1),
    ):
        logits(llama, IDS)
    assert torch.equal(logits(llama, IDS), before)


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_steering_may_be_kept_to_the_prompt_or_to_generated_tokens(lm, tokens):
    """Cached generation, against one uncached pass with the vector added by hand at those columns alone."""
    ids, cache = list(IDS), None
    with torch.no_grad(), dct.steer(lm, vector(), 2, tokens=tokens):
        for token in (40, 41, 42):
            out = lm.model(torch.tensor([ids if cache is None else ids[-1:]]), past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, [*ids, token]
    columns = (torch.arange(len(ids) - 1) < len(IDS)) == (tokens == "prompt")
    with by_hand(lm, columns[:, None] * vector(), 2):
        assert_close(out.logits[0, -1], logits(lm, ids[:-1])[-1])


def test_unknown_tokens_to_steer_are_wrong_usage(llama):
    with pytest.raises(UsageError, match="all"), dct.steer(llama, vector(), 2, tokens="some"):
        pass


def spoken(lm: dct.LanguageModel, ids: list[int], theta: Tensor, layer: int, tokens: str, steps: int) -> list[int]:
    """Greedy tokens by whole forward passes without a cache, the vector added by a plain hook at the tokens meant."""
    text, prompt = list(ids), len(ids)

    def add(_, args, kwargs):
        stream = args[0] if args else kwargs["hidden_states"]
        change = torch.zeros_like(stream)
        chosen = {"all": slice(None), "prompt": slice(0, prompt), "generated": slice(prompt, None)}[tokens]
        change[:, chosen] = theta
        return ((stream + change, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream + change})

    handle = lm.layers[layer].register_forward_pre_hook(add, with_kwargs=True)
    with torch.no_grad():
        for _ in range(steps):
            out = (
                lm.model(torch.tensor([text]), use_cache=False) if lm.name != "gpt1" else lm.model(torch.tensor([text]))
            )
            text.append(int(out.logits[0, -1].argmax()))
    handle.remove()
    return text[prompt:]


@pytest.fixture(scope="module")
def without_cache(tokenizer) -> dct.LanguageModel:
    """GPT-1 has no cache: every step of `generate` hands it the whole text again."""
    config = transformers.OpenAIGPTConfig(n_embd=WIDTH, n_head=4, n_layer=DEPTH, n_positions=64, vocab_size=300)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return dct.LanguageModel(model, tokenizer, "gpt1")


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
def test_what_is_steered_through_generate(lm, tokens):
    """Through transformers' own `generate`, with whatever it calls its cache, against passes without one."""
    words = lm.tokenizer.convert_tokens_to_ids
    wanted = spoken(lm, IDS, vector(norm=8.0), 2, tokens, 5)
    text = dct.complete(lm, [IDS], vector(norm=8.0)[None], 2, tokens=tokens, max_new_tokens=5)[0]
    ends = {lm.tokenizer.eos_token_id, words("</s>")}
    stop = next((k for k, t in enumerate(wanted) if t in ends), len(wanted))
    assert text == lm.decode(wanted[:stop])


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
def test_what_is_steered_without_a_cache(without_cache, tokens):
    wanted = spoken(without_cache, IDS, vector(norm=8.0), 2, tokens, 5)
    text = dct.complete(without_cache, [IDS], vector(norm=8.0)[None], 2, tokens=tokens, max_new_tokens=5)[0]
    stop = next((k for k, t in enumerate(wanted) if t == 2), len(wanted))
    assert text == without_cache.decode(wanted[:stop])


def test_prompts_are_completed_together_only_where_padding_changes_nothing(make_lm, monkeypatch):
    """A model that counts positions by column says something else of a padded prompt: it is given none."""
    lm = make_lm("gpt2")
    prompts = [IDS, IDS[:4], IDS[2:8]]
    together = dct.complete(lm, prompts, max_new_tokens=4)
    assert lm.ignores_padding
    own = lm.model.forward

    def by_column(*args, position_ids=None, **kwargs):
        return own(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", by_column)
    lm.ignores_padding = None
    assert dct.complete(lm, prompts, max_new_tokens=4) == together
    assert lm.ignores_padding is False
