"""`gguf`: a control vector for llama.cpp."""

from pathlib import Path

from dct.export.shared.control import check_layer, check_package, hint_remarks, write_control
from dct.exporting import Format, Parcel, Written

FILE = "control-vector.gguf"

LOAD = f"""llama.cpp adds it at strength 1, which is the scale that it was exported at:

```sh
llama-cli -m MODEL.gguf --control-vector {FILE}
llama-server -m MODEL.gguf --control-vector-scaled {FILE}:1.5
```

A few architectures of llama.cpp do not apply control vectors, and say nothing: compare a completion with and without.
"""


class Gguf(Format):
    """`direction.{s-1}` of one vector; llama.cpp takes no direction.0, so s is 2 at least."""

    name = "gguf"
    about = "control vector for llama.cpp"

    def check(self, parcel: Parcel) -> None:
        """A layer below 2, or gguf missing."""
        check_layer(parcel, 2, "llama.cpp")
        check_package()

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """One file."""
        folder.mkdir()
        write_control(folder / FILE, parcel)
        return Written(LOAD, {"tensor": f"direction.{parcel.layer - 1}, float32"}, hint_remarks(parcel))
