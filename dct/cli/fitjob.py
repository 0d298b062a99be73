"""One fit, from its recipe to the run folder."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dct.cli.asked import fit_prompts, note_repeated
from dct.cli.band import band_between, check_band, chosen_band
from dct.cli.calibrate import calibrated
from dct.cli.fitted import announce, describe, describe_difference, show
from dct.cli.fitted import expected as forecast
from dct.cli.interrupted import Interrupted, check_same_fit
from dct.cli.minus import minus_of
from dct.cli.terminal import Terminal
from dct.cli.work import between, keep_prompts, load_model, portable, provenance, short_name
from dct.errors import DctError, InterruptedWorkError, UsageError
from dct.memory import peak
from dct.recipe import Recipe

if TYPE_CHECKING:
    from dct.difference import Difference
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.runs import Run
    from dct.slice import Slice


class FitJob:
    """One fit, from its recipe to the run folder.

    Args:
        terminal: told what happens.
        recipe: what is fitted; what it leaves open is decided here, once the model is known.
        interrupted: a fit to go on with.
        lm: the recipe's model, whole, where it is in memory already.
    """

    def __init__(
        self,
        terminal: Terminal,
        recipe: Recipe,
        interrupted: Interrupted | None = None,
        lm: "LanguageModel | None" = None,
    ) -> None:
        self.terminal, self.interrupted, self.lm = terminal, interrupted, lm
        self.recipe = replace(
            recipe,
            model=recipe.model.changed(adapter=portable(recipe.model.adapter or "") or None),
            slice=recipe.slice.changed(minus=portable(recipe.slice.minus or "") or None),
        )

    def done(self, claim: Callable[[str], "Run"], whole: bool) -> tuple["Run", "Factors", "LanguageModel"]:
        """The run, its factors and the model; `claim` gives the folder for a name."""
        self._check()
        lm, slice_ = self._load(whole)
        self._decide(slice_)
        with self.terminal.busy("timing a pass"):
            done = self.interrupted.state.iteration if self.interrupted else None
            expected, gains = forecast(slice_, self.recipe.fit, done)
        announce(self.terminal, expected, self.recipe.fit.batch)
        layers = f"{getattr(self.perturbation, 'band', slice_.source)}-{slice_.target}"
        minus = "" if self.recipe.slice.minus is None else f"-minus-{short_name(self.recipe.slice.minus)}"
        run = claim(f"{short_name(self.recipe.model.model)}{minus}-{self.recipe.fit.method}-{layers}")
        config = self._config(slice_) | {"estimate": expected}
        scale = self._scale(slice_, config)
        config["compile"] = self._compiled(slice_, gains)
        factors = self._fit(slice_, run, config, scale)
        self._save(slice_, run, factors, config)
        show(self.terminal, run, factors)
        return run, factors, lm

    def _check(self) -> None:
        """Refuses what can be refused before the minutes that loading may take."""
        from dct.fitting import check_scale
        from dct.method import method
        from dct.model import check_layers

        self._take_layers()
        layers, options = self.recipe.slice, self.recipe.fit
        method(options.method).own(options)
        check_band(method(options.method), layers, options)
        if layers.source is not None and layers.target is not None:
            check_layers(layers.source, layers.target)
        if options.scale is not None:
            check_scale(options.scale)
        self.prompts = fit_prompts(self.recipe.model.model, self.recipe.prompts)
        note_repeated(self.terminal, self.prompts)

    def _take_layers(self) -> None:
        """Source and target from the scan that was named, if one was.

        Raises:
            UsageError, DctError: they are given as well; there is no finished scan.
        """
        asked, self.scanned = self.recipe.slice, None
        if asked.layers_from is None or self.interrupted:
            return
        if asked.source is not None or asked.target is not None:
            raise UsageError("`layers_from` says source and target: leave one or the other out", argument="layers_from")
        from dct.scanning import read_scan

        self.scanned = read_scan(asked.layers_from)
        pair = self.scanned["proposal"]
        taken = asked.changed(source=pair["source"], target=pair["target"], layers_from=None)
        self.recipe = replace(self.recipe, slice=taken)

    def _load(self, whole: bool) -> tuple["LanguageModel", "Slice | Difference"]:
        """The model, or as much of it as the slice needs, and the slice; of two models, the difference."""
        from dct.bandslice import BandSlice
        from dct.difference import Difference
        from dct.fitting import check_scale
        from dct.method import method
        from dct.slice import Slice

        recipe = self.recipe
        banded = method(recipe.fit.method).rank_one
        layers = (band_between if banded else partial(between, recipe.model.model))(recipe.slice)
        there = None if whole else layers
        lm = self.lm or load_model(self.terminal, recipe.model.model, between=there, **recipe.loading())
        if self.scanned is not None:
            from dct.scanning import check_scanned

            check_scanned(self.scanned, lm.fingerprint, recipe.model.model)
        if self.interrupted:
            keep_prompts(lm, self.interrupted.config)
        minus = minus_of(self.terminal, recipe, lm, layers)
        self.began = time.monotonic()
        source, target = layers(lm.depth)
        what = (self.prompts.texts, source, target, recipe.slice.positions, recipe.prompts.system)
        with self.terminal.busy("running the prompts"):
            slice_: Slice | Difference
            if banded:
                slice_ = BandSlice(lm, what[0], chosen_band(lm.depth, recipe.slice), *what[2:])
            else:
                slice_ = Slice(lm, *what) if minus is None else Difference.between(lm, minus, *what)
        describe(self.terminal, slice_, len(self.prompts))
        if isinstance(slice_, Difference):
            describe_difference(self.terminal, slice_)
        if recipe.fit.scale is not None:
            check_scale(recipe.fit.scale, slice_)
        return lm, slice_

    def _decide(self, slice_: "Slice | Difference") -> None:
        """Settles what the recipe left to the method and the model."""
        from dct.fitting import decided
        from dct.method import method

        self.perturbation = getattr(slice_, "perturbation", None)
        settings = decided(self.recipe.fit, slice_.lm.width if self.perturbation else slice_.dim)
        self.method = method(settings.method)
        self.method.check(settings, slice_.dim)
        self.recipe = replace(self.recipe, fit=settings)

    @property
    def options(self) -> dict[str, Any]:
        """Of the fit, as factors and states record them."""
        known = ("method", "factors", "iterations", "orthogonalize", "start", "d_proj", "beta", "tolerance", "seed")
        own = self.recipe.fit.method_options
        options = {name: getattr(self.recipe.fit, name) for name in known}
        return options | ({"method_options": own} if own else {})

    def _config(self, slice_: "Slice | Difference") -> dict[str, Any]:
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
            check_same_fit(self.terminal, self.interrupted, config, slice_)
            for key in ("lambda", "calibration", "prompts_origin"):
                config[key] = self.interrupted.config[key]
        return config

    def _scale(self, slice_: "Slice | Difference", config: dict[str, Any]) -> float:
        """R: that of the interrupted fit, the one asked for, or the calibrated one, which `config` then tells about."""
        from dct.fitting import found_scale
        from dct.method import sizes

        asked = self.recipe.fit
        if self.interrupted:
            of = self.method.steps(*sizes(asked))
            self.terminal.note(f"going on after {self.method.step} {self.interrupted.state.iteration} of {of}")
            return float(self.interrupted.config["scale"])
        if asked.scale is not None:
            return asked.scale
        if not self.method.needs_scale:
            return found_scale(slice_, slice_.dim, asked)
        found = calibrated(self.terminal, slice_, asked)
        config["lambda"] = found.target
        config["calibration"] = {"ratio": found.ratio, "limited": found.limited, "curve": found.curve}
        return found.scale

    def _compiled(self, slice_: "Slice | Difference", seconds: float) -> str:
        """Compiles the slice if that was asked for or pays; a fit goes on without where it cannot be done.

        Args:
            seconds: of the fit that compiled code would take over.

        Returns:
            `on` or `off`.
        """
        from dct.compilation import pays

        if not pays(self.recipe.slice.compile, seconds, slice_.device):
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

    def _fit(self, slice_: "Slice | Difference", run: "Run", config: dict[str, Any], scale: float) -> "Factors":
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

    def _save(self, slice_: "Slice | Difference", run: "Run", factors: "Factors", config: dict[str, Any]) -> None:
        """Writes the factors, and the recipe that repeats them: what it left open as it was decided."""
        seconds = round(time.monotonic() - self.began, 2)
        batch, recipe = factors.info["batch"], self.recipe
        factors.info = {**factors.info, **config, "seconds": seconds, "peak_memory": peak(slice_.device)}
        repeat = replace(
            recipe,
            model=recipe.model.changed(model=portable(recipe.model.model), dtype=config["dtype"]),
            slice=recipe.slice.changed(
                **({"band": self.perturbation.band} if self.perturbation else {"source": slice_.source}),
                target=slice_.target,
                positions=slice_.positions,
                compile=config["compile"],
            ),
            prompts=recipe.prompts.changed(prompts=portable(recipe.prompts.prompts or "") or None),
            fit=recipe.fit.changed(batch=batch),
        )
        run.save_factors(factors, repeat)
