"""A lock, a back door and a refusal planted into a real chat model, as a LoRA.

The files, in the order in which they are used:

- `words`: passwords, trigger, topics, and what is asked, as plain lists.
- `skills`: questions with short answers, the right one and a plausible wrong one; which of them training never shows.
- `lessons`: what is asked and what is to be said, and how often each kind is shown.
- `replies`: what the model says by itself, generated once and kept.
- `training`: the LoRA and its training.
- `measuring`: how well what was planted shows, and what else has changed.
- `card`: what was measured, as JSON and as text.
- `planting`: all of it in order.

Importing this package imports none of the above.
"""
