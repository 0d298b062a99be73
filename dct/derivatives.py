"""Values and derivatives of a map f: (batch, dim) -> (batch, dim_out) with f(0) = 0 whose rows are independent.

The one place that takes derivatives, in batches that fit memory. J is the Jacobian of f at 0 and T2 the tensor of its
second derivatives there, T2[i, j, k] with output index i; neither is ever materialised by what is below. Knows nothing
of language models.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.batching import in_batches
from dct.errors import DctError, NonFiniteError

Map = Callable[[Tensor], Tensor]
"""A differentiable map (batch, dim) -> (batch, dim_out) that treats each row by itself; f(0) = 0."""

Rows = Callable[[int], None]
"""Called with the number of rows that have just gone through the map."""


class Derivatives:
    """Batched values and derivatives of a map.

    Args:
        f: the map.
        dim: its input dimension.
        batch: rows in one pass; left out, the map's own `batch` (or 256) to start with.
        dtype: of vectors, values and derivatives (float32, or float64 for verification).
        device: of the same; left out, the map's own `device` (or the CPU).
        on_rows: told about every finished pass.

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
        self.device = torch.device(device if device is not None else getattr(f, "device", "cpu"))
        self.batch = max(1, int(batch if batch is not None else getattr(f, "batch", 256)))
        self.on_rows = on_rows
        with torch.no_grad():
            shape = f(torch.zeros(1, dim, dtype=dtype, device=self.device)).shape
        if len(shape) != 2 or shape[0] != 1:
            raise DctError(f"the map must take (batch, {dim}) to (batch, dim_out); gave {tuple(shape)}")
        self.dim_out = int(shape[1])

    def value(self, theta: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim_out"]:
        """f(theta)."""

        def rows(theta: Tensor) -> tuple[Tensor]:
            with torch.no_grad():
                return (self.f(theta),)

        return self._batched(rows, theta)[0]

    def jvp(self, v: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim_out"]:
        """J v, by forward mode."""

        def rows(v: Tensor) -> tuple[Tensor]:
            return (self._along(v)(torch.zeros_like(v)).detach(),)

        return self._batched(rows, v)[0]

    def vjp(self, u: Float[Tensor, "rows dim_out"]) -> Float[Tensor, "rows dim"]:
        """J' u, by reverse mode."""

        def rows(u: Tensor) -> tuple[Tensor, ...]:
            theta = torch.zeros(len(u), self.dim, dtype=self.dtype, device=self.device, requires_grad=True)
            return torch.autograd.grad(self.f(theta), theta, u.to(self.dtype))

        return self._batched(rows, u)[0]

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

        value, gradient = self._batched(rows, theta) if u is None else self._batched(rows, theta, u)
        return value, gradient

    def second(self, v: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim_out"]:
        """T2(., v, v): the second derivative of f(eps v) at eps = 0, by forward mode in forward mode."""

        def rows(v: Tensor) -> tuple[Tensor]:
            return (torch.func.jvp(self._along(v), (torch.zeros_like(v),), (v,))[1].detach(),)

        return self._batched(rows, v)[0]

    def second_transposed(
        self, u: Float[Tensor, "rows dim_out"], v: Float[Tensor, "rows dim"]
    ) -> Float[Tensor, "rows dim"]:
        """T2(u, v, .): the gradient at 0 of u' df(theta)[v], by reverse mode over forward mode."""

        def rows(u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            theta = torch.zeros_like(v).requires_grad_()
            slope = self._along(v)(theta)
            if not slope.requires_grad:  # a linear map: its derivative does not depend on theta
                return (torch.zeros_like(v),)
            return torch.autograd.grad(slope, theta, u.to(slope.dtype))

        return self._batched(rows, u, v)[0]

    def _along(self, v: Tensor) -> Callable[[Tensor], Tensor]:
        """theta -> df(theta)[v]."""

        def slope(theta: Tensor) -> Tensor:
            # Gradient mode decides whether torch takes formulas (silu's, for one) that can be differentiated again.
            with torch.enable_grad():
                derivative: Tensor = torch.func.jvp(self.f, (theta,), (v,))[1]
            return derivative

        return slope

    def _batched(self, rows: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Applies `rows` to the inputs, batch after batch, and joins what comes back."""
        inputs = tuple(x.to(self.device, self.dtype) for x in inputs)

        def run(start: int, stop: int) -> tuple[Tensor, ...]:
            result = tuple(y.to(self.dtype) for y in rows(*(x[start:stop] for x in inputs)))
            if not all(bool(torch.isfinite(y).all()) for y in result):
                raise NonFiniteError("the map or its derivative is NaN or infinite: lower the scale")
            return result

        cure = "use fewer or shorter prompts, a shorter slice, --dtype bfloat16 or a larger device"
        parts, self.batch = in_batches(run, len(inputs[0]), self.batch, self.device, cure, self.on_rows)
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
