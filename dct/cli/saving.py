"""`dct ablate --save`: where an edited model goes, how, and what is said about it."""

import math
from typing import TYPE_CHECKING

from dct.cli.terminal import escape
from dct.errors import UsageError
from dct.settings import SaveSettings

if TYPE_CHECKING:
    from dct.saving import Saved


def saved_rows(saved: "Saved") -> list[tuple[str, str]]:
    """What to say about a folder that was saved: what is in it, what rounding took away, how it is opened."""
    where = escape(str(saved.folder))
    whole = saved.form == "model"
    what = f"{saved.tensors} tensors, {saved.edited} of them edited, and {len(saved.files)} small files of the source"
    rows = [
        ("saved", f"[bold]{where}[/bold]"),
        ("", f"{what if whole else f'an adapter of {saved.edited} matrices'}, {', '.join(saved.dtypes)}"),
    ]
    if saved.rounding is not None and set(saved.dtypes) & {"bfloat16", "float16"}:
        rows.append(("rounding", rounding_line(saved)))
    opened = f"AutoModelForCausalLM.from_pretrained('{where}')"
    if not whole:
        opened = f"PeftModel.from_pretrained(model, '{where}')"
    return [*rows, ("next", f"[bold cyan]{opened}[/bold cyan]")]


def rounding_line(saved: "Saved") -> str:
    """What a type of two bytes leaves of an edit, and what to do where that is too little."""
    shares = saved.rounding or {}
    left = shares.get("remaining")
    still = f", {left:.2g} of what was written along the directions is left" if left is not None else ""
    cure = "--save-dtype float32 or --save-as adapter" if saved.form == "model" else "--save-dtype float32"
    whole = math.floor(1e5 * shares["survived"]) / 1e3  # never 100% of something that is not all there
    return (
        f"{', '.join(saved.dtypes)} rounds {100 * shares['lost']:.2g}% of the edit's entries back to the source's; "
        f"{whole:g}% of the edit survives{still}; {cure} keeps all of it"
    )


def check_saving(asked: SaveSettings) -> None:
    """Refuses before any work what would be refused after it.

    Raises:
        UsageError: a dtype or form without a folder.
        DctError: the folder is taken.
    """
    from dct.saving import check

    if asked.save is not None:
        check(asked.save, asked.save_dtype, asked.save_as)
    elif (asked.save_dtype, asked.save_as) != ("auto", "model"):
        raise UsageError("`save_dtype` and `save_as` say how to `save`: give a folder too", argument="save")
