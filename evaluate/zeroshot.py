"""Zero-shot classification with prompt ensembling, as CLIP_benchmark does it, with the checkpoint's own temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipq.bundle import Bundle
from clipq.errors import DataError
from clipq.evaluate.predictions import Predictions
from clipq.evaluate.views import View

DEFAULT_TEMPLATES = "imagenet-80"


@dataclass(frozen=True)
class TemplateSet:
    """Prompt templates with the name they go by; ``{}`` stands for the class name."""

    name: str
    templates: tuple[str, ...]

    def prompts(self, class_names: tuple[str, ...]) -> list[str]:
        """All prompts, class by class, the templates of a class in a row."""
        return [template.replace("{}", name) for name in class_names for template in self.templates]


def choose_templates(view: View, bundle: Bundle, asked: str | None) -> TemplateSet:
    """The set asked for by name; else the data set's own templates; else open_clip's 80 for ImageNet."""
    known = bundle.prompts.templates
    if asked is not None:
        if asked not in known:
            raise DataError(f"--templates {asked!r}: the bundle has {', '.join(known)}")
        return TemplateSet(asked, known[asked])
    if view.templates is not None:
        return TemplateSet("data set's own", view.templates)
    return TemplateSet(DEFAULT_TEMPLATES, known[DEFAULT_TEMPLATES])


def predict(
    images: NDArray[np.float32],
    classes: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    logit_scale: float,
    logit_bias: float | None,
) -> Predictions:
    """Softmax over ``logit_scale`` · cosine + ``logit_bias``; both inputs have rows of unit length.

    A bias is the same for all classes, so it cancels here; it is applied all the same, for what the checkpoint says
    is what is computed.
    """
    logits = logit_scale * (images.astype(np.float64) @ classes.astype(np.float64).T) + (logit_bias or 0.0)
    logits -= logits.max(1, keepdims=True)
    probabilities = np.exp(logits)
    return Predictions(probabilities / probabilities.sum(1, keepdims=True), labels)
