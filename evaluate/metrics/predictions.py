"""Zero-shot predictions of one engine on one view, and what every metric needs of them, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipq.errors import DataError

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Booleans = NDArray[np.bool_]


class Graded(Protocol):
    """Answers whose confidence and correctness are known: all that binned calibration errors ask for."""

    @property
    def confidence(self) -> Floats:
        """Probability of the predicted class."""

    @property
    def correct(self) -> Booleans:
        """Whether the predicted class is the label."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Outcome:
    """What remains of predictions where a hundred conditions are compared: confidence and correctness."""

    confidence: Floats
    correct: Booleans

    def __len__(self) -> int:
        return len(self.correct)


@dataclass(frozen=True)
class Predictions:
    """Class probabilities (samples × classes, rows sum to 1) and labels (class indices) of the same samples.

    Raises DataError for what is not probabilities: metrics must not guess whether they were given logits.
    """

    probabilities: Floats
    labels: Integers

    def __post_init__(self) -> None:
        probabilities, labels = self.probabilities, self.labels
        if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or len(labels) == 0:
            raise DataError(
                f"predictions of shape {probabilities.shape} do not go with labels of shape {labels.shape}: "
                "give samples × classes and a label per sample, one sample at least"
            )
        if not np.isfinite(probabilities).all():
            raise DataError("predictions hold values that are not finite: the engine or its text tower is broken")
        sums, least = probabilities.sum(1), probabilities.min(1)
        wrong = (least < 0) | ~np.isclose(sums, 1, atol=1e-4)
        if wrong.any():
            row = int(wrong.argmax())
            found = f"holds {least[row]:.6g}" if least[row] < 0 else f"sums to {sums[row]:.6g}"
            raise DataError(
                f"predictions are not probabilities: rows must be non-negative and sum to 1, sample {row} {found}; "
                "take the softmax of logits, in float32 or wider"
            )
        if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
            raise DataError(
                f"labels reach from {labels.min()} to {labels.max()}, classes from 0 to {probabilities.shape[1] - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> Integers:
        """Index of the most probable class (the first of equals)."""
        return self.probabilities.argmax(1)

    @cached_property
    def confidence(self) -> Floats:
        """Probability of the predicted class, float64."""
        return self.probabilities.max(1).astype(np.float64)

    @cached_property
    def correct(self) -> Booleans:
        """Whether the predicted class is the label."""
        return self.predicted == self.labels

    @cached_property
    def of_label(self) -> Floats:
        """Probability of the label, float64."""
        return self.probabilities[np.arange(len(self)), self.labels].astype(np.float64)

    @cached_property
    def sum_of_squares(self) -> Floats:
        """Sum of the squared class probabilities, float64."""
        return np.einsum("nc,nc->n", self.probabilities, self.probabilities, dtype=np.float64)

    @cached_property
    def rank_of_label(self) -> Integers:
        """How many classes are strictly more probable than the label; among equals the label comes first."""
        return (self.probabilities > self.probabilities[np.arange(len(self)), self.labels][:, None]).sum(1)

    def outcome(self) -> Outcome:
        """Confidence and correctness alone."""
        return Outcome(self.confidence, self.correct)

    def subset(self, rows: Booleans | Integers) -> Predictions:
        """The predictions of some samples."""
        return Predictions(self.probabilities[rows], self.labels[rows])
