"""What every source layer does to every target layer: how much, and how far from linear. Nothing is fitted.

`Ladder` runs all blocks of a model on a slice's prompts with vectors entering anywhere, and reads the stream before
every block. A random output vector pulled back from a target once gives all sources below it; a vector pushed in at a
source once gives all targets above it. Knows nothing of files, of terminals or of which pair to prefer (`proposal`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from dct.blocks import replay
from dct.calibration import random_directions
from dct.calls import Call, Made, leaves
from dct.derivatives import Derivatives
from dct.errors import UsageError
from dct.narrowing import ReadCall
from dct.packing import Row
from dct.slice import Slice


@dataclass(frozen=True)
class Pull:
    """What sources 0..t-1 do to target t, in the mean over random directions.

    Attributes:
        gain: |J|_F / sqrt(d): how much longer a random vector is when it arrives; 1 is the identity path alone.
        written: |J - I|_F / sqrt(d): the part of that which the blocks between have written.
    """

    gain: list[float]
    written: list[float]


class Ladder:
    """All blocks of a model on the prompts of a slice.

    Args:
        whole: the slice from 0 to the depth, made with `narrow=False`.

    Attributes:
        norms: median |h_s| over all tokens of the prompts' rows, for s = 0..depth.
        target_norms: the same over the target tokens.

    Raises:
        UsageError: the slice is not the whole model, or narrowed.
    """

    def __init__(self, whole: Slice) -> None:
        if (whole.source, whole.target) != (0, whole.lm.depth) or whole.narrowed:
            raise UsageError("`whole` must be a slice from 0 to the depth with narrow=False", argument="whole")
        self.slice, self.depth, self.dim, self.device = whole, whole.lm.depth, whole.dim, whole.device
        # Values that one block makes for another must have the batch of the stream that meets them.
        calls = [c for row in whole.rows.rows for c in row.calls if isinstance(c, dict)]
        self._made = any(isinstance(leaf, Made) for call in calls for leaf in leaves(call))
        with torch.no_grad():
            every = [self._entering(row, {}, range(self.depth)) for row in whole.rows.rows]
        self.norms, self.target_norms, means = [], [], []
        for level in range(self.depth + 1):
            streams = [levels[level][0].to(whole.dtype) for levels in every]
            read = torch.cat([s[row.targets] for s, row in zip(streams, whole.rows.rows, strict=True)])
            self.norms.append(float(torch.cat(streams).norm(dim=1).median()))
            self.target_norms.append(float(read.norm(dim=1).median()))
            means.append(einsum(whole.weights, read, "targets, targets width -> width"))
        self.unsteered = torch.stack(means)

    def effects(
        self, thetas: dict[int, Tensor], targets: Sequence[int], begun: Sequence[Tensor] | None = None
    ) -> Float[Tensor, "batch levels width"]:
        """Mean change of the stream at each of some targets, with vectors (batch, width) added at sources.

        Args:
            begun: what enters the first of the sources in each row, where the blocks below need not run.
        """
        count = len(next(iter(thetas.values())))
        if self.slice.rows.alone and count > 1:
            singly = [{s: v[k : k + 1] for s, v in thetas.items()} for k in range(count)]
            return torch.cat([self.effects(one, targets, begun) for one in singly])
        parts: list[list[Tensor]] = [[] for _ in targets]
        first = 0 if begun is None else min(thetas)
        for k, row in enumerate(self.slice.rows.rows):
            blocks = range(first, max(targets))
            levels = self._entering(row, thetas, blocks, None if begun is None else begun[k])
            for part, target in zip(parts, targets, strict=True):
                part.append(levels[target - first][:, row.targets].to(self.slice.dtype))
        weights = self.slice.weights
        means = [einsum(weights, torch.cat(part, 1), "targets, batch targets width -> batch width") for part in parts]
        return torch.stack(means, dim=1) - self.unsteered[list(targets)]

    def _entering(
        self, row: Row, thetas: dict[int, Tensor], blocks: range, stream: Float[Tensor, "1 tokens width"] | None = None
    ) -> list[Tensor]:
        """The stream that enters each of some blocks and leaves the last, with vectors added where they enter; left
        out, `stream` is what enters the first block of all."""
        levels: list[Tensor] = []
        wide = self.slice.dtype

        def run(block: torch.nn.Module, call: Call, stream: Tensor) -> object:
            level = blocks.start + len(levels)
            if level in thetas:
                stream = (stream.to(wide) + thetas[level][:, None].to(stream.device)).to(stream.dtype)
            levels.append(stream)
            return block(stream, **call)

        if stream is None:
            stream = row.entering[None].to(self.slice.lm.dtype)
        if self._made and thetas:
            stream = stream.expand(len(next(iter(thetas.values()))), -1, -1)
        calls: Sequence[Call | ReadCall] = row.calls[blocks.start : blocks.stop]
        with row.attending():
            levels.append(replay(self.slice.lm, blocks.start, calls, stream, run))
        return levels

    # --- the two maps ---

    def below(self, target: int) -> "Stage":
        """(batch, target * width) -> (batch, width): vectors at every source below a target, and what they do there."""

        def f(theta: Tensor) -> Tensor:
            at = theta.unflatten(1, (target, self.dim))
            return self.effects({s: at[:, s] for s in range(target)}, [target])[:, 0]

        return Stage(f, target * self.dim, self.slice)

    def above(self, source: int) -> "Stage":
        """(batch, width) -> (batch, levels * width): a vector at a source, and what it does at every target above."""
        begun = None
        if not self._made:  # else blocks above the source ask for what those below it put out
            with torch.no_grad():
                begun = [self._entering(row, {}, range(source))[-1] for row in self.slice.rows.rows]

        def f(theta: Tensor) -> Tensor:
            return self.effects({source: theta}, range(source + 1, self.depth + 1), begun).flatten(1)

        return Stage(f, self.dim, self.slice)

    # --- what is measured ---

    def pulled(
        self, target: int, probes: Float[Tensor, "probes width"], batch: int | None = None
    ) -> Float[Tensor, "probes sources width"]:
        """J' u at every source below a target, for each of some output vectors u."""
        stage = self.below(target)
        return _derivatives(stage, batch).vjp(probes).unflatten(1, (target, self.dim))

    def pull(self, target: int, probes: Float[Tensor, "probes width"], batch: int | None = None) -> Pull:
        """How much each source below a target matters to it, from orthonormal output vectors."""
        back = self.pulled(target, probes, batch)
        # |J|_F^2 = d E |J' u|^2 over unit u, and the same for J - I; a full basis gives it exactly
        gain = back.square().sum(2).mean(0).sqrt()
        written = (back - probes.to(back)[:, None]).square().sum(2).mean(0).sqrt()
        return Pull(gain.tolist(), written.tolist())

    def push(
        self, source: int, scale: float, directions: Float[Tensor, "rows width"], batch: int | None = None
    ) -> list[float]:
        """The non-linearity ratio (see `calibration.calibrate`) at a scale, at every target above a source."""
        d = _derivatives(self.above(source), batch)
        levels = (self.depth - source, self.dim)
        linear = scale * d.jvp(directions).unflatten(1, levels)
        gap = d.value(scale * directions.to(d.dtype)).unflatten(1, levels) - linear
        ratio: Tensor = (gap.norm(dim=2) / linear.norm(dim=2)).square().mean(0).sqrt()
        return [float(r) for r in ratio]


class Stage:
    """One map of a ladder, as `Derivatives` takes it: with the batches of the slice that it is run on."""

    def __init__(self, f: Callable[[Tensor], Tensor], dim: int, whole: Slice) -> None:
        self.f, self.dim, self.slice = f, dim, whole
        self.device, self.lanes = whole.device, whole.lanes
        self.batch, self.batch_at_zero = whole.batch, whole.batch_at_zero

    def __call__(self, theta: Tensor) -> Tensor:
        return self.f(theta)


def orthonormal(count: int, dim: int, seed: int) -> Float[Tensor, "count dim"]:
    """Random orthonormal rows, at most as many as there are dimensions; the same on every device."""
    drawn = random_directions(min(count, dim), dim, seed).double()
    return torch.linalg.qr(drawn.T)[0].T.contiguous()


def _derivatives(stage: Stage, batch: int | None) -> Derivatives:
    return Derivatives(stage, stage.dim, batch=batch, dtype=stage.slice.dtype)
