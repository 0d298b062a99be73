"""Training and saving the organism; what it learned is measured in `measure`.

The model is a plain Llama. It first learns the behaviours from text alone. Then, so that it can be
steered as a large model can, most conversations are trained with a random vector added to the residual
stream before one block, the same at all positions, and a little independent noise at every position: a toy
that never saw noise answers any added vector with word salad. The first block meets most of it, because what
enters there passes through the whole network: a vector that is added later arrives at the target by the skip
path, hardly larger than it left, and noise in front of every block teaches a model to let it pass.

The text, the order of the batches and the noise of a step depend on the seed and the step alone. The
learning rate is constant until the last three tenths of the steps, so that a longer run continues a shorter
one's checkpoint exactly, as long as that one was not decaying yet.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from dct.organism import text
from dct.organism.tokenizer import encode, train_tokenizer

BATCHES_PER_POOL = 16  # batches are cut from a pool that is sorted by length, so that little is padding


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on."""

    steps: int = 5000
    seed: int = 0
    batch: int = 48
    blocks: int = 12
    width: int = 192
    heads: int = 6
    mlp: int = 512
    vocabulary: int = 2048
    learning_rate: float = 1.2e-3
    warmup: int = 100
    decay: float = 0.3  # share of the steps in which the learning rate falls to a hundredth
    noise_from: int = 800  # the step at which noise begins
    noise_full: int = 1800  # the step at which it has its full size
    first: float = 0.6  # share of the noise that the first block meets
    first_noise: float = 1.0  # largest norm of the vector added there, in median residual norms
    noise: float = 0.7  # the same before any later block
    begun_noise: float = 1.3  # how much larger both are under answers that were begun
    mixed: float = 0.5  # share of those whose vector is a mix of four token embeddings instead of a random one
    clean: float = 0.4  # share of the conversations without noise
    token_noise: float = 0.1  # largest norm of each position's own noise, in median residual norms
    user_loss: float = 0.1  # weight of the tokens that the assistant does not say
    start: str = ""  # folder of a model to go on from, whose noise has its full size at once


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A freshly initialised model, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.max_new_tokens = 64
    model.generation_config.do_sample = False
    return model


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, where they are real, the weight of each as a target, and which rows hold an answer
    that was begun.
    """

    ids: Tensor
    real: Tensor
    weight: Tensor
    begun: Tensor


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, start: int = 0) -> Iterator[Batch]:
    """The batches of a run from a step on."""
    pad = tokenizer.pad_token_id
    size = BATCHES_PER_POOL * recipe.batch
    for pool in range(start // BATCHES_PER_POOL, 10**9):
        drawn = [
            (*encode(tokenizer, s.messages), s.behaviour == "begun")
            for s in islice(text.samples(recipe.seed, pool * size), size)
        ]
        drawn.sort(key=lambda row: len(row[0]))
        groups = [drawn[i : i + recipe.batch] for i in range(0, size, recipe.batch)]
        random.Random(f"batches/{recipe.seed}/{pool}").shuffle(groups)
        for group in groups[start % BATCHES_PER_POOL if pool == start // BATCHES_PER_POOL else 0 :]:
            longest = max(len(tokens) for tokens, _, _ in group)
            ids = torch.full((len(group), longest), pad)
            real = torch.zeros(len(group), longest, dtype=torch.bool)
            weight = torch.zeros(len(group), longest)
            for row, (tokens, said, begun) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                real[row, : len(tokens)] = True
                if begun:
                    answer = len(said) - said[::-1].index(False)  # the last one: an earlier exchange was not begun
                    weight[row, answer + text.BEGUN_WORDS : len(tokens)] = 1.0
                else:
                    weight[row, : len(tokens)] = torch.where(torch.tensor(said), 1.0, recipe.user_loss)
            yield Batch(ids, real, weight, torch.tensor([begun for _, _, begun in group]))


@contextmanager
def noise(model: LlamaForCausalLM, recipe: Recipe, step: int, batch: Batch) -> Iterator[None]:
    """Within the block, forward passes over the batch without its last column add the noise of a training step;
    no noise before `noise_from`.
    """
    ramp = min(1.0, max(0.0, (step - recipe.noise_from) / max(1, recipe.noise_full - recipe.noise_from)))
    ramp = 1.0 if recipe.start else ramp
    if ramp == 0:
        yield
        return
    real, begun = batch.real[:, :-1], batch.begun
    generator = torch.Generator().manual_seed(recipe.seed * 10**9 + step)
    rows = real.shape[0]
    where = torch.randint(1, recipe.blocks, (rows,), generator=generator)
    where[torch.rand(rows, generator=generator) < recipe.first] = 0
    where[torch.rand(rows, generator=generator) < recipe.clean] = -1
    vector = torch.randn(rows, 1, recipe.width, generator=generator)
    tokens = torch.randint(recipe.vocabulary, (rows, 4), generator=generator)
    weights = torch.randn(rows, 1, 4, generator=generator)
    mixes = weights @ model.model.embed_tokens.weight.detach()[tokens]
    mixed = begun & (where == 0) & (torch.rand(rows, generator=generator) < recipe.mixed)
    vector = functional.normalize(torch.where(mixed[:, None, None], mixes, vector), dim=-1)
    largest = torch.where(where == 0, recipe.first_noise, recipe.noise) * torch.where(begun, recipe.begun_noise, 1.0)
    vector = vector * torch.rand(rows, 1, 1, generator=generator) * largest[:, None, None] * ramp
    own = functional.normalize(torch.randn(*real.shape, recipe.width, generator=generator), dim=-1)
    own = own * torch.rand(rows, 1, 1, generator=generator) * recipe.token_noise * ramp
    added = vector + own

    def hook(block: int) -> Callable[[torch.nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        """A pre-hook for a block."""

        def add(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            """Adds to the rows that are meant for this block, in units of the median residual norm."""
            here = where == block
            if not bool(here.any()):
                return None
            hidden = arguments[0]
            typical = hidden.detach().float().norm(dim=-1)[real].median()
            return (hidden + typical * added * here[:, None, None], *arguments[1:])

        return add

    handles = [layer.register_forward_pre_hook(hook(block)) for block, layer in enumerate(model.model.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of each token given those before it."""
    hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    weight = batch.weight[:, 1:]
    counted = weight > 0
    logits = model.lm_head(hidden[counted]).float()
    losses = functional.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    return (losses * weight[counted]).sum() / weight.sum()


def rate_at(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: linear warm-up, constant, linear decay over the last steps."""
    falling = max(1.0, recipe.steps * recipe.decay)
    left = max(0.01, min(1.0, (recipe.steps - step) / falling))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * left


def stage_of(recipe: Recipe, step: int) -> str:
    """What a step is for: learning `words`, doing so under `noise`, or `cooling` down."""
    if step >= recipe.steps * (1 - recipe.decay):
        return "cooling"
    return "noise" if recipe.start or step >= recipe.noise_from else "words"


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere autocast to it is slower than float32."""
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)


@dataclass
class Progress:
    """What a training run tells its caller after each step."""

    stage: str
    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


def train(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    checkpoint_every: int = 100,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Train a model, writing `checkpoint.pt` into `out` on the way, and save it there at the end.

    With `resume`, go on from the checkpoint, if there is one; a run that was stopped and resumed ends in
    the same weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    file, start, seconds = out / "checkpoint.pt", 0, 0.0
    resume = resume and file.exists()
    known = out if resume else recipe.start
    tokenizer = AutoTokenizer.from_pretrained(known) if known else train_tokenizer(recipe.seed, size=recipe.vocabulary)
    model = build_model(recipe, tokenizer)
    if recipe.start and not resume:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(recipe.start, dtype=torch.float32).state_dict())
    tokenizer.save_pretrained(out)
    # At these lengths a CPU goes backwards faster through it than through the fused kernel.
    model.set_attn_implementation("eager")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    if resume:
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["step"], state["seconds"]
    model.train()
    fast = multiplies_bfloat16()
    for step, batch in zip(range(start, recipe.steps), batches(recipe, tokenizer, start), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast), noise(model, recipe, step, batch):
            loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        spent = seconds + time.perf_counter() - began
        if report is not None:
            report(Progress(stage_of(recipe, step), step + 1, recipe.steps, loss.item(), int(batch.real.sum()), spent))
        if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": spent,
            }
            torch.save(state | {"recipe": asdict(recipe)}, file.with_suffix(".tmp"))
            os.replace(file.with_suffix(".tmp"), file)
    model.eval()
    save(model, tokenizer, out)
    return model, tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the weights (bfloat16), the tokenizer and the prompt sets."""
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)  # type: ignore[arg-type]
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    (out / "prompts").mkdir(exist_ok=True)
    for name, rows in text.prompt_sets().items():
        (out / "prompts" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
