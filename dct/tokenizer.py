"""A model's tokenizer, as its own `tokenizer.json` has it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

FILE = "tokenizer.json"

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "0 1 12 123 1234 12345 3.14159 1,000,000 2024-11-26 0x7f",
    "  two  spaces   three, a\ttab, trailing  ",
    "lines\nand\n\nblank\r\nlines \n  indented\n\n\n",
    "don't can't I'LL we've O'Reilly's",
    "def f(x):\n    return {'a': x ** 2}  # comment\n\nif (a != b) && c <= d: print(\"%s\" % e)",
    "héllo wörld Ünïcode naïve café ﬁ ½ Å e\u0301 ﬀ",
    "中文字符测试 日本語テキスト 한국어 Привет мир مرحبا שלום नमस्ते ไทย",
    "😀 👩‍👩‍👧 🇫🇷 emoji",
    "\u200b\u00a0\u3000\ufeffodd spaces",
    "UPPER lower MiXeD CamelCase snake_case kebab-case",
    "https://example.org/a?b=c&d=e#f user@example.org",
    "<tag attr='1'>x</tag> [INST] <|x|> ### a|b",
)
"""Texts on which tokenizers that are not the same differ."""


def load_tokenizer(where: str, *, tell: Callable[[str], None] | None = None, **options: Any) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; where transformers has rebuilt it from the name of its class and that reads text otherwise
    than the model's own `tokenizer.json`, the file's own is taken, with the same special tokens and chat template.

    Args:
        where: folder or Hugging Face id.
        tell: called with what the user should know.
        options: of `from_pretrained`: revision, trust_remote_code, local_files_only.

    Raises:
        Whatever transformers raises for a tokenizer that it cannot find or read.
    """
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    path = None if options.get("gguf_file") else _file(where, options)
    if path is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        return tokenizer
    core = Tokenizer.from_file(str(path))
    core.no_truncation()
    core.no_padding()
    text = difference(tokenizer, core)
    if text is None:
        return tokenizer
    kind = type(tokenizer)
    if kind.__module__.startswith("transformers_modules"):  # code that came with the model, and may mean to differ
        _say(tell, f"the tokenizer's own code reads {text!r} otherwise than {FILE} does: the code is believed")
        return tokenizer
    own = PreTrainedTokenizerFast.from_pretrained(where, **options)
    own.chat_template = tokenizer.chat_template
    if difference(own, core) is not None:
        _say(
            tell,
            f"transformers' {kind.__name__} reads {text!r} otherwise than the model's {FILE} does, and the file cannot "
            "be taken as it is: tokens may not be those that the model was trained on",
        )
        return tokenizer
    _say(
        tell,
        f"transformers' {kind.__name__} reads {text!r} otherwise than the model's {FILE} does: the file's own is used",
    )
    return own


def difference(tokenizer: PreTrainedTokenizerBase, core: Tokenizer) -> str | None:
    """The first text that a tokenizer reads, or writes again, otherwise than the one in a file; None where there is
    none.

    Compared on texts with digits, spaces, code and many scripts, and on the special tokens that the file knows.
    """
    backend = tokenizer.backend_tokenizer
    known = [t.content for t in core.get_added_tokens_decoder().values()]
    theirs = [t.content for t in backend.get_added_tokens_decoder().values()]
    special = [f"a{content} b{content}" for content in known[:64]]
    # Tokens that the class has added of its own: to the file they are text, or its vocabulary's.
    foreign = [content for content in theirs if content not in known and not _configured(tokenizer, content)][:64]
    for text in (*PROBES, *special, *foreign):
        ids = core.encode(text, add_special_tokens=False).ids
        if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
            return text
        if backend.decode(ids, skip_special_tokens=False) != core.decode(ids, skip_special_tokens=False):
            return text
    return None


def _configured(tokenizer: PreTrainedTokenizerBase, content: str) -> bool:
    """Whether a token is added by the tokenizer's configuration rather than by its class."""
    settings = dict(tokenizer.init_kwargs)
    named = [str(value) for value in settings.values() if not isinstance(value, dict | list)]
    listed = [str(v) for key in ("additional_special_tokens", "extra_special_tokens") for v in settings.get(key) or ()]
    table = [str(getattr(t, "content", t)) for t in (settings.get("added_tokens_decoder") or {}).values()]
    return content in {*named, *listed, *table}


def _file(where: str, options: dict[str, Any]) -> Path | None:
    """The model's `tokenizer.json`, where it has one."""
    if Path(where).is_dir():
        path = Path(where) / FILE
        return path if path.is_file() else None
    found = try_to_load_from_cache(where, FILE, revision=options.get("revision"))  # it has just been read from there
    return Path(found) if isinstance(found, str) else None


def _say(tell: Callable[[str], None] | None, text: str) -> None:
    if tell is not None:
        tell(text)
