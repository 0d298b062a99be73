"""`npz`: plain arrays for numpy, without pickles, and what they are."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from dct.exporting import ABLATION, ADDITION, Format, Parcel, Written
from dct.writing import write_whole

FILE = "vectors.npz"

LOAD = """```python
import numpy as np

found = np.load("{file}")
found["{name}"]  # {what}
int(found["layer"]), str(found["model"]), str(found["fingerprint"])
```
"""


class Npz(Format):
    """`vectors`, or `directions` of an ablation, float32; beside them `layer`, `norms`, `names` and text."""

    name = "npz"
    about = "plain arrays for numpy"
    carries = (ADDITION, ABLATION)
    several = True

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """One file."""
        folder.mkdir()
        name = "directions" if parcel.ablate else "vectors"
        vectors = parcel.vectors.numpy()
        about = {key: np.array(value) for key, value in parcel.about().items() if key not in ("vectors", "norms")}
        about |= {"layer": np.array(parcel.layer), "names": np.array(parcel.names)}
        if not parcel.ablate:
            about["norms"] = np.array(parcel.norms)
        data = io.BytesIO()
        arrays: dict[str, Any] = {name: vectors, **about}  # text as Unicode arrays: no pickles
        np.savez(data, **arrays)
        write_whole(folder / FILE, data.getvalue())
        what = "orthonormal rows, one for each dimension taken out" if parcel.ablate else "R v, one row a vector"
        load = LOAD.format(file=FILE, name=name, what=what)
        return Written(load, {"array": f"{name} {vectors.shape}, float32"})
