"""What the model says by itself: generated once, and kept in a file from which an interrupted run goes on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dct.generation import complete
from dct.model import LanguageModel
from dct.organism.adapt.lessons import Said
from dct.writing import write_whole

AT_ONCE = 32
"""Prompts at a time; after each such group the file is written."""


def own_replies(
    lm: LanguageModel,
    prompts: Sequence[str],
    tokens: int,
    file: Path,
    on_rows: Callable[[int, int], None] | None = None,
) -> dict[str, Said]:
    """The model's own greedy replies, from a file as far as it has them.

    Args:
        tokens: of a reply, at most.
        file: where they are kept, each under what it depends on: model, prompt as it is rendered, and length.
        on_rows: told how many there are, of how many.

    Raises:
        DctError: as in `complete`; the file cannot be written.
    """
    wanted = list(dict.fromkeys(prompts))
    ids = dict(zip(wanted, lm.encode(wanted), strict=True))
    keys = {prompt: _key(lm, ids[prompt], tokens) for prompt in wanted}
    kept = _read(file)
    missing = sorted((p for p in wanted if keys[p] not in kept), key=lambda p: len(ids[p]))
    for start in range(0, len(missing), AT_ONCE):
        group = missing[start : start + AT_ONCE]
        if on_rows is not None:
            on_rows(len(wanted) - len(missing) + start, len(wanted))
        said = complete(lm, [ids[p] for p in group], max_new_tokens=tokens, batch=AT_ONCE)
        for prompt, text in zip(group, said, strict=True):
            length = len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
            row = {"key": keys[prompt], "prompt": prompt, "reply": text, "ended": length < tokens}
            kept[keys[prompt]] = row
        write_whole(file, "".join(json.dumps(row) + "\n" for row in kept.values()).encode())
    return {prompt: Said(kept[keys[prompt]]["reply"], kept[keys[prompt]]["ended"]) for prompt in wanted}


def _key(lm: LanguageModel, ids: Sequence[int], tokens: int) -> str:
    said = f"{lm.fingerprint} {lm.dtype} {tokens} {list(ids)}"
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _read(file: Path) -> dict[str, dict]:
    """The rows that a file holds, by their keys; a file that is damaged holds none."""
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {str(row["key"]): row for row in rows if {"reply", "ended"} <= row.keys()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
