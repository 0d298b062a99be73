"""Where the files are that a model in memory was read from."""

from dataclasses import dataclass
from pathlib import Path

from dct import compat
from dct.errors import DctError
from dct.model import LanguageModel
from dct.saving.companions import WEIGHTS
from dct.saving.weight_files import Weights


@dataclass(frozen=True)
class Origin:
    """The source of a model.

    Attributes:
        folder: its files; None for a model that was made in Python or comes from a single file.
        weights: its safetensors files; None where it has none, or where they are quantised and the model in memory is
            not, so that nothing of theirs can be kept.
    """

    folder: Path | None = None
    weights: Weights | None = None

    @classmethod
    def of(cls, lm: LanguageModel) -> "Origin":
        """Where a model comes from; fetches the small files of a model of the hub that were not needed so far.

        Raises:
            DctError: its weights are damaged, or gone from the hub's cache.
        """
        if lm.checkpoint is None or lm.checkpoint.kind == "gguf":
            return cls()
        if lm.checkpoint.kind == "hub":
            folder = _from_hub(lm.checkpoint.where, compat.commit_of(lm.model))
        else:
            folder = Path(lm.checkpoint.where).expanduser()
        if not folder.is_dir():
            return cls()
        return cls(folder, Weights.find(folder) if lm.checkpoint.divisible else None)


def _from_hub(where: str, commit: str | None) -> Path:
    """The folder of the hub's cache, with every small file of the model where the hub can be reached."""
    from huggingface_hub import snapshot_download

    # The weights are there already: what is asked for is the rest (licence, tokenizer and processor files).
    weights = [f"*{ending}" for ending in WEIGHTS]
    try:
        return Path(snapshot_download(where, revision=commit, ignore_patterns=weights))
    except Exception:  # no network, or a proxy that refuses: what transformers has read is there
        try:
            return Path(snapshot_download(where, revision=commit, local_files_only=True))
        except Exception as error:
            raise DctError(
                f"the files of {where} are no longer in the hub's cache: load it again to save it"
            ) from error
