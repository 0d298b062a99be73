"""What lies beside a model's weights: configuration, tokenizer, licence, and every other small file of its source."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dct.errors import DctError

WEIGHTS = frozenset(
    f".{ending}"
    for ending in (
        *("safetensors", "bin", "pt", "pth", "ckpt", "gguf", "ggml", "llamafile", "onnx", "onnx_data", "engine", "h5"),
        *("msgpack", "ot", "tflite", "mlmodel", "pdparams", "npz", "npy", "nemo", "pkl", "pickle", "joblib"),
        *("zip", "tar", "gz", "xz", "zst", "7z"),
    )
)
"""Endings of weights in any format, and of archives that may hold them: they would be those of the unedited model."""

ABOUT_WEIGHTS = (".index.json", "adapter_config.json", "adapter_model.json", "dct.json")
"""Endings of files that speak of weights which are not copied."""

SMALL = 200_000_000
"""Bytes above which a file is weights, whatever its name: the largest tokenizers have some 40 MB."""

UNKNOWN = "TokenizersBackend"
"""The class that transformers 5 gives to tokenizers that are their `tokenizer.json` and nothing else; no other program
knows it, and `KNOWN` is the same class by the name that all do."""
KNOWN = "PreTrainedTokenizerFast"

PROBES = ("Hello, world! 12345", "Wie geht's?\n\n\tdef f(x):  return x**2", "日本語 и русский 🙂", " ")


def small_files(source: Path) -> Iterator[Path]:
    """Files of a model's folder that are not weights, relative to it.

    Nothing hidden and no caches; no folder inside it that has weights or a configuration of its own: another model, or
    the same one in another format.
    """

    def within(folder: Path) -> Iterator[Path]:
        """The small files of a folder and of those below it."""
        for path in sorted(folder.iterdir()):
            if path.name.startswith((".", "__pycache__")):
                continue
            if path.is_dir():
                if not any(p.name == "config.json" or _weights(p) for p in path.rglob("*")):
                    yield from within(path)
            elif not _weights(path) and path.stat().st_size <= SMALL:
                yield path.relative_to(source)

    return within(source)


def _weights(path: Path) -> bool:
    return path.suffix.lower() in WEIGHTS or path.name.endswith(ABOUT_WEIGHTS)


def copy_small_files(source: Path, target: Path) -> list[str]:
    """Copies them, the links of a hub's cache resolved; gives their names.

    A tokenizer whose class is one that only transformers 5 knows gets the name that all programs know it by.
    """
    copied = []
    for inside in small_files(source):
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / inside, target / inside)
        copied.append(inside.as_posix())
    name_known_class(target / "tokenizer_config.json")
    return copied


def name_known_class(path: Path) -> None:
    """Has a tokenizer's configuration name a class that other programs know."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and content.get("tokenizer_class") == UNKNOWN:
        content["tokenizer_class"] = KNOWN
        _write_json(path, content)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Writes a tokenizer that has no files of its own (from a GGUF file, or made in Python).

    Raises:
        DctError: what is read back encodes differently.
    """
    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only"):  # of the call that loaded it
        content.pop(name, None)
    _write_json(path, content)
    name_known_class(path)
    ids = [tokenizer(text)["input_ids"] for text in PROBES]
    for kind in (content.get("tokenizer_class"), KNOWN):
        try:
            again = AutoTokenizer.from_pretrained(target)
            if [again(text)["input_ids"] for text in PROBES] == ids:
                return
        except Exception as error:  # transformers raises anything for a class that does not fit its files
            if kind == KNOWN:
                raise DctError(f"the tokenizer cannot be read back once saved: {error}") from error
        _write_json(path, {**content, "tokenizer_class": KNOWN})
    raise DctError("the tokenizer encodes differently once saved: save the edited model from its original folder")


def set_dtype(path: Path, dtype: str) -> None:
    """Puts the type of the weights into a configuration, wherever it names one."""
    content = json.loads(path.read_text(encoding="utf-8"))

    def put(part: dict[str, Any]) -> bool:
        """Sets the type in a part of the configuration; whether it named one."""
        named = [name for name in ("dtype", "torch_dtype") if name in part]
        part.update(dict.fromkeys(named, dtype))
        inner = [put(value) for value in part.values() if isinstance(value, dict)]
        return bool(named) or any(inner)

    if not put(content):
        content["torch_dtype"] = dtype  # the name that every release reads
    _write_json(path, content)


def save_config(model: PreTrainedModel, target: Path, dtype: str) -> None:
    """Writes the configuration of a model that has no folder, as one of plain weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    config.save_pretrained(target)
    set_dtype(target / "config.json", dtype)
    if model.can_generate() and model.generation_config is not None:
        # Not `save_pretrained`, which refuses settings that do not go together; they are the model's own.
        model.generation_config.to_json_file(target / "generation_config.json")


def drop_quantisation(path: Path) -> None:
    """Has a copied configuration speak of plain weights."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        part.pop("quantization_config", None)
    _write_json(path, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
