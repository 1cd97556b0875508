"""The images and captions that activation ranges are measured on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clipq.bundle import Bundle, TowerName
from clipq.data.image_files import find_images
from clipq.data.tables import file_beside, read_csv
from clipq.data.views import FileView, Sample
from clipq.engines.base import Array
from clipq.engines.interface import Interface
from clipq.errors import DataError
from clipq.preprocess import preprocess
from clipq.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

# Ships with the package, and lies in the root folder of a checkout: beside this folder either way.
DEMO_SET = Path(__file__).parent.parent / "calib_data" / "demo"
CAPTIONS = "captions.csv"
# What the packaged set says of itself.
DEMO_MANIFEST = "manifest.json"
BATCH = 8


@dataclass(frozen=True)
class CalibrationSet:
    """Images below a folder, and texts that go with them."""

    folder: Path
    images: tuple[Path, ...]
    texts: tuple[str, ...]
    texts_from: str

    def digest(self) -> str:
        """SHA-256 over the images' relative names and contents, and the texts."""
        state = hashlib.sha256()
        for index, sample in enumerate(self.view.samples):
            state.update(f"{sample.id}\0{self.view.image_digest(index)}\n".encode())
        for text in self.texts:
            state.update(f"{text}\n".encode())
        return state.hexdigest()

    @cached_property
    def view(self) -> FileView:
        """The images, which have the digests that they were first read with, or raise DataChanged."""
        samples = tuple(Sample(image.relative_to(self.folder).as_posix()) for image in self.images)
        return FileView("calibration", str(self.folder), samples, None, self.images)

    def count(self, tower: TowerName) -> int:
        """How many samples a tower sees."""
        return len(self.images) if tower == "image" else len(self.texts)

    def feeds(self, bundle: Bundle, tower: TowerName, advance: Callable[[int], None]) -> Iterator[dict[str, Array]]:
        """Batches as a tower's file takes them, drawn from disk as they are asked for.

        ``advance`` is told of each batch's size.
        """
        interface = Interface(bundle, tower)
        size = interface.batch or BATCH
        tokenizer = TextTokenizer(bundle) if tower == "text" else None
        for start in range(0, self.count(tower), size):
            if tokenizer is None:
                rows, config = range(start, min(start + size, len(self.images))), bundle.manifest.preprocess
                batch: Array = np.stack([preprocess(self.view.image(row), config) for row in rows])
            else:
                batch = tokenizer(self.texts[start : start + size])
            yield interface.first({interface.taken.name: batch})
            advance(len(batch))


def open_calibration_set(folder: Path, bundle: Bundle) -> CalibrationSet:
    """Find images recursively, and texts: ``captions.csv`` (``file,caption``), else the class folders' names.

    A class folder's name fills the bundle's simple templates. Raises DataError where there are no images, or where
    the captions name files that do not exist.
    """
    if not folder.is_dir():
        raise DataError(f"--calibration-set {folder}: no such folder")
    found = find_images(folder)
    left_out = {name: reason for name, reason in found.left_out.items() if name not in (CAPTIONS, DEMO_MANIFEST)}
    if left_out:
        named = ", ".join(f"{name!r} ({reason})" for name, reason in list(left_out.items())[:3])
        logger.warning("%s: %d files are no images and are left out: %s", folder, len(left_out), named)
    if not found.files:
        raise DataError(f"--calibration-set {folder}: no images in it; ranges cannot be measured without data")
    captions = folder / CAPTIONS
    if captions.is_file():
        return CalibrationSet(folder, found.files, _captions(captions), CAPTIONS)
    names = sorted({path.parent.name for path in found.files if path.parent != folder})
    if not names:
        raise DataError(
            f"--calibration-set {folder}: the text tower needs texts: add {CAPTIONS} (file,caption) "
            "or sort the images into class folders"
        )
    templates = bundle.prompts.templates["simple-7"]
    texts = tuple(template.replace("{}", name.replace("_", " ")) for name in names for template in templates)
    return CalibrationSet(folder, found.files, texts, "class folders")


def _captions(path: Path) -> tuple[str, ...]:
    rows = read_csv(path, ("file", "caption"))
    for row in rows:
        file_beside(path, row["file"])
    return tuple(row["caption"] for row in rows)
