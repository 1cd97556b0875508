"""A few images and texts to try engines with: those of the calibration set that ships."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from clipq.bundle import Bundle, TowerName
from clipq.engines.base import Array
from clipq.exporters.calibration_set import DEMO_SET
from clipq.preprocess import open_image, preprocess
from clipq.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Samples:
    """Images and texts, as many of each."""

    images: tuple[Image.Image, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, count: int) -> Samples:
        """So many, the first ones again where there are too few."""
        with (DEMO_SET / "captions.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        taken = list(islice(_again(rows), count))
        return cls(tuple(open_image(DEMO_SET / row["file"]) for row in taken), tuple(row["caption"] for row in taken))

    def feed(self, bundle: Bundle, tower: TowerName) -> dict[str, Array]:
        """Them as clipq feeds a bundle's tower."""
        name = bundle.manifest.tower(tower).input_name
        if tower == "text":
            return {name: TextTokenizer(bundle)(self.texts)}
        return {name: np.stack([preprocess(image, bundle.manifest.preprocess) for image in self.images])}


def _again(rows: list[dict[str, str]]) -> Iterable[dict[str, str]]:
    while True:
        yield from rows
