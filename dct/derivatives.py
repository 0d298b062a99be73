"""Values and derivatives of a map f: (batch, dim) -> (batch, dim_out) with f(0) = 0 whose rows are independent.

The one place that takes derivatives, in batches that fit memory. J is the Jacobian of f at 0 and T2 the tensor of its
second derivatives there, T2[i, j, k] with output index i; neither is ever materialised by what is below. Knows nothing
of language models.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.batching import in_batches, out_of_memory
from dct.errors import DctError, NonFiniteError

Map = Callable[[Tensor], Tensor]
"""A differentiable map (batch, dim) -> (batch, dim_out) that treats each row by itself; f(0) = 0."""

Rows = Callable[[int], None]
"""Called with the number of rows that have just gone through the map."""

LIGHT = ("jvp", "vjp", "second")
"""Derivatives at 0 whose rows keep nothing for a way back, as long as they share the map's own pass."""

FORWARD_MODE = ("jvp", "second", "second_transposed")
"""Derivatives whose level torch keeps for all threads together: they have one lane."""

CURE = 'use fewer or shorter prompts, a shorter slice, `dtype="bfloat16"` or a larger device'
"""What helps where a single row does not fit."""

WITHOUT_DECOMPOSITIONS = ("mps",)
"""Devices with neither float64 nor all of the decompositions that a fit makes of its vectors."""


class Derivatives:
    """Batched values and derivatives of a map.

    Args:
        f: the map.
        dim: its input dimension.
        batch: rows in one pass; left out, the map's own `batch` (or 256) to start with, and its `batch_at_zero` in
            passes at 0 whose rows keep nothing for a way back.
        dtype: of vectors, values and derivatives (float32, or float64 for verification).
        device: where the map computes; left out, its own `device` (or the CPU).
        on_rows: told about every finished pass.

    Attributes:
        device: where vectors, values and derivatives are: where the map computes, or on the CPU where that device
            cannot take their matrices apart.

    A map that says so (`lanes`) has the rows of a pass split into as many parts that run at the same time, in threads
    of their own; not in forward mode, of which torch keeps one state for all threads. A map that can tell whether its
    own derivatives are right is asked to (`check`).

    Raises:
        DctError: f does not map (batch, dim) to (batch, dim_out), or one row alone does not fit in memory.
        NonFiniteError: a value or derivative is NaN or infinite.
    """

    def __init__(
        self,
        f: Map,
        dim: int,
        *,
        batch: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        on_rows: Rows | None = None,
    ) -> None:
        self.f, self.dim, self.dtype = f, dim, dtype
        self.map_device = torch.device(device if device is not None else getattr(f, "device", "cpu"))
        self.device = torch.device("cpu") if self.map_device.type in WITHOUT_DECOMPOSITIONS else self.map_device
        self.batch = max(1, int(batch if batch is not None else getattr(f, "batch", 256)))
        self.batch_at_zero = max(1, int(batch if batch is not None else getattr(f, "batch_at_zero", self.batch)))
        self.on_rows = on_rows
        self.lanes = int(getattr(f, "lanes", 1))
        self.shares = True  # until the map turns out to be one that vmap does not take
        with torch.no_grad():
            shape = f(torch.zeros(1, dim, dtype=dtype, device=self.map_device)).shape
        if len(shape) != 2 or shape[0] != 1:
            raise DctError(f"the map must take (batch, {dim}) to (batch, dim_out); gave {tuple(shape)}")
        self.dim_out = int(shape[1])
        check: Callable[[], None] | None = getattr(f, "check", None)
        if check is not None:
            try:
                check()
            except RuntimeError as error:
                if out_of_memory(error):
                    raise DctError(f"out of memory with a single row: {CURE}") from error
                raise

    def rows_at_once(self, kind: str) -> int:
        """Rows in one pass of the method of that name."""
        return self.batch_at_zero if kind in LIGHT and self.shares else self.batch

    def value(self, theta: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim_out"]:
        """f(theta)."""

        def rows(theta: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (self.f(theta),)

        [value] = self._batched("value", rows, theta)
        return value

    def jvp(self, v: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim_out"]:
        """J v, by forward mode."""
        return self._at_zero("jvp", self._along, v)

    def vjp(self, u: Float[Tensor, "rows dim_out"]) -> Float[Tensor, "rows dim"]:
        """J' u, by reverse mode."""

        def pulled(theta: Tensor, u: Tensor) -> Tensor:
            if self.shares:
                return torch.func.vjp(self.f, theta)[1](u)[0]
            theta = theta.requires_grad_()  # serves operations that torch.func does not take
            return torch.autograd.grad(self.f(theta), theta, u)[0]

        return self._at_zero("vjp", pulled, u)

    def value_and_gradient(
        self, theta: Float[Tensor, "rows dim"], u: Float[Tensor, "rows dim_out"] | None = None
    ) -> tuple[Float[Tensor, "rows dim_out"], Float[Tensor, "rows dim"]]:
        """f(theta) and the gradient of <u, f(theta)> with respect to theta, in one pass; without u, that of |f(theta)|,
        for which u is unit f(theta)."""

        def rows(theta: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            theta = theta.detach().requires_grad_()
            value = self.f(theta)
            u = given[0].to(value.dtype) if given else normalize(value.detach(), dim=1)
            [gradient] = torch.autograd.grad(value, theta, u)
            return value.detach(), gradient

        inputs = (theta,) if u is None else (theta, u)
        value, gradient = self._batched("value_and_gradient", rows, *inputs)
        return value, gradient

    def second(
        self, v: Float[Tensor, "rows dim"], w: Float[Tensor, "rows dim"] | None = None
    ) -> Float[Tensor, "rows dim_out"]:
        """T2(., v, w), without w T2(., v, v): the second derivative of f(eps v + del w), by forward mode in forward
        mode."""

        def curvature(theta: Tensor, v: Tensor, w: Tensor) -> Tensor:
            return torch.func.jvp(lambda at: self._along(at, v), (theta,), (w,))[1]

        return self._at_zero("second", curvature, v, v if w is None else w)

    def second_transposed(
        self, u: Float[Tensor, "rows dim_out"], v: Float[Tensor, "rows dim"]
    ) -> Float[Tensor, "rows dim"]:
        """T2(u, v, .): the gradient at 0 of u' df(theta)[v], by reverse mode over forward mode."""

        def gradient(theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
            return torch.func.grad(lambda at: (u * self._along(at, v)).sum())(theta)

        return self._at_zero("second_transposed", gradient, u, v)

    def _along(self, theta: Tensor, v: Tensor) -> Tensor:
        """df(theta)[v]."""
        # Gradient mode decides whether torch takes formulas (silu's, for one) that can be differentiated again.
        with torch.enable_grad():
            derivative: Tensor = torch.func.jvp(self.f, (theta,), (v,))[1]
        return derivative

    def _at_zero(self, kind: str, derivative: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """A derivative (theta, *rows) -> rows of f, taken at theta = 0 for every row of the inputs.

        What does not depend on the row, f's own pass above all, is computed once for a batch: vmap leaves it unbatched.
        A map that vmap does not take is given as many zeros as there are rows; then every row keeps what a gradient
        needs.

        Raises:
            DctError: an operation of the map has no such derivative.
        """

        def rows(*inputs: Tensor) -> tuple[Tensor]:
            zeros = torch.zeros(len(inputs[0]), self.dim, dtype=self.dtype, device=self.map_device)
            if self.shares:
                try:
                    each = torch.vmap(derivative, in_dims=(None, *(0 for _ in inputs)))
                    return (each(zeros[:1], *(x[:, None] for x in inputs))[:, 0].detach(),)
                except Exception as error:  # a map may object in its own way
                    if isinstance(error, DctError) or out_of_memory(error):
                        raise
                    self.shares = False
            try:
                return (derivative(zeros, *inputs).detach(),)
            except RuntimeError as error:
                if out_of_memory(error) or kind not in FORWARD_MODE:
                    raise
                first = (str(error).strip().splitlines() or [type(error).__name__])[0].split(" For more details")[0]
                raise DctError(
                    f"an operation of the map has no forward-mode derivative ({first}): give `scale` yourself "
                    'and fit with `method="exponential"`'
                ) from error

        with warnings.catch_warnings():  # an operation that vmap takes row by row serves as well
            warnings.filterwarnings("ignore", message="There is a performance drop")
            [result] = self._batched(kind, rows, *inputs)
        return result

    def _batched(self, kind: str, rows: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Applies `rows` to the inputs, batch after batch, and joins the results; remembers the batch that fitted."""
        inputs = tuple(x.to(self.map_device, self.dtype) for x in inputs)

        def run(start: int, stop: int) -> tuple[Tensor, ...]:
            result = tuple(y.to(self.device, self.dtype) for y in rows(*(x[start:stop] for x in inputs)))
            if not all(bool(torch.isfinite(y).all()) for y in result):
                raise NonFiniteError("the map or its derivative is NaN or infinite: lower `scale`")
            return result

        light = kind in LIGHT and self.shares
        lanes = 1 if kind in FORWARD_MODE else self.lanes
        batch = self.rows_at_once(kind)
        parts, batch = in_batches(run, len(inputs[0]), batch, self.map_device, CURE, self.on_rows, lanes)
        if light:
            self.batch_at_zero = batch
        else:
            self.batch = batch
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
