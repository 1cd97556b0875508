"""Groups of engines that are reported together: their cells to their records, by this process or by another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipq.bundle import TOWERS
from clipq.errors import ClipqError
from clipq.evaluate.cells.subjects import Cohort, numbers_of
from clipq.evaluate.run import evaluate_plan
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan
from clipq.progress import Progress


@dataclass(frozen=True)
class Group:
    """Engines of one checkpoint in one runtime, whose twins come along where ``simulated``."""

    name: str
    runtime: str
    cohort: Cohort
    simulated: bool

    def identities(self) -> list[dict[str, Any]]:
        """What determines the numbers of this group's engines on this machine."""
        return [numbers_of(subject, tower) for subject in self.cohort.subjects for tower in TOWERS]


@dataclass(frozen=True)
class Measured:
    """What became of a group: the reason of its failure, or nothing; and its files, where another process made them."""

    group: Group
    failure: str
    files: Mapping[str, bytes]


def measure_group(
    group: Group, plan: Plan, results: Path, settings: Settings, given: dict[str, Any], progress: Progress
) -> str:
    """Write a group's records and figures into a results folder; why that failed, or nothing."""
    own = replace(plan, suite=plan.suite.model_copy(update={"simulated": group.simulated}))
    settings = replace(settings, runtime=group.runtime)
    try:
        evaluate_plan(own, group.cohort, results, settings, given=given, progress=progress)
    except ClipqError as error:
        return str(error)
    return ""
