"""The scale R at which the response to a steering vector is nonlinear enough. A pure function of a map."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dct.derivatives import Derivatives, Map
from dct.errors import CalibrationError, UsageError

DOUBLINGS = 24
"""Doublings of the scale in either direction before the search gives up."""

DEFAULT_LAMBDA = 0.5
"""The post's lambda, which served it on several 7B models at ten blocks between source and target."""

DIRECTIONS = 30
"""Random directions that the ratio is measured on."""

USUAL_POINTS = 4
"""Points of the curve to expect: one where the ratio stays below lambda at the limit, eight or so where it does not."""

WITHIN = 0.02
"""Relative accuracy of the response where that limits the scale."""

TOLERANCE = 1e-3
"""Relative accuracy of the ratio at the solution."""

FLAT = 1e-3
"""The curve has saturated when a doubling moves it by less than this fraction, three times in a row."""


LEAST = DEFAULT_LAMBDA / 2
"""The response does not limit the default scale to where the ratio is less than this."""

RESPONSE = 0.1
"""The default scale is no larger than where a random direction changes the target stream by this share of its norm. The
factors of a fit come to respond about four times as strongly; where they change much more than that, what a model says
falls apart (docs/experiments.md, on real models)."""


@dataclass(frozen=True)
class Calibration:
    """A calibrated scale.

    Attributes:
        scale: R, the norm of the vector that is added to the residual stream.
        ratio: the non-linearity ratio measured at R.
        target: lambda, the ratio that was asked for.
        curve: every (scale, ratio) pair that was measured, by ascending scale.
        limited: the scale is a limit that was set, where the ratio is still below lambda.
        response: median |f(R w)| over the random directions.
    """

    scale: float
    ratio: float
    target: float
    curve: list[tuple[float, float]]
    limited: bool = False
    response: float = 0.0


def calibrate(
    f: Map,
    dim: int,
    ratio: float = DEFAULT_LAMBDA,
    *,
    directions: int = DIRECTIONS,
    seed: int = 0,
    limit: float | None = None,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Calibration:
    """Solves ratio(R) = lambda for the non-linearity ratio

        ratio(R) = sqrt(mean over random unit w of |f(R w) - R J w|^2 / |R J w|^2)

    with J w by forward mode. The post on deep causal transcoders writes the sum without the denominator; its code
    divides, and so does this. The scale is doubled or halved until the ratio passes lambda (the first crossing from
    below), beginning at the limit, or at the map's own `residual_norm`, or at 1; the bracket is then closed by the
    Illinois rule on log ratio against log scale.

    Args:
        f: (batch, dim) -> (batch, dim_out), f(0) = 0.
        dim: input dimension.
        ratio: lambda.
        directions: number of random unit directions w.
        limit: the largest scale worth having. Where the ratio is still below lambda there, it is the result: noise-
            stable models (small ones above all) saturate below any given lambda, or reach it only where the vector
            is many times the stream that it is added to.
        batch, dtype, device, on_rows: as in `Derivatives`.

    Raises:
        UsageError: lambda is not positive.
        CalibrationError: the ratio does not reach lambda; carries the curve and says what it does reach.
    """
    if not 0 < ratio < math.inf:
        raise UsageError(f"`ratio` (lambda) must be positive, got {ratio}", argument="ratio")
    d = Derivatives(f, dim, batch=batch, dtype=dtype, device=device, on_rows=on_rows)
    return _solved(_Ratio(d, directions, seed), ratio, limit)


def default_calibration(
    f: Map,
    dim: int,
    ratio: float | None = None,
    *,
    seed: int = 0,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Calibration:
    """The scale of a fit that is not told one. A ratio that is asked for is reached or refused.

    Left out, it is lambda = 0.5, but R is no larger than what the streams bear: than the map's `residual_norm`, where
    it has one, so that a vector does not drown the stream that it is added to; and than where

        median over random unit w of |f(R w)| = 0.1 `target_norm`,

    where it has one of those, so that factors do not drown the stream that they change; but nowhere so small that the
    ratio is below 0.25, where the map has nearly become linear.

    A map may name another one whose streams bear its vectors (`borne_by`, as a `Difference` does): then R is the scale
    of that one, or the smaller one at which the map's own ratio is lambda. Where rounding leaves no such scale, it is
    that of the other.

    Args and errors as in `calibrate`.
    """
    if ratio is not None:
        return calibrate(f, dim, ratio, seed=seed, batch=batch, dtype=dtype, device=device, on_rows=on_rows)
    how: dict[str, Any] = {"batch": batch, "dtype": dtype, "device": device, "on_rows": on_rows}
    measure = _Ratio(Derivatives(f, dim, **how), DIRECTIONS, seed)
    if (bearer := getattr(f, "borne_by", None)) is not None:
        borne = default_calibration(bearer, dim, seed=seed, **how).scale
        try:
            return _solved(measure, DEFAULT_LAMBDA, borne)
        except CalibrationError:
            return measure.calibration(borne, DEFAULT_LAMBDA, limited=True)
    found = _solved(measure, DEFAULT_LAMBDA, getattr(f, "residual_norm", None))
    bearable = RESPONSE * float(getattr(f, "target_norm", math.inf))
    if not found.response > bearable > 0:
        return found
    scale = found.scale
    for _ in range(20):  # close to proportional: |f(R w)| ~ R
        if abs(measure.response(scale) / bearable - 1) <= WITHIN:
            break
        scale *= bearable / measure.response(scale)
    if measure(scale) < LEAST:
        scale = _solved(measure, LEAST, found.scale).scale
    return measure.calibration(scale, DEFAULT_LAMBDA, limited=True)


def _solved(measure: "_Ratio", ratio: float, limit: float | None) -> Calibration:
    """The smallest scale found at which the ratio is lambda, or the limit where it is still below."""
    if limit is not None and measure(limit) < ratio:
        return measure.calibration(limit, ratio, limited=True)
    start = limit if limit is not None else float(getattr(measure.d.f, "residual_norm", 1.0))
    low, high = _bracket(measure, ratio, start)
    return measure.calibration(_illinois(measure, ratio, low, high), ratio)


def nonlinearity(
    f: Map,
    dim: int,
    scales: Sequence[float],
    *,
    directions: int = DIRECTIONS,
    seed: int = 0,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> list[tuple[float, float]]:
    """The curve of ratio(R), as defined in `calibrate`, at given scales."""
    measure = _Ratio(Derivatives(f, dim, batch=batch, dtype=dtype, device=device), directions, seed)
    return [(scale, measure(scale)) for scale in scales]


class _Ratio:
    """ratio(R), measured once for each scale."""

    def __init__(self, d: Derivatives, directions: int, seed: int) -> None:
        self.d = d
        self.w = random_directions(directions, d.dim, seed).to(d.device, d.dtype)
        self.linear = d.jvp(self.w)
        self.norms = self.linear.norm(dim=1)
        if not bool((self.norms > 0).all()):
            raise CalibrationError("the map has no linear part along some random direction: give `scale` yourself", [])
        self.measured: dict[float, float] = {}
        self.responses: dict[float, float] = {}

    def __call__(self, scale: float) -> float:
        if scale not in self.measured:
            # |f(R w) - R J w|^2 / |R J w|^2, then the root of its mean over w
            value = self.d.value(scale * self.w)
            gap = value - scale * self.linear
            self.responses[scale] = float(value.norm(dim=1).median())
            self.measured[scale] = float((gap.norm(dim=1) / (scale * self.norms)).square().mean().sqrt())
        return self.measured[scale]

    def response(self, scale: float) -> float:
        """median |f(R w)|."""
        self(scale)
        return self.responses[scale]

    def calibration(self, scale: float, ratio: float, limited: bool = False) -> Calibration:
        """A scale as the result, with all that was measured on the way."""
        at = self(scale)
        return Calibration(scale, at, ratio, sorted(self.measured.items()), limited, self.responses[scale])


def usual_work() -> dict[str, int]:
    """Rows that a calibration usually sends through its map, by the `Derivatives` method that they go through."""
    return {"jvp": DIRECTIONS, "value": DIRECTIONS * USUAL_POINTS}


def random_directions(count: int, dim: int, seed: int) -> Tensor:
    """Unit vectors uniform on the sphere, shape (count, dim); the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def _bracket(measure: Callable[[float], float], ratio: float, guess: float) -> tuple[float, float]:
    """Neighbouring scales, a factor of two apart, below and above lambda."""
    low = high = guess
    if measure(guess) <= ratio:
        flat = 0
        for _ in range(DOUBLINGS):
            low, high = high, 2 * high
            before, after = measure(low), measure(high)
            if after >= ratio:
                return low, high
            flat = flat + 1 if abs(after - before) <= FLAT * before else 0
            if flat == 3:
                break
        if not any(measured > 0 for measured in map(measure, _scales(guess, high))):
            raise CalibrationError("the map is linear, so every scale serves: give `scale` yourself", [])
        reached = max((measure(s), s) for s in _scales(guess, high))
        raise CalibrationError(
            f"the non-linearity ratio never reaches lambda = {ratio:g}: it reaches {reached[0]:.3g} at scale "
            f"{reached[1]:.3g}; ask for `ratio={0.9 * reached[0]:.2g}`, or give `scale` yourself",
            [(s, measure(s)) for s in _scales(guess, high)],
        )
    for _ in range(DOUBLINGS):
        low, high = low / 2, low
        if measure(low) <= ratio:
            return low, high
    # Rounding puts a floor under the ratio at tiny scales, so it need not go to zero.
    least = min((measure(s), s) for s in _scales(low, guess))
    raise CalibrationError(
        f"the non-linearity ratio is never as low as lambda = {ratio:g}: it is {least[0]:.3g} at scale {least[1]:.3g}; "
        f'ask for `ratio={1.1 * least[0]:.2g}`, use `dtype="float32"`, or give `scale` yourself',
        [(s, measure(s)) for s in _scales(low, guess)],
    )


def _scales(low: float, high: float) -> list[float]:
    scales = [low]
    while scales[-1] < high:
        scales.append(2 * scales[-1])
    return scales


def _illinois(measure: Callable[[float], float], ratio: float, low: float, high: float) -> float:
    """Root of log ratio(R) - log lambda in log R between two scales that bracket it."""
    a, b = math.log(low), math.log(high)
    fa, fb = _log_gap(measure(low), ratio), _log_gap(measure(high), ratio)
    x = b
    for _ in range(60):
        if fb == fa:
            break
        x = b - fb * (b - a) / (fb - fa)
        fx = _log_gap(measure(math.exp(x)), ratio)
        if abs(fx) <= TOLERANCE:
            break
        if fx * fb < 0:
            a, fa = b, fb
        else:
            fa /= 2  # the end that stays put counts half, or the bracket would close from one side only
        b, fb = x, fx
    return math.exp(x)


def _log_gap(measured: float, ratio: float) -> float:
    return math.log(max(measured, 1e-300)) - math.log(ratio)
