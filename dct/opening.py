"""From a name to a model's configuration and tokenizer: whatever can be known before its weights are read.

Asks the hub where it must, and the cache where the hub does not give; says in one line why a model cannot be had.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

from dct import adapters
from dct.chat import load_tokenizer
from dct.checkpoint import Checkpoint
from dct.errors import DctError
from dct.gguf import Header
from dct.headers import PICKLES
from dct.hub import Answer, ask, download, explained, shown, snapshot
from dct.model import find_layers
from dct.quiet import hushed
from dct.sources import ADAPTER, CONFIG, Source, adapted, find

ADAPTER_FILES = ["adapter_*", "token*", "special_tokens*", "*.jinja"]
"""What is brought of an adapter from the hub."""


def opened(
    name: str,
    adapter: str | Path | None = None,
    *,
    layers: str = "",
    revision: str | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda remark: None,
) -> tuple[Checkpoint, PreTrainedTokenizerBase, Path | None]:
    """A model's configuration and tokenizer, without its weights.

    Returns:
        The checkpoint, the tokenizer, and the folder of an adapter that is to be merged.

    Raises:
        DctError: the model cannot be found or reached, or is no language model.
    """
    source = find(name, str(adapter) if adapter is not None else None)
    answer = ask(name, source.where, revision) if source.kind == "hub" else None
    if answer is not None and CONFIG not in answer.files and answer.files:
        source, answer = _of_other_files(source, answer, revision)
    merging = _adapter_folder(source)
    for remark in (*source.remarks, *(answer.remarks if answer is not None else ())):
        tell(remark)
    options: dict[str, Any] = {
        "revision": revision if source.kind == "hub" else None,
        "trust_remote_code": trust_remote_code,
        "local_files_only": answer is not None and not answer.reached,
    }
    cached = replace(source, cached=snapshot(source.where, revision)) if source.kind == "hub" else source
    try:
        try:
            return (
                *_attempt(cached if options["local_files_only"] else source, merging, layers, tell, options),
                merging,
            )
        except OSError:
            # The hub may tell of a model whose files it then refuses; what was downloaded before will do.
            if options["local_files_only"] or cached.cached is None:
                raise
            found = _attempt(cached, merging, layers, tell, {**options, "local_files_only": True})
            tell(f"the hub refuses the files of {shown(name, source.where)}: the copy in the cache is used")
            return (*found, merging)
    except DctError:
        raise
    except Exception as error:
        raise loading_error(name, source, error) from error


def _attempt(
    source: Source, merging: Path | None, layers: str, tell: Callable[[str], None], options: dict[str, Any]
) -> tuple[Checkpoint, PreTrainedTokenizerBase]:
    checkpoint = Checkpoint.open(source, lambda model: find_layers(model, layers)[0], **options)
    own = adapters.tokenizer_of(merging) if merging is not None else None
    if own is None:
        place, which = source.reading
        tokenizer = _tokenizer(place, tell, **options, **which)
        if checkpoint.header is not None:
            _special_tokens(tokenizer, checkpoint.header)
        return checkpoint, tokenizer
    tell(f"the adapter's own tokenizer and chat template are used, from {own}")
    return checkpoint, _tokenizer(str(own), tell, **options)


def _tokenizer(place: str, tell: Callable[[str], None], **options: Any) -> PreTrainedTokenizerBase:
    """The one place where a tokenizer is read."""
    with hushed():
        return load_tokenizer(place, tell=tell, **options)


def _special_tokens(tokenizer: PreTrainedTokenizerBase, header: Header) -> None:
    """Has a tokenizer know the control tokens that its GGUF file names, and their roles.

    Some versions of transformers drop them; a template's marks would then be cut like a user's text, without a word.
    """
    known = tokenizer.added_tokens_decoder
    lost = [text for text, number in header.controls.items() if number not in known]
    if lost:
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in lost], special_tokens=True)
    for role in ("bos", "eos", "unknown", "padding"):
        number = header.values.get(f"tokenizer.ggml.{role}_token_id")
        name = {"unknown": "unk_token", "padding": "pad_token"}.get(role, f"{role}_token")
        if isinstance(number, int) and number < len(tokenizer) and getattr(tokenizer, f"{name}_id", None) != number:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))


def _of_other_files(source: Source, answer: Answer, revision: str | None) -> tuple[Source, Answer | None]:
    """What a hub model without a configuration is: an adapter, or GGUF files.

    Raises:
        DctError: it holds several GGUF files, or nothing that is a model.
    """
    if ADAPTER in answer.files:
        folder = download(source.name, source.where, revision, ADAPTER_FILES, reached=answer.reached)
        base = adapted(source.name, folder)
        again = ask(base.where, base.where) if base.kind == "hub" else None
        return base, again
    files = sorted(name for name in answer.files if name.lower().endswith(".gguf"))
    if not files:
        raise DctError(f"cannot load model {shown(source.name, source.where)}: it has no {CONFIG} and no {ADAPTER}")
    if len(files) > 1:
        listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        raise DctError(
            f"{shown(source.name, source.where)} holds {len(files)} GGUF files ({listed}): download the one you want "
            "and name it"
        )
    folder = download(source.name, source.where, revision, files, reached=answer.reached)
    return replace(source, where=str(folder / files[0]), kind="gguf"), None


def _adapter_folder(source: Source) -> Path | None:
    """The folder of the adapter that is to be merged, brought here from the hub where it is there."""
    if source.adapter is None:
        return None
    folder = Path(source.adapter)
    if folder.is_dir():
        return folder
    answer = ask(source.adapter, source.adapter)
    if ADAPTER not in answer.files:
        raise DctError(f"{source.adapter} is no adapter: it has no {ADAPTER}")
    return download(source.adapter, source.adapter, None, ADAPTER_FILES, reached=answer.reached)


def first_line(error: BaseException) -> str:
    """An error of another library in one line; a line that only announces the next is joined to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def loading_error(name: str, source: Source | Checkpoint, error: Exception) -> DctError:
    """What to tell the user when transformers could not load `name`."""
    where = source.where
    if "weights_only" in str(error) or type(error).__name__ == "UnpicklingError":
        return DctError(f"cannot load the model in {where}: its weights are {PICKLES}")
    if source.kind != "hub":
        return DctError(f"cannot load the model in {where}: {first_line(error)}")
    known = explained(name, where, error)
    if "no access" in str(known):
        return known
    if isinstance(error, ImportError | ValueError) and not isinstance(error, OSError) and "connect" not in str(error):
        return DctError(f"cannot load model {shown(name, where)}: {first_line(error)}")
    return known
