"""The benchmark: what the vectors of each fit elicit, against ground truth where it is known.

The files, in the order in which they are used:

- `subject`: what is measured on: a model, its prompts, the judge of its completions, how many of everything.
- `records`: finished measurements on disk, one file each, so that nothing is measured twice.
- `workshop`: the pieces that experiments share: fits, scores, completions; each done once.
- `samples`, `edits`, `locked`, `enumeration`, `multiplicity`, `curves`: the six experiments. Each says what it would
  measure (`plan`), measures one cell (`measure`) and makes a table and sentences of what was measured (`report`).
- `runner`: runs what is not on record yet.
- `report`: tables as CSV, JSON and Markdown.
- `figures`: a figure for each experiment; the only file that needs matplotlib.
- `planted`, `recovery`: a benchmark of its own, of maps whose factors are known: the maps, and how many come back.

Nothing here prints.
"""
