"""The core speaks of arguments, the command line of flags: `scale` in a message becomes --scale."""

import functools
import re
import shlex
from dataclasses import fields

from dct.errors import DctError

NAMED = re.compile(r"`(\w+)(?:=(\"[^\"`]*\"|'[^'`]*'|[\w.:+-]+))?`")
"""An argument in a message, such as `scale` or `dtype="float32"`."""


def flagged(text: str) -> str:
    """A message of the core with its arguments as flags."""
    return NAMED.sub(_flag, text)


def spoken(error: DctError) -> str:
    """What the command line says of an error; of a fit that was cut short, the command that finishes it."""
    folder = getattr(error, "unfinished", None)
    if folder is None:
        return flagged(str(error))
    return str(error).replace("`resume`", f"`dct fit --resume --out {shlex.quote(str(folder))}`")


def _flag(found: re.Match[str]) -> str:
    name, value = found.groups()
    flag = _flags().get(name)
    if flag is None:
        return found[0]
    return flag if value in (None, "True") else f"{flag} {value.strip(chr(34) + chr(39))}"


@functools.cache
def _flags() -> dict[str, str]:
    """Name in Python -> flag, of every option there is."""
    from dct.cli.signature import flag_of
    from dct.declaration import key
    from dct.settings import GROUPS

    known = {one.name: flag_of(key(one)) for group in GROUPS for one in fields(group)}
    # What `dct.save` and `dct.ablate` call otherwise than the command that does both.
    known |= {"form": known["save_as"], "fold_norms": known["save"]}
    return known | {flag[2:].replace("-", "_"): flag for flag in known.values()}
