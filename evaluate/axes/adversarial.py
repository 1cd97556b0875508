"""Adversarial robustness of one engine: under transferred attacks and under the Square attack on itself."""

from __future__ import annotations

from functools import partial

import numpy as np

from clipq.evaluate.axes.reading import Found, Reading
from clipq.evaluate.cells.square_cells import attack_outcome
from clipq.evaluate.metrics.accuracy import share, weighted_mean
from clipq.evaluate.metrics.predictions import Booleans, Floats
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, accuracy_estimate, estimate
from clipq.evaluate.results.key import attack_group
from clipq.evaluate.suites.plan import PlannedSquare, PlannedTransfer


def measure_transfer(reading: Reading[PlannedTransfer]) -> Found:
    """A stored attack at each of its strengths."""
    planned, manifest = reading.asked, reading.asked.attack.manifest
    clean = reading.embeddings.answers(planned.clean, reading.subject).predictions.correct
    found: list[Estimate] = []
    for epsilon, view in planned.attacked.items():
        attacked = reading.embeddings.answers(view, reading.subject, planned.clean).predictions.correct
        fooled, group = np.array(manifest.fooled[str(epsilon)]), attack_group(manifest.method, epsilon)
        found += robustness(clean, attacked, view=planned.name, group=group, fooled=fooled, seed=reading.suite.seed)
    return Found(found)


def measure_square(reading: Reading[PlannedSquare]) -> Found:
    """The Square attack on the engine itself at each strength."""
    planned, seed, found = reading.asked, reading.suite.seed, list[Estimate]()
    for epsilon in planned.entry.epsilons:
        done = attack_outcome(planned, epsilon, reading.subject, reading.embeddings)
        view, group = planned.view.name, attack_group("square", epsilon)
        found += robustness(done.clean, done.right, view=view, group=group, seed=seed)
        found += queries(done.queries, done.clean, view=view, group=group, seed=seed)
    return Found(found)


def robustness(
    clean: Booleans, attacked: Booleans, *, view: str, group: str, fooled: Booleans | None = None, seed: int = 0
) -> list[Estimate]:
    """Clean and robust accuracy, and the attack's success.

    ``clean`` and ``attacked`` mark the samples that are right without and with the attack (robust: right in both).
    ``attack_success`` is the part of the samples right when clean that the attack turns; given ``fooled``, the samples
    on which the attack fools the model it was made for, it is the transfer rate: of those, the part that it turns here.
    """
    robust = clean & attacked
    rows = [
        accuracy_estimate(clean, metric="clean_acc1", view=view, group=group, seed=seed),
        accuracy_estimate(robust, metric="robust_acc1", view=view, group=group, seed=seed),
    ]
    at_stake = clean if fooled is None else clean & fooled
    if at_stake.any():
        functions: dict[str, Statistic] = {"attack_success": partial(share, at_stake & ~attacked, at_stake)}
        rows += estimate(functions, len(clean), view=view, group=group, seed=seed, n=int(at_stake.sum()))
    return rows


def queries(used: Floats, clean: Booleans, *, view: str, group: str, seed: int = 0) -> list[Estimate]:
    """Mean queries the Square attack spent on images that were right before it; more is harder to attack."""
    if not clean.any():
        return []
    spent = used[clean]
    return estimate({"queries": partial(weighted_mean, spent)}, len(spent), view=view, group=group, seed=seed)
