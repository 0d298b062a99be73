"""Completions: prompts times steering vectors, in batches, by the model's own `generate`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.batching import in_batches
from dct.errors import DctError
from dct.model import LanguageModel
from dct.steering import steer

OnToken = Callable[[int, str], None]
"""Called with a row of the batch and its completion so far, every time it grows."""


class _Streamer:
    """Collects the token ids of every row while `generate` runs (transformers' own streamers take one row)."""

    def __init__(self, lm: LanguageModel, rows: int, on_token: OnToken) -> None:
        self.lm, self.on_token = lm, on_token
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.stopped = [False] * rows
        self.ends = end_ids(lm)
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if not self.prompt_seen:  # generate first hands over the prompts
            self.prompt_seen = True
            return
        for row, token in enumerate(value.flatten().tolist()):
            if self.stopped[row]:
                continue
            if token in self.ends:
                self.stopped[row] = True
                continue
            self.ids[row].append(token)
            self.on_token(row, self.lm.decode(self.ids[row]))

    def end(self) -> None:
        pass


def end_ids(lm: LanguageModel) -> set[int]:
    """Tokens that end a completion."""
    configured = lm.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {int(e) for e in [*ends, lm.tokenizer.eos_token_id] if e is not None}


def complete(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    vectors: Float[Tensor, "rows width"] | None = None,
    layer: int = 0,
    *,
    tokens: str = "all",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 64,
    on_token: OnToken | None = None,
) -> list[str]:
    """Completions of prompts, each under its own steering vector.

    Args:
        prompts: token ids of each row's prompt (see `LanguageModel.encode`).
        vectors: what is added to hidden_states[layer] for each row, R v; zeros leave a row unsteered.
        layer: the steered site.
        tokens: what is steered: `all`, `prompt` or `generated`.
        temperature: 0 is greedy.
        batch: rows generated together; halved when memory runs out.
        on_token: for streaming.

    Raises:
        DctError: not one vector for each prompt; out of memory with a single row.
    """
    if vectors is not None and len(vectors) != len(prompts):
        raise DctError(f"{len(vectors)} vectors for {len(prompts)} prompts: give one for each")

    def run(start: int, stop: int) -> list[str]:
        rows = [list(p) for p in prompts[start:stop]]
        chosen = None if vectors is None else vectors[start:stop]
        here = None if on_token is None else _shifted(on_token, start)
        return _generate(lm, rows, chosen, layer, tokens, max_new_tokens, temperature, seed, here)

    parts, _ = in_batches(run, len(prompts), batch, lm.device, "lower --max-new-tokens")
    return [text for part in parts for text in part]


def _shifted(on_token: OnToken, first: int) -> OnToken:
    return lambda row, text: on_token(first + row, text)


@torch.no_grad()
def _generate(
    lm: LanguageModel,
    rows: list[list[int]],
    vectors: Tensor | None,
    layer: int,
    tokens: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    on_token: OnToken | None,
) -> list[str]:
    ends = end_ids(lm)
    pad = lm.tokenizer.pad_token_id
    pad = pad if pad is not None else min(ends, default=0)
    longest = max(len(r) for r in rows)
    # Padding goes to the left, is masked, and is not steered.
    ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=lm.device)
    options: dict[str, Any] = {"do_sample": temperature > 0, "pad_token_id": pad, "eos_token_id": sorted(ends) or None}
    options |= {"temperature": temperature} if temperature > 0 else {"temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        torch.manual_seed(seed)
    streamer = None if on_token is None else _Streamer(lm, len(rows), on_token)
    with nullcontext() if vectors is None else steer(lm, vectors, layer, tokens):
        out = lm.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
            **options,
        )
    texts = []
    for row in out[:, longest:].tolist():
        stop = next((k for k, token in enumerate(row) if token in ends), len(row))
        texts.append(lm.decode(row[:stop]))
    return texts


PROBE = 16
"""Tokens after which a completion that has not ended counts as a long one."""


def usual_length(lm: LanguageModel, prompt: Sequence[int], most: int) -> int:
    """Tokens that completions are likely to take, of `most` that they may: a quarter more than the unsteered one of a
    prompt where that is short, half of `most` where it is not, which is right within a factor of two from a quarter on.
    """
    if most <= PROBE:
        return most
    [said] = complete(lm, [prompt], max_new_tokens=PROBE)
    length = len(lm.tokenizer(said, add_special_tokens=False)["input_ids"]) + 1  # the one that ends it
    return max(PROBE, most // 2) if length >= PROBE else length + length // 4 + 1


def completion_bytes(lm: LanguageModel, rows: int, length: int) -> int:
    """Bytes that completing so many rows of so many tokens asks for, prompts included: keys and values of every block,
    and the logits of a step with what is made of them."""
    text = lm.model.config.get_text_config()
    cache = 2 * lm.depth * lm.width * length * lm.dtype.itemsize
    logits = 4 * 4 * int(text.vocab_size)
    return rows * (2 * cache + logits + 16 * 4 * length * lm.width)
