"""A work folder: what an engine that runs elsewhere is to embed, in an order, and what is to come back."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from clipq.bundle import Manifest, StoredFile
from clipq.data.views import Classes
from clipq.errors import DataError
from clipq.evaluate.results.record import csv_name
from clipq.files import sha256_file
from clipq.packed import Damaged, unpacked
from clipq.text_files import read_json

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "clipq-work.json"
# Where each file of a work folder lies; the bundle's own lie below BUNDLE as they lie in the bundle.
PIXELS, TOKENS, MASK, TEXTS, LISTING, ASKED, BUNDLE, PICTURES, README = (
    "images.npy", "tokens.npy", "attention-mask.npy", "texts.json", "images.csv", "asked.safetensors", "bundle", "png",
    "README.txt",
)  # fmt: skip
COLUMNS = ("row", "view", "id")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pixels(_Model):
    """What the image tower is to be given: rows of uint8 pixels, and how they become its input.

    ``digest`` is the SHA-256 of the SHA-256 of every row.
    """

    file: str = PIXELS
    rows: int
    digest: str
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: str = (
        "uint8, rows × height × width × RGB; input = (pixels / 255 - mean) / std, mostly float32 N × 3 × H × W"
    )


class Tokens(_Model):
    """What the text tower is to be given: rows of token ids, their digest as that of pixels."""

    file: str = TOKENS
    rows: int
    digest: str
    length: int


class Listed(_Model):
    """A view as the suite asks for it: its samples stand in the listing under its name.

    ``labels`` are what its classes are called, in the order of their probabilities; None where nothing is classified.
    """

    name: str
    digest: str
    samples: int
    skipped: dict[str, str]
    labels: tuple[str, ...] | None


class Work(_Model):
    """The content of the folder's manifest."""

    schema_version: Literal[1]
    clipq: str
    bring_back: str
    images: Pixels
    tokens: Tokens
    views: tuple[Listed, ...]
    left_out: tuple[str, ...]
    suite: dict[str, Any]
    bundle_name: str
    bundle_digest: str
    bundle: Manifest
    files: tuple[StoredFile, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of it, in lines."""
        asked = f"{self.images.rows} images of {self.images.height} × {self.images.width}, {self.tokens.rows} texts"
        return (asked, *(f"left out: {one}" for one in self.left_out))

    def view(self, name: str) -> Listed | None:
        """The view of this name."""
        return next((one for one in self.views if one.name == name), None)


@dataclass(frozen=True)
class Asked:
    """Digests of what each row asks (rows × 32), and what the bundle itself answers on a few rows."""

    images: NDArray[np.uint8]
    texts: NDArray[np.uint8]
    trial: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]


def labels_of(classes: Classes) -> tuple[str, ...]:
    """What labels are called: by their classes' names; where several classes share a label, by the data set's own."""
    return classes.names if classes.is_plain else classes.keys


def read_work(folder: Path) -> Work:
    """A work folder's manifest, its small files checked; raises DataError where it is none, or of another export."""
    path, again = folder / MANIFEST, "export the cells again"
    if not path.is_file():
        raise DataError(f"{folder} is no work folder: it has no {MANIFEST} (clipq-eval cells export makes one)")
    raw = read_json(path, DataError, again)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(f"{path} has schema version {version}, this clipq reads {SCHEMA_VERSION}; upgrade clip-quant")
    try:
        work = Work.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {again}") from error
    for entry in work.files:
        place = folder / entry.file
        if not place.is_file() or sha256_file(place) != entry.sha256:
            raise DataError(f"{place} is missing, or not what belongs to {MANIFEST}; copy it again, or {again}")
    return work


def read_asked(folder: Path) -> Asked:
    """What its rows ask; raises DataError where that is damaged."""
    path = folder / ASKED
    try:
        arrays, _ = unpacked(path.read_bytes())
        trial = {
            tower: (arrays[f"{tower}/rows"], arrays[f"{tower}/embeddings"])
            for tower in ("image", "text")
            if f"{tower}/rows" in arrays
        }
        return Asked(arrays["images"], arrays["texts"], trial)
    except (Damaged, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); export the cells again") from error


def listed_ids(folder: Path, view: str) -> list[str]:
    """The samples of a view, in order."""
    return [row[2] for row in _listing(folder / LISTING) if row[1] == view]


def _listing(path: Path) -> Iterator[tuple[int, str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        next(rows)
        for row, view, name in rows:
            yield int(row), csv_name(view), csv_name(name)
