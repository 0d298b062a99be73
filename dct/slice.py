"""The slice map Delta: what adding a vector to the residual stream at `source` does to it at `target`.

Knows prompts, positions and packing. Runs no block itself (see `blocks`) and knows nothing of what is fitted to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dct import compat
from dct.blocks import Call, ReadCall, Recording, locate_non_finite, record, replay, run_block, token_axis
from dct.compilation import Compiled
from dct.errors import DctError, NonFiniteError
from dct.memory import available
from dct.model import LanguageModel, check_layers

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


@dataclass(frozen=True)
class _Row:
    """Prompts that go through the slice as one row of tokens, each seeing only itself.

    Attributes:
        entering: hidden_states[source] of the row's tokens.
        calls: the arguments of each block for this row.
        targets: where in the row the target tokens of its prompts stand, prompt after prompt.
        leaving: where they stand in what leaves the last block; left out, in the row itself.
    """

    entering: Float[Tensor, "tokens width"]
    calls: Sequence[Call | ReadCall]
    targets: Int[Tensor, " targets"]
    leaving: Int[Tensor, " targets"] | None = None

    def narrowed(self) -> "_Row":
        """The same row with the last block run at its target tokens alone, where that saves half of them or more.

        Raises:
            ValueError: the block takes no cache.
        """
        read, leaving = self.targets.unique(return_inverse=True)
        last = self.calls[-1]
        if 2 * len(read) > len(self.entering) or isinstance(last, ReadCall):
            return self
        last = ReadCall(last, read, len(self.entering))
        return replace(self, calls=[*self.calls[:-1], last], leaving=leaving)


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
            raise DctError(f"--positions must be at least 1 or `all`, got {positions}")
        for number, row in enumerate(self.ids, start=1):
            if positions != "all" and len(row) < positions:
                raise DctError(
                    f"prompt {number} has {len(row)} tokens, fewer than the {positions} positions that are read: "
                    f"lengthen it or pass --positions {len(row)}"
                )
        recordings = record(lm, self.ids, source, target)
        self.residual_norm = float(torch.cat([r.entering for r in recordings]).float().norm(dim=1).median())
        self._mean_entering = torch.stack([r.entering.float().mean(0) for r in recordings])
        self.reads = [len(row) if positions == "all" else positions for row in self.ids]
        each = [torch.full((n,), 1 / (n * len(self.reads))) for n in self.reads]
        self.weights = torch.cat(each).to(lm.device, self.dtype)
        unpacked = [
            _Row(r.entering, r.calls, torch.arange(len(row) - n, len(row), device=lm.device))
            for r, row, n in zip(recordings, self.ids, self.reads, strict=True)
        ]
        self.rest = torch.cat([r.leaving[row.targets] for r, row in zip(recordings, unpacked, strict=True)]).to(
            self.dtype
        )
        self._rows, self._run = unpacked, run_block
        # What the blocks wrote is the yardstick for other ways to run them: a wrong mask or position changes much.
        written = self.rest - torch.cat([r.entering[r.targets] for r in unpacked]).to(self.dtype)
        eps = torch.finfo(lm.dtype).eps
        self._tolerance = float(max(1e-4, 8 * eps) * written.norm() + eps * self.rest.norm())
        self.packed = pack and len(self.ids) > 1 and self._try_packing(recordings)
        self.narrowed = narrow and self._try_narrowing()
        self.rest = self.streams(self._unsteered)[0]

    @property
    def dim(self) -> int:
        """Width d of the residual stream."""
        return self.lm.width

    @property
    def device(self) -> torch.device:
        return self.lm.device

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
            raise DctError(f"cannot compile the slice ({reason}): use --compile off") from error
        bound = max(1e-3, 8 * torch.finfo(self.lm.dtype).eps)
        if not all(bool((a - b).norm() <= bound * b.norm()) for a, b in zip(compiled, plain, strict=True)):
            self._run = run_block
            raise DctError("the compiled slice computes something else: use --compile off")

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
            rows = [_packed_row(recordings, self.ids, self.reads, group) for group in _groups(self.ids, limit)]
        except _UnpackableError:
            return False
        return self._adopt(rows)

    def _try_narrowing(self) -> bool:
        """Runs the last block at the target tokens alone, if it can be and gives the same activations."""
        try:
            rows = [row.narrowed() for row in self._rows]
            return any(row.leaving is not None for row in rows) and self._adopt(rows)
        except Exception:  # a block of any architecture may object in its own way
            return False

    def _adopt(self, rows: list[_Row]) -> bool:
        """Takes these rows in place of the present ones, if they give the unsteered activations."""
        present, self._rows = self._rows, rows
        same = False
        try:
            same = float((self.streams(self._unsteered)[0] - self.rest).norm()) <= self._tolerance
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
        return "the mean over prompts is not finite: lower --scale"


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


class _UnpackableError(Exception):
    """The model passes its blocks something that cannot be put together from several prompts."""


def _shared_prefix(ids: Sequence[list[int]]) -> int:
    shortest, longest = min(ids), max(ids)  # lexicographic: what these two share, all share
    for k, (a, b) in enumerate(zip(shortest, longest, strict=False)):
        if a != b:
            return k
    return min(len(shortest), len(longest))


def _groups(ids: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Consecutive prompts that share a row of at most `limit` tokens, their common prefix counted once; a longer prompt
    has a row of its own."""
    groups: list[list[int]] = [[]]
    for k in range(len(ids)):
        joined = [ids[j] for j in (*groups[-1], k)]
        prefix = _shared_prefix(joined)
        if groups[-1] and prefix + sum(len(row) - prefix for row in joined) > limit:
            groups.append([])
        groups[-1].append(k)
    return groups


def _packed_row(recordings: list[Recording], ids: list[list[int]], reads: list[int], group: list[int]) -> _Row:
    """One row for several prompts: their common prefix once, then what each adds to it."""
    if len(group) == 1:
        [k] = group
        length = len(ids[k])
        where = torch.arange(length - reads[k], length, device=recordings[k].entering.device)
        return _Row(recordings[k].entering, recordings[k].calls, where)
    prefix = _shared_prefix([ids[k] for k in group])
    lengths = [len(ids[k]) for k in group]
    entering = torch.cat([recordings[group[0]].entering[:prefix]] + [recordings[k].entering[prefix:] for k in group])
    targets, offset = [], prefix
    for k, length in zip(group, lengths, strict=True):
        place = torch.arange(length)
        place[prefix:] += offset - prefix
        offset += length - prefix
        targets.append(place[length - reads[k] :])
    merge = _Merger(prefix, lengths, entering.device)
    calls = [merge.calls(per_prompt) for per_prompt in zip(*(recordings[k].calls for k in group), strict=True)]
    return _Row(entering, calls, torch.cat(targets).to(entering.device))


class _Merger:
    """Puts the arguments that the model made for single prompts together for the packed row.

    Tensors with a token axis are laid end to end, masks become block masks, everything else must be the same for all
    prompts. An absent mask stands for plain causal attention; `Slice` checks the result against the single prompts.
    """

    def __init__(self, prefix: int, lengths: list[int], device: torch.device) -> None:
        self.prefix, self.lengths, self.device = prefix, lengths, device
        self.memo: dict[tuple[int, ...], Any] = {}
        self.causal: dict[int, Tensor] = {}

    def calls(self, calls: Sequence[Call]) -> Call:
        return {name: self._argument(name, [call[name] for call in calls]) for name in calls[0]}

    def _argument(self, name: str, values: Sequence[Any]) -> Any:
        if name == "attention_mask" and any(v is None for v in values):
            values = [self._causal(n) if v is None else v for v, n in zip(values, self.lengths, strict=True)]
        flat, specs = zip(*(compat.tree_flatten(v) for v in values), strict=True)
        if any(spec != specs[0] for spec in specs):
            raise _UnpackableError
        leaves = [self._leaf(leaf) for leaf in zip(*flat, strict=True)]
        return compat.tree_unflatten(leaves, specs[0])

    def _memoised(self, values: Sequence[Any], make: Any) -> Any:
        # Blocks share their masks and rotary tables: make each once. The recordings (and `causal`) keep the objects
        # behind the keys alive.
        key = tuple(id(v) for v in values)
        if key not in self.memo:
            self.memo[key] = make(values)
        return self.memo[key]

    def _leaf(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if not isinstance(first, Tensor):
            if all(v is first or (isinstance(v, bool | int | float | str) and v == first) for v in values):
                return first
            raise _UnpackableError
        return self._memoised(values, self._tensor)

    def _tensor(self, values: Sequence[Tensor]) -> Tensor:
        first = values[0]
        if first.ndim == 4 and all(v.shape[-2:] == (n, n) for v, n in zip(values, self.lengths, strict=True)):
            return self._block_mask(values)
        axis = token_axis(first)
        if first.ndim and all(
            v.ndim == first.ndim and v.shape[axis] == n for v, n in zip(values, self.lengths, strict=True)
        ):
            own = [v.narrow(axis, self.prefix, n - self.prefix) for v, n in zip(values, self.lengths, strict=True)]
            return torch.cat([first.narrow(axis, 0, self.prefix), *own], dim=axis)
        if all(v.shape == first.shape and torch.equal(v, first) for v in values):
            return first
        raise _UnpackableError

    def _causal(self, length: int) -> Tensor:
        if length not in self.causal:
            full = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.device)
            self.causal[length] = full.tril()
        return self.causal[length]

    def _block_mask(self, masks: Sequence[Tensor]) -> Tensor:
        first, prefix = masks[0], self.prefix
        if any(mask.dtype != first.dtype or mask.shape[:-2] != first.shape[:-2] for mask in masks):
            raise _UnpackableError
        total = prefix + sum(n - prefix for n in self.lengths)
        hidden = False if first.dtype == torch.bool else torch.finfo(first.dtype).min
        packed = torch.full((*first.shape[:-2], total, total), hidden, dtype=first.dtype, device=first.device)
        packed[..., :prefix, :prefix] = first[..., :prefix, :prefix]
        offset = prefix
        for mask, n in zip(masks, self.lengths, strict=True):
            end = offset + n - prefix
            packed[..., offset:end, :prefix] = mask[..., prefix:, :prefix]
            packed[..., offset:end, offset:end] = mask[..., prefix:, prefix:]
            offset = end
        return packed
