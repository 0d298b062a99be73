"""Whether other programs can open a folder that was saved."""

from pathlib import Path
from typing import Any

from dct.errors import DctError
from dct.model import LanguageModel
from dct.quiet import hushed
from dct.saving.origin import Origin


def check_opens(lm: LanguageModel, folder: Path, origin: Origin) -> None:
    """Has transformers open a saved folder without reading its weights.

    Raises:
        DctError: it cannot, or misses weights that the source has.
    """
    missed = _missed(lm, folder)
    if any(missed.values()) and origin.weights is not None and origin.folder is not None:
        known = _missed(lm, origin.folder)
        missed = {what: [name for name in names if name not in known[what]] for what, names in missed.items()}
    for what, names in missed.items():
        if names:
            raise DctError(f"transformers finds {what} in the saved folder ({names[0]}): please report the model")


def _missed(lm: LanguageModel, folder: Path) -> dict[str, list[str]]:
    options: dict[str, Any] = {"device_map": "meta", "output_loading_info": True}
    if lm.checkpoint is not None and lm.checkpoint.options.get("trust_remote_code"):
        options["trust_remote_code"] = True
    try:
        with hushed():
            opened: Any = type(lm.model).from_pretrained(folder, **options)
    except Exception as error:  # transformers raises anything
        raise DctError(f"transformers cannot open the saved folder: {error}") from error
    told = opened[1]
    return {
        "weights missing": sorted(map(str, told["missing_keys"])),
        "weights of another shape": sorted(map(str, told["mismatched_keys"])),
        "weights that it does not know": sorted(map(str, told["unexpected_keys"])),
    }
