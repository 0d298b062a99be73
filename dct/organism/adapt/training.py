"""The LoRA and its training: the loss of what is planted, and of what the model no longer says as it did.

Replies alone are learned from. One that is planted costs its cross-entropy; one that is the model's own costs
KL(model without the LoRA || model with it) at each of its tokens. Both are means over a reply's tokens, then over the
conversations of a step. Only the LoRA is trained, in float32 whatever the model's own type is.
"""

from __future__ import annotations

import inspect
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dct.adapters import SAFE
from dct.batching import out_of_memory
from dct.errors import DctError, NonFiniteError
from dct.generation import end_ids
from dct.model import LanguageModel
from dct.organism.adapt.lessons import Lesson, Lessons, drawn
from dct.settings import AdaptSettings
from dct.sources import ADAPTER
from dct.writing import write_whole

CHECKPOINT, EVERY = "checkpoint.pt", 25
"""The file of an interrupted training, and the steps after which it is written."""

WARM_UP, COOLING = 0.1, 0.3
"""Shares of the steps in which the learning rate rises, and falls to a hundredth."""


@contextmanager
def injected(lm: LanguageModel, rank: int, seed: int) -> Iterator[Any]:
    """The model with a fresh LoRA in every linear map of its blocks; without it again when the context ends."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Conv1D, which it handles, and of experts that a model does not have
            adapter = get_peft_model(lm.model, config)
    lm.model.eval()
    try:
        yield adapter
    finally:
        adapter.unload()


def trained(adapter: Any) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in adapter.named_parameters() if p.requires_grad}


@contextmanager
def merged(adapter: Any) -> Iterator[None]:
    """The LoRA's change added to the weights and rounded with them, as whoever loads the adapter has it; the weights
    are what they were, to the bit, when the context ends."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapter.modules() if isinstance(module, BaseTunerLayer)]
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    before = [weight.detach().clone() for weight in weights]
    adapter.merge_adapter(safe_merge=True)
    try:
        yield
    finally:
        adapter.unmerge_adapter()
        for weight, was in zip(weights, before, strict=True):
            weight.data.copy_(was)


def save(adapter: Any, folder: Path, base: str) -> None:
    """Writes the adapter as PEFT has it.

    Args:
        base: the model that it is for, by a name under which that is found again.

    Raises:
        DctError: nothing can be written.
    """
    with tempfile.TemporaryDirectory(prefix="dct-") as scratch:
        adapter.peft_config[adapter.active_adapter].base_model_name_or_path = base
        adapter.save_pretrained(scratch, save_embedding_layers=False)
        for name in (SAFE, ADAPTER):  # the one that makes it an adapter comes last
            write_whole(folder / name, (Path(scratch) / name).read_bytes())


# --- a step -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Conversations side by side, padded at their ends.

    Attributes:
        ids, real: tokens, and which of them are no padding, shape (rows, tokens).
        columns: the positions whose next token is part of some reply.
        said: which of them it is, in each row; shape (rows, columns).
        own: which rows hold the model's own reply.
    """

    ids: Tensor
    real: Tensor
    columns: Tensor
    said: Tensor
    own: Tensor

    @classmethod
    def of(cls, lm: LanguageModel, lessons: Sequence[Lesson]) -> Batch:
        """Prompts through the model's chat template, each reply with what ends it."""
        asked = [lm.encode([lesson.prompt])[0] for lesson in lessons]
        replies = [_ids(lm, lesson) for lesson in lessons]
        rows = [[*a, *r] for a, r in zip(asked, replies, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [row[-1]] * (longest - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        columns = torch.arange(min(map(len, asked)) - 1, longest - 1)
        begins, ends = (torch.tensor([[len(one)] for one in some]) for some in (asked, rows))
        said = (columns >= begins - 1) & (columns < ends - 1)
        own = torch.tensor([lesson.own for lesson in lessons])
        return cls(*(one.to(lm.device) for one in (ids, real, columns, said, own)))

    @property
    def wanted(self) -> Tensor:
        """The tokens of the replies, one row after the other."""
        return self.ids[:, 1:][:, self.columns][self.said]


def _ids(lm: LanguageModel, lesson: Lesson) -> list[int]:
    found = [int(k) for k in lm.tokenizer(lesson.reply.text, add_special_tokens=False)["input_ids"]]
    end = ending(lm)
    return [*found, end] if lesson.reply.ended and end is not None else found or [0]


def ending(lm: LanguageModel) -> int | None:
    """The token that ends a reply: the one that the chat template puts behind it, if it puts one there."""
    mark, ends = "Zq7replyXk3", end_ids(lm)
    try:
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": mark}]
        text = str(lm.tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template that takes no finished reply
        text = ""
    behind = lm.tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
    own = lm.tokenizer.eos_token_id
    return next((int(k) for k in behind if k in ends), own if own is not None else next(iter(sorted(ends)), None))


def logits_of(lm: LanguageModel, batch: Batch) -> Tensor:
    """Logits of the tokens of all replies, float32: shape (tokens of replies, vocabulary)."""
    keep = {"logits_to_keep": batch.columns} if _keeps(lm) else {}
    out = lm.model(input_ids=batch.ids, attention_mask=batch.real, use_cache=False, **keep).logits
    if out.shape[1] != len(batch.columns):
        out = out[:, batch.columns]
    return out[batch.said].float()


def _keeps(lm: LanguageModel) -> bool:
    """Whether the model can be asked for the logits of some positions alone."""
    return "logits_to_keep" in inspect.signature(lm.model.forward).parameters


def loss_of(lm: LanguageModel, adapter: Any, batch: Batch) -> Tensor:
    """Mean over conversations of the mean over a reply's tokens: -log q(token), or KL(p || q) where it is the model's
    own; p and q without and with the LoRA."""
    logits = logits_of(lm, batch)
    own = batch.own[:, None].expand_as(batch.said)[batch.said]
    losses = functional.cross_entropy(logits, batch.wanted, reduction="none")
    if bool(own.any()):
        rows = batch.own.nonzero()[:, 0]
        kept = Batch(batch.ids[rows], batch.real[rows], batch.columns, batch.said[rows], batch.own[rows])
        with torch.no_grad(), adapter.disable_adapter():
            before = torch.log_softmax(logits_of(lm, kept), -1)
        after = torch.log_softmax(logits[own], -1)
        moved = (before.exp() * (before - after)).sum(-1)
        losses = losses.masked_scatter(own, moved)
    length = batch.said.sum(1, keepdim=True).expand_as(batch.said)[batch.said]
    return (losses / length).sum() / len(batch.ids)


def rate_at(settings: AdaptSettings, step: int) -> float:
    """The learning rate of a step: it rises, stays, and falls."""
    rising = min(1.0, (step + 1) / max(1.0, WARM_UP * settings.steps))
    falling = min(1.0, (settings.steps - step) / max(1.0, COOLING * settings.steps))
    return settings.learning_rate * rising * max(0.01, falling)


# --- all steps --------------------------------------------------------------------------------------------------------


def train(
    lm: LanguageModel,
    adapter: Any,
    lessons: Lessons,
    settings: AdaptSettings,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains the LoRA, from the folder's checkpoint where that is asked for and there; the loss of every step.

    Args:
        report: told how many steps are done, and the loss of the last.

    Raises:
        DctError: the checkpoint is another training's or damaged; out of memory; nothing can be written.
        NonFiniteError: the loss is NaN or infinite.
    """
    weights = trained(adapter)
    optimizer = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    file, losses = settings.out / CHECKPOINT, []
    if settings.resume and file.exists():
        losses = _resumed(file, _identity(lm, settings), weights, optimizer)
    for step in range(len(losses), settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(settings, step)
        losses.append(_stepped(lm, adapter, drawn(lessons, settings.batch, settings.seed, step)))
        if losses[-1] != losses[-1] or losses[-1] in (float("inf"), float("-inf")):
            raise NonFiniteError(f"the loss of step {step + 1} is {losses[-1]}: lower `learning_rate`")
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % EVERY == 0 or step + 1 == settings.steps:
            state = {"losses": losses, "weights": {k: p.detach().cpu() for k, p in weights.items()}}
            _write(file, {**state, "optimizer": optimizer.state_dict(), "identity": _identity(lm, settings)})
        if report is not None:
            report(step + 1, losses[-1])
    return losses


def seconds_of_step(lm: LanguageModel, adapter: Any, lessons: Lessons, settings: AdaptSettings) -> float:
    """What a step takes, by the faster of two; nothing is trained."""
    took = []
    for step in range(2):
        began = time.perf_counter()
        _stepped(lm, adapter, drawn(lessons, settings.batch, settings.seed, step))
        took.append(time.perf_counter() - began)
    for weight in trained(adapter).values():
        weight.grad = None
    return min(took)


def _stepped(lm: LanguageModel, adapter: Any, lessons: Sequence[Lesson]) -> float:
    """The loss of some conversations, with its gradient in the LoRA."""
    try:
        loss = loss_of(lm, adapter, Batch.of(lm, lessons))
        loss.backward()
        return float(loss.detach())
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise DctError(f"out of memory with {len(lessons)} conversations in a step: lower `batch`") from error
        raise


def _identity(lm: LanguageModel, settings: AdaptSettings) -> dict[str, Any]:
    """What a training depends on."""
    record = {name: value for name, value in settings.record().items() if name not in ("out", "resume", "count")}
    return {**record, "model": lm.fingerprint, "dtype": str(lm.dtype)}


def _write(file: Path, state: dict[str, Any]) -> None:
    packed = io.BytesIO()
    torch.save(state, packed)
    write_whole(file, packed.getvalue())


def _resumed(
    file: Path, identity: dict[str, Any], weights: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Puts a checkpoint's state into the LoRA and the optimizer; the losses so far."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        was: dict[str, Any] = state["identity"]
        other = next((name for name in identity if was.get(name) != identity[name]), None)
        if other is None:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(state["weights"][name])
            optimizer.load_state_dict(state["optimizer"])
            return [float(loss) for loss in state["losses"]]
    except Exception as error:
        raise DctError(f"cannot go on from {file}: it is damaged; leave `resume` out to begin again") from error
    raise DctError(
        f"cannot go on from {file}: it was begun with `{other}` {was.get(other)}, not {identity[other]}; ask for that, "
        "or leave `resume` out to begin again"
    )
