"""dct: deep causal transcoders. Find, rank, steer and ablate the hidden behaviours of a language model.

    lm      = dct.load("demo")
    slice_  = dct.Slice(lm, prompts, source=0, target=8)
    scale   = dct.calibrate(slice_, slice_.dim, ratio=0.5, limit=slice_.residual_norm).scale
    factors = dct.fit(slice_, slice_.dim, scale=scale)
    ranking = dct.rank(lm, factors, prompts)
    with dct.steer(lm, factors.V[17] * factors.scale, layer=0): ...
    with dct.ablate(lm, factors.V[:32], fold_norms=True) as done: dct.save(lm, "edited", done)

Importing the package is cheap: torch and transformers come in with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dct.version import __version__

if TYPE_CHECKING:
    from dct.ablation import ablate, leak
    from dct.bandslice import BandSlice
    from dct.calibration import Calibration, calibrate
    from dct.candidates import aggregate
    from dct.difference import Difference
    from dct.errors import CalibrationError, DctError, NonFiniteError, UsageError
    from dct.factors import Factors
    from dct.fitting import fit
    from dct.generation import complete
    from dct.loading import load
    from dct.model import LanguageModel
    from dct.outcome import Selection
    from dct.ranking import Ranking, rank
    from dct.saving import Saved, save
    from dct.selection import select
    from dct.slice import Slice
    from dct.steering import steer
    from dct.writers import Writer, residual_writers

_HOMES = {
    "BandSlice": "bandslice",
    "CalibrationError": "errors",
    "Calibration": "calibration",
    "DctError": "errors",
    "Difference": "difference",
    "Factors": "factors",
    "LanguageModel": "model",
    "NonFiniteError": "errors",
    "Ranking": "ranking",
    "Saved": "saving",
    "Selection": "outcome",
    "Slice": "slice",
    "UsageError": "errors",
    "Writer": "writers",
    "ablate": "ablation",
    "aggregate": "candidates",
    "calibrate": "calibration",
    "complete": "generation",
    "fit": "fitting",
    "leak": "ablation",
    "load": "loading",
    "rank": "ranking",
    "residual_writers": "writers",
    "save": "saving",
    "select": "selection",
    "steer": "steering",
}

__all__ = [
    "BandSlice",
    "Calibration",
    "CalibrationError",
    "DctError",
    "Difference",
    "Factors",
    "LanguageModel",
    "NonFiniteError",
    "Ranking",
    "Saved",
    "Selection",
    "Slice",
    "UsageError",
    "Writer",
    "__version__",
    "ablate",
    "aggregate",
    "calibrate",
    "complete",
    "fit",
    "leak",
    "load",
    "rank",
    "residual_writers",
    "save",
    "select",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dct' has no attribute {name!r}")
    return getattr(import_module(f"dct.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
