"""The first samples of a view, as engines are fed them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.bundle import TowerName
from clipq.data.open import complaint
from clipq.data.views import View
from clipq.engines.base import Array
from clipq.errors import DataError
from clipq.evaluate.cells.cells import CHUNK
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import open_plan
from clipq.evaluate.suites.schema import Suite, ViewEntry
from clipq.preprocess import normalize
from clipq.tokenizer import TextTokenizer


@dataclass(frozen=True)
class FirstBatch:
    """The first images of a view, and the first prompts of its classes, else captions: real inputs to count on."""

    view: View
    embeddings: Embeddings

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which samples these are, but the engine."""
        suite = self.embeddings.suite
        return {"view": self.view.digest, "templates": suite.templates_of(self.view.name), "batch": self._size}

    def feed(self, subject: Subject, tower: TowerName) -> dict[str, Array] | None:
        """A batch for one tower of a subject; None where the view has nothing for it."""
        array = self._images(subject) if tower == "image" else self._tokens(subject)
        name = subject.bundle.manifest.tower(tower).input_name
        return None if array is None or not len(array) else {name: array}

    @property
    def _size(self) -> int:
        return self.embeddings.batch.size

    def _images(self, subject: Subject) -> Array:
        # By whole chunks, as they are kept since the view was embedded.
        pixels = self.embeddings.reader(subject).read(self.view, 0, CHUNK).pixels[: self._size]
        return normalize(pixels, subject.bundle.manifest.preprocess)

    def _tokens(self, subject: Subject) -> Array | None:
        if self.view.classes is not None:
            templates = self.embeddings.templates_of(self.view, subject)
            texts = templates.prompts(self.view.classes.names[: self._size])
        else:
            texts = [caption for sample in self.view.samples[: self._size] for caption in sample.captions]
        return TextTokenizer(subject.bundle)(texts[: self._size]) if texts else None


def first_batch(source: str, cache: Path | None, size: int) -> FirstBatch:
    """The first samples of labelled images; remote ones are downloaded to ``cache``."""
    if wrong := complaint(source):
        raise DataError(f"--data {wrong}")
    suite = Suite(view=(ViewEntry(source=source),))
    return FirstBatch(open_plan(suite, cache).views[0].view, Embeddings(Settings(batch=size), suite))
