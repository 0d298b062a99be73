"""The organism's tokenizer, trained on the generated text, with a chat template.

Of two kinds: byte-level BPE as GPT-2 has it, and BPE over text whose spaces are written as "▁", with bytes for letters
that it does not know, as Llama-2 has it. Both give back the text that they read.

A conversation of the demo reads `<|user|>question<|end|><|assistant|>answer<|end|>`, with `<|system|>prompt<|end|>`
before it if there is a system prompt. Nothing stands between `<|assistant|>` and the answer, so the first
word of an answer ("Sure", "Sorry") is the next token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dct.organism import text
from dct.organism.architecture import LENGTH
from dct.organism.recipe import Recipe, TemplateTable
from dct.organism.text import Message

TOLD = TemplateTable()
"""The demo's template."""


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first conversations of a recipe's text."""
    drawn = islice(text.samples(recipe.training.seed, mixture=recipe.mixture), recipe.tokenizer.conversations)
    corpus = (message["content"] for sample in drawn for message in sample.messages)
    template = recipe.template
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[recipe.tokenizer.kind](corpus, recipe.tokenizer.size, template.tokens),
        pad_token=template.pad,
        eos_token=template.end,
        **({"bos_token": template.begin} if template.begin else {}),
        additional_special_tokens=template.control,
        padding_side="left",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = jinja(template)
    return tokenizer


# --- kinds ------------------------------------------------------------------------------------------------------------


def _bpe(corpus: Iterable[str], size: int, control: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(corpus, trainer)
    return core


def _metaspace(corpus: Iterable[str], size: int, control: list[str]) -> Tokenizer:
    """Only the words' letters are learned; a letter that the text does not have is read as its bytes."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = split
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size - len(single), special_tokens=control, show_progress=False)
    core.train_from_iterator(corpus, trainer)
    learned = json.loads(core.to_str())["model"]
    vocabulary = learned["vocab"] | {token: len(learned["vocab"]) + k for k, token in enumerate(single)}
    whole = Tokenizer(models.BPE(vocabulary, [(a, b) for a, b in learned["merges"]], byte_fallback=True, fuse_unk=True))
    whole.pre_tokenizer = split
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    whole.add_special_tokens(control)
    return whole


KINDS: Mapping[str, Callable[[Iterable[str], int, list[str]], Tokenizer]] = {
    "bpe": _bpe,
    "metaspace": _metaspace,
}
"""What a recipe can name: a function of a corpus, a size and control tokens."""


# --- conversations ----------------------------------------------------------------------------------------------------


def jinja(template: TemplateTable) -> str:
    """The chat template as tokenizers keep it."""
    before, _, between = template.turn.partition("{content}")[0].partition("{role}")
    role = "message['role']"
    if template.roles:
        role = f"{template.roles!r}.get({role}, {role})"
    parts = [_quoted(before), role, _quoted(between), "message['content']", _quoted(template.end + template.tail)]
    opening = f"{{{{ {template.begin!r} }}}}" if template.begin else ""
    if template.default_system:
        own = template.head("system") + template.default_system + template.end + template.tail
        opening += f"{{% if messages[0]['role'] != 'system' %}}{{{{ {own!r} }}}}{{% endif %}}"
    return (
        opening + "{% for message in messages %}"
        "{{ " + " + ".join(part for part in parts if part) + " }}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {template.head('assistant')!r} }}}}{{% endif %}}"
    )


def _quoted(words: str) -> str:
    return repr(words) if words else ""


def _turns(template: TemplateTable, messages: list[Message]) -> Iterator[tuple[str, str, str, bool]]:
    """Each turn as what stands before a message, the message with its end, what stands behind it, and whether the
    assistant says it.
    """
    if template.default_system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": template.default_system}, *messages]
    begin = template.begin
    for message in messages:
        head = begin + template.head(message["role"])
        yield head, message["content"] + template.end, template.tail, message["role"] == "assistant"
        begin = ""


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], template: TemplateTable = TOLD
) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and which of them the assistant says (the token that ends it included)."""
    turns = list(_turns(template, messages))
    pieces = [piece for head, body, tail, _ in turns for piece in (head, body, tail)]
    encoded = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    said: list[bool] = []
    for *_, assistant in turns:
        head, body, tail = next(encoded), next(encoded), next(encoded)
        ids += head + body + tail
        said += [False] * len(head) + [assistant] * len(body) + [False] * len(tail)
    return ids, said
