"""The images and texts that two engines are compared on, chosen so that mistakes differ on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipq.bundle import Bundle, Preprocess, TowerName
from clipq.demo import world
from clipq.engines.base import Array
from clipq.preprocess import normalize, resize_and_crop
from clipq.tokenizer import TextTokenizer

SAMPLES = 64

# Wide and tall, so that crop, padding and squashing differ; larger and smaller than what towers take, so that
# interpolations do.
_SHAPES = ((320, 240), (240, 320), (480, 200), (200, 480), (256, 256), (180, 330), (400, 300), (96, 72))

# What tokenizers and their cleaning treat in different ways, each with a number to be another text every time.
_TEXTS = (
    "{caption}",
    "A Photo Of {capitals}",
    "{caption}.",
    "a photo of {number} things, one of them {caption}",
    "{capitals}",
    "café, naïve façade №{number}: {caption}!",
    "{caption}; {second}; {caption}; {second}; {caption}; {second}; {caption}; {second}; {caption}; {second}",
    "It's {caption} & it isn't {second}_{number}",
)


@dataclass(frozen=True)
class Samples:
    """Images as decoded, and texts as somebody would type them."""

    images: Sequence[Image.Image]
    texts: Sequence[str]

    _crops: dict[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False, compare=False)

    def crops(self, config: Preprocess) -> NDArray[np.uint8]:
        """The images after resize and crop, ``(images, height, width, 3)``; made once for each geometry."""
        key = json.dumps(config.geometry())
        if key not in self._crops:
            self._crops[key] = np.stack([np.asarray(resize_and_crop(image, config)) for image in self.images])
        return self._crops[key]

    def feed(self, bundle: Bundle, tower: TowerName, rows: int) -> dict[str, Array]:
        """The first so many as clipq feeds a tower, again from the first one on where there are too few."""
        chosen = [row % len(self.texts) for row in range(rows)]
        name, config = bundle.manifest.tower(tower).input_name, bundle.manifest.preprocess
        if tower == "text":
            return {name: TextTokenizer(bundle)([self.texts[row] for row in chosen])}
        return {name: normalize(self.crops(config)[chosen], config)}


@cache
def default_samples() -> Samples:
    """64 scenes of the demo world in many sizes and shapes, and 64 texts: capitals, long ones, letters beyond ASCII."""
    scenes, images = [], []
    for index in range(SAMPLES):
        scene, pixels = world.sample("calibration", index)
        scenes.append(scene.caption())
        # Tiles of the neighbours' scenes: every part of the picture counts, so what a crop leaves out does.
        other = world.sample("calibration", (index * 7 + 3) % SAMPLES)[1]
        size = _SHAPES[index % len(_SHAPES)]
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        if size[0] != size[1]:
            corner = Image.fromarray(other).resize((min(size) // 2,) * 2, Image.Resampling.BICUBIC)
            picture.paste(corner, (0, 0))
        images.append(picture)
    texts = [
        _TEXTS[index % len(_TEXTS)].format(
            caption=caption, capitals=caption.title(), second=scenes[index - 1], number=index
        )
        for index, caption in enumerate(scenes)
    ]
    return Samples(images, texts)
