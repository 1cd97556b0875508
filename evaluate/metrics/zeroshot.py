"""Zero-shot classification with prompt ensembling, as CLIP_benchmark does it, with the checkpoint's own temperature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from clipq.evaluate.metrics.predictions import Booleans, Floats, Integers, Predictions


@dataclass(frozen=True)
class Classifier:
    """A zero-shot classifier: class embeddings (rows of unit length), the label of each class, the temperature.

    Several classes can count as one label (a label map); a label's probability is then the sum of its classes'.
    """

    classes: NDArray[np.float32]
    label_of_class: Integers
    logit_scale: float
    logit_bias: float | None

    @property
    def labels(self) -> int:
        """How many labels there are."""
        return int(self.label_of_class.max()) + 1

    @property
    def is_plain(self) -> bool:
        """Whether every class is a label of its own."""
        return bool((self.label_of_class == np.arange(len(self.classes))).all())

    def cosines(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of every sample (rows of unit length) to every class."""
        return embeddings @ self.classes.T

    def logits(self, cosines: NDArray[np.float32], logit_scale: float | None = None) -> NDArray[np.float64]:
        """``logit_scale`` · cosine + ``logit_bias``, float64, by class.

        A bias is the same for all classes, so it cancels in a softmax; it is applied all the same, for what the
        checkpoint says is what is computed.
        """
        scale = self.logit_scale if logit_scale is None else logit_scale
        return scale * cosines.astype(np.float64) + (self.logit_bias or 0.0)

    def predict(self, cosines: NDArray[np.float32], labels: Integers, logit_scale: float | None = None) -> Predictions:
        """Label probabilities of samples with these cosines, at the checkpoint's logit scale or another."""
        probabilities = softmax(self.logits(cosines, logit_scale), axis=1)
        if not self.is_plain:
            membership = np.zeros((len(self.classes), self.labels))
            membership[np.arange(len(self.classes)), self.label_of_class] = 1
            probabilities = probabilities @ membership
        return Predictions(probabilities, labels)


@dataclass(frozen=True)
class Answers:
    """One engine's answers on a labelled view.

    ``embeddings`` (samples × dimension) have rows of unit length; ``ids`` name the samples.
    """

    embeddings: NDArray[np.float32]
    classifier: Classifier
    labels: Integers
    ids: tuple[str, ...]

    @cached_property
    def cosines(self) -> NDArray[np.float32]:
        """Cosine of every sample to every class."""
        return self.classifier.cosines(self.embeddings)

    @cached_property
    def predictions(self) -> Predictions:
        """Label probabilities at the checkpoint's logit scale, and the labels."""
        return self.classifier.predict(self.cosines, self.labels)

    def subset(self, rows: Booleans | Integers) -> Answers:
        """The answers on some samples."""
        ids = tuple(np.array(self.ids, dtype=object)[rows])
        return replace(self, embeddings=self.embeddings[rows], labels=self.labels[rows], ids=ids)


@dataclass(frozen=True)
class GivenAnswers:
    """The label probabilities (samples × labels) of an engine of which nobody knows embeddings: it ran elsewhere."""

    probabilities: Floats
    labels: Integers
    ids: tuple[str, ...]

    @cached_property
    def predictions(self) -> Predictions:
        """Label probabilities, and the labels."""
        return Predictions(self.probabilities, self.labels)
