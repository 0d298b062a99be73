"""The prompts of a slice as rows of tokens, and the blocks run on them under steering vectors.

Rows are run in the fastest way that gives the activations of the prompts one by one, which is tried and not assumed.
Knows nothing of means, of what is read from the streams, nor how many vectors go into a pass.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.batching import out_of_memory
from dct.blocks import Run, locate_non_finite, replay, run_block
from dct.calibration import random_directions
from dct.calls import Recording
from dct.errors import DctError
from dct.model import LanguageModel
from dct.packing import Row, UnpackableError, packed_rows, unpacked_rows
from dct.verification import verify_streams

PACK_TOKENS = (160, 1024)
"""Least and greatest limit on the tokens of a packed row; between them it is half the model's width, up to which
attention over the whole row, quadratic in its length, costs less than running the common prefix once for every row.
Longer rows have not been tried where attention is done prompt by prompt."""


class Rows:
    """Prompts as rows of tokens, and the way in which blocks source..target-1 are run on them.

    Prompts are never padded: they are packed into one row behind their common prefix, with a mask under which each sees
    only itself, the last block is run at the target tokens alone (the others give it only keys and values), and on a
    CPU attention is done prompt by prompt. Each is done only where it reproduces the activations of the prompts run one
    by one, without a vector and under one as large as the stream (the probe).

    Args:
        lm: the model.
        source, target: the slice.
        ids: token ids of each prompt.
        target_counts: how many of each prompt's last tokens are target tokens.
        recordings: each prompt's way through the slice.
        pack: False runs prompts one by one.
        narrow: False runs the last block at every token.

    Attributes:
        rows: what is run.
        run: how a block is run.
        alone: every vector has a pass of its own: what the model handed to its blocks serves for a batch of one.
        packed, narrowed, grouped: which of the shortcuts are taken.
        probe: a vector as large as the stream, under which what is wrong shows; shape (width,).

    Raises:
        DctError: blocks that are run again do not do what they did.
    """

    def __init__(
        self,
        lm: LanguageModel,
        source: int,
        target: int,
        ids: Sequence[Sequence[int]],
        target_counts: Sequence[int],
        recordings: Sequence[Recording],
        pack: bool = True,
        narrow: bool = True,
    ) -> None:
        self.lm, self.source, self.target, self.ids = lm, source, target, ids
        # Vectors and differences are at least float32, whatever the blocks compute in.
        self.dtype = torch.promote_types(lm.dtype, torch.float32)
        direction = random_directions(1, lm.width, seed=0)[0].to(lm.device, self.dtype)
        self.probe = max(residual_norm(recordings), 1e-3) * direction
        self.rows, self.alone = unpacked_rows(recordings, target_counts), False
        self.run: Run = run_block
        each = list(zip(recordings, self.rows, strict=True))
        recorded = torch.cat([recording.leaving[row.targets] for recording, row in each]).to(self.dtype)
        # What the blocks wrote is the yardstick for other ways to run them: a wrong mask or position changes much.
        written = recorded - torch.cat([row.entering[row.targets] for row in self.rows]).to(self.dtype)
        self._tolerance = self._rounding(written, recorded)
        self._verify(recordings)
        self._probed = self._probe_streams()
        self.alone = self._must_go_alone(recorded)
        self.packed = pack and len(ids) > 1 and self._try_packing(recordings, target_counts)
        self.narrowed = narrow and self._try_narrowing()
        self.grouped = lm.device.type == "cpu" and self._try_grouping()
        del self._probed

    @property
    def unsteered(self) -> Float[Tensor, "1 width"]:
        """The vector that steers nothing: zero."""
        return torch.zeros(1, self.lm.width, device=self.lm.device, dtype=self.dtype)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.entering) for row in self.rows]

    def entering(self) -> Float[Tensor, "targets width"]:
        """hidden_states[source] at every target token, prompt after prompt."""
        return torch.cat([row.entering[row.targets] for row in self.rows])

    def streams(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch targets width"]:
        """hidden_states[target](theta) at every target token, prompt after prompt."""
        if self.alone and len(theta) > 1:
            return torch.cat([self.streams(row[None]) for row in theta])
        leaving = []
        for row in self.rows:
            # h_source(theta) = h_source + theta at every token; h_target = B_{t-1}(... B_s(h_source(theta)))
            stream = self._steered(row, theta)
            with self.attending(row):
                stream = replay(self.lm, self.source, row.calls, stream, self.run)
            leaving.append(stream[:, row.targets if row.leaving is None else row.leaving].to(self.dtype))
        return torch.cat(leaving, dim=1)

    def attending(self, row: Row) -> AbstractContextManager[Any]:
        """While a row's blocks run; compiled ones attend as they were compiled."""
        return row.attending() if self.run is run_block else nullcontext()

    def blame(self, theta: Float[Tensor, "batch width"]) -> str | None:
        """Which block puts out NaN or infinity under these vectors, as a message; None where every stream is finite."""
        for row in self.rows:
            stream = self._steered(row, theta.detach())
            leaving = replay(self.lm, self.source, row.calls, stream)
            if not bool(torch.isfinite(leaving).all()):
                return locate_non_finite(self.lm, self.source, row.calls, stream)
        return None

    def _steered(self, row: Row, theta: Tensor) -> Tensor:
        """The stream that enters the slice under each vector, in the type of the blocks."""
        return (row.entering.to(self.dtype) + theta[:, None]).to(self.lm.dtype)

    # --- whether a way of running blocks is right ---

    def _rounding(self, written: Tensor, stream: Tensor) -> float:
        """Norm of the difference that rounding may make to streams, of which blocks have written so much."""
        eps = torch.finfo(self.lm.dtype).eps
        return float(max(1e-4, 8 * eps) * written.norm() + eps * stream.norm())

    def _verify(self, recordings: Sequence[Recording]) -> None:
        """Holds the shortest prompt under the probe against the model's own run.

        Raises:
            DctError: they differ.
        """
        k = min(range(len(self.ids)), key=lambda k: len(self.ids[k]))
        recorded = recordings[k]

        def replayed() -> Tensor:
            """The prompt's stream at all tokens, as the slice makes it."""
            stream = (recorded.entering.to(self.dtype) + self.probe).to(self.lm.dtype)[None]
            with torch.no_grad():
                return replay(self.lm, self.source, recorded.calls, stream)[0].to(self.dtype)

        written = (recorded.leaving - recorded.entering).to(self.dtype)
        tolerance = self._rounding(written.norm() + self.probe.norm() * len(written) ** 0.5, recorded.leaving)
        verify_streams(self.lm, list(self.ids[k]), self.source, self.target, self.probe, replayed, tolerance)

    def _probe_streams(self) -> Float[Tensor, "two targets width"]:
        """The streams at the targets, unsteered and under the probe, each by itself."""
        with torch.no_grad():
            return torch.cat([self.streams(self.unsteered), self.streams(self.probe[None])])

    def _must_go_alone(self, recorded: Float[Tensor, "targets width"]) -> bool:
        """Whether what the model handed to its blocks serves for a batch of one alone.

        Raises:
            DctError: blocks that are run again do not do what they did.
        """
        off = (self._probed[0] - recorded).norm()
        if not float(off) <= self._tolerance:
            raise DctError(
                f"blocks {self.source} to {self.target - 1} of {self.lm.name}, run again, do not do what they did: "
                "dct cannot slice it"
            )
        try:
            with torch.no_grad():
                together = self.streams(torch.stack([self.unsteered[0], self.probe]))
        except Exception as error:  # a block of any architecture may object in its own way
            return not out_of_memory(error)
        return not float((together - self._probed).norm(dim=(1, 2)).max()) <= self._tolerance

    def _try_packing(self, recordings: Sequence[Recording], target_counts: Sequence[int]) -> bool:
        """Packs the prompts, if that gives the activations of the prompts run one by one."""
        try:
            limit = min(max(self.lm.width // 2, PACK_TOKENS[0]), PACK_TOKENS[1])
            rows = packed_rows(recordings, self.ids, target_counts, limit)
        except (UnpackableError, RuntimeError, ValueError, TypeError) as error:
            if out_of_memory(error):
                raise
            return False  # what a model hands to its blocks may not go together in its own way
        return self._adopt(rows)

    def _try_narrowing(self) -> bool:
        """Runs the last block at the target tokens alone, if it can be and gives the same activations."""
        try:
            rows = [row.narrowed() for row in self.rows]
        except ValueError:
            return False
        return any(row.leaving is not None for row in rows) and self._adopt(rows)

    def _try_grouping(self) -> bool:
        """Has attention done prompt by prompt, where that saves time and gives the same activations."""
        present = self.rows
        rows = [row.grouped(self.lm.dtype, self.dtype) for row in present]
        attentions = [row.attention for row in rows if row.attention is not None]
        adopted = bool(attentions) and self._adopt(rows)
        if adopted and not any(attention.used for attention in attentions):
            self.rows = present  # the model attends in a way of its own
            return False
        return adopted

    def _adopt(self, rows: list[Row]) -> bool:
        """Takes these rows in place of the present ones, if blocks can be run on them and give the same activations,
        unsteered and under the probe."""
        present, self.rows = self.rows, rows
        same = False
        try:
            same = float((self._probe_streams() - self._probed).norm(dim=(1, 2)).max()) <= self._tolerance
        except Exception as error:  # a block of any architecture may object in its own way
            if out_of_memory(error):
                raise
        finally:
            if not same:
                self.rows = present
        return same


def residual_norm(recordings: Sequence[Recording]) -> float:
    """Median over all tokens of |hidden_states[source]|: how large the stream is that vectors are added to."""
    return float(torch.cat([r.entering for r in recordings]).float().norm(dim=1).median())
