"""The core speaks of arguments, the command line of flags: `scale` in a message becomes --scale."""

import functools
import re
from dataclasses import fields

NAMED = re.compile(r"`(\w+)(?:=(\"[^\"`]*\"|'[^'`]*'|[\w.:-]+))?`")
"""An argument in a message, such as `scale` or `dtype="float32"`."""


def flagged(text: str) -> str:
    """A message of the core with its arguments as flags."""
    return NAMED.sub(_flag, text)


def _flag(found: re.Match[str]) -> str:
    name, value = found.groups()
    flag = _flags().get(name)
    if flag is None:
        return found[0]
    return flag if value in (None, "True") else f"{flag} {value.strip(chr(34) + chr(39))}"


@functools.cache
def _flags() -> dict[str, str]:
    """Name in Python -> flag, of every option there is."""
    from dct import settings
    from dct.cli.signature import flag_of
    from dct.declaration import Settings, key

    every = (kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings))
    known = {one.name: flag_of(key(one)) for group in every for one in fields(group)}
    return known | {flag[2:].replace("-", "_"): flag for flag in known.values()}
