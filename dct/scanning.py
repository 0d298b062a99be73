"""A scan of all pairs of layers, kept in a file so that one that was cut goes on, and read by `fit`."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dct import plainjson
from dct.atlas import Ladder, orthonormal
from dct.calibration import random_directions
from dct.errors import DctError
from dct.proposal import propose
from dct.settings import ScanSettings
from dct.team import current
from dct.writing import write_whole

FORMAT = "dct scan 1"

SAVE = 5.0
"""Seconds between two writes of an unfinished scan."""


def passes(depth: int, asked: ScanSettings, width: int) -> int:
    """Vectors that go through the model: back from every target, in twice (linear, whole) at each source."""
    return depth * (min(asked.probes, width) + 2 * asked.directions)


def scan(ladder: Ladder, asked: ScanSettings, path: Path, advance: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Measures what `path` does not hold yet; the finished scan, with its proposal.

    Raises:
        DctError: the file cannot be written.
    """
    content = current().agreed(lambda: _begun(ladder, asked, path))
    depth, kept = ladder.depth, time.monotonic()
    probes = orthonormal(asked.probes, ladder.dim, asked.seed)
    directions = random_directions(asked.directions, ladder.dim, asked.seed)
    pulls, pushes = content["pulls"], content["pushes"]
    try:
        while len(pulls) + len(pushes) < 2 * depth:
            advance("targets" if len(pulls) < depth else "sources", len(pulls) + len(pushes), 2 * depth)
            if len(pulls) < depth:
                pull = ladder.pull(len(pulls) + 1, probes, asked.batch)
                pulls.append({"gain": pull.gain, "written": pull.written})
            else:
                source = len(pushes)
                pushes.append(ladder.push(source, asked.share * ladder.norms[source], directions, asked.batch))
            if time.monotonic() - kept > SAVE:
                _write(path, content)
                kept = time.monotonic()
    except KeyboardInterrupt:
        _write(path, content)
        raise
    written = [p["written"] for p in pulls]
    nonlinear = [[pushes[s][t - s - 1] for s in range(t)] for t in range(1, depth + 1)]
    found = propose(written, nonlinear)
    content |= {
        "complete": True,
        "gain": [p["gain"] for p in pulls],
        "written": written,
        "nonlinear": nonlinear,
        "proposal": {"source": found.source, "target": found.target, "reasons": found.reasons, "sure": found.sure},
    }
    _write(path, content)
    return content


def read_scan(path: Path) -> dict[str, Any]:
    """A finished scan.

    Raises:
        DctError: there is none in the file.
    """
    content = _read(path)
    if content is None:
        raise DctError(f"{path} is no scan of this version: make one with `dct scan --out {path}`")
    pair = content.get("proposal")
    layers = [pair.get("source"), pair.get("target")] if isinstance(pair, dict) else [None]
    if not content.get("complete") or not all(type(k) is int for k in layers):
        raise DctError(f"{path} holds an unfinished scan: go on with the same `dct scan`")
    return content


def check_scanned(content: dict[str, Any], fingerprint: str, model: str) -> None:
    """Refuses a scan of other weights.

    Raises:
        DctError: it is one.
    """
    if content.get("fingerprint") != fingerprint:
        raise DctError(
            f"the scan is of another model ({content.get('model')}) than {model}: scan it or give `source` and `target`"
        )


def _begun(ladder: Ladder, asked: ScanSettings, path: Path) -> dict[str, Any]:
    """The scan as far as the file has it; a new one where it has another."""
    whole, lm = ladder.slice, ladder.slice.lm
    told = {
        "format": FORMAT,
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "depth": ladder.depth,
        "width": ladder.dim,
        "positions": whole.positions,
        "system": whole.system,
        "ids": hashlib.sha256(repr(whole.ids).encode()).hexdigest(),
        "probes": asked.probes,
        "directions": asked.directions,
        "share": asked.share,
        "seed": asked.seed,
    }
    found = _read(path)
    if found is not None and all(found.get(name) == value for name, value in told.items()):
        return found
    norms = {"residual_norms": ladder.norms, "target_norms": ladder.target_norms}
    return {**told, "complete": False, **norms, "pulls": [], "pushes": []}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = plainjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (plainjson.dumps(content, indent=1) + "\n").encode())
