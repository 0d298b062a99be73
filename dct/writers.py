"""Where a model's residual writers are: the matrices behind everything that its blocks add to the stream.

The one place that knows. Names propose, measuring decides: every block is run once with its stream watched
(`streamwatch`), and a matrix is a writer if taking a direction out of it takes that direction, and nothing else, out of
what is added. So orientation, experts, multipliers and unknown names are found, not assumed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct import compat
from dct.batching import out_of_memory
from dct.calls import Call, Made, fresh, leaves, stream_of
from dct.errors import DctError
from dct.model import LanguageModel
from dct.recording import record
from dct.streamwatch import StreamWatch

OUTPUT_PROJECTIONS = frozenset(
    {"o_proj", "out_proj", "c_proj", "dense", "wo", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "proj_out"}
)
"""What transformers calls the last matrix of an attention or MLP module (or of its experts): tried first."""

TOKENS = 16
"""Tokens that blocks are run on to find their writers."""

LEFT = 1e-3
"""Share of a direction that may be left of an addition whose writers have lost it; more where rounding is coarser."""


@dataclass(frozen=True)
class Writer:
    """A matrix (or a stack of experts' matrices) whose output goes into the residual stream, or a vector that is added.

    Attributes:
        name: dotted name of the parameter inside the model.
        weight: the matrix.
        axis: its output axis: -2 for Linear, (out, in); -1 for Conv1D, transposed experts and vectors, (in, out).
        bias: what is added to its output, if anything.
    """

    name: str
    weight: nn.Parameter
    axis: int
    bias: nn.Parameter | None = None


@dataclass(frozen=True)
class Site:
    """Something that a block adds to its stream.

    Attributes:
        name: dotted name of the module whose output it is, or of the block where it is no module's.
        block: which block.
        module: the module whose output, up to a number, is added; None where there is none.
        writers: the matrices that it is linear in; none where they cannot be told.
        gain: factors, one a channel, that stand between writers and stream (of a norm); None where nothing does.
    """

    name: str
    block: int
    module: nn.Module | None
    writers: list[Writer] = field(default_factory=list)
    gain: Float[Tensor, " width"] | None = None


def residual_writers(lm: LanguageModel) -> list[Writer]:
    """Every matrix that writes into the residual stream: attention and MLP output of every block, and each expert's."""
    return [writer for site in sites(lm) for writer in site.writers]


def sites(lm: LanguageModel) -> list[Site]:
    """What each block adds to the stream, in order; found once for a model.

    Raises:
        DctError: the model is no chain of blocks, or one of them does not add to its stream.
    """
    if lm.sites is None:
        lm.require(range(lm.depth), ends=True)
        lm.sites = list(_sites(lm))
    return lm.sites


@torch.no_grad()
def _sites(lm: LanguageModel) -> Iterator[Site]:
    vocabulary = lm.model.config.get_text_config().vocab_size
    ids = [(7 * k + 1) % vocabulary for k in range(TOKENS)]
    [recording] = record(lm, [ids], 0, lm.depth)
    stream = recording.entering[None]
    made: dict[Made, Tensor] = {}
    memo: dict[int, Any] = {}
    for index, call in enumerate(recording.calls):
        ready = fresh(call, made, memo)
        try:
            yield from _Block(lm, index, stream, ready).sites()
            output = lm.layers[index](stream, **ready)
        except (RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DctError(
                f"block {index} of {lm.name} cannot be run by itself ({first}): it cannot be ablated"
            ) from error
        made |= {Made(index, k): leaf for k, leaf in enumerate(leaves(output)) if isinstance(leaf, Tensor)}
        stream = stream_of(output)


class _Block:
    """One block, run on one stream again and again with parts of its weights changed."""

    def __init__(self, lm: LanguageModel, index: int, stream: Tensor, call: Call) -> None:
        self.lm, self.index, self.block, self.stream, self.call = lm, index, lm.layers[index], stream, call
        self.prefix = f"{lm.layers_path}.{index}"
        self.outputs: dict[str, Tensor] = {}
        self.usual = self._run(keep=True)
        self.left = max(LEFT, 16 * torch.finfo(stream.dtype).eps)
        # What is looked for in an addition is its own leading direction: the surest signal.
        self.probes = [torch.linalg.svd(y, full_matrices=False).Vh[0] for y in self.usual]

    def _run(self, keep: bool = False) -> list[Float[Tensor, "tokens width"]]:
        """What the block adds to its stream, in float32.

        Raises:
            DctError: its output is not its input and additions to it.
        """
        handles = []
        if keep:
            for name, module in self.block.named_modules():
                handles.append(module.register_forward_hook(self._keeps(name)))
        try:
            watch = StreamWatch(self.stream)
            with watch:
                output = stream_of(self.block(self.stream, **fresh(self.call, {}, {})))
        finally:
            for handle in handles:
                handle.remove()
        additions = watch.additions(output)
        if additions is None:
            raise DctError(
                f"cannot tell what block {self.index} of {self.lm.name} adds to its stream: it cannot be ablated"
            )
        wide = torch.promote_types(self.stream.dtype, torch.float32)
        return [a.what.expand_as(self.stream).to(wide).reshape(-1, self.lm.width) for a in additions]

    def _keeps(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            """A forward hook: keeps what a module put out, where it is as large as the stream."""
            made = output[0] if isinstance(output, tuple | list) and output else output
            if name and isinstance(made, Tensor) and made.numel() == self.stream.numel():
                self.outputs.setdefault(name, made.clone())

        return hook

    def sites(self) -> Iterator[Site]:
        """The block's additions with the writers behind them."""
        writers = self._writers()
        for k, y in enumerate(self.usual):
            module = self._module_of(y)
            name = f"{self.prefix}.{module}" if module else self.prefix
            own = None if module is None else self.block.get_submodule(module)
            for gain in self._gains(own):
                behind = writers(k, gain)
                if behind:
                    yield Site(name, self.index, own, behind, gain)
                    break
            else:
                yield Site(name, self.index, own)

    def _module_of(self, y: Float[Tensor, "tokens width"]) -> str | None:
        """The outermost module whose output, times a number, is y."""
        best = None
        for name, made in self.outputs.items():
            o = made.reshape(y.shape).to(y.dtype)
            number = float((o * y).sum() / (o * o).sum().clamp_min(1e-30))
            close = float((y - number * o).norm()) <= self.left * float(y.norm())
            if close and (best is None or name.count(".") < best.count(".")):
                best = name
        return best

    def _gains(self, module: nn.Module | None) -> Iterator[Tensor | None]:
        """Gains that may stand between writers and stream: none, or that of the norm whose output is added."""
        yield None
        if module is None or any(p.ndim > 1 for p in module.parameters()):
            return
        ones = torch.ones(1, 1, self.lm.width, device=self.stream.device, dtype=self.stream.dtype)
        try:
            gain = module(ones)
            odd = torch.allclose(module(-ones), -gain, rtol=1e-3, atol=1e-6)
        except Exception:  # no norm
            return
        if isinstance(gain, Tensor) and odd and float(gain.abs().max()) >= LEFT:
            yield gain.reshape(-1).to("cpu", torch.float64)

    def _writers(self) -> Callable[[int, Tensor | None], list[Writer]]:
        """A function that tells the writers behind addition k, with a gain between them."""
        proposed = _proposed(self.lm, self.index)
        everything = _candidates(self.lm, self.index)

        def behind(k: int, gain: Tensor | None) -> list[Writer]:
            """The writers behind addition k: among those expected first, then among all."""
            probe = self._scaled(self.probes[k], gain)
            for groups in (_grouped(proposed), _grouped(everything)):
                found = self._found(k, probe, groups, gain)
                if found:
                    return found
            return []

        return behind

    def _scaled(self, probe: Tensor, gain: Tensor | None) -> Tensor:
        direction = probe if gain is None else probe * gain.to(probe)
        return direction / direction.norm()

    def _found(self, k: int, probe: Tensor, groups: list[list[Writer]], gain: Tensor | None) -> list[Writer]:
        """The writers among some candidates, if they account for all of addition k."""
        y, aim = self.usual[k], self.probes[k]
        before = float((y @ aim).norm())
        found: list[Writer] = []
        for group in groups:
            if any(w.weight is f.weight for w in group for f in found):
                continue  # by its other axis
            with _without(group, probe):
                after = self._run()[k]
            if float(((after - y) @ aim).norm()) > self.left * before and self._only_along(probe, y, after, gain):
                found += group
        if not found:
            return []
        with _without(found, probe):
            after = self._run()[k]
        return found if float((after @ aim).norm()) <= self.left * before else []

    def _only_along(self, probe: Tensor, before: Tensor, after: Tensor, gain: Tensor | None) -> bool:
        """Whether an addition has changed along the probe and nowhere else, but that a norm may have stretched it."""
        moved = after - before
        if gain is not None:
            g = torch.where(gain.abs() > LEFT, gain, torch.inf).to(moved)
            before, moved = before / g, moved / g
        beside = moved - (moved @ probe)[:, None] * probe
        if gain is not None:
            own = torch.nn.functional.normalize(before - (before @ probe)[:, None] * probe, dim=1)
            beside = beside - (beside * own).sum(1, keepdim=True) * own
        rounding = 16 * torch.finfo(self.stream.dtype).eps * float(before.norm())
        return float(beside.norm()) <= 0.02 * float(moved.norm()) + rounding


def _proposed(lm: LanguageModel, index: int) -> list[Writer]:
    """Matrices of a block that have a writer's name and size."""
    prefix = f"{lm.layers_path}.{index}"
    writers = []
    for path, module in lm.layers[index].named_modules():
        name = f"{prefix}.{path}" if path else prefix
        if path.rpartition(".")[2] in OUTPUT_PROJECTIONS and isinstance(getattr(module, "weight", None), nn.Parameter):
            axis = -1 if compat.is_transposed(module) else -2
            writers.append(Writer(f"{name}.weight", module.weight, axis, getattr(module, "bias", None)))
            continue
        for own, parameter in module.named_parameters(recurse=False):  # fused experts: (experts, out, in)
            if own in OUTPUT_PROJECTIONS and parameter.ndim == 3:
                axis = -1 if compat.is_transposed(module) else -2
                writers.append(Writer(f"{name}.{own}", parameter, axis, getattr(module, f"{own}_bias", None)))
    return [w for w in writers if w.weight.shape[w.axis] == lm.width]


def _candidates(lm: LanguageModel, index: int) -> list[Writer]:
    """Every parameter of a block that could write, by each axis that could be its output."""
    prefix = f"{lm.layers_path}.{index}"
    return [
        Writer(f"{prefix}.{name}", parameter, axis)
        for name, parameter in lm.layers[index].named_parameters()
        for axis in (-2, -1)
        if parameter.ndim >= -axis and parameter.shape[axis] == lm.width
    ]


def _grouped(writers: Sequence[Writer]) -> list[list[Writer]]:
    """Writers that differ in a number alone, such as experts, together: not all of them are at work on a few tokens."""
    groups: dict[Any, list[Writer]] = {}
    for w in writers:
        _, _, own = w.name.partition(".")
        groups.setdefault((re.sub(r"\d+", "#", own), w.axis), []).append(w)
    return list(groups.values())


@contextmanager
def _without(writers: Sequence[Writer], direction: Float[Tensor, " width"]) -> Iterator[None]:
    """Writers without a unit direction, in their own precision, while the context lasts."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for writer in writers:
            for parameter, axis in ((writer.weight, writer.axis), (writer.bias, -1)):
                if parameter is not None and not parameter.is_meta:
                    kept.append((parameter, parameter.data))
                    parameter.data = projected(parameter.data, direction[None], axis)
        yield
    finally:
        for parameter, original in reversed(kept):
            parameter.data = original


def projected(weight: Tensor, D: Float[Tensor, "k width"], axis: int) -> Tensor:
    """W - D'D W along its output axis, for orthonormal rows D; computed in the wider type of the two, part by part."""
    if weight.ndim > 2:
        return torch.stack([projected(part, D, axis) for part in weight])
    D = D.to(weight.device, torch.promote_types(weight.dtype, D.dtype))
    along = weight.movedim(axis, -1)
    rows = [(part.to(D) - part.to(D) @ D.T @ D).to(weight.dtype) for part in along.split(1 << 12)]
    return torch.cat(rows).movedim(-1, axis).contiguous()
