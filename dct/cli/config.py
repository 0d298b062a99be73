"""A TOML file as a source of options: what `--config` reads."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

from dct.cli.signature import Parameter
from dct.declaration import key
from dct.errors import UsageError
from dct.settings import GROUPS
from dct.toml import read_toml


def read_config(path: Path, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The options of a command that a file sets, by their names in Python.

    A file may serve several commands: an option of another one is passed over, a key that none has is refused.

    Raises:
        UsageError: the file cannot be read, a table or key is unknown, or a value is of another type than its option.
    """
    content = read_toml(path, "config")
    known = _known()
    own = {(p.group.table, p.key): p for p in parameters if p.group is not None}
    found: dict[str, Any] = {}
    for table, values in content.items():
        if table not in known or not isinstance(values, dict):
            raise UsageError(f"{path}: no table [{table}]: choose {', '.join(sorted(known))}", argument="config")
        for name, value in values.items():
            if name not in known[table]:
                choices = ", ".join(sorted(known[table]))
                raise UsageError(f"{path}: no key {name!r} in [{table}]: choose {choices}", argument="config")
            parameter = own.get((table, name))
            if parameter is not None:
                found[parameter.name] = _fitting(path, parameter, value)
    return found


def _known() -> dict[str, set[str]]:
    """Table -> the keys that any command takes from it."""
    known: dict[str, set[str]] = {}
    for group in GROUPS:
        known.setdefault(group.table, set()).update(key(one) for one in fields(group))
    return known


def _fitting(path: Path, p: Parameter, value: Any) -> Any:
    """A value as the command line would have it."""
    if p.declared.parse is not None and not isinstance(value, bool):
        parts = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        return ",".join(map(str, parts)) if isinstance(parts, list) else str(value)
    kind = next(t for t in (get_args(p.kind) or (p.kind,)) if t is not type(None)) if get_origin(p.kind) else p.kind
    several = get_origin(kind) is list
    kind = get_args(kind)[0] if several else kind
    values = value if several and isinstance(value, list) else [value]
    wanted: tuple[type, ...] = {float: (int, float), Path: (str,)}.get(kind, (kind,))
    for one in values:
        if not isinstance(one, wanted) or (isinstance(one, bool) and kind is not bool):
            raise UsageError(f"{path}: {p.key} = {one!r} is no {kind.__name__}", argument="config")
    return values if several else value
