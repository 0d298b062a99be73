"""Completions: prompts times steering vectors, in batches, by the model's own `generate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from dct import compat
from dct.batching import in_batches
from dct.errors import DctError
from dct.model import LanguageModel
from dct.perturbation import Site
from dct.steering import steer
from dct.thinning import Rows, thinned, thins

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
        """Called by `generate`: first with the prompts, then with one new token for every row."""
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
        """Called by `generate` once all rows are done; there is nothing left to hand over."""


def end_ids(lm: LanguageModel) -> set[int]:
    """Tokens that end a completion."""
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return {int(e) for e in [*ends, lm.tokenizer.eos_token_id] if e is not None}


def complete(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    vectors: Float[Tensor, "rows width"] | Float[Tensor, "rows positions width"] | None = None,
    layer: Site = 0,
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
        vectors: what is added to hidden_states[layer] for each row, R v; zeros leave a row unsteered. With a third
            axis, one for each position of a row (see `steer`).
        layer: the steered site: a layer, or the changes of a band that `vectors` then are.
        tokens: what is steered: `all`, `prompt` or `generated`.
        temperature: 0 is greedy.
        batch: rows generated together; halved when memory runs out.
        on_token: for streaming.

    Raises:
        DctError: not one vector for each prompt; out of memory with a single row; a model that generates in a way of
            its own.
    """
    if vectors is not None and len(vectors) != len(prompts):
        raise DctError(f"{len(vectors)} vectors for {len(prompts)} prompts: give one for each")

    texts: dict[int, str] = {}
    for group in together(lm, prompts):

        def run(start: int, stop: int, group: list[int] = group) -> dict[int, str]:
            """Completions of the prompts start..stop-1 of a group, by where they stand."""
            places = group[start:stop]
            rows = [list(prompts[k]) for k in places]
            chosen = None if vectors is None else vectors[places]
            here = None if on_token is None else _placed(on_token, places)
            said = _generate(lm, rows, chosen, layer, tokens, max_new_tokens, temperature, seed, here)
            return dict(zip(places, said, strict=True))

        parts, _ = in_batches(run, len(group), batch, lm.device, "lower `max_new_tokens`")
        for part in parts:
            texts.update(part)
    return [texts[k] for k in range(len(prompts))]


def _placed(on_token: OnToken, places: list[int]) -> OnToken:
    return lambda row, text: on_token(places[row], text)


def together(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which prompts may be generated together: all of them, or, where padding would change what a model says, those of
    one length."""
    lengths = [len(p) for p in prompts]
    if len(set(lengths)) <= 1 or ignores_padding(lm):
        return [list(range(len(prompts)))]
    return [[k for k, length in enumerate(lengths) if length == one] for one in dict.fromkeys(lengths)]


@torch.no_grad()
def ignores_padding(lm: LanguageModel) -> bool:
    """Whether the model says of a prompt with masked padding before it what it says of the prompt alone; found once,
    on its logits. Recurrent layers and positions that are counted by column do not.
    """
    if lm.ignores_padding is None:
        ids = [(7 * k + 1) % lm.vocabulary for k in range(6)]
        pad, ends = _pad(lm)
        settings = _settings(lm, pad, ends, 2, 0.0)
        settings.update(output_logits=True, return_dict_in_generate=True, min_new_tokens=2)
        seen = []
        for before in (0, 3):
            row = torch.tensor([[pad] * before + ids], device=lm.device)
            mask = torch.tensor([[0] * before + [1] * len(ids)], device=lm.device)
            with _instead(lm, settings):
                out = lm.model.generate(row, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
            seen.append(torch.stack([step[0].float().nan_to_num(0.0, 0.0, 0.0) for step in out.logits]))
        alone, padded = seen
        bound = max(1e-3, 16 * torch.finfo(lm.dtype).eps) * float(alone.abs().max())
        lm.ignores_padding = bool(((alone - padded).abs() <= bound).all())
    return lm.ignores_padding


def _pad(lm: LanguageModel) -> tuple[int, set[int]]:
    """The token that rows are padded with, and those that end a completion."""
    ends = end_ids(lm)
    pad = lm.tokenizer.pad_token_id
    return (pad if pad is not None else min(ends, default=0)), ends


def _settings(lm: LanguageModel, pad: int, ends: set[int], max_new_tokens: int, temperature: float) -> GenerationConfig:
    """Greedy, or drawn from the model's own distribution at a temperature; of the checkpoint's settings only the tokens
    that begin, pad and end a text are taken. Penalties, forced or forbidden words, beams, shortlists and the like would
    make another model's answers of it.
    """
    draws: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        bos_token_id=getattr(lm.model.generation_config, "bos_token_id", None),
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        num_beams=1,
        use_cache=True,
        return_dict_in_generate=True,
        **draws if temperature > 0 else {"do_sample": False},
    )


@contextmanager
def _instead(lm: LanguageModel, settings: GenerationConfig) -> Iterator[None]:
    """Puts settings in the place of the checkpoint's own while the context lasts: `generate` fills in from those
    whatever it is not given."""
    own = lm.model.generation_config
    lm.model.generation_config = settings
    try:
        yield
    finally:
        lm.model.generation_config = own


@contextmanager
def _contiguous_head(lm: LanguageModel) -> Iterator[None]:
    """Hands the head contiguous rows while the context lasts.

    `generate` reads the last column of the prompts' streams, a strided view. Under weights that need no gradient torch
    does not fold its rows into one product: it takes one for each row, in bfloat16 with a copy of the head for each.
    """
    head = lm.model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]) if args else None)
    try:
        yield
    finally:
        handle.remove()


def _generate(
    lm: LanguageModel,
    rows: list[list[int]],
    vectors: Tensor | None,
    layer: Site,
    tokens: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    on_token: OnToken | None,
) -> list[str]:
    pad, ends = _pad(lm)
    if temperature > 0:
        torch.manual_seed(seed)
    watched = {} if on_token is None else {"streamer": _Streamer(lm, len(rows), on_token)}
    settings = _settings(lm, pad, ends, max_new_tokens, temperature)
    out = _passed(lm, rows, vectors, layer, tokens, settings, **watched)
    texts = []
    for row in out.tolist():
        stop = next((k for k, token in enumerate(row) if token in ends), len(row))
        texts.append(lm.decode(row[:stop]))
    return texts


def go_on(
    lm: LanguageModel,
    rows: list[list[int]],
    vectors: Float[Tensor, "rows width"] | None,
    layer: Site,
    max_new_tokens: int,
    **hooks: Any,
) -> None:
    """Goes on with every row in one greedy pass, for whoever watches it.

    Args:
        rows: token ids of prompts that may be generated `together`.
        vectors: as in `complete`.
        hooks: of transformers' `generate`: logits_processor, stopping_criteria.

    Raises:
        DctError: a model that generates in a way of its own.
    """
    pad, ends = _pad(lm)
    _passed(lm, rows, vectors, layer, "all", _settings(lm, pad, ends, max_new_tokens, 0.0), **hooks)


@torch.no_grad()
def _passed(
    lm: LanguageModel,
    rows: list[list[int]],
    vectors: Tensor | None,
    layer: Site,
    tokens: str,
    settings: GenerationConfig,
    **hooks: Any,
) -> Tensor:
    """What `generate` puts behind each row, padded where a row ended before others. Rows that have ended are dropped,
    unless somebody watches the rows or draws them."""
    all_rows = _padded(lm, rows, settings.pad_token_id)

    def call(some: Rows, settings: GenerationConfig, criteria: StoppingCriteriaList, **hooks: Any) -> Any:
        """As `Call`, steered."""
        chosen = None if vectors is None else vectors[some.places.to(vectors.device)]
        return _called(lm, some, chosen, layer, tokens, settings, stopping_criteria=criteria, **hooks)

    if hooks or settings.do_sample or len(rows) == 1 or not drops_rows(lm):
        out = call(all_rows, settings, hooks.pop("stopping_criteria", StoppingCriteriaList()), **hooks)
        said: Tensor = out.sequences[:, all_rows.ids.shape[1] :]
        return said
    return thinned(call, all_rows, settings, end_ids(lm))


def _padded(lm: LanguageModel, rows: list[list[int]], pad: int) -> Rows:
    """Padding goes to the left, is masked, and is not steered."""
    longest = max(len(r) for r in rows)
    ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows], device=lm.device)
    return Rows(ids, mask, torch.arange(len(rows), device=lm.device))


def _called(
    lm: LanguageModel,
    rows: Rows,
    vectors: Tensor | None,
    layer: Site,
    tokens: str,
    settings: GenerationConfig,
    **hooks: Any,
) -> Any:
    """One call of `generate`, steered."""
    cache = {} if rows.cache is None else {compat.cache_argument(): rows.cache}
    with (
        nullcontext() if vectors is None else steer(lm, vectors, layer, tokens) as steering,
        _instead(lm, settings),
        _contiguous_head(lm),
    ):
        out = lm.model.generate(  # type: ignore[operator]
            rows.ids, attention_mask=rows.mask, generation_config=settings, **cache, **hooks
        )
    # The last token is not read any more; the first of a call that goes on is the last of the call before.
    read = out.sequences.shape[1] - rows.ids.shape[1] - (rows.cache is None)
    if steering is not None and steering.generated != max(0, read):
        raise DctError(
            f"{lm.name} reads what it generates in a way that dct does not follow ({steering.generated} tokens instead "
            f"of {read}): it cannot be steered while it generates"
        )
    return out


def drops_rows(lm: LanguageModel) -> bool:
    """Whether rows may be dropped from a batch while others go on; found once, on the model's logits (see `thins`)."""
    if lm.drops_rows is None:
        pad, ends = _pad(lm)
        settings = _settings(lm, pad, ends, 4, 0.0)
        settings.update(output_logits=True, min_new_tokens=4)
        ids = [(7 * k + 1) % lm.vocabulary for k in range(6)]
        second = ids[2:] if ignores_padding(lm) else ids[::-1]
        two = _padded(lm, [ids, second], pad)

        def call(rows: Rows, settings: GenerationConfig, _: StoppingCriteriaList) -> Any:
            """As `Call`, unsteered."""
            return _called(lm, rows, None, 0, "all", settings)

        lm.drops_rows = thins(call, settings, two.ids, two.mask)
    return lm.drops_rows


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
