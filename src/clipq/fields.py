"""Fields of what users write: pydantic itself takes true for 1, and "48" for 48."""

from __future__ import annotations

from numbers import Real
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def plain_number(value: Any) -> Any:
    """A number (numpy's too) or None as it is; raises ValueError for anything else."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise ValueError("give a number, without quotes")
    return value


Whole = Annotated[int, BeforeValidator(plain_number)]
Number = Annotated[float, BeforeValidator(plain_number)]
Flag = Annotated[bool, Field(strict=True)]
