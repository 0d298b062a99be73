"""A model that is not what a slice takes it for is refused, or taken for what it is: never silently wrong.

Each case is a Llama that was made odd in one way, held against its own forward pass with a vector added by a hook.
"""

import types

import pytest
import torch
from conftest import DEPTH, WIDTH
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

import dct
from dct import DctError
from dct.blocks import readout

IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44, 45], [1, 5, 9, 33, 3, 61, 70]]


def by_hand(lm: dct.LanguageModel, theta: Tensor, source: int = 1, target: int = 4) -> Tensor:
    """Delta(theta) of the whole model: the last three tokens of each prompt."""

    def run(ids: list[int], added: Tensor | None) -> Tensor:
        left = []

        def add(block, args, kwargs):
            return ((args[0] + added, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": added})

        def keep(block, args, output):
            left.append(output[0] if isinstance(output, tuple) else output)

        handles = [lm.layers[target - 1].register_forward_hook(keep)]
        if added is not None:
            handles.append(lm.layers[source].register_forward_pre_hook(add, with_kwargs=True))
        with torch.no_grad():
            lm.model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return left[0][0, -3:]

    return torch.stack([(run(ids, theta) - run(ids, None)).mean(0) for ids in IDS]).mean(0)


def theta(seed: int = 0, norm: float = 3.0) -> Tensor:
    drawn = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return norm * drawn / drawn.norm()


def wrap(lm: dct.LanguageModel, forward) -> dct.LanguageModel:
    """Has `forward(own, index, stream, **arguments)` run in place of every block."""
    for index, block in enumerate(lm.layers):
        own = block.forward

        def odd(self, hidden_states, *args, _own=own, _index=index, **kwargs):
            return forward(_own, _index, hidden_states, *args, **kwargs)

        block.forward = types.MethodType(odd, block)
    return lm


def looped(lm: dct.LanguageModel, run) -> dct.LanguageModel:
    """Has `run(blocks, stream, call)` in place of the model's own loop over its blocks."""
    inner = lm.model.model

    def forward(input_ids=None, **_):
        stream = inner.embed_tokens(input_ids)
        places = torch.arange(stream.shape[1])[None]
        call = {
            "attention_mask": None,
            "position_ids": places,
            "position_embeddings": inner.rotary_emb(stream, position_ids=places),
        }
        return BaseModelOutputWithPast(last_hidden_state=inner.norm(run(inner.layers, stream, call)))

    inner.forward = forward
    return lm


def agrees(lm: dct.LanguageModel, slice_: dct.Slice, n: int = 4) -> None:
    rows = torch.stack([theta(k) for k in range(n)])
    wanted = torch.stack([by_hand(lm, row) for row in rows])
    torch.testing.assert_close(slice_(rows), wanted, rtol=1e-4, atol=1e-5)


def test_what_blocks_share_is_steered_too_and_copied_for_every_run(make_lm):
    """Keys and values that later blocks share, as in Gemma-4; in threads side by side, and twice the same."""

    def forward(own, index, stream, *args, shared, **kwargs):
        output = own(stream, *args, **kwargs)
        if index - 1 in shared:
            output = output + torch.tanh(shared[index - 1])
        shared[index] = 0.5 * output
        return output

    def run(blocks, stream, call):
        shared = {}
        for block in blocks:
            stream = block(stream, shared=shared, **call)
        return stream

    lm = looped(wrap(make_lm("llama"), forward), run)
    slice_ = dct.Slice(lm, IDS, 1, 4)
    agrees(lm, slice_, 6)
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 2):
        torch.set_num_threads(n)
        found.append(dct.fit(slice_, slice_.dim, factors=4, iterations=2, scale=2.0, batch=4))
    torch.set_num_threads(threads)
    assert torch.equal(found[1].V, found[2].V)
    torch.testing.assert_close(found[0].V, found[1].V, rtol=1e-4, atol=1e-5)


def test_what_a_block_puts_out_beside_the_stream_reaches_the_next_one_steered(make_lm):
    """As router states and top-k indices do that the next block takes over."""

    def forward(own, index, stream, *args, before=None, **kwargs):
        output = own(stream, *args, **kwargs)
        if before is not None:
            output = output + torch.tanh(before)
        return output, {"next": [0.5 * output]}

    def run(blocks, stream, call):
        beside = {"next": [None]}
        for block in blocks:
            stream, beside = block(stream, before=beside["next"][0], **call)
        return stream

    lm = looped(wrap(make_lm("llama"), forward), run)
    agrees(lm, dct.Slice(lm, IDS, 1, 4))
    left = []
    handle = lm.layers[-1].register_forward_hook(lambda _, args, out: left.append(out[0]))
    with torch.no_grad():
        logits = lm.model(torch.tensor([IDS[0]])).logits[0]
    handle.remove()
    torch.testing.assert_close(readout(lm, left[0][0]), logits, rtol=1e-4, atol=1e-4)


def test_streams_that_skip_blocks_are_steered(make_lm):
    """Block 3 is handed what left block 1, as in networks with skip connections."""

    def forward(own, index, stream, *args, skipped=None, **kwargs):
        output = own(stream, *args, **kwargs)
        return output if skipped is None else output + 0.3 * skipped

    def run(blocks, stream, call):
        kept = []
        for index, block in enumerate(blocks):
            stream = block(stream, skipped=kept[1] if index == 3 else None, **call)
            kept.append(stream)
        return stream

    lm = looped(wrap(make_lm("llama"), forward), run)
    agrees(lm, dct.Slice(lm, IDS, 1, 4))


def test_blocks_that_are_handed_what_the_model_made_of_the_stream_are_refused(make_lm):
    """Right without a vector, wrong with one: what every other check of a slice cannot see."""

    def forward(own, index, stream, *args, made, **kwargs):
        return own(stream, *args, **kwargs) + made

    def run(blocks, stream, call):
        for block in blocks:
            stream = block(stream, made=torch.tanh(stream), **call)
        return stream

    with pytest.raises(DctError, match="run alone under a vector, are off the model's own run by"):
        dct.Slice(looped(wrap(make_lm("llama"), forward), run), IDS, 1, 4)


def test_blocks_that_come_round_again_are_refused(make_lm):
    def run(blocks, stream, call):
        for block in [*blocks, *blocks]:
            stream = block(stream, **call)
        return stream

    lm = looped(make_lm("llama"), run)
    with pytest.raises(DctError, match="more than once"):
        dct.Slice(lm, IDS, 1, 4)
    with pytest.raises(DctError, match="more than once"), dct.steer(lm, theta(), 1):
        lm.model(torch.tensor([IDS[0]]))


def test_a_stream_that_changes_between_blocks_is_refused(make_lm):
    def run(blocks, stream, call):
        for index, block in enumerate(blocks):
            stream = block(1.01 * stream if index == 2 else stream, **call)
        return stream

    with pytest.raises(DctError, match="changes the stream between blocks 1 and 2"):
        dct.Slice(looped(make_lm("llama"), run), IDS, 1, 4)


def test_a_stream_of_another_shape_is_refused(make_lm):
    lm = make_lm("llama")
    lm.model.model.embed_tokens.register_forward_hook(lambda _, args, out: torch.cat([out[:, :1], out], dim=1))
    with pytest.raises(DctError, match=r"stream of shape \(1, 8, 32\)"):
        dct.Slice(lm, IDS[1:], 0, 4)


def test_a_block_that_writes_into_what_it_is_handed_is_refused(make_lm):
    def forward(own, index, stream, *args, position_embeddings, **kwargs):
        if index == 2:
            position_embeddings[0].mul_(1.0)
        return own(stream, *args, position_embeddings=position_embeddings, **kwargs)

    with pytest.raises(DctError, match="block 2 of llama writes into its position_embeddings"):
        dct.Slice(wrap(make_lm("llama"), forward), IDS, 1, 4)


@pytest.mark.parametrize("kind", ["cut", "partial"])
def test_gradients_that_are_not_those_of_the_values_are_refused(make_lm, kind):
    def forward(own, index, stream, *args, **kwargs):
        output = own(stream, *args, **kwargs)
        if index != 2:
            return output
        return output.detach() if kind == "cut" else stream + (output - stream).detach()

    lm = wrap(make_lm("llama"), forward)
    slice_ = dct.Slice(lm, IDS, 1, 4)  # its values are right: it may be steered
    with pytest.raises(DctError, match="gradients through blocks 1 to 3 of llama"):
        dct.fit(slice_, slice_.dim, factors=2, iterations=1, scale=1.0)


def test_experts_that_jump_are_not_taken_for_wrong_gradients(make_lm):
    for seed in range(4):
        lm = make_lm("mixtral", seed=seed)
        slice_ = dct.Slice(lm, IDS, 0, DEPTH)
        dct.fit(slice_, slice_.dim, factors=2, iterations=1, scale=1.0)


def test_arguments_made_for_a_batch_of_one_are_used_row_by_row(make_lm):
    """As BLOOM's alibi, whose first axis is batch times heads."""

    def forward(own, index, stream, *args, once, **kwargs):
        return own(stream, *args, **kwargs) + once.reshape(stream.shape)

    def run(blocks, stream, call):
        n = stream.shape[1]
        once = torch.arange(n * WIDTH, dtype=torch.float32).reshape(n, WIDTH).sin() / 5
        for block in blocks:
            stream = block(stream, once=once, **call)
        return stream

    lm = looped(wrap(make_lm("llama"), forward), run)
    slice_ = dct.Slice(lm, IDS, 1, 4)
    agrees(lm, slice_)
    dct.fit(slice_, slice_.dim, factors=2, iterations=1, scale=1.0)


class _Silu(torch.autograd.Function):
    """An operation as older models write it: without a form that torch.func takes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


class _Gelu(nn.Module):
    def forward(self, x):
        return _Silu.apply(x)


def test_operations_that_torch_func_does_not_take(make_lm):
    """J' u goes by plain autograd, so the exponential fit works; what needs forward mode says so in one line."""
    lm = make_lm("llama")
    plain = dct.Slice(make_lm("llama"), IDS, 1, 4)
    for block in lm.layers:
        block.mlp.act_fn = _Gelu()
    slice_ = dct.Slice(lm, IDS, 1, 4)
    wanted = dct.fit(plain, plain.dim, factors=4, iterations=2, scale=2.0)
    got = dct.fit(slice_, slice_.dim, factors=4, iterations=2, scale=2.0)
    torch.testing.assert_close(got.V, wanted.V, rtol=1e-3, atol=1e-4)
    for method in ("quadratic", "linear-projected"):
        with pytest.raises(DctError, match="no forward-mode derivative"):
            dct.fit(slice_, slice_.dim, method=method, factors=4, iterations=1, scale=2.0)
    with pytest.raises(DctError, match="no forward-mode derivative"):
        dct.calibrate(slice_, slice_.dim)
