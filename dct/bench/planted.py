"""Maps whose factors are known, to hold a fit against: f(x) = sum_l c_l h(x; v_l) u_l with n terms and f(0) = 0.

Each kind changes one thing of `uniform`:

    uniform      h = exp <v_l, x> - 1, rows of V and U uniform on the sphere, c_l = 1
    orthogonal   rows of V orthonormal, and rows of U; n is at most the width
    correlated   rows of V in groups of eight, whose members have a cosine of about 0.5 with each other
    heavy        strengths c_l from a Pareto distribution of index 1.5, whose variance is infinite
    quadratic    h = <v_l, x>^2, so that J = 0 and v has no sense
    gated        h = sigmoid(<g_l, x> - 2) <w_l, x>, a gate that is nearly closed at 0; g_l and w_l are orthogonal
    noise        a deep random residual network beside the factors, as strong as they are along random directions

What is to be found of a term at the scale R is where it is steepest on the sphere: v_l; of a quadratic one also -v_l;
of a gated one the unit vectors cos(a) w_l + sin(a) g_l and -cos(a) w_l + sin(a) g_l with the a that makes
sigmoid(R sin(a) - 2) R cos(a) greatest. Either of the two counts.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, normalize

GROUP, COSINE = 8, 0.5
"""Rows of a group of `correlated`, and the cosine that two of them are expected to have."""

INDEX = 1.5
"""Of the Pareto distribution of `heavy`."""

CLOSED = 2.0
"""What a gate's argument has to pass."""

BLOCKS = 8
"""Of the residual network of `noise`."""

OWN = 0x9E3779B9
"""What the bits of a map's seed are turned by: a fit of that seed draws directions, and must not draw the factors."""

CELLS = 2**25
"""Numbers of the widest matrix of a pass, at most: what `batch` is made of."""

Rows = Float[Tensor, "rows d"]


class Planted:
    """A map with n known factors; the same on every device.

    Args:
        kind: one of those above.
        width: d, of input and output.
        count: n.
        seed: of all that is random.
        device: where it computes.

    Attributes:
        scale: R where no calibration can find one, as a map without a linear part has none; else None.
    """

    def __init__(self, kind: str, width: int, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.kind, self.width, self.device = kind, width, torch.device(device)
        self.batch = max(64, CELLS // max(count, width))
        self.scale = 1.0 if kind == "quadratic" else None
        draw = torch.Generator().manual_seed(OWN ^ seed)
        V, U = (normalize(torch.randn(count, width, generator=draw), dim=1) for _ in range(2))
        strengths = torch.ones(count)
        if kind == "orthogonal":
            V, U = (torch.linalg.qr(rows.T).Q.T for rows in (V, U))
        elif kind == "correlated":
            centres = normalize(torch.randn(math.ceil(count / GROUP), width, generator=draw), dim=1)
            shared = centres.repeat_interleave(GROUP, dim=0)[:count]
            V = normalize(math.sqrt(COSINE) * shared + math.sqrt(1 - COSINE) * V, dim=1)
        elif kind == "heavy":
            strengths = (1 - torch.rand(count, generator=draw)) ** (-1 / INDEX)
        self.V, self.gates = V.to(self.device), None
        if kind == "gated":
            gates = torch.randn(count, width, generator=draw)
            gates = normalize(gates - (gates * V).sum(1, keepdim=True) * V, dim=1)
            self.gates = gates.to(self.device)
        self.U = (strengths[:, None] * U).to(self.device)
        self.noise: Residual | None = None
        if kind == "noise":
            noise = Residual(width, draw, self.device)
            # As strong as the factors: the median response to random directions, at a norm where these have curvature.
            w = math.sqrt(width) / 2 * normalize(torch.randn(32, width, generator=draw), dim=1).to(self.device)
            noise.gain = float(self(w).norm(dim=1).median() / noise(w).norm(dim=1).median())
            self.noise = noise

    def __call__(self, x: Rows) -> Rows:
        """f(x), row by row."""
        inner = x @ self.V.T.to(x.dtype)
        if self.kind == "quadratic":
            inner = inner.square()
        elif self.gates is not None:
            inner = torch.sigmoid(x @ self.gates.T.to(x.dtype) - CLOSED) * inner
        else:
            inner = torch.expm1(inner)
        value = inner @ self.U.to(x.dtype)
        return value if self.noise is None else value + self.noise(x)

    def targets(self, scale: float) -> list[Float[Tensor, "n d"]]:
        """Where each term is steepest at that scale, unit rows; of two in a list, either counts."""
        if self.kind == "quadratic":
            return [self.V, -self.V]
        if self.gates is None:
            return [self.V]
        angles = torch.linspace(0, math.pi / 2, 10_001, dtype=torch.float64)
        a = float(angles[(torch.sigmoid(scale * angles.sin() - CLOSED) * angles.cos()).argmax()])
        return [sign * math.cos(a) * self.V + math.sin(a) * self.gates for sign in (1.0, -1.0)]


class Residual:
    """h -> h + B gelu(A rms(h)), eight times, from a random stream of norm sqrt(d); what adding x to it changes."""

    def __init__(self, width: int, draw: torch.Generator, device: torch.device) -> None:
        self.gain = 1.0
        self.stream = torch.randn(1, width, generator=draw).to(device)
        pairs = torch.randn(BLOCKS, 2, width, width, generator=draw) / math.sqrt(width)
        self.blocks = pairs.to(device)

    def __call__(self, x: Rows) -> Rows:
        """What the network's last stream has more than it has without x; the skip path, x itself, is in it."""
        return self.gain * (self._last(self.stream.to(x.dtype) + x) - self._last(self.stream.to(x.dtype)))

    def _last(self, h: Rows) -> Rows:
        for A, B in self.blocks.to(h.dtype):
            rms = h.square().mean(dim=1, keepdim=True).sqrt()
            h = h + gelu((h / rms) @ A.T) @ B.T
        return h


class Blind:
    """A map without what it does along some output directions: what the strongest factors cause no longer hides others.

    Args:
        f: the map.
        seen: orthonormal rows, shape (k, d_out).
    """

    def __init__(self, f: Planted, seen: Float[Tensor, "k d"]) -> None:
        self.f, self.seen, self.device, self.batch = f, seen, f.device, f.batch

    def __call__(self, x: Rows) -> Rows:
        """f(x) - S' S f(x), S the directions."""
        value, seen = self.f(x), self.seen.to(x.dtype)
        return value - (value @ seen.T) @ seen


def strongest(outputs: Float[Tensor, "m d"], seen: Float[Tensor, "k d"], count: int) -> Float[Tensor, "more d"]:
    """`seen` with up to `count` further orthonormal rows, from the longest outputs on; one that lies mostly (by more
    than three quarters of its square) in the span of those before it is passed over.
    """
    lengths = outputs.norm(dim=1)
    rows = outputs / lengths[:, None].clamp_min(1e-30)
    kept = torch.cat([seen, seen.new_zeros(count, seen.shape[1])])
    known = len(seen)
    for k in lengths.argsort(descending=True).tolist():
        if known == len(kept):
            break
        rest = rows[k] - (kept @ rows[k]) @ kept
        if float(rest.norm()) > 0.5:
            rest = rest - (kept @ rest) @ kept  # twice is enough
            kept[known] = rest / rest.norm()
            known += 1
    return kept[:known]
