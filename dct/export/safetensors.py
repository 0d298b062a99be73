"""`safetensors`: plain tensors, and in the header what they are."""

from pathlib import Path

from dct.exporting import ABLATION, ADDITION, Format, Parcel, Written
from dct.writing import write_whole

FILE = "vectors.safetensors"

ADD = """One row a vector, R v, as long as it is to be added:

```python
from safetensors import safe_open
from transformers import AutoModelForCausalLM

with safe_open("{file}", "pt") as file:
    vector, about = file.get_tensor("vectors")[0], file.metadata()
model = AutoModelForCausalLM.from_pretrained("{model}")
block = model.model.layers[{layer}]  # where this model has its blocks
block.register_forward_pre_hook(lambda _, args: (args[0] + vector.to(args[0]), *args[1:]))
```
"""

ABLATE = """Orthonormal rows D, to take out of every matrix W that writes into the residual stream, W - D'D W:

```python
from safetensors import safe_open

with safe_open("{file}", "pt") as file:
    D, about = file.get_tensor("directions"), file.metadata()
```
"""


class Safetensors(Format):
    """`vectors`, or `directions` of an ablation, float32."""

    name = "safetensors"
    about = "plain tensors with their layer, norm and source"
    carries = (ADDITION, ABLATION)
    several = True

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """One file."""
        from safetensors.torch import save

        folder.mkdir()
        name = "directions" if parcel.ablate else "vectors"
        vectors = parcel.vectors.contiguous()
        write_whole(folder / FILE, save({name: vectors}, metadata=parcel.about()))
        load = (ABLATE if parcel.ablate else ADD).format(file=FILE, model=parcel.model, layer=parcel.layer)
        return Written(load, {"tensor": f"{name} {tuple(vectors.shape)}, float32"})
