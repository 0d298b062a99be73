"""TOML files, read whole: whatever is wrong with one is one line."""

import sys
from pathlib import Path
from typing import Any

from dct.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 1_000_000
"""Bytes of a file, at most."""


def read_toml(path: Path, argument: str) -> dict[str, Any]:
    """What a file says.

    Args:
        argument: that named the file.

    Raises:
        UsageError: it is too long, cannot be read or is no TOML.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is too long for a file of options", argument=argument)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", argument=argument) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML: {error}", argument=argument) from error
