"""The slice map Delta: what adding a vector to the residual stream at `source` does to it at `target`.

Knows prompts, positions and how large a pass may be. Runs no block itself (see `blocks`) and knows nothing of what is
fitted to it.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dct import compat
from dct.batching import out_of_memory
from dct.blocks import locate_non_finite, replay, run_block
from dct.calibration import random_directions
from dct.compilation import Compiled
from dct.errors import DctError, NonFiniteError, UsageError
from dct.memory import available
from dct.model import LanguageModel, check_layers
from dct.packing import Row, UnpackableError, packed_rows, unpacked_rows
from dct.recording import Recording, record
from dct.verification import verify_gradient, verify_streams

Positions = int | Literal["all"]

MOST_POSITIONS = 3
"""Target positions of a prompt, unless told otherwise; fewer where the chat template opens a reply with fewer tokens.
What stands before those is the user's last word, and what a vector does to that is not what it does to the reply."""

PACK_TOKENS = (160, 1024)
"""Least and greatest limit on the tokens of a packed row; between them it is half the model's width, up to which
attention over the row, quadratic in its length, costs less than running the common prefix once for every row."""

PASS_TOKENS = {"cpu": 1024, "cuda": 65536, "mps": 16384}
"""Tokens in one pass over the slice to start with; running out of memory halves it."""

PASS_TOKENS_AT_ZERO = {**PASS_TOKENS, "cpu": 2048}
"""The same for passes whose rows keep nothing and share the unsteered pass among them."""

PASS_WORK = {"cuda": 2**35, "mps": 2**33}
"""Tokens times squared width, about a 24th of a block's operations, at which a GPU is taken to be busy: 2,048 tokens of
a 7B model, by calculation a millisecond of products a block on an H100. More would take memory for little."""

LANES = 4
"""Parts of a pass, at most, that run at the same time on a CPU. Python serves one of them at a time: more would wait
for it."""

PASS_ROOM = 0.8
"""Share of the free memory that one pass may take."""

TRANSIENT = 4
"""Tensors as large as the largest that is kept which a pass has in hand beside them."""


class Slice:
    """Delta(theta) = mean over prompts of mean over target positions of
    hidden_states[target](theta) - hidden_states[target](0), with theta added to hidden_states[source] at every token.

    A callable (batch, width) -> (batch, width) in float32, differentiable in reverse and in forward mode and twice;
    every row of the batch is a steering vector of its own. Prompts are never padded: they are packed into one row
    behind their common prefix, with a mask under which each sees only itself, whenever that reproduces the
    activations of the prompts run one by one; otherwise they run one by one. The last block is run at the target tokens
    alone (the others give it only keys and values), whenever that reproduces them too.

    Args:
        lm: the model.
        prompts: texts (rendered by the model's chat template) or lists of token ids.
        source: s, 0 <= s < t; theta is added to the stream entering block s.
        target: t <= L; the stream entering block t is read (for t = L, the stream leaving the last block).
        positions: the last so many tokens of each prompt are read, or `all`; left out, those that the chat template
            opens a reply with (`LanguageModel.opening`), three at most, and three where it opens none.
        system: system message for the chat template.
        pack: False runs prompts one by one.
        narrow: False runs the last block at every token.

    Raises:
        UsageError, DctError: layers out of order or range; no prompt, an empty one, or one shorter than `positions`;
            NaN or infinity in the activations.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        source: int,
        target: int,
        positions: Positions | None = None,
        system: str | None = None,
        pack: bool = True,
        narrow: bool = True,
    ) -> None:
        check_layers(source, target, lm.depth)
        self.lm, self.source, self.target = lm, source, target
        # Vectors, means and differences are at least float32, whatever the blocks compute in.
        self.dtype = torch.promote_types(lm.dtype, torch.float32)
        self.system = system
        self.ids = _token_ids(lm, prompts, system)
        self.texts = [p if isinstance(p, str) else lm.decode(p) for p in prompts]
        positions = _default_positions(lm.opening, self.ids) if positions is None else positions
        self.positions: Positions = positions
        if positions != "all" and positions < 1:
            raise UsageError(f"`positions` must be at least 1 or `all`, got {positions}", argument="positions")
        for number, row in enumerate(self.ids, start=1):
            if positions != "all" and len(row) < positions:
                raise DctError(
                    f"prompt {number} has {len(row)} tokens, fewer than the {positions} positions that are read: "
                    f"lengthen it or pass `positions={len(row)}`"
                )
        recordings = record(lm, self.ids, source, target)
        self.residual_norm = float(torch.cat([r.entering for r in recordings]).float().norm(dim=1).median())
        self._mean_entering = torch.stack([r.entering.float().mean(0) for r in recordings])
        self.reads = [len(row) if positions == "all" else positions for row in self.ids]
        each = [torch.full((n,), 1 / (n * len(self.reads))) for n in self.reads]
        self.weights = torch.cat(each).to(lm.device, self.dtype)
        self._rows, self._run, self._alone = unpacked_rows(recordings, self.reads), run_block, False
        rows = list(zip(recordings, self._rows, strict=True))
        self.rest = torch.cat([recorded.leaving[row.targets] for recorded, row in rows]).to(self.dtype)
        # What the blocks wrote is the yardstick for other ways to run them: a wrong mask or position changes much.
        written = self.rest - torch.cat([row.entering[row.targets] for row in self._rows]).to(self.dtype)
        self._tolerance = self._rounding(written, self.rest)
        self._verify(recordings)
        self._probed = self._probe_streams()
        self._alone = self._rows_must_go_alone()
        self.packed = pack and len(self.ids) > 1 and self._try_packing(recordings)
        self.narrowed = narrow and self._try_narrowing()
        del self._probed
        self.rest = self.streams(self._unsteered)[0]

    @property
    def dim(self) -> int:
        """Width d of the residual stream."""
        return self.lm.width

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def resolution(self) -> float:
        """Relative rounding of the numbers that the blocks compute in."""
        return float(torch.finfo(self.lm.dtype).eps)

    @property
    def info(self) -> dict[str, Any]:
        """What factors fitted to this slice must know to be used again; JSON types only."""
        return {
            "model": self.lm.name,
            "fingerprint": self.lm.fingerprint,
            "layers": self.lm.layers_path,
            "source": self.source,
            "target": self.target,
            "positions": self.positions,
            "system": self.system,
            "prompts": self.texts,
            "tokens": self.tokens,
            "residual_norm": self.residual_norm,
        }

    @property
    def _unsteered(self) -> Float[Tensor, "1 width"]:
        return torch.zeros(1, self.dim, device=self.device, dtype=self.dtype)

    def _rounding(self, written: Tensor, stream: Tensor) -> float:
        """Norm of the difference that rounding may make to streams, of which blocks have written so much."""
        eps = torch.finfo(self.lm.dtype).eps
        return float(max(1e-4, 8 * eps) * written.norm() + eps * stream.norm())

    @cached_property
    def _probe(self) -> Float[Tensor, " width"]:
        """A vector as large as the stream, under which what is wrong shows."""
        direction = random_directions(1, self.dim, seed=0)[0].to(self.device, self.dtype)
        return max(self.residual_norm, 1e-3) * direction

    def _verify(self, recordings: list[Recording]) -> None:
        """Holds the shortest prompt under a vector against the model's own run.

        Raises:
            DctError: they differ.
        """
        k = min(range(len(self.ids)), key=lambda k: len(self.ids[k]))
        recorded = recordings[k]

        def replayed() -> Tensor:
            stream = (recorded.entering.to(self.dtype) + self._probe).to(self.lm.dtype)[None]
            with torch.no_grad():
                return replay(self.lm, self.source, recorded.calls, stream)[0].to(self.dtype)

        written = (recorded.leaving - recorded.entering).to(self.dtype)
        tolerance = self._rounding(written.norm() + self._probe.norm() * len(written) ** 0.5, recorded.leaving)
        verify_streams(self.lm, self.ids[k], self.source, self.target, self._probe, replayed, tolerance)

    def _probe_streams(self) -> Float[Tensor, "two targets width"]:
        """The streams at the targets, unsteered and under the probe, each by itself."""
        with torch.no_grad():
            return torch.cat([self.streams(self._unsteered), self.streams(self._probe[None])])

    def _rows_must_go_alone(self) -> bool:
        """Whether what the model handed to its blocks serves for a batch of one alone.

        Raises:
            DctError: blocks that are run again do not do what they did.
        """
        off = (self._probed[0] - self.rest).norm()
        if not float(off) <= self._tolerance:
            raise DctError(
                f"blocks {self.source} to {self.target - 1} of {self.lm.name}, run again, do not do what they did: "
                "dct cannot slice it"
            )
        try:
            with torch.no_grad():
                together = self.streams(torch.stack([self._unsteered[0], self._probe]))
        except Exception as error:  # a block of any architecture may object in its own way
            return not out_of_memory(error)
        return not float((together - self._probed).norm(dim=(1, 2)).max()) <= self._tolerance

    def check(self) -> None:
        """Holds the gradient against finite differences, the first time that these layers are differentiated.

        Raises:
            DctError: it is not what they give.
        """
        verify_gradient(self.lm, self, self.source, self.target, 0.3 * self._probe, float(self.rest.norm(dim=1).mean()))

    @cached_property
    def tokens(self) -> int:
        """Tokens that one steering vector sends through the slice."""
        return sum(len(row.entering) for row in self._rows)

    @property
    def value_batch(self) -> int:
        """Steering vectors in one pass to start with when no derivative is taken; as many for each of the lanes."""
        return self._rows_of(PASS_TOKENS)

    @property
    def lanes(self) -> int:
        """Parts of a pass that can run at the same time: on a CPU, with blocks that nobody moves or compiles."""
        if self.device.type != "cpu" or self._run is not run_block or compat.moved_by_accelerate(self.lm.model):
            return 1
        return min(LANES, torch.get_num_threads())

    @property
    def batch(self) -> int:
        """Steering vectors in one pass to start with: what the free memory holds, and no more than is of use."""
        return max(1, min(self.value_batch, self._held))

    @property
    def batch_at_zero(self) -> int:
        """The same for first and second derivatives at 0 that keep nothing for a way back."""
        return max(1, min(self._rows_of(PASS_TOKENS_AT_ZERO), self._held))

    def _rows_of(self, tokens: dict[str, int]) -> int:
        """Steering vectors that have so many tokens, or as many as are of use; equally many for each of the lanes."""
        kind = self.device.type
        most = tokens.get(kind, 8192)
        if kind in PASS_WORK:
            most = min(most, PASS_WORK[kind] // self.dim**2)
        longest = max(len(row.entering) for row in self._rows)
        return self.lanes * max(1, most // (self.lanes * longest))

    @property
    def _held(self) -> int:
        """Steering vectors that the free memory holds in a pass with a gradient."""
        return int(PASS_ROOM * available(self.device, self.lm.memory)) // max(1, self.row_bytes)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one steering vector of a pass with a gradient needs: what is kept for the way back, and a few
        tensors as large as the largest of them on the way."""
        kept: dict[int, int] = {}
        parameters = {p.untyped_storage().data_ptr() for p in self.lm.layers[self.source : self.target].parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        theta = self._unsteered.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            leaving = self.streams(theta)  # alive, so that no storage is counted under an older one's address
        del leaving
        return sum(kept.values()) + TRANSIENT * max(kept.values(), default=0)

    @cached_property
    def attention_bytes(self) -> int:
        """Bytes of the attention weights of one steering vector in all blocks: forward mode writes them out, where
        other passes never have them whole."""
        heads = int(getattr(self.lm.model.config.get_text_config(), "num_attention_heads", 1) or 1)
        pairs = sum(len(row.entering) ** 2 for row in self._rows)
        return (self.target - self.source) * heads * pairs * self.dtype.itemsize

    def __call__(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Delta(theta), the mean over prompts and target positions.

        Raises:
            NonFiniteError: a block puts out NaN or infinity; the message names it.
        """
        delta = einsum(self.weights, self.streams(theta) - self.rest, "targets, batch targets width -> batch width")
        # Inside a forward-mode transform the tensors are wrapped; the value pass beside it makes the same check.
        if not compat.differentiating_forward() and not bool(torch.isfinite(delta.detach()).all()):
            raise NonFiniteError(self._blame(theta))
        return delta

    def compile(self) -> None:
        """Compiles the blocks, all but a narrowed last one, for values and gradients; forward mode runs as before.

        The result must be what it was, for values and for gradients, or nothing changes.

        Raises:
            DctError: there is no compiler, it fails, or what it makes computes something else.
        """
        drawn = torch.randn(2, self.dim, generator=torch.Generator().manual_seed(0))
        theta = self.residual_norm * normalize(drawn, dim=1).to(self.device, self.dtype)
        plain = self._value_and_gradient(theta)
        self._run = Compiled(run_block)
        try:
            compiled = self._value_and_gradient(theta)
        except Exception as error:
            self._run = run_block
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DctError(f'cannot compile the slice ({reason}): use `compile="off"`') from error
        bound = max(1e-3, 8 * torch.finfo(self.lm.dtype).eps)
        if not all(bool((a - b).norm() <= bound * b.norm()) for a, b in zip(compiled, plain, strict=True)):
            self._run = run_block
            raise DctError('the compiled slice computes something else: use `compile="off"`')

    def _value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            alone = self(theta)
        theta = theta.clone().requires_grad_()
        value = self(theta)
        [gradient] = torch.autograd.grad(value, theta, value.detach())
        return torch.cat([alone, value.detach()]), gradient

    def responses(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch targets width"]:
        """What Delta is the mean of: the change at every target token, prompt after prompt."""
        return self.streams(theta) - self.rest

    @cached_property
    def prompt_of_target(self) -> Int[Tensor, " targets"]:
        """Which prompt each target token belongs to."""
        return torch.arange(len(self.ids)).repeat_interleave(torch.tensor(self.reads)).to(self.device)

    def last_entering(self) -> Float[Tensor, "prompts width"]:
        """hidden_states[source] at the last target token of each prompt, unsteered."""
        per_prompt = torch.cat([row.entering[row.targets] for row in self._rows]).float()
        return per_prompt[torch.tensor(self.reads).cumsum(0).to(per_prompt.device) - 1]

    def mean_entering(self) -> Float[Tensor, "prompts width"]:
        """The mean of hidden_states[source] over the tokens of each prompt, unsteered."""
        return self._mean_entering

    def streams(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch targets width"]:
        """hidden_states[target](theta) at every target token, prompt after prompt."""
        if self._alone and len(theta) > 1:
            return torch.cat([self.streams(row[None]) for row in theta])
        leaving = []
        for row in self._rows:
            stream = (row.entering.to(self.dtype) + theta[:, None]).to(self.lm.dtype)
            stream = replay(self.lm, self.source, row.calls, stream, self._run)
            leaving.append(stream[:, row.targets if row.leaving is None else row.leaving].to(self.dtype))
        return torch.cat(leaving, dim=1)

    def _try_packing(self, recordings: list[Recording]) -> bool:
        """Packs the prompts, if that gives the activations of the prompts run one by one."""
        try:
            limit = min(max(self.dim // 2, PACK_TOKENS[0]), PACK_TOKENS[1])
            rows = packed_rows(recordings, self.ids, self.reads, limit)
        except (UnpackableError, RuntimeError, ValueError, TypeError) as error:
            if out_of_memory(error):
                raise
            return False  # what a model hands to its blocks may not go together in its own way
        return self._adopt(rows)

    def _try_narrowing(self) -> bool:
        """Runs the last block at the target tokens alone, if it can be and gives the same activations."""
        try:
            rows = [row.narrowed() for row in self._rows]
        except ValueError:
            return False
        return any(row.leaving is not None for row in rows) and self._adopt(rows)

    def _adopt(self, rows: list[Row]) -> bool:
        """Takes these rows in place of the present ones, if blocks can be run on them and give the same activations,
        unsteered and under the probe."""
        present, self._rows = self._rows, rows
        same = False
        try:
            same = float((self._probe_streams() - self._probed).norm(dim=(1, 2)).max()) <= self._tolerance
        except Exception as error:  # a block of any architecture may object in its own way
            if out_of_memory(error):
                raise
        finally:
            if not same:
                self._rows = present
        return same

    def _blame(self, theta: Tensor) -> str:
        for row in self._rows:
            stream = (row.entering.to(self.dtype) + theta.detach()[:, None]).to(self.lm.dtype)
            leaving = replay(self.lm, self.source, row.calls, stream)
            if not bool(torch.isfinite(leaving).all()):
                return locate_non_finite(self.lm, self.source, row.calls, stream)
        return "the mean over prompts is not finite: lower `scale`"


def _default_positions(opening: list[int], prompts: Sequence[list[int]]) -> int:
    """Target positions where none are asked for: the tokens that open the reply, where all prompts end in them."""
    opened = bool(opening) and all(row[-len(opening) :] == opening for row in prompts)
    return min(len(opening), MOST_POSITIONS) if opened else MOST_POSITIONS


def _token_ids(
    lm: LanguageModel, prompts: Sequence[str] | Sequence[Sequence[int]], system: str | None
) -> list[list[int]]:
    if isinstance(prompts, str):
        raise DctError("prompts is a single string: pass a list of prompts")
    texts = [p for p in prompts if isinstance(p, str)]
    if texts or not prompts:
        return lm.encode(texts, system)
    return [[int(token) for token in p] for p in prompts]
