"""The logit scale and bias of a graph that gives logits beside embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipq.bundle import TOWERS, Bundle
from clipq.engines.base import Array
from clipq.engines.interface import Interface
from clipq.engines.ort import OrtEngine
from clipq.exporters.adopt.samples import default_samples

SAMPLES = 8
# Of the logits' own spread: what quantized products may leave of a straight line.
MOST_RESIDUAL = 0.02


def fit_logits(draft: Bundle, path: Path) -> tuple[float, float | None] | None:
    """Scale and bias between cosines and the logits of a graph of both towers; None where it gives no such logits."""
    feeds = {tower: default_samples().feed(draft, tower, SAMPLES) for tower in TOWERS}
    cosines, logits = [], []
    with OrtEngine(path) as engine:
        taken = {spec.name: spec.dtype for spec in engine.inputs}
        for index in range(SAMPLES):
            feed: dict[str, Array] = {}
            for tower in TOWERS:
                ((name, array),) = feeds[tower].items()
                # One of each a run, for some graphs take no other.
                one = Interface(draft, tower).first({name: array[(index if tower == "image" else index // 2) :][:1]})
                idle = {entry.name for entry in draft.manifest.tower(tower).further_inputs if entry.role == "idle"}
                feed |= {key: value for key, value in one.items() if key not in idle}
            # Of a pair that lies beside it, names or types may be others.
            if {name: array.dtype for name, array in feed.items()} != taken:
                return None
            answered = engine.run(feed)
            names = [draft.manifest.tower(tower).output_name for tower in TOWERS]
            if not {"logits_per_image", *names} <= set(answered):
                return None
            pair = [answered[name][0].astype(np.float64) for name in names]
            image, text = (one / np.linalg.norm(one) for one in pair)
            cosines.append(float(image @ text))
            logits.append(float(answered["logits_per_image"].reshape(-1)[0]))
    scale, bias = np.polyfit(cosines, logits, 1)
    if np.abs(np.polyval((scale, bias), cosines) - logits).max() > MOST_RESIDUAL * np.ptp(logits) or scale <= 0:
        return None
    # A bias of a hundredth of a logit is what rounding leaves.
    return float(scale), None if abs(bias) < max(1e-2, 1e-3 * scale) else float(bias)
