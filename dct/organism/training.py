"""Training and saving an organism; what it learned is measured in `measure`.

The model first learns the behaviours from text alone, then under noise (see `noise`).

The text, the order of the batches and the noise of a step depend on the seed and the step alone. The
learning rate is constant until the last steps (three tenths of them, in the demo's recipe), so that a longer run
continues a shorter one's checkpoint exactly, as long as that one was not decaying yet.
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dct import compat
from dct.errors import DctError
from dct.organism import text
from dct.organism.architecture import build, configuration
from dct.organism.noise import Batch, noise
from dct.organism.recipe import Recipe, recipe_of, save_recipe
from dct.organism.tokenizer import encode, train_tokenizer

BATCHES_PER_POOL = 16  # batches are cut from a pool that is sorted by length, so that little is padding


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised model, the same for the same seed.

    Raises:
        UsageError: there is no such architecture.
    """
    config = configuration(
        recipe.architecture,
        vocab_size=max(recipe.tokenizer.size, len(tokenizer)),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return build(config, recipe.training.seed)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, start: int = 0) -> Iterator[Batch]:
    """The batches of a run from a step on."""
    pad = tokenizer.pad_token_id
    rows = recipe.training.batch
    size = BATCHES_PER_POOL * rows
    for pool in range(start // BATCHES_PER_POOL, 10**9):
        drawn = [
            (*encode(tokenizer, s.messages, recipe.template), s.behaviour == "begun")
            for s in islice(text.samples(recipe.training.seed, pool * size, recipe.mixture), size)
        ]
        drawn.sort(key=lambda row: len(row[0]))
        groups = [drawn[i : i + rows] for i in range(0, size, rows)]
        random.Random(f"batches/{recipe.training.seed}/{pool}").shuffle(groups)
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
                    weight[row, : len(tokens)] = torch.where(torch.tensor(said), 1.0, recipe.training.user_loss)
            yield Batch(ids, real, weight, torch.tensor([begun for _, _, begun in group]))


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of each token given those before it."""
    weight = batch.weight[:, 1:]
    counted = weight > 0
    # The head meets only what counts; whatever the model does behind it (a soft cap), it does.
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][counted],))
    try:
        logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits.float()
    finally:
        handle.remove()
    losses = functional.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    return (losses * weight[counted]).sum() / weight.sum()


def rate_at(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: linear warm-up, constant, linear decay over the last steps."""
    told = recipe.training
    falling = max(1.0, told.steps * told.decay)
    left = max(0.01, min(1.0, (told.steps - step) / falling))
    return told.learning_rate * min(1.0, (step + 1) / told.warmup) * left


def stage_of(recipe: Recipe, step: int) -> str:
    """What a step is for: learning `words`, doing so under `noise`, or `cooling` down."""
    if step >= recipe.training.steps * (1 - recipe.training.decay):
        return "cooling"
    return "noise" if recipe.training.start or step >= recipe.noise.begins else "words"


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
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train a model, writing `checkpoint.pt` into `out` on the way, and save it there at the end.

    With `resume`, go on from the checkpoint, if there is one; a run that was stopped and resumed ends in
    the same weights.

    Raises:
        DctError: there is no such architecture, or what is to go on is of another one.
    """
    began = time.perf_counter()
    told, file = recipe.training, out / "checkpoint.pt"
    resume = resume and file.exists()
    known = str(out) if resume else told.start
    configuration(recipe.architecture)  # what is wrong with it is said before anything takes time
    if known:
        _fits(recipe, Path(known))
    out.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, out)
    tokenizer = AutoTokenizer.from_pretrained(known) if known else train_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    if told.start and not resume:
        earlier = AutoModelForCausalLM.from_pretrained(told.start, dtype=torch.float32)
        model.load_state_dict(earlier.state_dict())
    tokenizer.save_pretrained(out)
    # At these lengths a CPU goes backwards faster through it than through the fused kernel.
    model.set_attn_implementation("eager")
    optimizer = _optimizer(model, told.learning_rate)
    start, seconds = _restored(file, model, optimizer) if resume else (0, 0.0)
    model.train()
    fast = compat.multiplies_bfloat16()
    for step, batch in zip(range(start, told.steps), batches(recipe, tokenizer, start), strict=False):
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
            report(Progress(stage_of(recipe, step), step + 1, told.steps, loss.item(), int(batch.real.sum()), spent))
        if (step + 1) % checkpoint_every == 0 or step + 1 == told.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1, "seconds": spent}, file.with_suffix(".tmp"))
            os.replace(file.with_suffix(".tmp"), file)
    model.eval()
    save(model, tokenizer, out, recipe)
    return model, tokenizer


def _fits(recipe: Recipe, folder: Path) -> None:
    """Refuses to go on from a model of another recipe."""
    table = recipe.makes_what(recipe_of(folder))
    if table is not None:
        raise DctError(f"{folder} holds a model of another [{table}]: leave `recipe` out, or choose another folder")


def _optimizer(model: PreTrainedModel, rate: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def _restored(file: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Takes up a checkpoint; the steps that were made and the seconds that they took."""
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, recipe: Recipe) -> None:
    """Write the weights (bfloat16), the tokenizer and the prompt sets of what is planted."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]
    rounded.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    (out / "prompts").mkdir(exist_ok=True)
    for name, rows in text.prompt_sets().items():
        if name not in recipe.mixture:
            continue
        (out / "prompts" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
