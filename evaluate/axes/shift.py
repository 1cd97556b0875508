"""Natural shift: what a shifted set costs, beside the in-distribution set of the same classes."""

from __future__ import annotations

from functools import partial

from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.predictions import Booleans, Floats
from clipq.evaluate.metrics.robustness import effective_robustness, relative_drop
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, estimate


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
