"""The spectra of a run, as they are kept beside its factors: one file, each output once. Knows no mathematics."""

from pathlib import Path
from typing import Any

from dct import plainjson
from dct.factors import Factors
from dct.runs import Run
from dct.writing import write_whole

NAME = "spectrum.json"

FORMAT = "dct spectrum 1"

TERMS = "terms"
"""What the decomposition without an output is filed under."""


def keep(run: Run, factors: Factors, content: dict[str, Any]) -> Path:
    """Adds a spectrum to those of its run; one of the same output is replaced, and spectra of other factors go.

    Raises:
        DctError: the file cannot be written.
    """
    spectra = {**kept(run, factors), content["output"] or TERMS: content}
    whole = {"format": FORMAT, "factors": factors.digest, "spectra": spectra}
    return write_whole(run.folder / NAME, (plainjson.dumps(whole, indent=1) + "\n").encode())


def kept(run: Run, factors: Factors) -> dict[str, Any]:
    """The spectra of these factors, by output, in the order in which they were taken; none where there is no file, or
    one of other factors."""
    try:
        content = plainjson.loads((run.folder / NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("factors") != factors.digest:
        return {}
    spectra = content.get("spectra")
    return dict(spectra) if isinstance(spectra, dict) else {}
