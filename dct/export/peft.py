"""`peft`: an ablation as a LoRA adapter, W - D'D W = W + B A with B = -D' and A = D W, of rank k for k directions."""

from pathlib import Path

from dct.export.shared.weights import facts_of, model_of
from dct.exporting import ABLATION, Format, Parcel, Written

LOAD = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{model}")
model = PeftModel.from_pretrained(model, "path/to/this/folder").merge_and_unload()
```

llama.cpp takes it through its `convert_lora_to_gguf.py`.
"""


class Peft(Format):
    """The adapter of every matrix that writes into the residual stream; float32 unless told otherwise."""

    name = "peft"
    about = "ablation as a LoRA adapter for PEFT"
    carries = (ABLATION,)
    weights = (ABLATION,)

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """Writes the adapter; gains of norms behind a matrix are folded into the directions."""
        from dct.ablation import ablate
        from dct.saving import save

        lm = model_of(parcel, self.name)
        with ablate(lm, parcel.directions, fold_norms=True) as done:
            saved = save(lm, folder, done, dtype=parcel.dtype, form="adapter", about={"ablated": parcel.names})
        facts = {"rank": str(len(done.directions)), **facts_of(saved)}
        if done.folded:
            facts["norms"] = f"the gain of {len(done.folded)} norms is folded in: an oblique projection"
        return Written(LOAD.format(model=parcel.model), facts, rounding=saved.rounding)
