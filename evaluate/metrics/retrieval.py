"""Image-text retrieval as CLIP_benchmark defines it; recall, 0 to 1, higher is better.

``image_retrieval_recall@k``: part of the captions whose image is among their k nearest images.
``text_retrieval_recall@k``: part of the images with at least one of their captions among their k nearest captions.
What is as near as the own one, such as a second copy of it, is not nearer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipq.evaluate.metrics.predictions import Booleans, Floats, Integers

KS = (1, 5, 10)

# Similarities are made in blocks of this many queries, so that 5,000 images × 25,000 captions need no gigabyte.
_BLOCK = 1024

# Equal rows have products that differ in the last digits by where in a matrix they stand, and equal images or texts
# embeddings that do so by where in a batch; nearer is what is so by more.
_ROUNDING = 1e-6


def image_ranks(images: NDArray[np.float32], captions: NDArray[np.float32], image_of: Integers) -> Integers:
    """Per caption: how many images are nearer to it than its own (rows have unit length)."""
    ranks = []
    for start in range(0, len(captions), _BLOCK):
        similarity = captions[start : start + _BLOCK] @ images.T
        own = similarity[np.arange(len(similarity)), image_of[start : start + _BLOCK]]
        ranks.append((similarity > own[:, None] + _ROUNDING).sum(1))
    return np.concatenate(ranks)


def caption_ranks(images: NDArray[np.float32], captions: NDArray[np.float32], image_of: Integers) -> Integers:
    """Per image: how many captions are nearer to it than the nearest of its own."""
    ranks = []
    for start in range(0, len(images), _BLOCK):
        similarity = images[start : start + _BLOCK] @ captions.T
        owned = image_of[None] == np.arange(start, start + len(similarity))[:, None]
        best = np.where(owned, similarity, -np.inf).max(1)
        ranks.append((similarity > best[:, None] + _ROUNDING).sum(1))
    return np.concatenate(ranks)


def recall(hits: Booleans, image_of: Integers, weights: Floats) -> Floats:
    """Part of the queries that hit, where query q weighs what image ``image_of[q]`` weighs (resamples × images).

    Captions of one image are resampled together: they are not independent.
    """
    per_image = np.bincount(image_of, weights=hits, minlength=weights.shape[1])
    queries = np.bincount(image_of, minlength=weights.shape[1]).astype(np.float64)
    return np.asarray((weights @ per_image) / (weights @ queries))
