"""Data views: images in an order, with labels, class names, groups or captions, and a digest of their content."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipq.bundle import Preprocess
from clipq.errors import DataChanged, DataError
from clipq.files import Stamp, sha256_bytes, stamp
from clipq.preprocess import open_image, resize_and_crop

UNLABELLED = -1
# Of a sample of which a column of groups says nothing.
NO_GROUP = "unlabelled"

# Of an image's file: it is in memory as a whole while it is decoded, in each of several threads.
MOST_BYTES = 2**30

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

    @property
    def is_plain(self) -> bool:
        """Whether every class is a label of its own."""
        return self.label_of_class == tuple(range(len(self.names)))


@dataclass(frozen=True)
class View(ABC):
    """Samples in a fixed order and what their labels mean (None: unlabelled).

    ``left_out`` are the files of the source that are no samples, and why; ``left_out_unnamed`` counts further ones.
    ``unverified`` says of which files nobody can tell whether they are whole.
    """

    name: str
    source: str
    samples: tuple[Sample, ...]
    classes: Classes | None
    left_out: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    left_out_unnamed: int = field(default=0, kw_only=True)
    unverified: tuple[str, ...] = field(default=(), kw_only=True)

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
        image = self.image(index)
        try:
            return np.asarray(resize_and_crop(image, config))
        except DataError as error:
            raise DataError(f"{self._where(index)}: {error}") from error

    def _where(self, index: int) -> str:
        """What errors call a sample."""
        return self.samples[index].id


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
class EncodedView(View, ABC):
    """Images as encoded bytes: in files, archives, tables.

    The digest of an image is taken once, and what is decoded later has that digest or raises DataChanged. That holds in
    other processes, too, which get the digests with the view.
    """

    _digests: dict[int, str] = field(default_factory=dict, kw_only=True, repr=False, compare=False)
    # Of the files when the view was opened: labels come from then, so that digests must be of the same files.
    _stamps: dict[Path, Stamp | None] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self._stamps:
            places = {self.lies_in(index) for index in range(len(self.samples))} - {None}
            self._stamps.update((path, stamp(path)) for path in places if path is not None)

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of one image file; raises DataError where there are none. Several threads may ask at once."""

    def lies_in(self, index: int) -> Path | None:
        """The file that holds an image's bytes, where that is known."""
        return None

    def image(self, index: int) -> Image.Image:
        """Decode the bytes that the digest was taken of; raises DataChanged where they are others now."""
        data = self._read(index)
        if isinstance(data, DataError):
            raise data
        return open_image(io.BytesIO(data), self._where(index))

    def image_digest(self, index: int) -> str:
        """SHA-256 of the bytes of one image, as they were when they were first read; of no bytes where it has none."""
        if index not in self._digests:
            self._read(index)
        return self._digests[index]

    def _read(self, index: int) -> bytes | DataError:
        """An image's bytes, or the reason why it has none; raises DataChanged where that was otherwise before."""
        data: bytes | DataError
        try:
            data = self.encoded(index)
        except DataError as error:
            data = error
        except OSError as error:
            # It was there when it was listed. As a bad image it would be left out of what is kept under its digest.
            raise _changed(self._where(index), f" ({error.strerror or error})") from error
        digest = sha256_bytes(b"" if isinstance(data, DataError) else data)
        path = self.lies_in(index)
        is_steady = index in self._digests or path is None or stamp(path) == self._stamps[path]
        if not is_steady or self._digests.setdefault(index, digest) != digest:
            raise _changed(self._where(index))
        return data


def _changed(where: str, how: str = "") -> DataChanged:
    return DataChanged(f"{where}: changed while it was read{how}; run again when nothing writes to the data")


@dataclass(frozen=True)
class FileView(EncodedView):
    """Images in files."""

    files: tuple[Path, ...]

    def encoded(self, index: int) -> bytes:
        """The content of one file."""
        path = self.files[index]
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: has more than the {MOST_BYTES} bytes that an image's file may have")
        return path.read_bytes()

    def lies_in(self, index: int) -> Path:
        """The file itself."""
        return self.files[index]

    def _where(self, index: int) -> str:
        return str(self.files[index])


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
    rows = tuple(int(row) for row in chosen)
    return SubsetView(
        view.name, view.source, samples, view.classes, view, rows, left_out=view.left_out,
        left_out_unnamed=view.left_out_unnamed, unverified=view.unverified,
    )  # fmt: skip
