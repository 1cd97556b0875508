"""Image-text retrieval by one engine."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from clipq.evaluate.axes.reading import Found, Reading
from clipq.evaluate.metrics.predictions import Integers
from clipq.evaluate.metrics.retrieval import KS, caption_ranks, image_ranks, recall
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.suites.plan import PlannedView


def measure(reading: Reading[PlannedView]) -> Found:
    """Retrieval among a view's images and captions."""
    view = reading.asked.view
    rows, images, _ = reading.embeddings.images(view, reading.subject)
    captions = reading.embeddings.captions(view, reading.subject)
    owner = np.repeat(np.arange(len(view.samples)), [len(sample.captions) for sample in view.samples])
    # Captions of images that could not be decoded have nothing to find.
    place = np.full(len(view.samples), -1)
    place[rows] = np.arange(len(rows))
    kept = place[owner] >= 0
    return Found(
        retrieval(images, captions[kept], place[owner][kept], view=view.name, seed=reading.suite.seed),
        view={"captions": int(kept.sum())},
    )


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
