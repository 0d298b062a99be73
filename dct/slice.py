"""The slice map Delta: what adding a vector to the residual stream at `source` does to it at `target`.

Knows which prompts and positions are meant, and the mean over them. Runs no block itself (`rows` does), does not know
how large a pass should be (`passes` does), and knows nothing of what is fitted to it.
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
from dct.blocks import run_block
from dct.compilation import Compiled
from dct.errors import DctError, NonFiniteError, UsageError
from dct.model import LanguageModel, check_layers
from dct.passes import PASS_TOKENS, PASS_TOKENS_AT_ZERO, PASS_TOKENS_HALF, busy_rows, held_rows, kept_bytes, lanes_of
from dct.recording import record
from dct.rows import Rows, residual_norm
from dct.verification import verify_gradient

Positions = int | Literal["all"]

MOST_POSITIONS = 3
"""Target positions of a prompt, unless told otherwise; fewer where the chat template opens a reply with fewer tokens.
What stands before those is the user's last word, and what a vector does to that is not what it does to the reply."""


class Slice:
    """Delta(theta) = mean over prompts of mean over target positions of
    hidden_states[target](theta) - hidden_states[target](0), with theta added to hidden_states[source] at every token.

    A callable (batch, width) -> (batch, width) in float32, differentiable in reverse and in forward mode and twice;
    every row of the batch is a steering vector of its own.

    Args:
        lm: the model.
        prompts: texts (rendered by the model's chat template) or lists of token ids.
        source: s, 0 <= s < t; theta is added to the stream entering block s.
        target: t <= L; the stream entering block t is read (for t = L, the stream leaving the last block).
        positions: the last so many tokens of each prompt are read, or `all`; left out, those that the chat template
            opens a reply with (`LanguageModel.opening`), three at most, and three where it opens none.
        system: system message for the chat template.
        pack: False runs prompts one by one (see `Rows`).
        narrow: False runs the last block at every token.

    Attributes:
        ids, texts: the prompts as tokens, and as they were given.
        target_counts: how many target positions each prompt has.
        weights: of each target token in the mean, 1 / (prompts * target positions of its prompt); shape (targets,).
        unsteered: hidden_states[target](0) at every target token, prompt after prompt; shape (targets, width).
        residual_norm: median |hidden_states[source]| over all tokens, unsteered.
        target_norm: median |hidden_states[target]| over the target tokens, unsteered.

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
        self.lm, self.source, self.target, self.system = lm, source, target, system
        self.ids = _token_ids(lm, prompts, system)
        self.texts = [p if isinstance(p, str) else lm.decode(p) for p in prompts]
        self.positions: Positions = _default_positions(lm.opening, self.ids) if positions is None else positions
        self.target_counts = _target_counts(self.ids, self.positions)
        recordings = record(lm, self.ids, source, target)
        self.residual_norm = residual_norm(recordings)
        self._mean_entering = torch.stack([r.entering.float().mean(0) for r in recordings])
        self._rows = Rows(lm, source, target, self.ids, self.target_counts, recordings, pack, narrow)
        self.dtype = self._rows.dtype
        each = [torch.full((n,), 1 / (n * len(self.ids))) for n in self.target_counts]
        self.weights = torch.cat(each).to(lm.device, self.dtype)
        self.unsteered = self.streams(torch.zeros(1, self.dim, device=self.device, dtype=self.dtype))[0]
        self.target_norm = float(self.unsteered.norm(dim=1).median())

    @property
    def dim(self) -> int:
        """Width d of the residual stream."""
        return self.lm.width

    @property
    def device(self) -> torch.device:
        """Where vectors are expected and effects come out."""
        return self.lm.device

    @property
    def resolution(self) -> float:
        """Relative rounding of the numbers that the blocks compute in."""
        return float(torch.finfo(self.lm.dtype).eps)

    @property
    def rows(self) -> Rows:
        """Its prompts as rows of tokens, and the way in which they are run."""
        return self._rows

    @property
    def packed(self) -> bool:
        """Whether several prompts share a row of tokens (see `Rows`)."""
        return self._rows.packed

    @property
    def narrowed(self) -> bool:
        """Whether the last block is run at the target tokens alone (see `Rows`)."""
        return self._rows.narrowed

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
            "target_norm": self.target_norm,
        }

    # --- the map ---

    def __call__(self, theta: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch width"]:
        """Delta(theta), the mean over prompts and target positions.

        Raises:
            NonFiniteError: a block puts out NaN or infinity; the message names it.
        """
        # Delta(theta) = sum_i w_i (h_i(theta) - h_i(0)), over the target tokens i
        delta = einsum(self.weights, self.responses(theta), "targets, batch targets width -> batch width")
        # Inside a forward-mode transform the tensors are wrapped; the value pass beside it makes the same check.
        if not compat.differentiating_forward() and not bool(torch.isfinite(delta.detach()).all()):
            raise NonFiniteError(self._blame(theta) or "the mean over prompts is not finite: lower `scale`")
        return delta

    def _blame(self, theta: Tensor) -> str | None:
        """Which block puts out NaN or infinity under these vectors, as a message; None where every stream is finite."""
        return self._rows.blame(theta)

    def streams(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch targets width"]:
        """hidden_states[target](theta) at every target token, prompt after prompt."""
        return self._rows.streams(theta)

    def responses(self, theta: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch targets width"]:
        """What Delta is the mean of: h_i(theta) - h_i(0) at every target token i, prompt after prompt."""
        return self.streams(theta) - self.unsteered

    @cached_property
    def prompt_of_target(self) -> Int[Tensor, " targets"]:
        """Which prompt each target token belongs to."""
        return torch.arange(len(self.ids)).repeat_interleave(torch.tensor(self.target_counts)).to(self.device)

    def last_entering(self) -> Float[Tensor, "prompts width"]:
        """hidden_states[source] at the last target token of each prompt, unsteered."""
        entering = self._rows.entering().float()
        return entering[torch.tensor(self.target_counts).cumsum(0).to(entering.device) - 1]

    def mean_entering(self) -> Float[Tensor, "prompts width"]:
        """The mean of hidden_states[source] over the tokens of each prompt, unsteered."""
        return self._mean_entering

    # --- its derivatives ---

    def check(self) -> None:
        """Holds the gradient against finite differences, the first time that these layers are differentiated.

        Raises:
            DctError: it is not what they give.
        """
        size = float(self.unsteered.norm(dim=1).mean())
        verify_gradient(self.lm, self, self.source, self.target, 0.3 * self._rows.probe, size)

    def compile(self) -> None:
        """Compiles the blocks, all but a narrowed last one, for values and gradients; forward mode runs as before.

        The result must be what it was, for values and for gradients, or nothing changes.

        Raises:
            DctError: there is no compiler, it fails, or what it makes computes something else.
        """
        drawn = torch.randn(2, self.dim, generator=torch.Generator().manual_seed(0))
        theta = self.residual_norm * normalize(drawn, dim=1).to(self.device, self.dtype)
        plain = self._value_and_gradient(theta)
        self._rows.run = Compiled(run_block)
        try:
            compiled = self._value_and_gradient(theta)
        except Exception as error:
            self._rows.run = run_block
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DctError(f'cannot compile the slice ({reason}): use `compile="off"`') from error
        bound = max(1e-3, 8 * self.resolution)
        if not all(bool((a - b).norm() <= bound * b.norm()) for a, b in zip(compiled, plain, strict=True)):
            self._rows.run = run_block
            raise DctError('the compiled slice computes something else: use `compile="off"`')

    def _value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Delta(theta) without and with a graph behind it, and J(theta)^T Delta(theta)."""
        with torch.no_grad():
            alone = self(theta)
        theta = theta.clone().requires_grad_()
        value = self(theta)
        [gradient] = torch.autograd.grad(value, theta, value.detach())
        return torch.cat([alone, value.detach()]), gradient

    # --- how large a pass is ---

    @cached_property
    def tokens(self) -> int:
        """Tokens that one steering vector sends through the slice."""
        return sum(self._rows.lengths)

    @property
    def lanes(self) -> int:
        """Lanes: parts of a pass that can run at the same time, on a CPU with blocks that nobody moves or compiles."""
        free = self._rows.run is run_block and not compat.moved_by_accelerate(self.lm.model)
        return lanes_of(self.device) if free else 1

    @property
    def value_batch(self) -> int:
        """Steering vectors in one pass to start with when no derivative is taken; as many for each of the lanes."""
        tokens = PASS_TOKENS_HALF if self.lm.dtype.itemsize < 4 else PASS_TOKENS
        return busy_rows(tokens, self.device, self.dim, self._rows.lengths, self.lanes)

    @property
    def batch(self) -> int:
        """Steering vectors in one pass to start with: what the free memory holds, and no more than is of use."""
        return max(1, min(self.value_batch, held_rows(self.row_bytes, self.device, self.lm.memory)))

    @property
    def batch_at_zero(self) -> int:
        """The same for first and second derivatives at 0 that keep nothing for a way back."""
        busy = busy_rows(PASS_TOKENS_AT_ZERO, self.device, self.dim, self._rows.lengths, self.lanes)
        return max(1, min(busy, held_rows(self.row_bytes, self.device, self.lm.memory)))

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one steering vector of a pass with a gradient needs (see `kept_bytes`)."""
        parameters = {p.untyped_storage().data_ptr() for p in self.lm.layers[self.source : self.target].parameters()}
        return kept_bytes(self.streams, self._rows.unsteered, parameters)

    @cached_property
    def attention_bytes(self) -> int:
        """Bytes of the attention weights of one steering vector in all blocks: forward mode writes them out, where
        other passes never have them whole."""
        heads = int(getattr(self.lm.model.config.get_text_config(), "num_attention_heads", 1) or 1)
        pairs = sum(row.pairs for row in self.rows.rows)
        return (self.target - self.source) * heads * pairs * self.dtype.itemsize


def _default_positions(opening: list[int], prompts: Sequence[list[int]]) -> int:
    """Target positions where none are asked for: the tokens that open the reply, where all prompts end in them."""
    opened = bool(opening) and all(row[-len(opening) :] == opening for row in prompts)
    return min(len(opening), MOST_POSITIONS) if opened else MOST_POSITIONS


def _target_counts(ids: Sequence[Sequence[int]], positions: Positions) -> list[int]:
    """How many of each prompt's last tokens are target positions.

    Raises:
        UsageError, DctError: none are, or a prompt has fewer tokens.
    """
    if positions == "all":
        return [len(row) for row in ids]
    if positions < 1:
        raise UsageError(f"`positions` must be at least 1 or `all`, got {positions}", argument="positions")
    for number, row in enumerate(ids, start=1):
        if len(row) < positions:
            raise DctError(
                f"prompt {number} has {len(row)} tokens, fewer than the {positions} positions that are read: "
                f"lengthen it or pass `positions={len(row)}`"
            )
    return [positions for _ in ids]


def _token_ids(
    lm: LanguageModel, prompts: Sequence[str] | Sequence[Sequence[int]], system: str | None
) -> list[list[int]]:
    if isinstance(prompts, str):
        raise DctError("prompts is a single string: pass a list of prompts")
    texts = [p for p in prompts if isinstance(p, str)]
    if texts or not prompts:
        return lm.encode(texts, system)
    return [[int(token) for token in p] for p in prompts]
