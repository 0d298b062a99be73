"""`peft`: an edit of weights as a LoRA adapter, W + B A: of rank k for an ablation of k directions, W - D'D W with
B = -D' and A = D W; of rank 1 for a rank-1 change, B = R b and A = a'."""

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

MERGED = ".merge_and_unload()"

KEPT = """
It is not merged into the weights here: in bfloat16 a small change of a weight is rounded away.
"""


class Peft(Format):
    """The adapter of every matrix that writes into the residual stream; float32 unless told otherwise."""

    name = "peft"
    about = "ablation, or a rank-1 change, as a LoRA adapter for PEFT"
    rank_one = True
    carries = (ABLATION,)
    weights = (ABLATION,)

    def write(self, parcel: Parcel, folder: Path) -> Written:
        """Writes the adapter; gains of norms behind a matrix are folded into the directions."""
        from dct.ablation import ablate
        from dct.saving import save
        from dct.saving.adapter import write_changes

        lm = model_of(parcel, self.name)
        if parcel.changes is not None:
            pairs = parcel.changes.changes(parcel.vectors)
            written = {m: (a[0], b[0]) for m, (a, b) in zip(parcel.changes.modules, pairs, strict=True)}
            write_changes(lm, written, folder)
            facts = {"rank": "1", "weights": f"{len(written)} matrices, float32", "alpha": "1: strength 1 is R"}
            return Written(LOAD.format(model=parcel.model).replace(MERGED, "") + KEPT, facts)
        with ablate(lm, parcel.directions, fold_norms=True) as done:
            saved = save(lm, folder, done, dtype=parcel.dtype, form="adapter", about={"ablated": parcel.names})
        facts = {"rank": str(len(done.directions)), **facts_of(saved)}
        if done.folded:
            facts["norms"] = f"the gain of {len(done.folded)} norms is folded in: an oblique projection"
        return Written(LOAD.format(model=parcel.model), facts, rounding=saved.rounding)
