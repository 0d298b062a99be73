"""Directional ablation: directions are projected out of everything that writes into the residual stream.

Knows how a writer is edited and put back; where the writers are, `writers` knows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct.calls import stream_of
from dct.errors import DctError
from dct.model import LanguageModel
from dct.quantised import quantised_parameters
from dct.streamwatch import Addition, watched
from dct.writers import Writer, projected, sites

NEGLIGIBLE = 1e-6
"""Singular values of a set of unit directions, relative to the largest, below which one of them depends on the others:
a little above the rounding of float32."""


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
    """An orthonormal basis D of the span of the rows, D D^T = 1, in float64 on the CPU: the right singular vectors of
    the unit rows whose singular values are not `NEGLIGIBLE`.

    Raises:
        DctError: a direction is zero or not finite.
    """
    rows = directions.detach().to("cpu", torch.float64).reshape(-1, directions.shape[-1])
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(rows).all()) or not bool((norms > 0).all()):
        raise DctError("a direction to ablate is zero or not finite")
    _, S, Vh = torch.linalg.svd(rows / norms, full_matrices=False)
    return Vh[NEGLIGIBLE * S[0] < S]


@contextmanager
def ablate(
    lm: LanguageModel,
    directions: Float[Tensor, "n width"] | Float[Tensor, " width"],
    *,
    fold_norms: bool = False,
) -> Iterator[Ablation]:
    """Removes span(directions) from everything that writes into the residual stream (Arditi et al. 2024).

    Every writer's weight and bias lose their component in the span: W <- W - D^T D W, b <- b - D^T D b, for
    orthonormal rows D. Where a norm stands between a writer and the stream (Gemma-2 and 3, OLMo-2) the norm's output is
    projected while the model runs instead, and so is what no weights can be found behind, or weights that wait on disk.
    The token embedding is left alone. The model is restored to the bit when the context ends, whatever happens inside.

    Args:
        directions: one or several; they need not be unit vectors, orthogonal or independent.
        fold_norms: for saving as plain weights: where a norm with gain g follows, the weights lose span(g * D)
            instead, which also leaves nothing of D in the stream, but is an oblique projection.

    Raises:
        DctError: what a block adds to its stream cannot be told, a weight is quantised, or (with `fold_norms`) an
            addition has no weights to edit.
    """
    basis = orthonormal(directions)
    if basis.shape[1] != lm.width:
        raise DctError(f"directions to ablate from {lm.name} have {lm.width} entries, got {basis.shape[1]}")
    _refuse_quantised(lm)
    done = Ablation(basis, [], [], [], {})
    watch: dict[int, nn.Module] = {}
    edited: set[int] = set()
    with ExitStack() as stack:
        for site in sites(lm):
            # Weights that wait on disk until their block runs cannot be edited; what they put out can be projected.
            away = any(parameter.is_meta for parameter in lm.layers[site.block].parameters())
            if site.writers and not away and (site.gain is None or fold_norms):
                # A norm adds g * y / |y| for y = W x, and <D, g * y / |y|> = <g * D, y> / |y|.
                span = basis if site.gain is None else orthonormal(basis * site.gain)
                for writer in site.writers:
                    if id(writer.weight) in edited:  # blocks may share their weights
                        continue
                    edited.add(id(writer.weight))
                    done.edits.update(_edit(writer, span, stack))
                    done.edited.append(writer.name)
                if site.gain is not None:
                    done.folded.append(site.name)
                continue
            if fold_norms:
                why = "does not fit into memory" if away else "has no weights that could be edited"
                raise DctError(f"{site.name} of {lm.name} {why}: leave `fold_norms` out")
            done.projected.append(site.name)
            if site.module is None:
                watch[site.block] = lm.layers[site.block]
            else:
                stack.callback(site.module.register_forward_hook(_projection(basis)).remove)
        stack.enter_context(watched(list(watch.values()), change=lambda added: _project(added, basis)))
        yield done


def _refuse_quantised(lm: LanguageModel) -> None:
    """Refuses to edit numbers that stand for weights together with others.

    Raises:
        DctError: a parameter of a block is no plain weight.
    """
    packed = quantised_parameters(lm.layers)
    if packed:
        name, why = next(iter(packed.items()))
        raise DctError(
            f"{lm.layers_path}.{name} of {lm.name} is quantised ({why}): load the model unquantised to ablate it; "
            "steering takes it as it is"
        )


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
        wide = torch.float32 if original.device.type == "mps" else torch.float64
        parameter.data = projected(original, basis.to(wide), axis)
        stack.callback(setattr, parameter, "data", original)
        edits[name] = Edit(basis, original)
    return edits


def _project(added: Tensor, basis: Float[Tensor, "k width"]) -> Tensor:
    """Something that is about to be added to the stream, without its component in the span."""
    wide = torch.promote_types(added.dtype, torch.float32)
    D = basis.to(added.device, wide)
    return (added.to(wide) - added.to(wide) @ D.T @ D).to(added.dtype)  # x <- x - D^T D x


def _projection(basis: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A forward hook: what the module puts out, or the first of it, without its component in the span."""
        kept = _project(stream_of(output), basis)
        return kept if isinstance(output, Tensor) else type(output)([kept, *output[1:]])

    return hook


@torch.no_grad()
def leak(lm: LanguageModel, directions: Tensor, prompts: Sequence[Sequence[int]]) -> float:
    """The largest |<v, x>| over a batch: v an orthonormal direction of the span, x anything added to the stream.

    Blocks are watched while they run, so that nothing has to be known of their parts.

    Args:
        directions: as for `ablate`.
        prompts: token ids, one list a prompt.

    Raises:
        DctError: a block does not add to its stream.
    """
    basis = orthonormal(directions)
    largest = 0.0

    def seen(_: int, additions: tuple[Addition, ...]) -> None:
        """Keeps the largest component of a block's additions along the span."""
        nonlocal largest
        for addition in additions:  # Apple's devices have no float64
            largest = max(largest, float((addition.what.cpu().double() @ basis.T).abs().max()))

    with watched(lm.layers, seen):
        for ids in prompts:
            lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    return largest
