"""The spectra of a run, as they are kept beside its factors: one file, each output once. Knows no mathematics."""

from pathlib import Path
from typing import Any

from dct import plainjson
from dct.factors import Factors
from dct.runs import Run
from dct.schema import Listing, OrNull, Record, number, one_of, text, whole
from dct.writing import write_whole

NAME = "spectrum.json"

FORMAT = "dct spectrum 1"

TERMS = "terms"
"""What the decomposition without an output is filed under."""

SPECTRUM = Record(
    needed={
        "output": text(1),
        "values": Listing(number(), least=1),
        "rank": OrNull(whole(1)),
        "correlation": number(0, 1),
        "chance": Record(needed={"edge": number(0), "rank": whole(1)}),
        "random_output": Record(needed={"values": Listing(number())}),
    }
)
"""What is drawn of an output's spectrum."""

DECOMPOSITION = Record(needed={"terms": Listing(Record(needed={"left": number(0), "sigma": number(0)}))})
"""The same of the terms without an output."""

FILE = Record(needed={"format": one_of(FORMAT), "factors": text(1), "spectra": Record()})


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
    if FILE.wrong(content, "") is not None or content["factors"] != factors.digest:
        return {}
    found = {}
    for output, one in content["spectra"].items():
        if (DECOMPOSITION if output == TERMS else SPECTRUM).wrong(one, "") is None:
            found[output] = one
    return found
