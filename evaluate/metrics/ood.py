"""Out-of-distribution detection: outlier scores from cosines, and how well they tell two populations apart.

Outlier scores are higher for what looks more out-of-distribution, all of them. AUROC and AUPR are higher-is-better,
FPR@95 lower-is-better; values are 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.special import logsumexp, xlogy

from clipq.evaluate.metrics.predictions import Floats

SCORES = ("mcm", "msp", "max_logit", "energy", "entropy")


def outlier_scores(cosines: Floats, logits: Floats) -> dict[str, Floats]:
    """Each score of each sample from its cosines to the class embeddings and its logits (both samples × classes).

    ``mcm`` is −max softmax of the cosines at T = 1 (Ming et al., 2022); ``msp`` −max softmax at the checkpoint's logit
    scale (Hendrycks and Gimpel, 2017); ``max_logit`` −max logit (Hendrycks et al., 2022); ``energy`` −logsumexp of the
    logits (Liu et al., 2020); ``entropy`` the softmax's entropy in nats.
    """
    cosines = cosines.astype(np.float64)
    energy = logsumexp(logits, axis=1)
    log_probabilities = logits - energy[:, None]
    return {
        "mcm": -np.exp(cosines.max(1) - logsumexp(cosines, axis=1)),
        "msp": -np.exp(log_probabilities.max(1)),
        "max_logit": -logits.max(1),
        "energy": -energy,
        "entropy": -(np.exp(log_probabilities) * log_probabilities).sum(1),
    }


def given_scores(probabilities: Floats) -> dict[str, Floats]:
    """The scores that label probabilities alone (samples × labels) give: ``msp`` and ``entropy``."""
    return {"msp": -probabilities.max(1), "entropy": -xlogy(probabilities, probabilities).sum(1)}


class Detection:
    """One outlier score on an in-distribution and an out-of-distribution population.

    Its metrics take one weight matrix per population (resamples × samples) and return one value per resample.
    """

    def __init__(self, inliers: Floats, outliers: Floats) -> None:
        scores = np.concatenate([inliers, outliers])
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        # Equal scores share one threshold: the last position of each run.
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self._is_outlier = self._order >= len(inliers)
        self._rank = np.where(self._is_outlier, self._order - len(inliers), self._order)
        self._last: tuple[Floats, Floats, Floats, Floats] | None = None

    def functions(self) -> dict[str, Callable[[Floats, Floats], Floats]]:
        """The metrics by name."""
        return {
            "auroc": self.auroc,
            "aupr_in": self.aupr_in,
            "aupr_out": self.aupr_out,
            "fpr95_id_positive": partial(self.fpr_id_positive, recall=0.95),
            "fpr95_ood_positive": partial(self.fpr_ood_positive, recall=0.95),
        }

    def auroc(self, w_in: Floats, w_out: Floats) -> Floats:
        """Probability that an outlier scores above an inlier, ties counting half."""
        flagged_in, flagged_out = self._flagged(w_in, w_out)
        steps = np.diff(flagged_in, axis=1, prepend=0)
        middle = flagged_out - np.diff(flagged_out, axis=1, prepend=0) / 2
        return np.asarray((steps * middle).sum(1) / (flagged_in[:, -1] * flagged_out[:, -1]))

    def aupr_out(self, w_in: Floats, w_out: Floats) -> Floats:
        """Average precision with outliers as the positives."""
        flagged_in, flagged_out = self._flagged(w_in, w_out)
        return _average_precision(flagged_out, flagged_in)

    def aupr_in(self, w_in: Floats, w_out: Floats) -> Floats:
        """Average precision with inliers as the positives (their score is the outlier score, negated)."""
        return _average_precision(*self._passed(w_in, w_out))

    def fpr_ood_positive(self, w_in: Floats, w_out: Floats, *, recall: float) -> Floats:
        """Part of the inliers flagged at the threshold that flags 95 % of the outliers (OpenOOD's convention)."""
        flagged_in, flagged_out = self._flagged(w_in, w_out)
        return _false_positives(flagged_out, flagged_in, recall)

    def fpr_id_positive(self, w_in: Floats, w_out: Floats, *, recall: float) -> Floats:
        """Part of the outliers passed at the threshold that passes 95 % of the inliers (MCM's convention)."""
        passed_in, passed_out = self._passed(w_in, w_out)
        return _false_positives(passed_in, passed_out, recall)

    def _flagged(self, w_in: Floats, w_out: Floats) -> tuple[Floats, Floats]:
        """Weight of each population at or above each distinct score, from the highest down."""
        if self._last is None or self._last[0] is not w_in or self._last[1] is not w_out:
            outliers = np.zeros((len(w_in), len(self._order)))
            inliers = np.zeros_like(outliers)
            outliers[:, self._is_outlier] = w_out[:, self._rank[self._is_outlier]]
            inliers[:, ~self._is_outlier] = w_in[:, self._rank[~self._is_outlier]]
            # All metrics of a score are asked with the same weights in turn; the sums are made once.
            self._last = (
                w_in, w_out, np.cumsum(inliers, axis=1)[:, self._ends], np.cumsum(outliers, axis=1)[:, self._ends]
            )  # fmt: skip
        return self._last[2], self._last[3]

    def _passed(self, w_in: Floats, w_out: Floats) -> tuple[Floats, Floats]:
        """Weight of each population at or below each distinct score, from the lowest up."""
        passed = []
        for flagged in self._flagged(w_in, w_out):
            above = np.concatenate([np.zeros((len(flagged), 1)), flagged[:, :-1]], axis=1)
            passed.append((flagged[:, -1:] - above)[:, ::-1])
        return passed[0], passed[1]


def _average_precision(positives: Floats, negatives: Floats) -> Floats:
    chosen = positives + negatives
    precision = np.divide(positives, chosen, out=np.zeros_like(positives), where=chosen > 0)
    return np.asarray((np.diff(positives, axis=1, prepend=0) * precision).sum(1) / positives[:, -1])


def _false_positives(positives: Floats, negatives: Floats, recall: float) -> Floats:
    # A hair below the wanted recall counts as reached: 0.95 · 20 is 19.000000000000004 or 18.999999999999996.
    reached = positives >= recall * positives[:, -1:] - 1e-9
    first = reached.argmax(1)
    return np.asarray(negatives[np.arange(len(negatives)), first] / negatives[:, -1])
