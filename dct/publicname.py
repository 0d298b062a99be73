"""Names as others may read them: what is handed on does not tell where things lie on this machine."""

from pathlib import Path


def public(name: str) -> str:
    """A model's or file's name without the folders of this machine that it lies in."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or name.startswith((".", "~")) or path.exists() else name
