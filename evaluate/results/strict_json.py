"""JSON that every parser reads: Python's own writes NaN, which JSON does not know."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """Indented JSON; what is not a finite number is null.

    >>> dumps([1.5, float("nan")]).split()
    ['[', '1.5,', 'null', ']']
    """
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
