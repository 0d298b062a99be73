"""Whether the hub has a model and lets this user have it, and what the cache holds where it does not.

Asked once and shortly, since the hub's own downloads retry for half a minute. Knows nothing of transformers.
"""

from dataclasses import dataclass
from pathlib import Path

from dct.errors import DctError
from dct.sources import ADAPTER, CONFIG

SECONDS = 10
"""How long the hub has to answer."""


@dataclass(frozen=True)
class Answer:
    """What is known of a model on the hub.

    Attributes:
        reached: the hub can be asked for the files; otherwise only what is cached can be used.
        files: names of its files, as far as they are known.
        remarks: what the user should know.
    """

    reached: bool
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def ask(name: str, where: str, revision: str | None = None) -> Answer:
    """Asks the hub for a model; where it refuses or does not answer, looks into the cache.

    Args:
        name: what the user called the model.
        where: its id on the hub.
        revision: branch, tag or commit.

    Raises:
        DctError: the hub refuses or has no such model, and no copy is cached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(where, revision=revision, timeout=SECONDS)
    except HFValidationError as error:
        raise DctError(f"{shown(name, where)} is no folder here and cannot be an id on the hub") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = f"refuses {shown(name, where)} ({status})" if status in (401, 403, 404) else f"failed ({status})"
        return _cached(where, revision, f"the hub {said}", refused(name, where, status, str(error)), error)
    except OfflineModeIsEnabled as error:
        return _cached(where, revision, "", missing(name, where), error)
    except Exception as error:  # no network, a proxy that refuses: what has been downloaded before may do
        return _cached(where, revision, "the hub cannot be reached", missing(name, where), error)
    return Answer(True, tuple(s.rfilename for s in info.siblings or ()))


def _cached(where: str, revision: str | None, said: str, otherwise: DctError, cause: Exception) -> Answer:
    folder = snapshot(where, revision)
    if folder is None:
        raise otherwise from cause
    remark = (f"{said}: the copy in the cache is used",) if said else ()
    return Answer(False, tuple(p.name for p in folder.iterdir()), remark)


def snapshot(where: str, revision: str | None = None) -> Path | None:
    """The folder of a model's files in the hub's cache, as far as they have been downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in (CONFIG, ADAPTER):
        try:
            found = try_to_load_from_cache(where, name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def download(name: str, where: str, revision: str | None, patterns: list[str], *, reached: bool) -> Path:
    """Some files of a model, in the cache; the folder that they are in.

    Raises:
        DctError: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(where, revision=revision, allow_patterns=patterns, local_files_only=not reached))
    except Exception as error:
        raise explained(name, where, error) from error


def shown(name: str, where: str) -> str:
    """A model as the user knows it, with the id behind an alias."""
    return f"{name} ({where})" if name != where else name


def explained(name: str, where: str, error: Exception) -> DctError:
    """What to tell the user when the hub's library failed to bring files."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = str(error)
    if status in (401, 403) or "gated repo" in text or ("Client Error" in text and ("401" in text or "403" in text)):
        return refused(name, where, status or (403 if "403" in text else 401), text)
    return missing(name, where)


def refused(name: str, where: str, status: int | None, text: str = "") -> DctError:
    """A model that the hub does not give to this user."""
    cure = "accept the licence on its page, and log in with `hf auth login` or set HF_TOKEN to a token that may read it"
    if status == 403 or (status == 401 and "gated" in text.lower()):
        return DctError(f"no access to model {shown(name, where)} ({status}): it is gated: {cure}")
    if status == 401:
        return DctError(
            f"no access to model {shown(name, where)} (401): it does not exist, or it is private or gated: check the "
            f"name, {cure}"
        )
    return missing(name, where)


def missing(name: str, where: str) -> DctError:
    """A model that cannot be found."""
    return DctError(
        f"cannot find model {shown(name, where)}: no such folder, and the hub does not have it or cannot be reached; "
        "check the name and the network, or give a local folder (`dct models` lists the aliases)"
    )
