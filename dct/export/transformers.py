"""`transformers`: a folder that `from_pretrained` opens and that needs no hook.

An ablation is in its weights. An addition is in a bias: where the last thing that block s - 1 adds to its stream comes
from a matrix with a bias b, b + R v adds R v to what enters block s, at every token. Where there is no such bias, as in
Llama and Qwen, weights cannot hold an addition.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dct.errors import DctError
from dct.export.shared.weights import facts_of, model_of
from dct.exporting import ABLATION, ADDITION, Format, Parcel, Written

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dct.model import LanguageModel

INSTEAD = "choose gguf or easysteer, or npz for a hook of your own"

EXACT = 1e-3
"""How far the change of the stream may be from R v, relative to it; more where rounding is coarser."""

LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


class Transformers(Format):
    """Merged weights of an ablation, or a bias that adds; in the source's types unless told otherwise."""

    name = "transformers"
    about = "whole model: an ablation merged, or an addition where a bias can carry it"
    carries = (ADDITION, ABLATION)
    weights = (ADDITION, ABLATION)

    def check(self, parcel: Parcel) -> None:
        """An addition that no bias can carry."""
        if not parcel.ablate:
            carrier(model_of(parcel, self.name), parcel.layer)

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """Writes the whole model."""
        from dct.ablation import ablate
        from dct.saving import save

        lm = model_of(parcel, self.name)
        if parcel.ablate:
            with ablate(lm, parcel.directions, fold_norms=True) as done:
                saved = save(lm, folder, done, dtype=parcel.dtype, about={"ablated": parcel.names})
            facts = facts_of(saved)
            if done.folded:
                facts["norms"] = f"the gain of {len(done.folded)} norms is folded in: an oblique projection"
            return Written(LOAD, facts, rounding=saved.rounding)
        name, bias = carrier(lm, parcel.layer)
        with added(lm, bias, parcel.vectors[0], parcel.layer):
            saved = save(lm, folder, dtype=parcel.dtype, about={"added": parcel.names})
        return Written(LOAD, {"bias": f"R v is added to {name}", **facts_of(saved)}, rounding=saved.rounding)


def carrier(lm: "LanguageModel", layer: int) -> tuple[str, "nn.Parameter"]:
    """The bias behind the last thing that the block below a layer adds to the stream, with its name.

    Raises:
        DctError: there is no block below, or no such bias.
    """
    from dct.writers import sites

    if layer == 0:
        raise DctError(f"no block of {lm.name} comes before layer 0, whose bias could carry the vector: {INSTEAD}")
    elsewhere = {id(w.bias) for site in sites(lm) if site.block != layer - 1 for w in site.writers}
    for site in reversed([one for one in sites(lm) if one.block == layer - 1 and one.gain is None]):
        for writer in reversed(site.writers):
            # An expert's bias would not be added to every token, which `added` measures.
            if writer.weight.ndim == 2 and writer.bias is not None and id(writer.bias) not in elsewhere:
                return f"{writer.name.removesuffix('.weight')}.bias", writer.bias
    raise DctError(
        f"nothing that block {layer - 1} of {lm.name} adds to the stream has a bias, so no plain weights can carry the "
        f"vector: {INSTEAD}"
    )


@contextmanager
def added(lm: "LanguageModel", bias: "nn.Parameter", vector: "Tensor", layer: int) -> Iterator[None]:
    """A vector in a bias while the context lasts; measured, that it is added to the stream and nothing else is.

    Raises:
        DctError: something else than the vector is added.
    """
    import torch

    from dct.recording import record

    vocabulary = lm.model.config.get_text_config().vocab_size
    ids = [(7 * k + 1) % vocabulary for k in range(8)]

    def stream() -> torch.Tensor:
        """What enters the layer."""
        [recording] = record(lm, [ids], layer, layer + 1)
        return recording.entering[None].float()

    before, original = stream(), bias.data
    wide = torch.promote_types(original.dtype, torch.float32)
    bias.data = (original.to(wide) + vector.to(original.device, wide)).to(original.dtype)
    try:
        moved = stream() - before
        R = float(vector.norm())
        off = float((moved - vector.to(moved)).norm(dim=-1).max())
        rounding = 16 * torch.finfo(original.dtype).eps * float(before.norm(dim=-1).max() + R)
        if off > EXACT * R + rounding:
            raise DctError(
                f"a bias of {lm.name} adds something else to the stream than the vector (off by {off / R:.2g} of its "
                f"length): {INSTEAD}"
            )
        yield
    finally:
        bias.data = original
