"""What a policy's limits are about: a number itself, its difference or its ratio to the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from clipq.evaluate.metrics.statistics import Draws


@dataclass(frozen=True)
class Quantity:
    """What is held against a limit.

    ``against`` makes it of a number's draws and the reference's, on the same resamples (None: the number itself).
    ``unit`` says, by the reference's value, how much of it a change of 1 in the number is.
    """

    name: str
    against: Callable[[Draws, Draws], Draws] | None = None
    unit: Callable[[float], float] = lambda reference: 1.0


def _ratio(mine: Draws, theirs: Draws) -> Draws:
    value = mine.value / theirs.value if theirs.value else math.nan
    return Draws(value, mine.resampled / theirs.resampled, mine.n)


def _of_ratio(reference: float) -> float:
    return 1 / abs(reference) if reference else math.inf


QUANTITIES = (
    Quantity(""),
    Quantity("delta", lambda mine, theirs: mine - theirs),
    Quantity("ratio", _ratio, _of_ratio),
)


@dataclass(frozen=True)
class Limit:
    """A key of a rule: the least or the most that a quantity may be."""

    name: str
    is_least: bool
    quantity: Quantity


LIMITS: dict[str, Limit] = {
    limit.name: limit
    for quantity in QUANTITIES
    for limit in (
        Limit(f"min_{quantity.name}".removesuffix("_"), True, quantity),
        Limit(f"max_{quantity.name}".removesuffix("_"), False, quantity),
    )
}
