"""Data views: images in an order, with labels, class names, groups or captions, and a digest of their content."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipq.bundle import Preprocess
from clipq.files import sha256_bytes, sha256_file
from clipq.preprocess import open_image, resize_and_crop

UNLABELLED = -1

OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True)
class Sample:
    """One image: its id within the view, its label, its group values by column, and its captions.

    The label is an index into the view's ``label_keys``, or UNLABELLED (out-of-distribution and retrieval views).
    """

    id: str
    label: int = UNLABELLED
    groups: dict[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """What a view's labels mean: the class names to prompt with, and the label that each class counts as.

    ``keys`` are the labels as the data set writes them (folder names, CSV values). Mostly there is one class per label
    and ``label_of_class`` is 0, 1, 2, ...; a label map can join several classes in one label.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    label_of_class: tuple[int, ...]
    templates: tuple[str, ...] | None = None

    @classmethod
    def plain(
        cls, names: Sequence[str], keys: Sequence[str] | None = None, templates: tuple[str, ...] | None = None
    ) -> Classes:
        """One class per label."""
        return cls(tuple(names), tuple(keys or names), tuple(range(len(names))), templates)


@dataclass(frozen=True)
class View(ABC):
    """Samples in a fixed order and what their labels mean (None: unlabelled)."""

    name: str
    source: str
    samples: tuple[Sample, ...]
    classes: Classes | None

    # Whether pixels cost nothing to get, so that keeping them on disk would be waste.
    is_in_memory: ClassVar[bool] = False

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Decode sample ``index``; raises DataError where it cannot be. Several threads may ask at once."""

    @abstractmethod
    def image_digest(self, index: int) -> str:
        """SHA-256 of one image's content (labels and class names do not touch embeddings)."""

    @cached_property
    def image_digests(self) -> tuple[str, ...]:
        """The digest of every image."""
        return tuple(self.image_digest(index) for index in range(len(self.samples)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids and image contents."""
        state = hashlib.sha256()
        for sample, digest in zip(self.samples, self.image_digests, strict=True):
            state.update(f"{sample.id}\0{digest}\n".encode())
        return state.hexdigest()

    @cached_property
    def annotations(self) -> dict[str, str]:
        """SHA-256 of what is said of the images, by what it is: labels, classes, captions, each column of groups."""
        said: dict[str, object] = {}
        if self.classes is not None:
            keys = (*self.classes.keys, None)
            said["labels"] = [keys[one.label] for one in self.samples]
            said["classes"] = [self.classes.names, self.classes.keys, self.classes.label_of_class]
        if any(one.captions for one in self.samples):
            said["captions"] = [one.captions for one in self.samples]
        for column in self.samples[0].groups if self.samples else ():
            said[f"column {column!r}"] = [one.groups.get(column) for one in self.samples]
        return {name: sha256_bytes(json.dumps(one).encode()) for name, one in said.items()}

    def cropped(self, index: int, config: Preprocess) -> NDArray[np.uint8]:
        """Sample ``index`` as the tower sees it, before normalization: uint8, H × W × 3."""
        return np.asarray(resize_and_crop(self.image(index), config))


@dataclass(frozen=True)
class PixelBatch:
    """Row numbers, pixels (uint8, N × H × W × 3) and the reason of each sample left out, by id."""

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    skipped: dict[str, str]


@dataclass(frozen=True)
class DrawnView(View, ABC):
    """Images drawn from the pixels of another view's, sample by sample, after resize and crop."""

    base: View

    @abstractmethod
    def draw(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Sample ``index`` drawn from the base view's pixels. One thread asks at a time."""

    def image(self, index: int) -> Image.Image:
        """The base view's image: drawing comes after the crop."""
        return self.base.image(index)

    def image_digest(self, index: int) -> str:
        """The base view's digest of the sample."""
        return self.base.image_digests[index]

    def cropped(self, index: int, config: Preprocess) -> NDArray[np.uint8]:
        """The drawn pixels as the tower sees them."""
        return self.draw(index, self.base.cropped(index, config))


@dataclass(frozen=True)
class FileView(View):
    """Images in files."""

    files: tuple[Path, ...]

    def image(self, index: int) -> Image.Image:
        """Decode one file."""
        return open_image(self.files[index])

    def image_digest(self, index: int) -> str:
        """SHA-256 of one file."""
        return sha256_file(self.files[index])


@dataclass(frozen=True)
class EncodedView(View, ABC):
    """Images as encoded bytes in something else than files: archives, tables."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of one image file."""

    def image(self, index: int) -> Image.Image:
        """Decode the bytes of one image."""
        return open_image(io.BytesIO(self.encoded(index)), self.samples[index].id)

    def image_digest(self, index: int) -> str:
        """SHA-256 of the bytes of one image."""
        return sha256_bytes(self.encoded(index))


@dataclass(frozen=True)
class SubsetView(View):
    """Some samples of another view."""

    base: View
    rows: tuple[int, ...]

    def image(self, index: int) -> Image.Image:
        """Decode the base view's sample."""
        return self.base.image(self.rows[index])

    def image_digest(self, index: int) -> str:
        """The base view's digest of the sample."""
        # Of this sample alone: a part of a large set must not cost the digests of all of it.
        return self.base.image_digest(self.rows[index])

    def cropped(self, index: int, config: Preprocess) -> NDArray[np.uint8]:
        """The base view's pixels of the sample."""
        return self.base.cropped(self.rows[index], config)


def choose_samples(view: View, count: int | None, seed: int) -> View:
    """A random part of a view, the same for a seed, in the view's order; all of it where ``count`` is None."""
    if count is None or count >= len(view.samples):
        return view
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(len(view.samples))[:count])
    samples = tuple(view.samples[row] for row in chosen)
    return SubsetView(view.name, view.source, samples, view.classes, view, tuple(int(row) for row in chosen))
