"""Control tokens that stand in somebody's text: which they are, and how the text is read when they are not meant."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dct.errors import DctError

_FENCE = "\ue000\ue001\ue000"
"""Stands for the control token in front of a piece of text: behind one, tokenizers put no space at the beginning."""

_NEVER = -1e6
"""Log-probability of a piece that a unigram model must not choose."""


def control_ids(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The special tokens of a tokenizer, and the added ones that its chat template writes: id -> text."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    found = {
        int(k): token.content
        for k, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in template
    }
    for token, k in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        found.setdefault(int(k), str(token))
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        found.pop(int(unknown), None)  # stands for whatever the vocabulary lacks
    return found


def control_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The control tokens that texts hold when they are read as they stand, in order, each once."""
    known = control_ids(tokenizer)
    written = [content for content in known.values() if content]
    if not any(content in text for content in written for text in texts):
        return []
    found: dict[str, None] = {}
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found |= dict.fromkeys(known[k] for k in ids if k in known and known[k] in text)
    return list(found)


def encode_escaped(
    tokenizer: PreTrainedTokenizerBase, text: str, given: Sequence[tuple[int, int]], *, special: bool
) -> list[int]:
    """Token ids of a text in which the pieces at `given` hold no control tokens, whatever is written there.

    What stands between two control tokens of the rest is tokenised as ever: only the pieces between them that touch
    `given` are read by a tokenizer that knows no control tokens.

    Args:
        given: (start, stop) of the pieces, in order.
        special: whether the tokenizer's own special tokens go around the text.

    Raises:
        DctError: the tokenizer has them in its vocabulary, so that they come out all the same.
    """
    plain = _PlainReader(tokenizer)
    ids: list[int] = []
    position = 0
    for start, stop in _pieces(tokenizer, text, given):
        if start > position:
            ids += tokenizer(text[position:start], add_special_tokens=False)["input_ids"]
        read = plain.ids(text[start:stop], behind=start > 0)
        known = control_ids(tokenizer)
        if any(k in known for k in read):
            raise DctError(
                f"this tokenizer has {', '.join(dict.fromkeys(known[k] for k in read if k in known))} among its words "
                "and cannot read them as text: leave `escape_control` out, or take them out of the prompt"
            )
        ids += read
        position = stop
    if position < len(text):
        ids += tokenizer(text[position:], add_special_tokens=False)["input_ids"]
    return _surrounded(tokenizer, ids) if special else ids


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, given: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pieces of text, from one added token outside of `given` to the next, that touch `given`."""
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.content}
    if not added:
        return [(0, len(text))]
    any_added = re.compile("|".join(re.escape(c) for c in sorted(added, key=len, reverse=True)))
    cuts = [(0, 0)]
    outside = [0, *(edge for span in given for edge in span), len(text)]
    for begin, end in zip(outside[::2], outside[1::2], strict=True):
        for match in any_added.finditer(text, begin, end):
            first, last, token = match.start(), match.end(), added[match[0]]
            if token.rstrip:  # such a token takes the white space behind it
                last += len(text[last:]) - len(text[last:].lstrip())
            if token.lstrip:
                first = len(text[:first].rstrip())
            cuts.append((first, last))
    cuts.append((len(text), len(text)))
    between = [(a[1], b[0]) for a, b in itertools.pairwise(cuts) if a[1] < b[0]]
    return [(start, stop) for start, stop in between if any(a < stop and start < b for a, b in given)]


class _PlainReader:
    """A tokenizer without its control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.core = None if backend is None else _without_control(backend, control_ids(tokenizer))

    def ids(self, text: str, *, behind: bool) -> list[int]:
        """Token ids of a piece of text that stands behind a control token, or at the very beginning."""
        if self.core is None:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        if behind:
            return list(self.core.encode(_FENCE + text, add_special_tokens=False).ids[1:])
        return list(self.core.encode(text, add_special_tokens=False).ids)


def _without_control(backend: Tokenizer, control: dict[int, str]) -> Tokenizer:
    state = json.loads(backend.to_str())
    size = backend.get_vocab_size(with_added_tokens=True)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    state |= {
        "added_tokens": [{"id": size, "content": _FENCE, "special": True, **flags}],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    names, model = set(control.values()), state["model"]
    if isinstance(model["vocab"], list):  # unigram: pieces with their log-probabilities
        model["vocab"] = [[piece, _NEVER if piece in names else score] for piece, score in model["vocab"]]
        return Tokenizer.from_str(json.dumps(state))
    kept = {word: k for word, k in model["vocab"].items() if word not in names or word == model.get("unk_token")}
    return Tokenizer.from_str(json.dumps({**state, "model": {**model, "vocab": kept, **_merges(model, kept)}}))


def _merges(model: dict[str, Any], kept: dict[str, int]) -> dict[str, Any]:
    """The merges of a model that has them, without those that make what is no longer in its vocabulary."""
    if "merges" not in model:
        return {}
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return {"merges": [list(p) for p in pairs if "".join(p) in kept and all(part in kept for part in p)]}


def _surrounded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Token ids with the special tokens that the tokenizer puts around every text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return [*full[:start], *ids, *full[start + len(bare) :]]
    return ids
