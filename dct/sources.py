"""From what the user called a model to where its files are: a folder, a GGUF file, an adapter, an alias or a hub id.

Looks at names and folders; never asks the hub (see `hub`) and never reads weights.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dct.aliases import ALIASES, DEMO
from dct.errors import DctError
from dct.organism import DEMO_DIR

CONFIG, ADAPTER = "config.json", "adapter_config.json"

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What can be an id on the hub; anything else would only be refused there."""

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
"""How the pieces of a GGUF file that was split are called."""


@dataclass(frozen=True)
class Source:
    """Where a model's files are.

    Attributes:
        name: what the user called it.
        where: its folder, its id on the hub, or its GGUF file.
        kind: which of these it is.
        adapter: folder or hub id of the adapter that is merged into it.
        remarks: what the user should know about how the name was understood.
        cached: folder of the hub's files in the cache, where the hub is not to be asked.
    """

    name: str
    where: str
    kind: Literal["folder", "hub", "gguf"]
    adapter: str | None = None
    remarks: tuple[str, ...] = ()
    cached: Path | None = None

    @property
    def file(self) -> Path | None:
        """The GGUF file, where it is one."""
        return Path(self.where) if self.kind == "gguf" else None

    @property
    def reading(self) -> tuple[str, dict[str, Any]]:
        """What transformers' `from_pretrained` is given: a place, and options that say which file there."""
        if self.file is None:
            return str(self.cached or self.where), {}
        return str(self.file.parent), {"gguf_file": self.file.name}


def resolve(name: str) -> str:
    """The folder or Hugging Face id behind an alias; any other name is returned as it is.

    Raises:
        DctError: the demo model is not part of this installation.
    """
    if name == DEMO:
        if not (DEMO_DIR / "model.safetensors").exists():
            raise DctError("this installation carries no demo model; train one with `dct organism train`")
        return str(DEMO_DIR)
    return ALIASES.get(name, name)


def find(name: str, adapter: str | None = None) -> Source:
    """The source that a name stands for, its adapter named.

    A folder with a model in it wins over an alias; `demo` alone is always the model that ships with the package.

    Args:
        name: folder, GGUF file, folder of an adapter, alias or Hugging Face id.
        adapter: an adapter to merge into it.

    Raises:
        DctError: a path that holds no model, several GGUF files, or an adapter whose base is not known.
    """
    source = _named(name)
    if adapter is None:
        return source
    if source.adapter is not None:
        raise DctError(f"{name} is an adapter itself: merge it first, or name its base")
    path = Path(adapter).expanduser()
    if path.is_dir() and not (path / ADAPTER).is_file():
        raise DctError(f"{path} is no adapter: it holds no {ADAPTER}")
    if not path.is_dir() and _looks_like_a_path(adapter):
        raise DctError(f"no adapter folder {path}: check `adapter`")
    return replace(source, adapter=str(path) if path.is_dir() else adapter)


def _named(name: str) -> Source:
    path = Path(name).expanduser()
    if name == DEMO:
        other = (f"demo is the model that ships with the package; ./{DEMO} is the folder",)
        return Source(name, resolve(name), "folder", remarks=other if (path / CONFIG).is_file() else ())
    if path.is_dir():
        found = _folder(name, path)
        if found is not None:
            return found
    elif path.is_file():
        return _file(name, path)
    if name in ALIASES:
        return Source(name, ALIASES[name], "hub")
    if path.is_dir():
        raise DctError(f"cannot load the model in {path}: it holds no {CONFIG}, no {ADAPTER} and no .gguf file")
    if name.lower().endswith(".gguf"):
        raise DctError(f"no GGUF file {path}: check the path")
    if _looks_like_a_path(name):  # no name for the hub: do not go and ask it
        raise DctError(f"no model folder {path}: check the path, or give a Hugging Face id (`dct models`)")
    return Source(name, name, "hub")


def _folder(name: str, path: Path) -> Source | None:
    """What a folder holds; None where that is no model."""
    weights = [p for p in path.iterdir() if p.suffix in (".safetensors", ".bin") and not p.name.startswith("adapter_")]
    if (path / ADAPTER).is_file():
        if (path / CONFIG).is_file() and weights:
            raise DctError(
                f"{path} holds a whole model and an adapter: move the adapter's files into a folder of their own, and "
                "name it as `adapter` where it is meant to be merged"
            )
        return adapted(name, path)
    remarks: tuple[str, ...] = ()
    if name in ALIASES:
        remarks = (f"{name} is a folder here: it is taken, not the alias of {ALIASES[name]}",)
    if (path / CONFIG).is_file():
        return Source(name, str(path), "folder", remarks=remarks)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".gguf" and p.is_file())
    if not files:
        return None
    if len(files) > 1:
        listed = ", ".join(p.name for p in files[:5]) + (", ..." if len(files) > 5 else "")
        raise DctError(f"{path} holds {len(files)} GGUF files: name one of {listed}")
    return replace(_file(name, files[0]), remarks=remarks)


def _file(name: str, path: Path) -> Source:
    if path.suffix.lower() != ".gguf":
        hold = f"; name its folder, {path.parent}" if path.suffix in (".safetensors", ".json", ".bin") else ""
        raise DctError(f"{path} is a file, and neither a GGUF file nor a folder with a model{hold}")
    if SPLIT.search(path.name):
        raise DctError(
            f"{path} is one piece of a split GGUF file: put the pieces together (llama-gguf-split merges them)"
        )
    return Source(name, str(path), "gguf")


def adapted(name: str, folder: Path) -> Source:
    """The base of an adapter, with the adapter to merge: a folder (as the adapter names it, or beside it) or a hub id.

    Raises:
        DctError: the adapter does not say what it was made for, or that is not there.
    """
    base = base_of(folder)
    beside = folder / base
    if not Path(base).is_absolute() and beside.is_dir():
        base = str(beside)
    try:
        source = _named(base)
    except DctError as error:
        raise DctError(
            f'{name} is an adapter of {base}: {error}; or name its base where it is, and `adapter="{folder}"`'
        ) from error
    if source.adapter is not None:
        raise DctError(f"{name} is an adapter of {base}, which is an adapter too: merge that one first")
    return Source(name, source.where, source.kind, str(folder), source.remarks)


def base_of(folder: Path) -> str:
    """The model that an adapter says it was made for.

    Raises:
        DctError: its configuration cannot be read, or does not say.
    """
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise DctError(f"cannot read the adapter in {folder}: its {ADAPTER} is no JSON object") from error
    if not isinstance(base, str) or not base.strip():
        raise DctError(
            f'the adapter in {folder} does not say which model it belongs to: name that, and `adapter="{folder}"`'
        )
    return base


def _looks_like_a_path(name: str) -> bool:
    return (
        Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not HUB_NAME.fullmatch(name)
    )
