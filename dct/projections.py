"""Attention output projections: where they are, and how they are changed while a model runs, for every row by itself.

Found without asking for the architecture: of a block's matrices with an output projection's name, the first to run
whose input at a token depends on earlier tokens by what its own module does. So a linear attention's or a state space's
does as well.

A change is made by a hook that stays on its module and acts where its own thread says so: parts of a pass run in
several threads at the same time, on the same modules.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct.calls import Call, Made, fresh, leaves, stream_of
from dct.errors import DctError
from dct.model import LanguageModel
from dct.perturbation import RankOne
from dct.recording import record
from dct.writers import OUTPUT_PROJECTIONS

TOKENS = 6
"""Tokens that a block is run on to see what its projections take in."""

_ACTING = threading.local()
"""In each thread: what changes which module, by the module's identity."""

_ONE = threading.Lock()
"""Held while hooks are put onto modules: one each."""

Where = Callable[[Tensor], Tensor | None]
"""Which tokens of a projection's input are acted on, (rows or 1, tokens); None for all of them."""


def rank_one(lm: LanguageModel, first: int, last: int) -> RankOne:
    """The rank-1 changes of a band of blocks.

    Raises:
        DctError: a block has no projection that can be told.
    """
    found = _found(lm, first, last)
    return RankOne.of(first, tuple(size for _, size in found), lm.width, tuple(name for name, _ in found))


@contextmanager
def changed(
    lm: LanguageModel, kind: RankOne, theta: Float[Tensor, "rows dim"], where: Where | None = None
) -> Iterator[None]:
    """Has each row of a batch run under its own change (or all under one), in this thread, while the context lasts.

    Raises:
        DctError: the model has not these projections.
    """
    modules = [_module(lm, name) for name in kind.modules]
    before = getattr(_ACTING, "changes", {})
    acting = {
        id(module): (a, b, where, (block, lm.name))
        for module, (a, b), block in zip(modules, kind.changes(theta), kind.blocks, strict=True)
    }
    with _ONE:
        for module in modules:
            if _acts not in module._forward_hooks.values():
                module.register_forward_hook(_acts)
    _ACTING.changes = {**before, **acting}
    try:
        yield
    finally:
        _ACTING.changes = before


def _acts(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook: y + R b <a, x>, computed in float32 at least."""
    change = getattr(_ACTING, "changes", {}).get(id(module))
    if change is None:
        return None
    a, b, where, (block, name) = change
    x = args[0]
    if x.ndim != 3 or len(a) not in (1, len(x)):
        raise DctError(
            f"the output projection of block {block} of {name} is handed {tuple(x.shape)} for {len(a)} rows: dct "
            "cannot change it row by row; choose a `band` of other blocks"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    a, b = a.to(x.device, wide), b.to(x.device, wide)
    # <a, x> at every token, then along b
    along = (x.to(wide) * a[:, None]).sum(-1) if len(a) == 1 else torch.einsum("rti,ri->rt", x.to(wide), a)
    mask = None if where is None else where(x)
    if mask is not None:
        along = along * mask.to(along)
    return (output.to(wide) + along[..., None] * b[:, None]).to(output.dtype)


def _module(lm: LanguageModel, name: str) -> nn.Module:
    try:
        return lm.model.get_submodule(name)
    except AttributeError as error:
        raise DctError(f"{lm.name} has no {name}, which these factors change: pass the right `model`") from error


@torch.no_grad()
def _found(lm: LanguageModel, first: int, last: int) -> list[tuple[str, int]]:
    """Name and input width of the attention output projection of every block of a band; each found once.

    Raises:
        DctError: a block has none.
    """
    band = range(first, last + 1)
    if any(block not in lm.projections for block in band):
        ids = [(7 * k + 1) % lm.vocabulary for k in range(TOKENS)]
        [recording] = record(lm, [ids], first, last + 1)
        stream, made, memo = recording.entering[None], dict[Made, Tensor](), dict[int, Any]()
        for block, call in zip(band, recording.calls, strict=True):
            ready = fresh(call, made, memo)
            other = stream.clone()
            other[:, 0] = 2 * other[:, 0].flip(-1) + 1  # another first token
            plain, output = _inputs(lm, block, stream, ready)
            changed_first = _inputs(lm, block, other, ready)[0]
            lm.projections[block] = _mixing(f"{lm.layers_path}.{block}", plain, changed_first)
            made |= {Made(block - first, k): x for k, x in enumerate(leaves(output)) if isinstance(x, Tensor)}
            stream = stream_of(output)
    found = []
    for block in band:
        one = lm.projections[block]
        if one is None:
            raise DctError(
                f"block {block} of {lm.name} ({type(lm.layers[block]).__name__}) has no attention output projection "
                "that dct knows: choose a `band` of other blocks, or fit vectors with another `method`"
            )
        found.append(one)
    return found


def _inputs(lm: LanguageModel, block: int, stream: Tensor, call: Call) -> tuple[dict[str, Tensor], Any]:
    """What the modules of a block are handed for each token, by their names in the order in which they begin: those
    with an output projection's name, and those around them. And what the block puts out."""
    seen: dict[str, Tensor] = {}

    def keeps(name: str) -> Any:
        """A pre-hook for the module of this name."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keeps the first tensor that has a row for each token."""
            given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            whole = next((x for x in given if x.ndim == 3 and x.shape[:2] == stream.shape[:2]), None)
            if whole is not None:
                seen.setdefault(name, whole[0].float())

        return hook

    modules = {path: module for path, module in lm.layers[block].named_modules() if path}
    ends = [path for path in modules if path.rpartition(".")[2] in OUTPUT_PROJECTIONS]
    watched = [path for path in modules if any(end == path or end.startswith(f"{path}.") for end in ends)]
    handles = [modules[path].register_forward_pre_hook(keeps(path), with_kwargs=True) for path in watched]
    try:
        return seen, lm.layers[block](stream, **fresh(call, {}, {}))
    finally:
        for handle in handles:
            handle.remove()


def _mixing(prefix: str, plain: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[str, int] | None:
    """The first projection whose input at later tokens is another once the first token is, where that of a module
    around it is not: tokens are mixed between the two. An MLP behind attention is handed what is mixed already."""

    def moved(path: str) -> bool:
        """Whether what a module is handed at later tokens has changed."""
        x = plain[path][1:]
        return path in other and float((other[path][1:] - x).norm()) > 1e-4 * float(x.norm())

    for path, x in plain.items():
        around = [one for one in plain if path.startswith(f"{one}.")]
        if path.rpartition(".")[2] in OUTPUT_PROJECTIONS and moved(path) and any(not moved(one) for one in around):
            return f"{prefix}.{path}", x.shape[-1]
    return None
