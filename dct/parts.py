"""Which parameters belong to a part of a model, and a model stripped of all others.

Knows names of parameters; reads no file and runs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from dct import compat


@dataclass(frozen=True)
class Part:
    """Some blocks of a model and, where wanted, its ends.

    Attributes:
        layers_path: dotted name of the block list.
        blocks: which of them.
        ends: what text passes through outside the blocks too: the embeddings and the final norm, and an output head
            that shares its weights with the embeddings; never a head of its own.
        text_alone: the model has no towers for other inputs.
    """

    layers_path: str
    blocks: range
    ends: bool
    text_alone: bool

    def strip(self, model: PreTrainedModel) -> None:
        """Leaves parameters out, as a layer without bias leaves out its bias."""
        keep = self.chooser(model)
        touched: set[str] = set()
        for prefix, module in model.named_modules():
            own = {name: p for name, p in module._parameters.items() if p is not None}
            gone = [name for name in own if not keep(f"{prefix}.{name}" if prefix else name)]
            for name in gone:
                module._parameters[name] = None
            number = self._block(prefix)
            if gone or (number is not None and number not in self.blocks):
                compat.needs_no_first_values(module)  # what is not there has none
                parts = prefix.split(".") if prefix else []
                touched |= {".".join(parts[:k]) for k in range(len(parts))}
        text = self._text_tower(model)
        for prefix in touched:  # modules give first values to what stands inside them, too
            module = model.get_submodule(prefix)
            # What still runs may have buffers of its own, whose first values are computed then.
            runs = next(module.parameters(), None) is not None and not _beside(prefix, text)
            if not module._buffers or not runs:
                compat.needs_no_first_values(module)
        model.all_tied_weights_keys = {a: b for a, b in compat.tied_weights(model).items() if keep(a) and keep(b)}

    def chooser(self, model: PreTrainedModel) -> Callable[[str], bool]:
        """Whether a parameter, by its name, belongs to the part."""
        tied = compat.tied_weights(model)
        head = model.get_output_embeddings()
        headed = {f"{name}." for name, module in model.named_modules() if module is head and head is not None}
        text = self._text_tower(model)
        asked = self._smallest_of_towers(model, text) if self.ends and text else set()

        def keep(name: str) -> bool:
            """Whether the parameter of this name stays."""
            number = self._block(name)
            if number is not None:
                return number in self.blocks
            if name in tied or name in tied.values():
                return self.ends
            return self.ends and (name.startswith(text) or name in asked) and not name.startswith(tuple(headed))

        return keep

    def _text_tower(self, model: PreTrainedModel) -> str:
        """How the names of what text passes through begin: towers for other inputs are in no part."""
        if self.text_alone:
            return ""
        tower = compat.text_tower(model)
        [name] = [name for name, module in model.named_modules() if module is tower]
        return f"{name}." if name and self.layers_path.startswith(f"{name}.") else ""

    def _smallest_of_towers(self, model: PreTrainedModel, text: str) -> set[str]:
        """One small parameter of each tower for other inputs: models ask for its device even where it is not run."""
        found = set()
        for prefix, module in model.named_modules():
            if isinstance(module, PreTrainedModel) and _beside(prefix, text):
                sizes = {name: p.numel() for name, p in module.named_parameters(prefix)}
                found |= {min(sizes, key=lambda name: sizes[name])} if sizes else set()
        return found

    def _block(self, name: str) -> int | None:
        """The number of the block that a module or parameter belongs to."""
        if not name.startswith(f"{self.layers_path}."):
            return None
        return int(name[len(self.layers_path) + 1 :].split(".", 1)[0])


def _beside(prefix: str, text: str) -> bool:
    """Whether a module is neither part of the text tower, whose names begin with `text`, nor around it."""
    return bool(text) and not f"{prefix}.".startswith(text) and not text.startswith(f"{prefix}." if prefix else "")
