"""The other model of a difference: the one whose response is subtracted, in a fit and in what is done with its run."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dct.cli.terminal import Terminal
from dct.cli.work import load_model
from dct.errors import DctError
from dct.recipe import Recipe
from dct.settings import RunModelSettings

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.model import LanguageModel


def minus_of(
    terminal: Terminal, recipe: Recipe, lm: "LanguageModel", layers: Callable[[int], tuple[int, int]]
) -> "LanguageModel | None":
    """The model that a recipe's `minus` names, as much of it as lies between the layers; None where it names none.

    Raises:
        DctError: it has another shape than the recipe's own.
    """
    name = recipe.slice.minus
    if name is None:
        return None
    from dct.difference import comparable

    loading = recipe.loading() | {"adapter": None, "revision": None}
    minus = load_model(terminal, name, between=layers, **loading)
    comparable(lm, minus)
    return minus


def load_minus(
    terminal: Terminal, factors: "Factors", lm: "LanguageModel", model: RunModelSettings, force: bool
) -> "LanguageModel":
    """The model that a run's `minus` names, in the type of the run's own.

    Raises:
        DctError: it cannot be loaded, has another shape, or other weights by now, and `force` is not set.
    """
    told = factors.info["minus"]
    from dct.difference import comparable

    minus = load_model(
        terminal,
        told["model"],
        layers=factors.info.get("layers") or "",
        dtype=str(lm.dtype).removeprefix("torch."),
        device=model.device,
        memory=model.memory,
        trust_remote_code=model.trust_remote_code,
    )
    if told["fingerprint"] != minus.fingerprint and not force:
        raise DctError(
            f"the run subtracted other weights ({told['fingerprint']}) than {told['model']} now has "
            f"({minus.fingerprint}): bring those back, or `force` to use these all the same"
        )
    comparable(lm, minus)
    return minus
