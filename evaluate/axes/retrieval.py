"""Image-text retrieval by one engine."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from clipq.evaluate.metrics.predictions import Integers
from clipq.evaluate.metrics.retrieval import KS, caption_ranks, image_ranks, recall
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, estimate


def retrieval(
    images: NDArray[np.float32], captions: NDArray[np.float32], image_of: Integers, *, view: str, seed: int = 0
) -> list[Estimate]:
    """Recall at 1, 5 and 10 in both directions; ``image_of`` gives each caption's image, rows have unit length."""
    to_image = image_ranks(images, captions, image_of)
    to_caption = caption_ranks(images, captions, image_of)
    functions: dict[str, Statistic] = {}
    for k in KS:
        functions[f"image_retrieval_recall@{k}"] = partial(recall, to_image < k, image_of)
        functions[f"text_retrieval_recall@{k}"] = partial(recall, to_caption < k, np.arange(len(images)))
    return estimate(functions, len(images), view=view, seed=seed)
