"""Agreement of one engine with another on the same samples: same answers, flips, embeddings."""

from __future__ import annotations

from functools import partial

import numpy as np

from clipq.evaluate.axes.reading import Found, Reading, answers_of
from clipq.evaluate.metrics import agreement
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.metrics.zeroshot import Answers, GivenAnswers
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.suites.plan import PlannedView


def measure(reading: Reading[PlannedView]) -> Found:
    """Agreement with the reference, and with the twin, on a labelled view."""

    def with_other(other: Reading[PlannedView] | None) -> list[Estimate]:
        if other is None or other is reading:
            return []
        answers, theirs = reading.once(answers_of), other.once(answers_of)
        return compared(answers, theirs, view=reading.asked.view.name, seed=reading.suite.seed)

    return Found(with_other(reading.reference), against_twin=with_other(reading.twin))


def compared(
    answers: Answers | GivenAnswers, reference: Answers | GivenAnswers, *, view: str, seed: int = 0
) -> list[Estimate]:
    """Agreement, flips and, where both have embeddings, their cosine against the reference on the same samples.

    Embeddings of two widths have no cosine.
    """
    if isinstance(answers, GivenAnswers) or isinstance(reference, GivenAnswers):
        return answers_compared(answers.predictions, reference.predictions, view=view, seed=seed)
    if answers.embeddings.shape != reference.embeddings.shape:
        return answers_compared(answers.predictions, reference.predictions, view=view, seed=seed)
    # Of two engines that agree to the last digits, rounding to 32 bits brings some beyond 1.
    cosines = np.clip(np.einsum("nd,nd->n", answers.embeddings, reference.embeddings, dtype=np.float64), -1, 1)
    alike = estimate({"cosine": partial(weighted_mean, cosines)}, len(cosines), view=view, seed=seed, paired=True)
    return [*alike, *answers_compared(answers.predictions, reference.predictions, view=view, seed=seed)]


def answers_compared(mine: Predictions, theirs: Predictions, *, view: str, seed: int = 0) -> list[Estimate]:
    """Same answers and flips of predictions on the same samples."""
    compared = (agreement.agreement, agreement.flips_lost, agreement.flips_gained)
    functions: dict[str, Statistic] = {one.__name__: partial(one, mine, theirs) for one in compared}
    return estimate(functions, len(mine), view=view, seed=seed, paired=True)
