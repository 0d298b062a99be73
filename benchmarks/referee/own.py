"""What a model does by its own account: its forward pass under plain hooks. Nothing here asks `dct`.

A model's blocks are the list of modules that its forward pass runs through once, in order, each taking what the one
before gave. Streams, steered or not, gradients and what every block writes are read off by hooks on these.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IDS = [
    [1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47],
    [1, 5, 9, 33, 3, 61, 70],
    [1, 5, 9, 20, 31, 77, 78, 79, 80, 81],
]
"""Prompts of different lengths with a common beginning, all longer than the sliding windows."""

READ = 3
"""Target positions."""


class NoChain(Exception):  # noqa: N818 (a finding, not an error)
    """The model does not run a list of blocks once, in order, each on what the one before gave."""


def given_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The stream that a block was called with."""
    return args[0] if args else kwargs.get("hidden_states")


def first_of(output: Any) -> Any:
    """The stream that a block gave back."""
    return output[0] if isinstance(output, tuple | list) else output


def run(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """The model's logits for one prompt, (tokens, vocabulary)."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def calls_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every member of every list of modules that runs, in the order in which they run."""
    order: list[tuple[str, nn.Module]] = []
    with ExitStack() as stack, torch.no_grad():
        for path, modules in model.named_modules():
            if isinstance(modules, nn.ModuleList):
                for k, module in enumerate(modules):

                    def note(module: nn.Module, args: Any, kwargs: Any, name: str = f"{path}.{k}") -> None:
                        order.append((name, module))

                    stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        run(model, IDS[0])
    return order


def find_blocks(model: nn.Module) -> str:
    """Dotted name of the list of blocks.

    Raises:
        NoChain: there is none; the message says what comes nearest.
    """
    try:
        with torch.no_grad():
            rows = len(run(model, IDS[0]))
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise NoChain(f"it does not run on tokens alone: {type(error).__name__}: {first[:200]}") from error
    if rows != len(IDS[0]):
        raise NoChain(f"it gives logits for {rows} tokens where it reads {len(IDS[0])}")
    order = [name for name, _ in calls_of(model)]
    reasons = []
    for path, modules in sorted(model.named_modules(), key=lambda pair: pair[0].count(".")):
        if not isinstance(modules, nn.ModuleList) or len(modules) < 2:
            continue
        own = [int(name.rsplit(".", 1)[1]) for name in order if name.rsplit(".", 1)[0] == path]
        if not own:
            continue
        if own != list(range(len(modules))):
            reasons.append(f"{path} runs {own}")
            continue
        reason = _broken(model, list(modules))
        if not reason:
            return path
        reasons.append(f"{path}: {reason}")
    raise NoChain("; ".join(reasons) or "no list of blocks runs")


def _broken(model: nn.Module, blocks: list[nn.Module]) -> str:
    """Why these are not a chain; empty where they are one."""
    taken: list[Any] = []
    gave: list[Any] = []
    with ExitStack() as stack, torch.no_grad():
        for block in blocks:
            before = block.register_forward_pre_hook(
                lambda _, args, kwargs: taken.append(given_to(args, kwargs)), with_kwargs=True
            )
            after = block.register_forward_hook(lambda _, args, output: gave.append(first_of(output)))
            stack.callback(before.remove)
            stack.callback(after.remove)
        run(model, IDS[0])
    for k, (x, y) in enumerate(zip(taken, gave, strict=True)):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return f"block {k} takes or gives no tensor"
        if x.ndim != 3 or x.shape[:2] != (1, len(IDS[0])) or x.shape != y.shape:
            return f"block {k} takes {tuple(x.shape)} and gives {tuple(y.shape)} for {len(IDS[0])} tokens"
        if k and not torch.equal(x, gave[k - 1]):
            return f"block {k} takes something else than block {k - 1} gives"
    return ""


class Own:
    """A model's own forward pass, steered by a plain hook."""

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model, self.path = model, path
        self.blocks = list(model.get_submodule(path))  # type: ignore[arg-type]

    @contextmanager
    def adding(self, theta: Tensor | None, layer: int, where: Callable[[int], slice] | None = None) -> Iterator[None]:
        """Adds theta to what enters a block, at every token or at those that `where` chooses of so many."""

        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            stream = given_to(args, kwargs)
            change = torch.zeros_like(stream)
            chosen = slice(None) if where is None else where(stream.shape[1])
            change[:, chosen] = 1.0
            steered = stream + change * theta
            return ((steered, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": steered})

        if theta is None:
            yield
            return
        handle = self.blocks[layer].register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def streams(self, ids: Sequence[int], theta: Tensor | None = None, source: int = 0) -> list[Tensor]:
        """What enters each block, (tokens, width), and what leaves the last; theta is added to what enters `source`
        (and is part of it)."""
        seen: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(self.adding(theta, source))
            for block in self.blocks:
                handle = block.register_forward_pre_hook(
                    lambda _, args, kwargs: seen.append(given_to(args, kwargs)[0]), with_kwargs=True
                )
                stack.callback(handle.remove)
            last = self.blocks[-1].register_forward_hook(lambda _, args, output: seen.append(first_of(output)[0]))
            stack.callback(last.remove)
            run(self.model, ids)
        return seen

    def read(self, theta: Tensor | None, source: int, target: int) -> Tensor:
        """hidden_states[target] at the last tokens of every prompt, (prompts * READ, width)."""
        return torch.cat([self.streams(ids, theta, source)[target][-READ:] for ids in IDS])

    def delta(self, theta: Tensor | None, source: int, target: int) -> Tensor:
        """Mean over prompts and positions of what is read; the unsteered mean is not taken off."""
        return self.read(theta, source, target).mean(0)

    def greedy(
        self, ids: Sequence[int], ends: set[int], new: int, theta: Tensor | None, layer: int, tokens: str
    ) -> tuple[list[int], float]:
        """Tokens by the model's own forward pass without a cache, and the least margin of a first over a second."""
        chosen: dict[str, Callable[[int], slice]] = {
            "none": lambda n: slice(0, 0),
            "all": lambda n: slice(None),
            "prompt": lambda n: slice(0, len(ids)),
            "generated": lambda n: slice(len(ids), n),
        }
        grown, margin = list(ids), float("inf")
        with torch.no_grad(), self.adding(theta, layer, chosen[tokens]):
            for _ in range(new):
                logits = run(self.model, grown)[-1]
                best = logits.topk(2).values
                margin = min(margin, float((best[0] - best[1]) / logits.abs().max()))
                token = int(logits.argmax())
                if token in ends:
                    break
                grown.append(token)
        return grown[len(ids) :], margin

    def generated(
        self, rows: Sequence[Sequence[int]], ends: set[int], new: int, thetas: Tensor, layer: int, tokens: str
    ) -> list[list[int]]:
        """Tokens by the model's own `generate`, with its cache, of prompts padded on the left."""
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])

        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            stream = given_to(args, kwargs)
            where = torch.ones(stream.shape[:2])
            if stream.shape[1] >= longest:  # the prompt is among what is read
                where[:, :longest] = mask if tokens in ("all", "prompt") else 0.0
                where[:, longest:] *= tokens != "prompt"
            elif tokens == "prompt":
                where[:] = 0.0
            steered = stream + where[..., None] * thetas[:, None]
            return ((steered, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": steered})

        handle = self.blocks[layer].register_forward_pre_hook(add, with_kwargs=True) if tokens != "none" else None
        try:
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=sorted(ends)
            )
        finally:
            if handle is not None:
                handle.remove()
        kept = []
        for row in out[:, longest:].tolist():
            stop = next((k for k, token in enumerate(row) if token in ends), len(row))
            kept.append(row[:stop])
        return kept


class Double(TorchFunctionMode):
    """Keeps float64 where a model casts to float32, so that differences of its values mean something."""

    PRODUCTS = (Tensor.matmul, Tensor.__matmul__, Tensor.bmm, torch.matmul, torch.bmm, torch.nn.functional.linear)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.PRODUCTS and any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
            args = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        wide = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and func is Tensor.float:
            return args[0]
        if wide and func in (Tensor.to, Tensor.type):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if wide and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def slope(f: Callable[[float], Tensor], h: float) -> Tensor:
    """Central difference of fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def curvature(f: Callable[[float], Tensor], h: float) -> Tensor:
    """Second central difference of fourth order."""
    return (16 * (f(h) + f(-h)) - (f(2 * h) + f(-2 * h)) - 30 * f(0.0)) / (12 * h * h)
