"""Fits a deep causal transcoder to a map (batch, dim) -> (batch, dim_out) with f(0) = 0.

Notation follows A. Mack and A. Turner, "Deep causal transcoding" (2024): J and T2 are the first and second derivative
of f at 0, R_S(theta) = f(R theta), and m factors (v_l, u_l, alpha_l) model R_S by a shallow network

    sum_l alpha_l sigma(<v_l, theta>) u_l      sigma(x) = x (linear), x^2 (quadratic), exp(x) - 1 (exponential).

Rows of V and U are unit vectors. How they are learned is a method's business, each in a file of `dct.fits`. Nothing
here knows about transformers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from dct.calibration import default_calibration
from dct.contents import SCALES
from dct.derivatives import Derivatives, Map
from dct.errors import DctError, UsageError
from dct.factors import Factors
from dct.job import Job, Progress
from dct.job import State as State  # where other modules look for it
from dct.method import Method, built_in, method
from dct.perturbation import RankOne
from dct.settings import FitSettings

MOST_FACTORS = 512
"""Factors where nothing is said of their number, at most."""


def fit(
    f: Map,
    dim: int,
    settings: FitSettings | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Factors:
    """Fits a deep causal transcoder to a map.

    Args:
        f: (batch, dim) -> (batch, dim_out), f(0) = 0, differentiable; rows are independent.
        dim: input dimension d.
        settings: how; every field of `FitSettings` is a keyword of this function too, and so is every option that is
            the method's own: `dct.fit(f, dim, method="melbo", factors=4, p=4.0)`.
        dtype, device: as in `Derivatives`.
        resume: state of an interrupted fit, as handed to `checkpoint`.
        checkpoint: called after every iteration, or vector.
        progress: called after every pass.

    Returns:
        The factors, on the CPU; a linear fit returns no more than J has directions. `info` holds what the map says of
        itself in an `info` of its own, and how the factors were found; where m exceeds the directions that the start
        knew, it says how many were random.

    Raises:
        UsageError: an argument that cannot be.
        CalibrationError, DctError, NonFiniteError: as in `calibrate` and `Derivatives`.
    """
    settings = decided(with_changes(settings or FitSettings(), changes), dim)
    how = method(settings.method)
    how.check(settings, dim)
    check_map(how, f)
    scale = settings.scale
    if scale is None:
        scale = found_scale(f, dim, settings, dtype=dtype, device=device)
    check_scale(scale, f)

    began = time.monotonic()
    d = Derivatives(f, dim, batch=settings.batch, dtype=dtype, device=device)
    info = {**getattr(f, "info", {}), "method": how.name, "factors": settings.factors, "seed": settings.seed}
    job = Job(d, scale, settings, how.own(settings), info, resume, checkpoint, progress)
    job.total = sum(how.work(settings, dim, d.dim_out, resume.iteration if resume else None).values())
    V, U, alpha, objective = how.fit(job)
    info |= {"signed": how.signed, "batch": d.batch, "fit_seconds": round(time.monotonic() - began, 3)}
    return Factors(V.cpu(), U.cpu(), alpha.cpu(), objective.to(V.dtype).cpu(), float(scale), info)


def check_map(how: Method, f: Map) -> None:
    """Refuses a method that looks at a map where it has nothing to show.

    Raises:
        UsageError: rank-1 changes have no derivative at 0, and the method takes one, or draws vectors.
    """
    if isinstance(getattr(f, "perturbation", None), RankOne) and not how.rank_one:
        rank_one = [name for name in built_in() if method(name).rank_one]
        raise UsageError(
            f"{how.name} learns vectors, and this map is of rank-1 changes: choose {', '.join(rank_one)}",
            argument="method",
        )


def with_changes(settings: FitSettings, changes: dict[str, Any]) -> FitSettings:
    """Settings with other values, by name: of fields, and of options that are the method's own. None changes nothing.

    Raises:
        UsageError: a name that the fit does not know, or a value that it may not have.
    """
    settings = settings.changed(method=changes.get("method"))
    own = method(settings.method).options
    known = {one.name for one in fields(settings)}
    for name in changes:
        if name not in known and name not in own:
            raise UsageError(f"unknown argument `{name}`: choose {', '.join(sorted({*known, *own}))}", argument=name)
    given = {name: value for name, value in changes.items() if name in own and value is not None}
    settings = settings.changed(**{name: value for name, value in changes.items() if name in known})
    return settings.changed(method_options={**(settings.method_options or {}), **given}) if given else settings


def decided(settings: FitSettings, dim: int) -> FitSettings:
    """Settings in which nothing is left open that a method has a default for.

    Args:
        dim: of the map, which there are no more factors than where their number was left open.

    Raises:
        UsageError: an unknown method, or an option that it does not have.
    """
    how = method(settings.method)
    factors, iterations, orthogonalize = settings.factors, settings.iterations, settings.orthogonalize
    return settings.changed(
        factors=min(MOST_FACTORS, dim) if factors is None else factors,
        iterations=how.iterations if iterations is None else iterations,
        orthogonalize=how.orthogonalize if orthogonalize is None else orthogonalize,
        method_options=how.own(settings) or None,
    )


def work(settings: FitSettings, dim: int, dim_out: int | None = None, done: int | None = None) -> dict[str, int]:
    """Rows that a fit sends through its map, by the `Derivatives` method that they go through.

    Args:
        settings: whose open ends are `decided` here.
        dim, dim_out: of the map; one number where they are the same.
        done: steps that an interrupted fit has behind it; None for one that begins.
    """
    how = method(settings.method)
    return how.work(decided(settings, dim), dim, dim if dim_out is None else dim_out, done)


def found_scale(
    f: Map,
    dim: int,
    settings: FitSettings,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> float:
    """R where it was left out: at the ratio that was asked for, or as `default_calibration` has it; for a method that
    needs no scale, the map's `usual_scale`, its `residual_norm`, or 1.

    Raises:
        CalibrationError, DctError, NonFiniteError: as in `calibrate`.
    """
    norm = getattr(f, "residual_norm", None)
    if not method(settings.method).needs_scale:
        return float(getattr(f, "usual_scale", None) or norm or 1.0)
    seed, batch = settings.seed, settings.batch
    return default_calibration(f, dim, settings.ratio, seed=seed, batch=batch, dtype=dtype, device=device).scale


def check_scale(scale: float, f: Map | None = None) -> None:
    """Refuses a scale that no map can be fitted at, and one at which `f` would see nothing but rounding.

    A map that knows its `residual_norm` (what the vector is added to) and `resolution` (the relative rounding of its
    numbers) loses all of a vector that is shorter than their product, and all of what it is added to beside a vector
    that is longer than their quotient.

    Raises:
        UsageError: it is not positive.
        DctError: it is beyond what the map can tell apart.
    """
    if not 0 < scale < math.inf:
        raise UsageError(f"`scale` must be positive, got {scale}", argument="scale")
    low, high = SCALES
    norm, resolution = getattr(f, "residual_norm", None), getattr(f, "resolution", None)
    if hasattr(f, "usual_scale"):  # R is no length of a vector
        norm = None
    why = "numbers of 32 bits cannot hold its square"
    if norm is not None and resolution is not None and norm > 0:
        low, high = max(low, norm * resolution), min(high, norm / resolution)
        why = f"rounding leaves nothing of {'the vector' if scale < low else 'what it is added to'}, of norm {norm:.3g}"
    if not low <= scale <= high:
        raise DctError(
            f"`scale` {scale:.3g} is too {'small' if scale < low else 'large'}: {why}; choose one from {low:.2g} to "
            f"{high:.2g}, or leave it out"
        )
