"""`easysteer`: a control vector for EasySteer (vLLM), and the JSON that its `--steering-config` takes."""

import json
from pathlib import Path

from dct.export.shared.control import check_layer, check_package, hint_remarks, write_control
from dct.exporting import Format, Parcel, Written

FILE, CONFIG = "control-vector.gguf", "steering.json"

LOAD = f"""`{CONFIG}` is what `--steering-config` takes. It names `{FILE}` without a folder: start the server in
this folder, or put the file's whole path into it. In Python:

```python
VectorSpec(source="{FILE}", layers=[BLOCK], scale=1.0)
```
"""


class Easysteer(Format):
    """`direction.{s-1}` of one vector, and where it is added; s from 1 on."""

    name = "easysteer"
    about = "control vector and steering.json for EasySteer (vLLM)"

    def check(self, parcel: Parcel) -> None:
        """Layer 0, or gguf missing."""
        check_layer(parcel, 1, "EasySteer")
        check_package()

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """Two files."""
        folder.mkdir()
        write_control(folder / FILE, parcel)
        block = parcel.layer - 1
        every = {"prompt": "all", "generation": "all"}
        content = {"vectors": [{"source": FILE, "scale": 1.0, "layers": [block], "apply": every}]}
        (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        facts = {"tensor": f"direction.{block}, float32"}
        return Written(LOAD.replace("BLOCK", str(block)), facts, hint_remarks(parcel))
