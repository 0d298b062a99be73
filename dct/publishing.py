"""Putting a folder on the Hugging Face hub. The one place that writes there."""

from pathlib import Path

from dct.errors import DctError, UsageError
from dct.sources import HUB_NAME


def check_name(repo: str) -> None:
    """Refuses what cannot be a repository of the hub.

    Raises:
        UsageError: it is not OWNER/NAME.
    """
    if repo.count("/") != 1 or not HUB_NAME.fullmatch(repo):
        raise UsageError(f"`push_to_hub` is OWNER/NAME, got {repo!r}", argument="push_to_hub")


def push(folder: Path, repo: str, *, public: bool = False, endpoint: str | None = None) -> str:
    """Uploads a folder; a repository that is not there yet is made, private unless told otherwise.

    Args:
        endpoint: another hub than the usual one.

    Returns:
        Where it is.

    Raises:
        DctError: not logged in, not allowed, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    check_name(repo)
    api = HfApi(endpoint=endpoint)
    try:
        where = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export of dct")
    except Exception as error:  # of the hub's library, of its transport, or of the network
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DctError(
            f"{folder} is written, and could not be pushed to {repo}: {first}; log in with `hf auth login`, or check "
            "the name and the network"
        ) from error
    return str(where)
