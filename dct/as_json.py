"""The one way in which this package writes JSON: what every reader of JSON takes, whatever the numbers are."""

import json
import math
from typing import Any


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON of plain data. Numbers that JSON does not have (NaN and the infinities) are written as null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
