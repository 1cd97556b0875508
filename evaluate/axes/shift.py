"""Natural shift: what a shifted set costs, beside the in-distribution set of the same classes."""

from __future__ import annotations

from functools import partial

from clipq.evaluate.axes.reading import Found, Reading, answers_of
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.predictions import Booleans, Floats
from clipq.evaluate.metrics.robustness import effective_robustness, relative_drop
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.suites.plan import PlannedView


def measure(reading: Reading[PlannedView]) -> Found:
    """What a shifted view costs beside its baseline, which an evaluation without in-distribution views lacks."""
    if reading.asked.baseline is None:
        return Found()
    reference = reading.reference
    base = None if reference is None else reference.once(_right)
    inside, shifted = reading.once(_right)
    return Found(shift(inside, shifted, base, view=reading.asked.view.name, seed=reading.suite.seed))


def _right(reading: Reading[PlannedView]) -> tuple[Booleans, Booleans]:
    """Which samples are right, in distribution and shifted."""
    assert reading.asked.baseline is not None
    inside = reading.embeddings.answers(reading.asked.baseline, reading.subject)
    return inside.predictions.correct, reading.once(answers_of).predictions.correct


def shift(
    inside: Booleans, shifted: Booleans, base: tuple[Booleans, Booleans] | None, *, view: str, seed: int = 0
) -> list[Estimate]:
    """Relative drop of top-1 accuracy, and effective robustness where a reference is given.

    Takes which samples are right, in distribution and shifted; ``base`` has the same of the reference.
    """
    functions: dict[str, Statistic] = {"relative_drop.acc1": partial(relative_drop, inside, shifted)}
    if base is not None:
        base_inside, base_shifted = base

        def robustness(w_inside: Floats, w_shifted: Floats) -> Floats:
            return effective_robustness(
                weighted_mean(shifted, w_shifted),
                weighted_mean(inside, w_inside),
                weighted_mean(base_shifted, w_shifted),
                weighted_mean(base_inside, w_inside),
            )

        functions["effective_robustness.acc1"] = robustness
    return estimate(functions, len(inside), len(shifted), view=view, seed=seed)
