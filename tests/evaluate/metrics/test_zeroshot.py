"""Probabilities of classes from embeddings and prompts."""

from __future__ import annotations

import numpy as np
import pytest

from clipq.evaluate.metrics.zeroshot import Classifier


def test_joined_classes_add_their_probabilities():
    cosines = np.array([[0.3, 0.2, 0.31]], np.float32)
    joined = Classifier(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), 10.0, None)
    predictions = joined.predict(cosines, np.array([0]))
    expected = np.exp(10 * cosines[0]) / np.exp(10 * cosines[0]).sum()
    assert predictions.probabilities[0] == pytest.approx([expected[:2].sum(), expected[2]], abs=1e-6)
    assert predictions.correct[0]
