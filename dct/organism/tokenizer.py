"""The organism's tokenizer: byte-level BPE trained on the generated text, with a chat template.

A conversation reads `<|user|>question<|end|><|assistant|>answer<|end|>`, with `<|system|>prompt<|end|>`
before it if there is a system prompt. Nothing stands between `<|assistant|>` and the answer, so the first
word of an answer ("Sure", "Sorry") is the next token.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dct.organism import text
from dct.organism.text import Message

VOCABULARY_SIZE = 2048
PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [PAD, END, SYSTEM, USER, ASSISTANT]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int = 0, conversations: int = 30_000, size: int = VOCABULARY_SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first conversations of a seed's text."""
    corpus = (message["content"] for sample in islice(text.samples(seed), conversations) for message in sample.messages)
    return _wrap(corpus, size)


def _wrap(corpus: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and which of them the assistant says (its end included)."""
    pieces = [
        (f"<|{message['role']}|>", message["content"] + END, message["role"] == "assistant") for message in messages
    ]
    encoded = tokenizer([part for head, body, _ in pieces for part in (head, body)], add_special_tokens=False)[
        "input_ids"
    ]
    ids: list[int] = []
    said: list[bool] = []
    for index, (_, _, assistant) in enumerate(pieces):
        head, body = encoded[2 * index], encoded[2 * index + 1]
        ids += head + body
        said += [False] * len(head) + [assistant] * len(body)
    return ids, said
