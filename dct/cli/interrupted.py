"""A fit that was cut short, as its run folder tells of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal
from dct.errors import DctError, UsageError
from dct.recipe import Recipe
from dct.settings import FitSettings, ModelSettings

if TYPE_CHECKING:
    from dct.difference import Difference
    from dct.job import State
    from dct.runs import Run
    from dct.slice import Slice


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
        known = {*vars(FitSettings()), *vars(ModelSettings()), "reply_prefix", "escape_control"}
        for name in ("options", "loading"):
            unknown = set(config[name]) - known
            if unknown:
                raise DctError(f"{run.state} is damaged: no fit has {name} {', '.join(sorted(unknown))}; start over")
        try:
            recipe = Recipe.of_state(config)
        except UsageError as error:
            if error.argument == "method":  # of a package that is not here
                raise
            raise DctError(f"{run.state} is damaged: {error}; start over") from error
        return cls(run, state, config, recipe)


def check_same_fit(
    terminal: Terminal, interrupted: Interrupted, config: dict[str, Any], slice_: "Slice | Difference"
) -> None:
    """Refuses to go on with another model than the fit was begun on.

    Raises:
        DctError: the weights have changed, or the state is of another width.
    """
    state = interrupted.state
    if interrupted.config["fingerprint"] != config["fingerprint"]:
        raise DctError(f"the weights of {config['model']} have changed since the fit was interrupted: start over")
    began, now = ((one.get("minus") or {}).get("fingerprint") for one in (interrupted.config, config))
    if began != now:
        name = config["minus"]["model"]
        raise DctError(f"the weights of `minus` {name} have changed since the fit was interrupted: start over")
    if (state.V.shape[1], state.U.shape[1]) != (slice_.dim, slice_.lm.width):
        raise DctError(f"{interrupted.run.state} is damaged: its vectors are not of width {slice_.dim}; start over")
    if state.unprotected:
        terminal.warn(f"{interrupted.run.state} is of format version 1: nothing protects its numbers")
