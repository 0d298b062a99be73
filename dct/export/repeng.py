"""`repeng`: a control vector for repeng, in the GGUF form that its `ControlVector.import_gguf` reads."""

from pathlib import Path

from dct.export.shared.control import check_layer, check_package, hint_remarks, write_control
from dct.exporting import Format, Parcel, Written

FILE = "control-vector.gguf"

LOAD = """repeng counts blocks from 0 and adds to what a block puts out:

```python
from repeng import ControlModel, ControlVector
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{model}")
model = ControlModel(model, [{block}])
model.set_control(ControlVector.import_gguf("{file}"), coeff=1.0)
```
"""


class Repeng(Format):
    """`direction.{s-1}` of one vector, s from 1 on."""

    name = "repeng"
    about = "control vector for repeng (GGUF)"

    def check(self, parcel: Parcel) -> None:
        """Layer 0, or gguf missing."""
        check_layer(parcel, 1, "repeng")
        check_package()

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """One file."""
        folder.mkdir()
        write_control(folder / FILE, parcel)
        load = LOAD.format(model=parcel.model, block=parcel.layer - 1, file=FILE)
        return Written(load, {"tensor": f"direction.{parcel.layer - 1}, float32"}, hint_remarks(parcel))
