"""`dct fit`: calibrate, fit and save."""

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.aliases import DEMO
from dct.cli import options as o
from dct.cli.declare import option
from dct.cli.terminal import Terminal, command, escape, human_seconds, plain, sparkline
from dct.cli.work import fit_prompts, keep_prompts, load_model, note_repeated, portable, provenance, short_name
from dct.errors import DctError, InterruptedWorkError
from dct.memory import human_bytes, peak

if TYPE_CHECKING:
    from dct.calibration import Calibration
    from dct.factors import Factors
    from dct.job import State
    from dct.model import LanguageModel
    from dct.runs import Run
    from dct.settings import FitSettings
    from dct.slice import Slice


@command
def fit(
    model: o.Model = DEMO,
    adapter: o.Adapter = None,
    source: o.Source = None,
    target: o.Target = None,
    method: o.Method = "exponential",
    factors: o.Factors = None,
    iterations: o.Iterations = None,
    ratio: o.Ratio = None,
    scale: o.Scale = None,
    prompts: o.Prompts = None,
    prompt: o.Prompt = None,
    n: o.Count = 8,
    column: o.Column = None,
    system: o.System = None,
    reply_prefix: o.ReplyPrefix = None,
    escape_control: o.EscapeControl = None,
    positions: o.Positions = None,
    orthogonalize: o.Orthogonalize = None,
    start: o.Start = "projected",
    d_proj: o.Projected = 32,
    beta: o.Beta = 1.0,
    tolerance: o.Tolerance = 0.0,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    memory: o.Memory = None,
    batch: o.Batch = None,
    compile: o.Compile = "auto",  # noqa: A002 (the option's name)
    seed: o.Seed = 0,
    layers: o.Layers = "",
    revision: o.Revision = None,
    trust_remote_code: o.Trust = False,
    out: o.Out = None,
    resume: Annotated[
        bool, option("--resume", help="Go on with an interrupted fit (in --out, or the newest), as it was begun.")
    ] = False,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Fit a deep causal transcoder: find steering vectors V and what they cause, U.

    Loads the model, calibrates the scale R, fits, and saves a run folder that `dct rank` goes on from.
    """
    terminal = Terminal(as_json, quiet)
    if resume:
        recipe = resume_recipe(out)
    else:
        recipe = Recipe(
            model=model,
            loading={
                "adapter": portable(adapter) if adapter else None,
                "dtype": dtype,
                "device": device,
                "layers": layers,
                "revision": revision,
                "trust_remote_code": trust_remote_code,
                "memory": memory,
                "reply_prefix": reply_prefix,
                "escape_control": escape_control,
            },
            source=source,
            target=target,
            prompts=prompts,
            literal=prompt or [],
            n=n,
            column=column,
            system=system,
            positions=o.parse_positions(positions),
            ratio=ratio,
            scale=scale,
            options={
                "method": method,
                "factors": factors,
                "iterations": iterations,
                "orthogonalize": orthogonalize,
                "start": start,
                "d_proj": d_proj,
                "beta": beta,
                "tolerance": tolerance,
                "seed": seed,
            },
            batch=batch,
            compile=compile,
            out=out,
            force=force,
        )
    run, found, _ = run_fit(terminal, recipe)
    terminal.result(
        {
            "run": str(run.folder),
            "factors": len(found),
            "scale": found.scale,
            "estimate": found.info["estimate"],
            "info": found.info,
        }
    )


@dataclass
class Recipe:
    """Everything that decides a fit, as the user gave it."""

    model: str
    loading: dict[str, Any]
    options: dict[str, Any]
    """Of `dct.fit`; what is not in here has its default there."""
    source: int | None = None
    target: int | None = None
    prompts: str | None = None
    literal: list[str] = field(default_factory=list)
    n: int | None = 8
    column: str | None = None
    system: str | None = None
    positions: Any = None
    ratio: float | None = None
    scale: float | None = None
    batch: int | None = None
    compile: str = "auto"
    out: Path | None = None
    force: bool = False
    whole: bool = False
    """Load the whole model, for what comes after the fit."""
    interrupted: "Interrupted | None" = None


@dataclass
class Interrupted:
    """A fit that was cut short: its run, where it stood, and what had been decided."""

    run: "Run"
    state: "State"
    config: dict[str, Any]


def resume_recipe(out: Path | None) -> Recipe:
    """The recipe of an interrupted fit, from its state file.

    Raises:
        DctError: there is no interrupted fit, or its state is damaged.
    """
    from dct.runs import STATE, find_run

    run = find_run(out, STATE)
    state, config = run.load_state()
    _check_arguments(run, config)
    return Recipe(
        model=config["model"],
        loading=config["loading"],
        source=config["source"],
        target=config["target"],
        prompts=None,
        literal=config["prompts"],
        n=None,
        column=config["column"],
        system=config["system"],
        positions=config["positions"],
        ratio=config["lambda"],
        scale=config["scale"],
        options=config["options"],
        batch=config["batch"],
        compile=config.get("compile", "off"),
        out=run.folder,
        interrupted=Interrupted(run, state, config),
    )


def _check_arguments(run: "Run", config: dict[str, Any]) -> None:
    """Refuses a state with options that no fit and no loading of a model takes.

    Raises:
        DctError: there is one.
    """
    from dataclasses import fields
    from inspect import signature

    from dct.loading import load
    from dct.method import method
    from dct.settings import FitSettings

    options = {one.name for one in fields(FitSettings)} | set(method(config["options"]["method"]).options)
    for name, taken in (("options", options), ("loading", set(signature(load).parameters))):
        unknown = set(config[name]) - taken - {"memory", "reply_prefix", "escape_control"}
        if unknown:
            raise DctError(f"{run.state} is damaged: no fit has {name} {', '.join(sorted(unknown))}; start over")


def run_fit(terminal: Terminal, recipe: Recipe) -> tuple["Run", "Factors", "LanguageModel"]:
    """Calibrates, fits and saves; shows what was learned. Nobody else writes into its folder in the meantime.

    Raises:
        DctError: another process does, or whatever else keeps it from fitting.
    """
    from dct.lock import held
    from dct.runs import claimed

    with ExitStack() as stack:
        if recipe.interrupted is not None:
            stack.enter_context(held(recipe.interrupted.run.folder))
            recipe = resume_recipe(recipe.interrupted.run.folder)  # as it stands now that nobody writes it
        elif recipe.out is not None:
            stack.enter_context(claimed(recipe.out, ""))
        return _run_fit(terminal, recipe, lambda name: stack.enter_context(claimed(None, name)))


def _run_fit(
    terminal: Terminal, recipe: Recipe, claim: Callable[[str], "Run"]
) -> tuple["Run", "Factors", "LanguageModel"]:
    """As `run_fit`, in a folder that is kept for this process; `claim` gives one of a name where the user gave none."""
    # What can be refused is refused before the minutes that loading may take.
    if recipe.source is not None and recipe.target is not None:
        from dct.model import check_layers

        check_layers(recipe.source, recipe.target)
    from dct.compilation import check_choice
    from dct.fitting import check_scale, decided, with_changes
    from dct.method import method, sizes
    from dct.runs import new_run, state_content_faults
    from dct.settings import FitSettings

    if recipe.out is not None and recipe.interrupted is None:
        _refuse_overwriting(new_run(recipe.out, ""), recipe.force)
    check_choice(recipe.compile)
    settings = with_changes(FitSettings(), recipe.options)
    how = method(settings.method)
    if recipe.scale is not None:
        check_scale(recipe.scale)
    chosen = fit_prompts(recipe.model, recipe.prompts, recipe.column, recipe.literal, recipe.n)
    note_repeated(terminal, chosen)

    def between(depth: int) -> tuple[int, int]:
        from dct.model import choose_layers

        return choose_layers(depth, recipe.model, recipe.source, recipe.target)

    lm = load_model(terminal, recipe.model, between=None if recipe.whole else between, **recipe.loading)
    if recipe.interrupted:
        keep_prompts(lm, recipe.interrupted.config)

    from dct.fitting import fit as fit_map
    from dct.fitting import found_scale
    from dct.slice import Slice

    began = time.monotonic()
    source, target = between(lm.depth)
    with terminal.busy("running the prompts"):
        slice_ = Slice(lm, chosen.texts, source, target, recipe.positions, recipe.system)
    _describe(terminal, slice_, len(chosen))
    if recipe.scale is not None:
        check_scale(recipe.scale, slice_)
    settings = decided(settings, slice_.dim)
    how.check(settings, slice_.dim)
    names = {*recipe.options, "orthogonalize", *(["method_options"] if settings.method_options else [])}
    options = {name: value for name, value in vars(settings).items() if name in names}
    interrupted = recipe.interrupted
    with terminal.busy("timing a pass"):
        expected, gains = _expected(slice_, recipe, settings)
    _announce(terminal, expected, recipe.batch)
    if interrupted:
        run = interrupted.run
    elif recipe.out is not None:
        run = new_run(recipe.out, "")
    else:
        run = claim(f"{short_name(recipe.model)}-{how.name}-{source}-{target}")
    config = {
        **slice_.info,
        **provenance(lm, chosen),
        "ids": slice_.ids,
        "loading": recipe.loading,
        "method": how.name,
        "column": recipe.column,
        "seed": options["seed"],
        "lambda": None,
        "calibration": None,
        "estimate": expected,
    }
    if interrupted:
        _same_fit(terminal, interrupted, config, slice_)
        scale = float(interrupted.config["scale"])
        for key in ("lambda", "calibration", "prompts_origin"):
            config[key] = interrupted.config[key]
        terminal.note(f"going on after {how.step} {interrupted.state.iteration} of {how.steps(*sizes(settings))}")
    elif recipe.scale is not None:
        scale = recipe.scale
    elif not how.needs_scale:
        scale = found_scale(slice_, slice_.dim, settings)
    else:
        found = calibrated(terminal, slice_, recipe.ratio, options["seed"], recipe.batch)
        scale = found.scale
        config |= {
            "lambda": found.target,
            "calibration": {"ratio": found.ratio, "limited": found.limited, "curve": found.curve},
        }
    config["compile"] = "on" if _compiled(terminal, slice_, recipe.compile, gains) else "off"
    saved = {**config, "options": options, "batch": recipe.batch, "scale": scale, "beside": run.beside()}
    wrong = state_content_faults(saved)
    if wrong is not None:  # before the work, not behind it
        raise DctError(f"this fit could not be saved: {wrong}")
    if not interrupted:
        run.drop_state()

    try:
        with terminal.progress(f"fitting {options['factors']} factors") as advance:
            factors = fit_map(
                slice_,
                slice_.dim,
                scale=scale,
                batch=recipe.batch,
                resume=interrupted.state if interrupted else None,
                checkpoint=lambda state: run.save_state(state, saved),
                progress=advance,
                **options,
            )
    except KeyboardInterrupt:
        if run.state.exists():
            raise InterruptedWorkError(
                f"interrupted; every finished iteration is kept: go on with `dct fit --resume --out {run.folder}`"
            ) from None
        raise
    if factors.objective.numel() and not bool(factors.objective.isfinite().all()):
        raise DctError("the objective is not finite: lower --scale")
    seconds = round(time.monotonic() - began, 2)
    factors.info = {**factors.info, **config, "seconds": seconds, "peak_memory": peak(lm.device)}
    run.save_factors(factors)
    _show(terminal, run, factors)
    return run, factors, lm


def _expected(slice_: "Slice", recipe: Recipe, settings: "FitSettings") -> tuple[dict[str, Any], float]:
    """What the calibration and the fit are expected to take, and the memory that they are expected to need; seconds of
    it that compiled code takes part in."""
    from dct.calibration import usual_work
    from dct.estimate import COPIES, bound, fit_bytes, pass_rows, seconds
    from dct.memory import available, used
    from dct.method import method, sizes

    how = method(settings.method)
    done = recipe.interrupted.state.iteration if recipe.interrupted else None
    fit_work = how.work(settings, slice_.dim, slice_.dim, done)
    calibration = usual_work() if recipe.scale is None and how.needs_scale else {}
    fixed = 1 if how.one_row else recipe.batch
    fit_seconds, calibration_seconds = seconds(slice_, slice_.dim, fit_work, calibration, batch=fixed)
    batch = fixed or slice_.batch
    rows = max(pass_rows(batch, fit_work), pass_rows(recipe.batch or slice_.batch, calibration))
    counted = fit_bytes(sizes(settings)[0], slice_.dim, rows, slice_.row_bytes)
    if any(kind.startswith("second") for kind in fit_work):
        counted += COPIES * min(batch, max(fit_work.values())) * slice_.attention_bytes
    more = bound(counted)
    gains = fit_seconds if how.gains(fit_work) else 0.0
    return {
        "seconds": round(fit_seconds, 2),
        "calibration_seconds": round(calibration_seconds, 2),
        "peak_memory": max(peak(slice_.device), used(slice_.device) + more),
        "more_memory": more,
        "free_memory": available(slice_.device, slice_.lm.memory),
        "batch": batch,
        "vector_memory": slice_.row_bytes,
    }, gains


def _announce(terminal: Terminal, expected: dict[str, Any], batch: int | None) -> None:
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


def _compiled(terminal: Terminal, slice_: "Slice", choice: str, seconds: float) -> bool:
    """Compiles the slice if that was asked for or pays; a fit goes on without where it cannot be done."""
    from dct.compilation import pays

    if not pays(choice, seconds):
        return False
    began = time.monotonic()
    try:
        with terminal.busy("compiling the slice"):
            slice_.compile()
    except DctError as error:
        terminal.warn(f"{error}; going on without")
        return False
    terminal.note(f"blocks compiled in {time.monotonic() - began:.3g} s")
    return True


def _describe(terminal: Terminal, slice_: "Slice", prompts: int) -> None:
    how = f"packed into {slice_.tokens} tokens" if slice_.packed else f"{slice_.tokens} tokens, one prompt at a time"
    terminal.note(
        f"slice {slice_.source} to {slice_.target}: {prompts} prompt{'s' * (prompts != 1)}, {how}; "
        f"median residual norm {slice_.residual_norm:.4g}"
    )


def _refuse_overwriting(run: "Run", force: bool) -> None:
    if force:
        return
    if run.factors.exists():
        raise DctError(f"{run.folder} already holds factors: choose another --out, or --force to overwrite them")
    if run.state.exists():
        raise DctError(f"{run.folder} holds an interrupted fit: go on with --resume, or --force to start over")


def _same_fit(terminal: Terminal, interrupted: Interrupted, config: dict[str, Any], slice_: "Slice") -> None:
    """Refuses to go on with another model than the fit was begun on."""
    state = interrupted.state
    if interrupted.config["fingerprint"] != config["fingerprint"]:
        raise DctError(f"the weights of {config['model']} have changed since the fit was interrupted: start over")
    if {state.V.shape[1], state.U.shape[1]} != {slice_.dim}:
        raise DctError(f"{interrupted.run.state} is damaged: its vectors are not of width {slice_.dim}; start over")
    if state.unprotected:
        terminal.warn(f"{interrupted.run.state} is of format version 1: nothing protects its numbers")


def calibrated(terminal: Terminal, slice_: "Slice", ratio: float | None, seed: int, batch: int | None) -> "Calibration":
    """The calibrated scale, with a progress bar.

    A lambda that was asked for is reached or refused; left out, it is 0.5 and R stays within the residual norm.
    """
    from dct.calibration import DEFAULT_LAMBDA, calibrate

    wanted = DEFAULT_LAMBDA if ratio is None else ratio
    limit = slice_.residual_norm if ratio is None else None
    done = 0
    with terminal.progress("calibrating") as advance:

        def on_rows(rows: int) -> None:
            nonlocal done
            done += rows
            advance("", done, max(done, 300))  # about ten points of the curve

        found = calibrate(slice_, slice_.dim, wanted, limit=limit, seed=seed, batch=batch, on_rows=on_rows)
    times = found.scale / slice_.residual_norm
    if found.limited:
        terminal.note(
            f"scale R = {found.scale:.4g}, the median residual norm: the non-linearity ratio is {found.ratio:.2g} "
            f"there, below lambda = {wanted:g}, but a larger vector would drown the stream it is added to"
        )
    else:
        terminal.note(
            f"scale R = {found.scale:.4g}, {times:.2f} times the median residual norm, where the non-linearity ratio "
            f"is lambda = {wanted:g} ({len(found.curve)} points)"
        )
    if times > 2:
        terminal.warn(
            f"R is {times:.1f} times the residual norm: vectors of that size drown what the model was thinking; "
            "leave --lambda out, or give a --scale near the residual norm"
        )
    return found


def _show(terminal: Terminal, run: "Run", factors: "Factors") -> None:
    from dct.fits.shared.responses import random_responses
    from dct.method import method
    from dct.runs import RUNS

    info = factors.info
    rows = [("scale R", f"{factors.scale:.4g}, {factors.scale / info['residual_norm']:.2f} × the median residual norm")]
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
    if "informative" in info and info["informative"] < info["factors"]:
        rows.append(
            (
                "factors",
                f"{info['informative']} of {info['factors']} asked for: the rest would be directions that "
                "this fit knows nothing about",
            )
        )
    rank = "dct rank" if run.folder.parent == RUNS else f"dct rank {shlex.quote(str(run.folder))}"
    rows += [
        ("took", f"{info['seconds']:.3g} s, peak memory {human_bytes(info['peak_memory'])}"),
        ("saved", f"[bold]{escape(str(run.factors))}[/bold]"),
        ("next", f"[bold cyan]{escape(rank)}[/bold cyan]  scores every vector against random ones"),
    ]
    title = (
        f"{len(factors)} {info['method']} factors of {short_name(info['model'])}, "
        f"layers {info['source']} → {info['target']}"
    )
    terminal.summary(title, rows)
