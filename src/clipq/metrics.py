"""Metrics of one's own predictions, each with its 95 % interval.

>>> from clipq.metrics import ece
>>> round(ece([[0.9, 0.1], [0.8, 0.2]], [0, 1]).value, 2)
0.45

Every classification metric of ``docs/formats.md`` is here by its name in ``results.csv``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipq.evaluate.arrays import Value


def __getattr__(name: str) -> Callable[..., Value]:
    # By name, for the base of clipq imports none of its parts; and loaded when a metric is first asked for.
    arrays: Any = import_module("clipq.evaluate.arrays")
    if name == "__all__":
        return arrays.metric_names()
    if name not in arrays.metric_names():
        raise AttributeError(f"clipq.metrics has no {name!r}; there are {', '.join(arrays.metric_names())}")
    return arrays.metric_function(name)


def __dir__() -> list[str]:
    names: list[str] = import_module("clipq.evaluate.arrays").metric_names()
    return names
