"""JSON as the standard has it: no NaN, no infinity, no text that is no Unicode. Whatever is wrong is a ValueError."""

import json
import math
from typing import Any


def finite(value: Any, *, strict: bool = True) -> Any:
    """The same value with null for every number that JSON does not have, and lists for tuples.

    Args:
        strict: refuse text that is no Unicode.

    Raises:
        ValueError: text that is no Unicode (half of a surrogate pair, as from a command line in another encoding), or
            too much inside each other.
    """
    try:
        return _finite(value, strict)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(value: Any, strict: bool) -> Any:
    if isinstance(value, dict):
        parts = ((_finite(key, strict) if isinstance(key, str) else key, part) for key, part in value.items())
        return {key: _finite(part, strict) for key, part in parts}
    if isinstance(value, list | tuple):
        return [_finite(each, strict) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if strict and isinstance(value, str):
        value.encode()
    return value


def dumps(value: Any, indent: int | None = None, *, strict: bool = True) -> str:
    """JSON text in ASCII, with null for NaN and infinity.

    Args:
        strict: refuse text that is no Unicode; otherwise it is escaped like any other.

    Raises:
        ValueError: a value that JSON has no place for, or text that is no Unicode.
    """
    try:
        return json.dumps(finite(value, strict=strict), indent=indent, allow_nan=False)
    except TypeError as error:
        raise ValueError(str(error)) from error


def loads(text: str | bytes, *, lenient: bool = False) -> Any:
    """What JSON text says.

    Args:
        lenient: NaN and infinity, which older versions of this package wrote, are read as null rather than refused.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds text that is no Unicode.
    """

    def constant(token: str) -> Any:
        """NaN and Infinity, which JSON does not have: refused, or null where that is let pass."""
        if not lenient:
            raise ValueError(f"{token} is no number of JSON")
        return None

    def number(token: str) -> Any:
        """A float that is finite."""
        value = float(token)
        return value if math.isfinite(value) else constant(token)

    try:
        return finite(json.loads(text, parse_constant=constant, parse_float=number))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
