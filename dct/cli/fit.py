"""`dct fit`: calibrate, fit and save."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dct.cli.calibrate import calibrated
from dct.cli.fitted import announce, describe, show
from dct.cli.terminal import Terminal, command
from dct.cli.work import between, fit_prompts, keep_prompts, load_model, note_repeated, portable, provenance, short_name
from dct.errors import DctError, InterruptedWorkError
from dct.memory import peak
from dct.recipe import Recipe
from dct.settings import FitOutputSettings, FitPromptSettings, FitSettings, FitSliceSettings, ModelSettings

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.fitting import State
    from dct.model import LanguageModel
    from dct.runs import Run
    from dct.slice import Slice


@command
def fit(
    model: ModelSettings,
    slice_: FitSliceSettings,
    prompts: FitPromptSettings,
    options: FitSettings,
    output: FitOutputSettings,
) -> None:
    """Fit a deep causal transcoder: find steering vectors V and what they cause, U.

    Loads the model, calibrates the scale R, fits, and saves a run folder that `dct rank` goes on from.
    """
    terminal = Terminal(output.json, output.quiet)
    run, found, _ = run_fit(terminal, Recipe(model, slice_, prompts, options), output)
    terminal.result(
        {
            "run": str(run.folder),
            "factors": len(found),
            "scale": found.scale,
            "estimate": found.info["estimate"],
            "info": found.info,
        }
    )


def run_fit(
    terminal: Terminal, recipe: Recipe, output: FitOutputSettings, *, whole: bool = False
) -> tuple["Run", "Factors", "LanguageModel"]:
    """Calibrates, fits and saves; shows what was learned. Nobody else writes into its folder in the meantime.

    Args:
        recipe: what is fitted; that of an interrupted fit is read from its folder instead.
        output: the run folder; whether to go on with what is in it, or to overwrite it.
        whole: load the whole model, for what comes after the fit.

    Raises:
        DctError: another process writes there, or whatever else keeps it from fitting.
    """
    from dct.lock import held
    from dct.runs import STATE, claimed, find_run, new_run

    with ExitStack() as stack:
        interrupted = None
        if output.resume:
            run = find_run(output.out, STATE)
            Interrupted.read(run)  # a damaged state is said before the folder is asked for
            stack.enter_context(held(run.folder))
            interrupted = Interrupted.read(run)  # as it stands now that nobody writes it
            recipe = interrupted.recipe
        elif output.out is not None:
            run = stack.enter_context(claimed(output.out, ""))
            _refuse_overwriting(new_run(output.out, ""), output.force)

        def claim(name: str) -> "Run":
            unnamed = interrupted is None and output.out is None
            return stack.enter_context(claimed(None, name)) if unnamed else run

        return Job(terminal, recipe, interrupted).done(claim, whole)


@dataclass
class Interrupted:
    """A fit that was cut short: its run, where it stood, and what had been decided."""

    run: "Run"
    state: "State"
    config: dict[str, Any]
    recipe: Recipe

    @classmethod
    def read(cls, run: "Run") -> "Interrupted":
        """An interrupted fit, from its state file.

        Raises:
            DctError: the state is damaged, or holds what no fit takes.
        """
        state, config = run.load_state()
        known = {*FitSettings().__dict__, *ModelSettings().__dict__, "reply_prefix", "escape_control"}
        for name in ("options", "loading"):
            unknown = set(config[name]) - known
            if unknown:
                raise DctError(f"{run.state} is damaged: no fit has {name} {', '.join(sorted(unknown))}; start over")
        try:
            recipe = Recipe.of_state(config)
        except DctError as error:
            raise DctError(f"{run.state} is damaged: {error}; start over") from error
        return cls(run, state, config, recipe)


class Job:
    """One fit, from its recipe to the run folder.

    Args:
        terminal: told what happens.
        recipe: what is fitted; what it leaves open is decided here, once the model is known.
        interrupted: a fit to go on with.
    """

    def __init__(self, terminal: Terminal, recipe: Recipe, interrupted: Interrupted | None = None) -> None:
        self.terminal, self.interrupted = terminal, interrupted
        self.recipe = replace(recipe, model=recipe.model.changed(adapter=portable(recipe.model.adapter or "") or None))

    def done(self, claim: Callable[[str], "Run"], whole: bool) -> tuple["Run", "Factors", "LanguageModel"]:
        """The run, its factors and the model; `claim` gives the folder for a name."""
        self._check()
        lm, slice_ = self._load(whole)
        self._decide(slice_)
        with self.terminal.busy("timing a pass"):
            expected = self._expected(slice_)
        announce(self.terminal, expected, self.recipe.fit.batch)
        layers = f"{slice_.source}-{slice_.target}"
        run = claim(f"{short_name(self.recipe.model.model)}-{self.recipe.fit.method}-{layers}")
        config = self._config(slice_) | {"estimate": expected}
        scale = self._scale(slice_, config)
        config["compile"] = self._compiled(slice_, expected["seconds"])
        factors = self._fit(slice_, run, config, scale)
        self._save(slice_, run, factors, config)
        show(self.terminal, run, factors)
        return run, factors, lm

    def _check(self) -> None:
        """Refuses what can be refused before the minutes that loading may take."""
        from dct.compilation import check_choice
        from dct.fitting import check_scale
        from dct.model import check_layers

        layers, options = self.recipe.slice, self.recipe.fit
        if layers.source is not None and layers.target is not None:
            check_layers(layers.source, layers.target)
        check_choice(layers.compile)
        if options.scale is not None:
            check_scale(options.scale)
        self.prompts = fit_prompts(self.recipe.model.model, self.recipe.prompts)
        note_repeated(self.terminal, self.prompts)

    def _load(self, whole: bool) -> tuple["LanguageModel", "Slice"]:
        """The model, or as much of it as the slice needs, and the slice."""
        from dct.fitting import check_scale
        from dct.slice import Slice

        recipe = self.recipe
        layers = between(recipe.model.model, recipe.slice)
        lm = load_model(self.terminal, recipe.model.model, between=None if whole else layers, **recipe.loading())
        if self.interrupted:
            keep_prompts(lm, self.interrupted.config)
        self.began = time.monotonic()
        with self.terminal.busy("running the prompts"):
            slice_ = Slice(lm, self.prompts.texts, *layers(lm.depth), recipe.slice.positions, recipe.prompts.system)
        describe(self.terminal, slice_, len(self.prompts))
        if recipe.fit.scale is not None:
            check_scale(recipe.fit.scale, slice_)
        return lm, slice_

    def _decide(self, slice_: "Slice") -> None:
        """Settles what the recipe left to the method and the model."""
        from dct.fitting import default_iterations, default_orthogonalize

        asked = self.recipe.fit
        decided = asked.changed(
            factors=asked.factors or min(512, slice_.dim),
            iterations=asked.iterations or default_iterations(asked.method),
            orthogonalize=asked.orthogonalize or default_orthogonalize(asked.method),
        )
        self.recipe = replace(self.recipe, fit=decided)

    @property
    def options(self) -> dict[str, Any]:
        """Of the fit, as factors and states record them."""
        known = ("method", "factors", "iterations", "orthogonalize", "start", "d_proj", "beta", "tolerance", "seed")
        return {name: getattr(self.recipe.fit, name) for name in known}

    def _expected(self, slice_: "Slice") -> dict[str, Any]:
        """What the calibration and the fit are expected to take, and the memory that they are expected to need."""
        from dct.calibration import usual_work
        from dct.estimate import COPIES, bound, fit_bytes, pass_rows, seconds
        from dct.fitting import work
        from dct.memory import available, used

        options, interrupted = self.options, self.interrupted
        method, asked = options["method"], self.recipe.fit
        left = "factors" if method == "melbo" else "iterations"  # what an interrupted fit has fewer of to do
        sizes = {name: options[name] for name in ("method", "factors", "iterations", "d_proj", "start")}
        sizes[left] -= interrupted.state.iteration if interrupted else 0
        fit_work = work(**sizes, dim=slice_.dim, dim_out=slice_.dim, resumed=interrupted is not None)
        calibration = usual_work() if asked.scale is None else {}
        fixed = 1 if method == "melbo" else asked.batch
        fit_seconds, calibration_seconds = seconds(slice_, slice_.dim, fit_work, calibration, batch=fixed)
        batch = fixed or slice_.batch
        rows = max(pass_rows(batch, fit_work), pass_rows(asked.batch or slice_.batch, calibration))
        counted = fit_bytes(options["factors"], slice_.dim, rows, slice_.row_bytes)
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
        }

    def _config(self, slice_: "Slice") -> dict[str, Any]:
        """What factors and states say of where they come from."""
        config = {
            **slice_.info,
            **provenance(slice_.lm, self.prompts),
            "ids": slice_.ids,
            "loading": self.recipe.loading(),
            "method": self.recipe.fit.method,
            "column": self.recipe.prompts.column,
            "seed": self.recipe.fit.seed,
            "lambda": None,
            "calibration": None,
        }
        if self.interrupted:
            _same_fit(self.terminal, self.interrupted, config, slice_)
            for key in ("lambda", "calibration", "prompts_origin"):
                config[key] = self.interrupted.config[key]
        return config

    def _scale(self, slice_: "Slice", config: dict[str, Any]) -> float:
        """R: that of the interrupted fit, the one asked for, or the calibrated one, which `config` then tells about."""
        asked = self.recipe.fit
        if self.interrupted:
            one, of = ("vector", asked.factors) if asked.method == "melbo" else ("iteration", asked.iterations)
            self.terminal.note(f"going on after {one} {self.interrupted.state.iteration} of {of}")
            return float(self.interrupted.config["scale"])
        if asked.scale is not None:
            return asked.scale
        found = calibrated(self.terminal, slice_, asked)
        config["lambda"] = found.target
        config["calibration"] = {"ratio": found.ratio, "limited": found.limited, "curve": found.curve}
        return found.scale

    def _compiled(self, slice_: "Slice", seconds: float) -> str:
        """Compiles the slice if that was asked for or pays; a fit goes on without where it cannot be done.

        Returns:
            `on` or `off`.
        """
        from dct.compilation import pays

        # The other fits go through forward mode, which compiled code does not take.
        if not pays(self.recipe.slice.compile, seconds if self.recipe.fit.method == "exponential" else 0.0):
            return "off"
        began = time.monotonic()
        try:
            with self.terminal.busy("compiling the slice"):
                slice_.compile()
        except DctError as error:
            self.terminal.warn(f"{error}; going on without")
            return "off"
        self.terminal.note(f"blocks compiled in {time.monotonic() - began:.3g} s")
        return "on"

    def _fit(self, slice_: "Slice", run: "Run", config: dict[str, Any], scale: float) -> "Factors":
        """Learns the factors, keeping every finished iteration."""
        from dct.fitting import fit as fit_map
        from dct.runs import state_content_faults

        batch, interrupted = self.recipe.fit.batch, self.interrupted
        saved = {**config, "options": self.options, "batch": batch, "scale": scale, "beside": run.beside()}
        wrong = state_content_faults(saved)
        if wrong is not None:  # before the work, not behind it
            raise DctError(f"this fit could not be saved: {wrong}")
        if not interrupted:
            run.drop_state()
        try:
            with self.terminal.progress(f"fitting {self.recipe.fit.factors} factors") as advance:
                factors = fit_map(
                    slice_,
                    slice_.dim,
                    scale=scale,
                    batch=batch,
                    resume=interrupted.state if interrupted else None,
                    checkpoint=lambda state: run.save_state(state, saved),
                    progress=advance,
                    **self.options,
                )
        except KeyboardInterrupt:
            if run.state.exists():
                raise InterruptedWorkError(
                    f"interrupted; every finished iteration is kept: go on with `dct fit --resume --out {run.folder}`"
                ) from None
            raise
        if factors.objective.numel() and not bool(factors.objective.isfinite().all()):
            raise DctError("the objective is not finite: lower `scale`")
        return factors

    def _save(self, slice_: "Slice", run: "Run", factors: "Factors", config: dict[str, Any]) -> None:
        """Writes the factors, and the recipe that repeats them: what it left open as it was decided."""
        seconds = round(time.monotonic() - self.began, 2)
        batch, recipe = factors.info["batch"], self.recipe
        factors.info = {**factors.info, **config, "seconds": seconds, "peak_memory": peak(slice_.device)}
        repeat = replace(
            recipe,
            model=recipe.model.changed(model=portable(recipe.model.model), dtype=config["dtype"]),
            slice=recipe.slice.changed(
                source=slice_.source, target=slice_.target, positions=slice_.positions, compile=config["compile"]
            ),
            prompts=recipe.prompts.changed(prompts=portable(recipe.prompts.prompts or "") or None),
            fit=recipe.fit.changed(batch=batch),
        )
        run.save_factors(factors, repeat)


def _refuse_overwriting(run: "Run", force: bool) -> None:
    if force:
        return
    if run.factors.exists():
        raise DctError(f"{run.folder} already holds factors: choose another `out`, or `force` to overwrite them")
    if run.state.exists():
        raise DctError(f"{run.folder} holds an interrupted fit: go on with `resume`, or `force` to start over")


def _same_fit(terminal: Terminal, interrupted: Interrupted, config: dict[str, Any], slice_: "Slice") -> None:
    """Refuses to go on with another model than the fit was begun on."""
    state = interrupted.state
    if interrupted.config["fingerprint"] != config["fingerprint"]:
        raise DctError(f"the weights of {config['model']} have changed since the fit was interrupted: start over")
    if {state.V.shape[1], state.U.shape[1]} != {slice_.dim}:
        raise DctError(f"{interrupted.run.state} is damaged: its vectors are not of width {slice_.dim}; start over")
    if state.unprotected:
        terminal.warn(f"{interrupted.run.state} is of format version 1: nothing protects its numbers")
