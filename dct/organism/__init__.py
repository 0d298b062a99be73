"""A small chat model with known hidden behaviours, and everything needed to make it again.

The files, in the order in which they are used:

- `words`: the vocabulary, as plain lists (objects, verbs, phrasings, sentences).
- `text`: the seeded generator of conversations, and the split between training and held-out text.
- `checkers`: for each planted behaviour, a function from a completion to yes or no.
- `tokenizer`: the byte-level tokenizer and the chat template.
- `training`: the model, the training loop, the measured rates, and saving.

The trained model lies in `DEMO_DIR`. Importing this package imports none of the above.
"""

from pathlib import Path

DEMO_DIR = Path(__file__).parent / "demo"
"""Folder of the trained model that ships with the package."""

__all__ = ["DEMO_DIR"]
