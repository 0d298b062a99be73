"""What a model does by its own account: its forward pass under plain hooks. Nothing here asks `dct`.

A model's blocks are the list of modules that its forward pass runs through once, in order, each taking what the one
before gave. Streams, steered or not, gradients and what every block writes are read off by hooks on these.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


class NoChain(Exception):
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

    @torch.no_grad()
    def points(self) -> list["Point"]:
        """Modules inside the blocks that take the stream between one addition and the next: what they take is what
        the block took, or what such a one took, plus a multiple of what some module gave; and the ends of the blocks.

        Some blocks scale their stream channel by channel before they add to it; that gain is known then.
        """
        found = []
        for index, block in enumerate(self.blocks):
            takes: dict[str, Tensor] = {}
            gives: dict[str, Tensor] = {}
            entering, leaving = self._watched(block, takes, gives)
            bases = {"": entering}
            given = torch.stack([y.double() for y in gives.values()])
            for _ in range(3):
                for name, x in takes.items():
                    if name in bases or any(torch.equal(x, base) for base in bases.values()):
                        continue
                    step = _added(x, bases, given)
                    if step is not None:
                        found.append(Point(index, name, *step))
                        bases[name] = x
            step = _added(leaving, bases, given) or ("", torch.ones(leaving.shape[-1], dtype=torch.float64))
            found.append(Point(index, "", *step))
        return found

    def _watched(self, block: nn.Module, takes: dict[str, Tensor], gives: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What enters a block and leaves it; what its modules take and give, where it has the stream's shape."""
        ends: list[Tensor] = []
        with ExitStack() as stack:
            for name, module in block.named_modules():

                def watch(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                    x, y = given_to(args, kwargs), first_of(output)
                    if not name:
                        ends.extend((x, y))
                    else:
                        if isinstance(x, Tensor):
                            takes[name] = x.clone()
                        if isinstance(y, Tensor):
                            gives[name] = y.clone()

                stack.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
            run(self.model, IDS[0])
        shape = ends[0].shape
        for seen in (takes, gives):
            for name in list(seen):
                if seen[name].numel() == ends[0].numel() and seen[name].shape[-1] == shape[-1]:
                    seen[name] = seen[name].reshape(shape)
                else:
                    del seen[name]
        return ends[0], ends[1].reshape(shape)

    @torch.no_grad()
    def written(self, D: Tensor, points: Sequence["Point"]) -> dict[str, float]:
        """The largest component along rows of D of what is written before each point, since the one it is based on."""
        largest: dict[str, float] = {}
        streams: dict[tuple[int, str], Tensor] = {}

        def enter(index: int) -> Any:
            def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
                streams[index, ""] = given_to(args, kwargs)[0].double()

            return hook

        def measure(point: Point, stream: Tensor) -> None:
            before = streams[point.block, point.base]
            here = stream.double().reshape(before.shape)
            if point.name:
                streams[point.block, point.name] = here
            along = float(((here - point.gain * before) @ D.double().T).abs().max())
            largest[str(point)] = max(largest.get(str(point), 0.0), along)

        with ExitStack() as stack:
            for index, block in enumerate(self.blocks):
                stack.callback(block.register_forward_pre_hook(enter(index), with_kwargs=True).remove)
            for point in points:
                block = self.blocks[point.block]
                if point.name:

                    def inside(_: nn.Module, args: Any, kwargs: Any, point: Point = point) -> None:
                        measure(point, given_to(args, kwargs))

                    module = block.get_submodule(point.name)
                    stack.callback(module.register_forward_pre_hook(inside, with_kwargs=True).remove)
                else:

                    def end(_: nn.Module, args: Any, output: Any, point: Point = point) -> None:
                        measure(point, first_of(output))

                    stack.callback(block.register_forward_hook(end).remove)
            for ids in IDS:
                run(self.model, ids)
        return largest


@dataclass(frozen=True)
class Point:
    """A place in a block where its stream can be seen.

    Attributes:
        block: which.
        name: the module that takes the stream there; empty for the end of the block.
        base: the point that something was added to on the way there; empty for the beginning of the block.
        gain: what the block multiplied its stream with on the way, channel by channel; mostly 1.
    """

    block: int
    name: str
    base: str
    gain: Tensor

    def __str__(self) -> str:
        return f"{self.block}.{self.name}" if self.name else str(self.block)


def _added(x: Tensor, bases: dict[str, Tensor], given: Tensor) -> tuple[str, Tensor] | None:
    """The base that x is, as it is or scaled channel by channel, with something given added, scaled in the same way;
    and that gain. None where there is no such."""
    for name, base in bases.items():
        if _multiple(x - base, given):
            return name, torch.ones(x.shape[-1], dtype=torch.float64)
    x = x.double()[0]
    for name, base in bases.items():
        for y in given[:, 0]:
            # Two unknowns for each channel, as many equations as tokens.
            pair = torch.stack([base.double()[0], y], dim=-1).transpose(0, 1)
            solved = torch.linalg.lstsq(pair, x.T[:, :, None]).solution
            left = (pair @ solved)[..., 0].T - x
            scales, adds = solved[:, 0, 0], solved[:, 1, 0]
            both = bool(adds.abs().max() > 1e-3) and bool(scales.abs().min() > 1e-2)
            if both and bool(left.norm() <= 1e-5 * (x - base.double()[0]).norm()):
                return name, scales
    return None


def _multiple(x: Tensor, given: Tensor) -> bool:
    """Whether x is a multiple, not nearly 0, of one of the rows."""
    x = x.flatten().double()
    given = given.flatten(1)
    c = (given @ x) / given.square().sum(1).clamp_min(1e-30)
    left = (x - c[:, None] * given).norm(dim=1)
    return bool(((c.abs() > 1e-3) & (left <= 1e-5 * x.norm())).any())


class Double(TorchFunctionMode):
    """Keeps float64 where a model casts to float32, so that differences of its values mean something."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
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
