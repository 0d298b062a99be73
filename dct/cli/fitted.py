"""What is said of a fit: its slice, what it will take, and what was learned."""

import shlex
from typing import TYPE_CHECKING, Any

from dct.cli.pictures import show_fit
from dct.cli.terminal import Terminal, escape, human_seconds, plain, sparkline
from dct.cli.work import short_name
from dct.memory import human_bytes, peak
from dct.team import current

if TYPE_CHECKING:
    from dct.difference import Difference
    from dct.factors import Factors
    from dct.runs import Run
    from dct.settings import FitSettings
    from dct.slice import Slice

FAINT = 0.1
"""Share of the target stream's norm below which no factor is likely to change what a model says."""


def describe(terminal: Terminal, slice_: "Slice | Difference", prompts: int) -> None:
    """Says which layers, how many prompts and tokens, and how long the stream is."""
    how = f"packed into {slice_.tokens} tokens" if slice_.packed else f"{slice_.tokens} tokens, one prompt at a time"
    kind = getattr(slice_, "perturbation", None)
    what = f"slice {slice_.source} to {slice_.target}"
    if kind is not None:
        what = f"attention outputs of {kind} ({kind.modules[0].rpartition('.')[2]}), read at layer {slice_.target}"
    terminal.note(
        f"{what}: {prompts} prompt{'s' * (prompts != 1)}, {how}; median residual norm {slice_.residual_norm:.4g}"
    )


def describe_difference(terminal: Terminal, difference: "Difference") -> None:
    """Says how far the two models are apart, left alone and under random vectors, and warns where that is rounding."""
    before, behind = difference.apart
    terminal.note(
        f"minus {short_name(difference.minus.lm.name)}: left alone, the two are {before:.2%} of the stream's norm "
        f"apart at layer {difference.source} and {behind:.2%} at {difference.target}; what a random vector does "
        f"differs by {difference.gap:.2%}, of which rounding makes about {difference.rounding:.1%}"
    )
    if difference.drowned:
        terminal.warn(
            "what the models do differently is hardly more than rounding: try --dtype float32, more prompts (--n), or "
            "other layers"
        )


def expected(slice_: "Slice | Difference", asked: "FitSettings", done: int | None) -> tuple[dict[str, Any], float]:
    """What the calibration and the fit are expected to take, and the memory that they are expected to need; seconds
    of the fit that compiled code would take over."""
    from dct.calibration import usual_work
    from dct.estimate import COPIES, bound, fit_bytes, pass_rows, seconds
    from dct.memory import available, used
    from dct.method import method

    how = method(asked.method)
    fit_work = how.work(asked, slice_.dim, slice_.dim, done)
    calibration = usual_work() if asked.scale is None and how.needs_scale else {}
    fixed = 1 if how.one_row else asked.batch
    fit_seconds, calibration_seconds = seconds(slice_, slice_.dim, fit_work, calibration, batch=fixed)
    batch = fixed or slice_.batch
    rows = max(pass_rows(batch, fit_work), pass_rows(asked.batch or slice_.batch, calibration))
    counted = fit_bytes(asked.factors or 0, slice_.dim, rows, slice_.row_bytes)
    if any(kind.startswith("second") for kind in fit_work):
        counted += COPIES * min(batch, max(fit_work.values())) * slice_.attention_bytes
    more = bound(counted)
    return {
        "seconds": round(fit_seconds, 2),
        "calibration_seconds": round(calibration_seconds, 2),
        "peak_memory": max(peak(slice_.device), used(slice_.device) + more),
        "more_memory": more,
        "free_memory": available(slice_.device, slice_.lm.memory),
        "batch": batch,
        "vector_memory": slice_.row_bytes,
    }, fit_seconds if how.gains(fit_work) else 0.0


def announce(terminal: Terminal, expected: dict[str, Any], batch: int | None) -> None:
    """Says how long the fit will take and what memory it needs, and warns where there is too little."""
    calibration = expected["calibration_seconds"]
    before = f" after about {human_seconds(calibration)} of calibration" if calibration else ""
    terminal.note(
        f"expected: {human_seconds(expected['seconds'])}{before}; peak memory {human_bytes(expected['peak_memory'])} "
        f"({human_bytes(expected['vector_memory'])} a vector, {expected['batch']} in a pass)"
    )
    if expected["more_memory"] > expected["free_memory"]:
        cure = "a smaller --batch" if batch and batch > 1 else "fewer or shorter prompts (--n), a shorter slice"
        terminal.warn(
            f"the fit will ask for {human_bytes(expected['more_memory'])} more memory and "
            f"{human_bytes(expected['free_memory'])} are free: try {cure} or --dtype bfloat16"
        )


def doubts(terminal: Terminal, info: dict[str, Any]) -> None:
    """Warns of a fit that has not come to rest, of factors that have exploded, and of changes that hardly act."""
    if info.get("perturbation") and info["of_target"][1] < FAINT:
        terminal.warn(
            f"the strongest change moves the target stream by {info['of_target'][1]:.1%} of its norm, too little for "
            "the model to say anything else: try a larger --scale"
        )
    if info.get("settled") is False:
        terminal.warn(
            "the factors have not settled: another run may find others; try more --iterations, or leave --beta out"
        )
    if info.get("exploded"):
        terminal.warn(
            f"{info['exploded']} of {info['factors']} factors change the target stream by more than five times its "
            "norm: what a model says under them falls apart; try a smaller --scale"
        )


def show(terminal: Terminal, run: "Run", factors: "Factors") -> None:
    """The last lines of a fit: its scale, how it went, how strong its factors are, where they lie."""
    from dct.fits.shared.responses import random_responses
    from dct.method import method
    from dct.perturbation import RankOne, recorded
    from dct.runs import RUNS

    info, changed = factors.info, recorded(factors.info, factors.V.shape[1])
    rows = [("scale R", f"{factors.scale:.4g}, {factors.scale / info['residual_norm']:.2f} × the median residual norm")]
    if isinstance(changed, RankOne):
        rows[0] = ("scale R", f"{factors.scale:.4g}: every output gains R b <a, x>, with |a| = |b| = 1")
    if info["calibration"] is not None:
        rows[0] = ("scale R", f"{rows[0][1]}, non-linearity ratio {info['calibration']['ratio']:.2f}")
    if len(factors.objective):
        how = method(info["method"])
        heights, change = factors.objective[:, 0].tolist(), float(factors.objective[-1, 2])
        if how.step == "vector":
            course = f"{plain(heights[0])} → {plain(heights[-1])} from the first vector to the last"
        else:
            course = f"{heights[0]:.4g} → {heights[-1]:.4g} in {len(heights)} iterations; the last changed V by "
            course += f"{change:.2g}"
        rows.append(("objective", f"[cyan]{sparkline(heights)}[/cyan]  {how.objective} {course}"))
    if "response" in info:
        (middle, best), (usual, most) = info["response"], info["random_response"]
        null = f"the strongest of {random_responses(len(factors))} random"
        if usual > 0:
            null += f" ({most / usual:.3g} ×)"
            sizes = f"strongest {best / usual:.3g} ×, median {middle / usual:.3g} × a random direction's"
        else:
            sizes = f"strongest {best:.3g}, median {middle:.3g}; most random directions do nothing at all"
        rows.append(("response", f"{sizes}; {info['above_random']} of {len(factors)} above {null}"))
    if "of_target" in info:
        middle, most = info["of_target"]
        what = "the stream" if not info.get("minus") else "the stream otherwise than in the other model,"
        said = f"the median factor changes {what} by {middle:.0%} of its norm, the strongest by {most:.0%}"
        rows.append(("at target", said))
    if "informative" in info and info["informative"] < info["factors"]:
        rows.append(
            (
                "factors",
                f"{info['informative']} of {info['factors']} asked for: the rest would be directions that "
                "this fit knows nothing about",
            )
        )
    doubts(terminal, info)
    rank = "dct rank" if run.folder.parent == RUNS else f"dct rank {shlex.quote(str(run.folder))}"
    size = current().size
    shared = f" in {size} processes" if size > 1 else ""
    rows += [
        ("took", f"{info['seconds']:.3g} s{shared}, peak memory {human_bytes(info['peak_memory'])}"),
        ("saved", f"[bold]{escape(str(run.factors))}[/bold]"),
        ("next", f"[bold cyan]{escape(rank)}[/bold cyan]  {_finds(info)}"),
    ]
    minus = f" minus {short_name(info['minus']['model'])}" if info.get("minus") else ""
    title = (
        f"{len(factors)} {info['method']} factors of {short_name(info['model'])}{minus}, "
        f"{changed if isinstance(changed, RankOne) else 'layers ' + str(info['source'])} → {info['target']}"
    )
    show_fit(terminal, factors.objective.tolist())
    terminal.summary(title, rows)


def _finds(info: dict[str, Any]) -> str:
    """What ranking a run is for."""
    if info.get("minus"):
        return "orders them by what they make the one model say and the other not"
    return "finds the best of them by what the model says"
