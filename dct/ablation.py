"""Directional ablation: directions are projected out of everything that writes into the residual stream.

The one place that knows where a model's residual writers are. Writers are found by the names that transformers gives
to output projections, and what is found is checked against the model itself: in every block the outputs of the sites
named here must add up to what the block did to its stream, or the block's whole contribution is projected instead.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dct.errors import DctError
from dct.model import LanguageModel
from dct.recording import stream_of

OUTPUT_PROJECTIONS = frozenset(
    {"o_proj", "out_proj", "c_proj", "dense", "wo", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "proj_out"}
)
"""What transformers calls the last matrix of an attention or MLP module (or of its experts)."""

NEGLIGIBLE = 1e-6
"""Singular values of a set of unit directions, relative to the largest, below which one of them depends on the others:
a little above the rounding of float32."""


@dataclass(frozen=True)
class Writer:
    """A matrix (or a stack of experts' matrices) whose output goes into the residual stream.

    Attributes:
        name: dotted name of the parameter inside the model.
        weight: the matrix.
        axis: its output axis: -2 for Linear, (out, in); -1 for Conv1D and transposed experts, (in, out).
        bias: what is added to its output, if anything.
    """

    name: str
    weight: nn.Parameter
    axis: int
    bias: nn.Parameter | None


@dataclass(frozen=True)
class Site:
    """A place where a block adds to the residual stream.

    Attributes:
        name: dotted name of the module inside the model.
        module: its output is what is added (for a whole block: its output less its input).
        writers: the matrices behind it.
        norm: whether a norm stands between the writers and the stream, so that a weight edit is not the projection.
        whole: the site is a block whose parts could not be told apart.
    """

    name: str
    module: nn.Module
    writers: list[Writer]
    norm: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Edit:
    """What was done to one parameter.

    Attributes:
        span: orthonormal rows, shape (k, width): what its output axis lost, in float64 on the CPU.
        original: the parameter's values before.
    """

    span: Float[Tensor, "k width"]
    original: Tensor


@dataclass(frozen=True)
class Ablation:
    """What `ablate` did.

    Attributes:
        directions: orthonormal basis of what was removed, shape (k, width).
        edited: names of the matrices whose weights were projected.
        projected: names of the modules whose output is projected while the model runs.
        folded: names of the norms whose gain was folded into the directions before the weights were projected.
        edits: what was done to every parameter that changed, biases included, by name.
    """

    directions: Float[Tensor, "k width"]
    edited: list[str]
    projected: list[str]
    folded: list[str]
    edits: dict[str, Edit] = field(default_factory=dict, repr=False)


def orthonormal(directions: Float[Tensor, "n width"] | Float[Tensor, " width"]) -> Float[Tensor, "k width"]:
    """An orthonormal basis of the span of the rows, in float64 on the CPU.

    Raises:
        DctError: a direction is zero or not finite.
    """
    rows = directions.detach().to("cpu", torch.float64).reshape(-1, directions.shape[-1])
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(rows).all()) or not bool((norms > 0).all()):
        raise DctError("a direction to ablate is zero or not finite")
    _, S, Vh = torch.linalg.svd(rows / norms, full_matrices=False)
    return Vh[NEGLIGIBLE * S[0] < S]


def residual_writers(lm: LanguageModel) -> list[Writer]:
    """Every matrix that writes into the residual stream: attention and MLP output of every block, and each expert's."""
    return [writer for block in range(lm.depth) for writer in _block_writers(lm, block)]


def _block_writers(lm: LanguageModel, index: int) -> list[Writer]:
    prefix = f"{lm.layers_path}.{index}"
    writers = []
    for path, module in lm.layers[index].named_modules():
        name = f"{prefix}.{path}" if path else prefix
        if path.rpartition(".")[2] in OUTPUT_PROJECTIONS and isinstance(getattr(module, "weight", None), nn.Parameter):
            axis = -1 if isinstance(module, Conv1D) else -2
            writers.append(Writer(f"{name}.weight", module.weight, axis, getattr(module, "bias", None)))
            continue
        for own, parameter in module.named_parameters(recurse=False):  # fused experts: (experts, out, in)
            if own in OUTPUT_PROJECTIONS and parameter.ndim == 3:
                axis = -1 if getattr(module, "is_transposed", False) else -2
                writers.append(Writer(f"{name}.{own}", parameter, axis, getattr(module, f"{own}_bias", None)))
    return [w for w in writers if w.weight.shape[w.axis] == lm.width]


@torch.no_grad()
def sites(lm: LanguageModel) -> list[Site]:
    """Where each block adds to the stream, found by running a few tokens and checked by adding the parts up."""
    ids = torch.arange(1, 9, device=lm.device)[None] % lm.model.config.get_text_config().vocab_size
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor) and isinstance(stream_of(output), Tensor):
            inputs[module], outputs[module] = given.clone(), stream_of(output).clone()

    with ExitStack() as stack:
        for block in lm.layers:
            for module in (block, *block.children()):
                stack.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
        lm.model(ids, use_cache=False)
    found = []
    for index, block in enumerate(lm.layers):
        prefix = f"{lm.layers_path}.{index}"
        writers = _block_writers(lm, index)
        parts = []
        for name, child in block.named_children():
            own = [w for w in writers if w.name.startswith(f"{prefix}.{name}.")]
            if not own or child not in outputs:
                continue
            follower = _norm_after(block, child, inputs, outputs, writers, prefix)
            if follower is None:
                parts.append(Site(f"{prefix}.{name}", child, own))
            else:
                parts.append(Site(f"{prefix}.{follower}", block.get_submodule(follower), own, norm=True))
        written = outputs[block] - inputs[block]
        added = sum((outputs[part.module].reshape(written.shape) for part in parts), torch.zeros_like(written))
        scale = outputs[block].abs().max()
        if bool((written - added).abs().max() <= 16 * torch.finfo(written.dtype).eps * scale):
            found += parts
        else:
            found.append(Site(prefix, block, writers, whole=True))
    return found


def _norm_after(
    block: nn.Module,
    child: nn.Module,
    inputs: dict[nn.Module, Tensor],
    outputs: dict[nn.Module, Tensor],
    writers: list[Writer],
    prefix: str,
) -> str | None:
    """The module of the block that takes the child's output, changes it and writes nothing of its own: a norm."""
    for name, other in block.named_children():
        if other is child or other not in inputs or any(w.name.startswith(f"{prefix}.{name}.") for w in writers):
            continue
        takes = inputs[other].shape == outputs[child].shape and torch.equal(inputs[other], outputs[child])
        if takes and not torch.equal(inputs[other], outputs[other]):
            return name
    return None


@contextmanager
def ablate(
    lm: LanguageModel,
    directions: Float[Tensor, "n width"] | Float[Tensor, " width"],
    *,
    fold_norms: bool = False,
) -> Iterator[Ablation]:
    """Removes span(directions) from everything that writes into the residual stream (Arditi et al. 2024).

    Every writer's weight and bias lose their component in the span: W <- W - D'D W for orthonormal rows D. Where a
    norm stands between a writer and the stream (Gemma-2 and 3, OLMo-2) the norm's output is projected while the
    model runs instead, and so is the output of weights that wait on disk; where a block's parts cannot be told apart,
    its whole contribution is. The token embedding is left alone. The model is restored to the bit when the context
    ends, whatever happens inside.

    Args:
        directions: one or several; they need not be unit vectors, orthogonal or independent.
        fold_norms: for saving as plain weights: where a norm with gain g follows, the weights lose span(g * D)
            instead, which also leaves nothing of D in the stream, but is an oblique projection.

    Raises:
        DctError: no writer was found, a weight is quantised, or a norm cannot be folded.
    """
    basis = orthonormal(directions)
    if basis.shape[1] != lm.width:
        raise DctError(f"directions to ablate from {lm.name} have {lm.width} entries, got {basis.shape[1]}")
    edited: list[str] = []
    projected: list[str] = []
    folded: list[str] = []
    edits: dict[str, Edit] = {}
    with ExitStack() as stack:
        for site in sites(lm):
            # Weights that wait on disk until their block runs cannot be edited; what they put out can be projected.
            away = any(writer.weight.is_meta for writer in site.writers)
            if (site.norm and not fold_norms) or site.whole or away:
                if fold_norms:
                    why = "does not fit into memory" if away else "cannot be edited as weights"
                    raise DctError(f"{site.name} of {lm.name} {why}: ablate without --save")
                stack.callback(site.module.register_forward_hook(_projection(site, basis), with_kwargs=True).remove)
                projected.append(site.name)
                continue
            span = basis
            if site.norm:
                span = orthonormal(basis * _gain(site, lm))
                folded.append(site.name)
            for writer in site.writers:
                edits |= _edit(writer, span, stack)
                edited.append(writer.name)
        if not edited and not projected:
            raise DctError(f"no residual writer found in {lm.name}: its output projections have unknown names")
        yield Ablation(basis, edited, projected, folded, edits)


def _edit(writer: Writer, basis: Tensor, stack: ExitStack) -> dict[str, Edit]:
    """Projects a writer's weight and bias, and has the stack put the originals back; tells what was done."""
    edits = {}
    own = writer.name.rpartition(".")[2]
    beside = "bias" if own == "weight" else f"{own}_bias"
    bias = f"{writer.name.removesuffix(own)}{beside}"
    for name, parameter, axis in ((writer.name, writer.weight, writer.axis), (bias, writer.bias, -1)):
        if parameter is None:
            continue
        original = parameter.data
        if not original.is_floating_point():
            raise DctError(f"{writer.name} is quantised ({original.dtype}): load the model unquantised to ablate it")
        wide = torch.float32 if original.device.type == "mps" else torch.float64
        D = basis.to(original.device, wide)
        along = original.to(wide).movedim(axis, -1)
        parameter.data = (along - along @ D.T @ D).movedim(-1, axis).to(original.dtype).contiguous()
        stack.callback(setattr, parameter, "data", original)
        edits[name] = Edit(basis, original)
    return edits


def _projection(site: Site, basis: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        stream = stream_of(output)
        wide = torch.promote_types(stream.dtype, torch.float32)
        D = basis.to(stream.device, wide)
        written = stream.to(wide)
        if site.whole:
            written = written - (args[0] if args else kwargs["hidden_states"]).to(wide)
        kept = (stream.to(wide) - written @ D.T @ D).to(stream.dtype)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    return hook


@torch.no_grad()
def _gain(site: Site, lm: LanguageModel) -> Tensor:
    """The gain of an RMS norm, as the norm itself applies it: its response to a vector of ones.

    Raises:
        DctError: the norm subtracts the mean or adds a bias, so that no gain describes it.
    """
    parameter = next(site.module.parameters())
    ones = torch.ones(1, 1, lm.width, device=parameter.device, dtype=parameter.dtype)
    gain = site.module(ones)
    scales = torch.allclose(site.module(-ones), -gain, rtol=1e-3, atol=1e-6)
    if not scales or float(gain.abs().max()) < 1e-3:
        raise DctError(f"{site.name} is not an RMS norm, so its ablation cannot be saved as weights")
    return gain.reshape(-1).to("cpu", torch.float64)


@torch.no_grad()
def leak(lm: LanguageModel, directions: Tensor, prompts: Sequence[Sequence[int]]) -> float:
    """The largest |<v, x>| over a batch: v an orthonormal direction of the span, x anything written into the stream.

    Args:
        directions: as for `ablate`.
        prompts: token ids, one list a prompt.
    """
    basis = orthonormal(directions)
    largest = 0.0

    def measure(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal largest
            written = stream_of(output).cpu().double()  # Apple's devices have no float64
            if site.whole:
                written = written - (args[0] if args else kwargs["hidden_states"]).cpu().double()
            largest = max(largest, float((written.reshape(-1, lm.width) @ basis.T).abs().max()))

        return hook

    with ExitStack() as stack:
        for site in sites(lm):
            stack.callback(site.module.register_forward_hook(measure(site), with_kwargs=True).remove)
        for ids in prompts:
            lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    return largest
