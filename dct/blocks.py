"""The one place that runs transformer blocks.

`replay` runs blocks again on another stream, with what the model handed them when it was recorded (`recording`), the
last of them only where it is read (`narrowing`); `readout` turns a stream that has left the last block into logits by
the model's own norm and head. The model is asked, never imitated.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dct import compat
from dct.calls import Call, Made, behind, fresh, leaves, stream_of
from dct.chain import non_finite, standing_aside
from dct.errors import DctError, NonFiniteError
from dct.model import LanguageModel
from dct.narrowing import ReadCall

Run = Callable[[nn.Module, Call, Tensor], Any]
"""Runs a block: `run_block` or a compiled form of it."""


def run_block(block: nn.Module, call: Call, stream: Tensor) -> Any:
    """What a block puts out."""
    return block(stream, **call)


def replay(
    lm: LanguageModel,
    source: int,
    calls: Sequence[Call | ReadCall],
    stream: Float[Tensor, "batch tokens width"],
    run: Run = run_block,
) -> Float[Tensor, "rows leaving width"]:
    """Runs the blocks from `source` on, one for each call, on a new stream.

    Every token leaves the last block, or only those that its `ReadCall` reads. Runs share nothing that a block may
    write into, so that several can be under way at the same time.
    """
    wanted = {leaf for call in calls if isinstance(call, dict) for leaf in leaves(call) if isinstance(leaf, Made)}
    made: dict[Made, Tensor] = {}
    memo: dict[int, Any] = {}
    with _differentiable(lm):
        for number, (block, call) in enumerate(zip(lm.layers[source : source + len(calls)], calls, strict=True)):
            if isinstance(call, ReadCall):
                stream = call.run(block, stream)
                continue
            output = run(block, fresh(call, made, memo), stream)  # h_{l+1} = B_l(h_l)
            made |= {
                Made(number, k): leaf for k, leaf in enumerate(leaves(output)) if wanted and Made(number, k) in wanted
            }
            stream = stream_of(output)
    return stream


@torch.no_grad()
def locate_non_finite(
    lm: LanguageModel, source: int, calls: Sequence[Call | ReadCall], stream: Float[Tensor, "batch tokens width"]
) -> str:
    """Which block of a replay first puts out NaN or infinity, as a message for the user."""
    if bool(torch.isfinite(stream).all()):
        for stop in range(1, len(calls) + 1):
            if not bool(torch.isfinite(replay(lm, source, calls[:stop], stream)).all()):
                return non_finite(lm, source + stop - 1, "under steering")
    return f"the steered stream entering block {source} of {lm.name} is not finite: lower `scale`"


# --- readout ----------------------------------------------------------------------------------------------------------


def readout(lm: LanguageModel, stream: Float[Tensor, "batch width"]) -> Float[Tensor, "batch vocabulary"]:
    """Logits of streams that have left the last block, by the model's own final norm, head and soft-capping:
    logits = head(norm(h_L)).

    The model is run on one token a row, and its last block hands over `stream`; the others stand aside, as long as that
    gives the model's own logits, and run otherwise. So nothing has to be known of what an architecture does after its
    blocks.

    Raises:
        DctError: the model's logits are no function of the stream that leaves its last block.
    """
    with torch.no_grad():
        return readout_with_gradient(lm, stream)


def readout_with_gradient(lm: LanguageModel, stream: Float[Tensor, "batch width"]) -> Float[Tensor, "batch vocabulary"]:
    """The same, as a function of the stream that can be differentiated."""
    lm.require(range(0), ends=True)
    if lm.stands_aside is None:
        with torch.no_grad():
            lm.stands_aside = _reads_out(lm)
    return _read_out(lm, stream, lm.stands_aside)


def _read_out(lm: LanguageModel, stream: Tensor, aside: bool) -> Tensor:
    rows = stream.to(lm.dtype)[:, None]
    ids = torch.zeros(len(rows), 1, dtype=torch.long, device=lm.device)

    def returned(stream: Tensor, others: tuple[Any, ...] | None) -> Any:
        """The stream as a block of this model puts it out, alone or with what stood behind it."""
        return stream if others is None else (stream, *others)

    if not aside:

        def replaced(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            """A forward hook: the given streams in place of what the last block put out."""
            here = stream_of(output)
            return returned(rows.to(here.device), behind(output))

        handle = lm.layers[-1].register_forward_hook(replaced)
        try:
            logits: Tensor = lm.model(ids, use_cache=False).logits
        finally:
            handle.remove()
        return logits[:, -1].float()

    def stand_in(index: int, block: nn.Module) -> Any:
        """A forward for a block that does nothing; the last hands over the given streams."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            """The stream untouched, or from the last block the given one."""
            here = args[0] if args else next(iter(kwargs.values()))
            return returned(rows.to(here.device) if index == lm.depth - 1 else here, lm.behind)

        return forward

    with standing_aside(lm.layers, stand_in):
        logits = lm.model(ids, use_cache=False).logits
    return logits[:, -1].float()


def _reads_out(lm: LanguageModel) -> bool:
    """Whether blocks may stand aside while logits are read out, found on the model's own logits.

    Raises:
        DctError: neither way gives them.
    """
    left: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook: remembers the stream that leaves the last block, and the form of its output."""
        lm.behind = behind(output)
        left.append(stream_of(output))

    vocabulary = lm.model.config.get_text_config().vocab_size
    ids = torch.arange(1, 5, device=lm.device)[None] % vocabulary
    handle = lm.layers[-1].register_forward_hook(keep)
    try:
        own = lm.model(ids, use_cache=False).logits[0, -1:].float()
    finally:
        handle.remove()
    if bool(own.isnan().any()) or not bool(own.isfinite().any()):
        raise NonFiniteError(
            f'the final norm or head of {lm.name} puts out NaN or infinity: try `dtype="float32"` or a lower `scale`'
        )
    bound = max(1e-4, 8 * torch.finfo(lm.dtype).eps) * (1 + float(own[own.isfinite()].abs().max()))
    for aside in (True, False):
        try:
            got = _read_out(lm, left[-1][0, -1:], aside)
        except Exception as error:  # a model of any architecture may object to blocks that stand aside
            if not aside:
                raise DctError(f"cannot read logits of {lm.name} from what leaves its last block: {error}") from error
            continue
        if got.shape == own.shape and bool(((got - own).nan_to_num(0.0, 0.0, 0.0).abs() <= bound).all()):
            return aside
    raise DctError(
        f"the logits of {lm.name} are no function of the stream that leaves its last block: it cannot be ranked by them"
    )


# --- derivatives ------------------------------------------------------------------------------------------------------


class _PlainLayerNorm(TorchFunctionMode):
    """Layer norm in elementary operations, wherever a model calls torch's.

    The forward-mode formula of torch's own takes the saved mean and deviation for constants, so that differentiating
    it again leaves terms out.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,  # noqa: A002 (torch's own name)
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    # y = (x - mean x) / sqrt(mean (x - mean x)^2 + eps) * weight + bias
    centred = wide - wide.mean(axes, keepdim=True)
    normal = (centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)).to(input.dtype)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


@contextmanager
def _differentiable(lm: LanguageModel) -> Iterator[None]:
    """Kernels that have forward-mode and second derivatives, while such a derivative is being taken.

    torch's fused attention and grouped expert products have none, and its layer norm has a wrong second derivative
    behind a forward-mode one. All of them stay on for values and gradients, where they are faster. Reverse mode twice
    (create_graph=True) cannot be seen from here: wrap such a call in
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    if not compat.differentiating_forward():
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), _PlainLayerNorm(), compat.plain_experts(lm.model):
        yield
