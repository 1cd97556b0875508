"""Engines that run where clipq cannot, as a row of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipq.engines.runtime import Feed, Load, Runtime, Status

if TYPE_CHECKING:
    from clipq.engines.census import Census
    from clipq.engines.external import ExternalEngine


def external_row(name: str, summary: str) -> Runtime:
    """The row of answers that were brought back; what ran them has no version here, only the words of who ran it."""
    return Runtime(
        name,
        summary,
        device="elsewhere",
        takes="answers",
        status=lambda: Status("run", "reads what clipq-eval cells import made"),
        version=lambda: None,
        open=_open,
        census=_census,
    )


def _open(load: Load) -> ExternalEngine:
    from clipq.engines.external import ExternalEngine

    return ExternalEngine(load)


def _census(load: Load, feed: Feed) -> Census:
    from clipq.engines.census import unknown_census

    return unknown_census(load.tower, f"it ran elsewhere ({load.bundle.ran_on}), where nobody saw its kernels")
