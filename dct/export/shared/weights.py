"""What is said of an edit of weights that was saved: in which type, and what that type loses of it."""

from typing import TYPE_CHECKING

from dct.errors import DctError
from dct.exporting import Parcel

if TYPE_CHECKING:
    from dct.model import LanguageModel
    from dct.saving import Saved


def model_of(parcel: Parcel, who: str) -> "LanguageModel":
    """The model whose weights are edited.

    Raises:
        DctError: it was not loaded.
    """
    if parcel.lm is None:
        raise DctError(f"{who} needs the model's weights: pass `lm`")
    return parcel.lm


def facts_of(saved: "Saved") -> dict[str, str]:
    """Facts of a folder that was saved."""
    what = f"{saved.edited} matrices" if saved.form == "adapter" else f"{saved.tensors} tensors, {saved.edited} edited"
    facts = {"weights": f"{what}, {', '.join(saved.dtypes)}"}
    lost = saved.rounding
    if lost is not None:
        facts["rounding"] = (
            f"largest difference of an entry to the edit in float64: {lost['largest']:.2g}; {100 * lost['lost']:.2g}% "
            f"of the edit's entries rounded back to the source's"
        )
        if lost["remaining"] is not None:
            facts["left"] = f"{lost['remaining']:.2g} of what was written along the directions before"
    return facts
