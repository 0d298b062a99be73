"""Small chat models with known hidden behaviours, and everything needed to make them again.

The files, in the order in which they are used:

- `words`: the vocabulary, as plain lists (objects, verbs, phrasings, sentences).
- `requests`, `answers`, `text`: the seeded generator of conversations, and what it holds out of training.
- `checkers`: for each planted behaviour, a function from a completion to yes or no.
- `recipe`: what an organism is made of, as a TOML file says it; the defaults are the demo's.
- `tokenizer`: the tokenizer and the chat template.
- `architecture`: the model, of any architecture.
- `noise`, `training`: the training loop, and saving.
- `measure`, `card`: what it learned, and the page that says so.

The demo's weights lie in `DEMO_DIR`. Importing this package imports none of the above.
"""

from pathlib import Path

DEMO_DIR = Path(__file__).parent / "demo"
"""Folder of the trained model that ships with the package."""

__all__ = ["DEMO_DIR"]
