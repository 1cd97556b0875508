"""Embeddings of subjects over views: filled into cells, read from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipq.data.pixels import PixelReader
from clipq.data.views import View
from clipq.engines.base import Engine
from clipq.errors import DataError, EngineError, NotAnswered
from clipq.evaluate.cells.cells import (
    CHUNK,
    BatchSize,
    Cell,
    ImageJob,
    class_embedding,
    fill_class_cell,
    fill_image_cells,
    fill_text_cell,
    open_cell,
    unit,
)
from clipq.evaluate.cells.given_predictions import GivenView, predictions_of
from clipq.evaluate.cells.open_engines import OpenEngines
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import Subject, numbers_of
from clipq.evaluate.metrics.zeroshot import Answers, Classifier, GivenAnswers
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.schema import Suite
from clipq.evaluate.suites.templates import TemplateSet, choose_templates
from clipq.files import sha256_bytes
from clipq.progress import Progress
from clipq.tokenizer import TextTokenizer

CLASSES_PER_CHUNK = 16

_NO_EMBEDDINGS = "it takes embeddings, and predictions alone came back"


@dataclass
class Embeddings:
    """The cells that settings name, asked for as a suite says; a context manager that keeps engines open between views.

    Image engines stay open together, for a view's pixels go through all of them; of text engines one is open at a time.
    ``most_engines`` bounds the former. What is read and found damaged is made again.
    """

    settings: Settings
    suite: Suite
    progress: Progress = field(default_factory=Progress)
    most_engines: int | None = None

    def __post_init__(self) -> None:
        asked = self.settings.batch
        assert isinstance(asked, int), "a batch is measured before anything is embedded"
        self.storage = Storage(self.settings.cells)
        self.batch = BatchSize(asked, self.settings.auto_batch)
        self._asked_batch = asked
        self._image_engines = OpenEngines(self.most_engines)
        self._text_engines = OpenEngines(1)
        # By engine and templates: views that share classes, or subsets of them, embed each class once.
        self._known_classes: dict[str, dict[str, NDArray[np.float32]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._image_engines.close()
        self._text_engines.close()

    def reader(self, subject: Subject) -> PixelReader:
        """What reads pixels as a subject's image tower sees them."""
        return PixelReader(subject.bundle.manifest.preprocess, self.suite.on_bad_image, self.settings.pixels)

    def image_engine(self, subject: Subject) -> Engine:
        """A subject's image tower, loaded; raises EngineError where it cannot be."""
        return self._image_engines.get(subject, "image")

    def fill_images(self, view: View, subjects: Sequence[Subject]) -> dict[str, str]:
        """Embed a view with every engine that lacks it; the engines that failed, by label, and why."""
        # Towers that several bundles share (--towers image, or the reference's twin) are embedded once.
        jobs: dict[str, ImageJob] = {}
        readers: dict[str, PixelReader] = {}
        for subject in (one for one in subjects if one.has_embeddings):
            cell = self.image_cell(view, subject)
            jobs.setdefault(cell.name, ImageJob(cell, partial(self.image_engine, subject), []))
            jobs[cell.name].labels.append(subject.label)
            readers[cell.name] = self.reader(subject)
        missing = sum(len(job.cell.missing()) for job in jobs.values()) * CHUNK
        if not missing:
            return {}
        self.progress.start(f"{view.name}: images", min(missing, len(jobs) * len(view.samples)))
        failed: dict[str, str] = {}
        # Bundles of several checkpoints can see images in several sizes.
        for reader in dict.fromkeys(readers.values()):
            mine = [job for name, job in jobs.items() if readers[name] == reader]
            for job, error in fill_image_cells(view, mine, reader, self.progress.advance, self.batch):
                failed |= dict.fromkeys(job.labels, f"image tower on {view.name}: {error}")
        return failed

    def fill_classes(self, view: View, subject: Subject) -> None:
        """Embed the class prompts of a view, where they are missing; raises EngineError where the engine fails."""
        cell, what = self.class_cell(view, subject), f"{view.name}: class prompts, {subject.label}"
        missing = cell.missing()
        if not missing:
            return
        templates, tokenizer = self.templates_of(view, subject), _tokenizer(subject)
        known = self._known_classes.setdefault(str(self._text_identity(subject, templates.templates)), {})
        self.progress.start(what, min(len(missing) * cell.chunk, cell.rows))
        with _text_tower(what):
            engine = self._text_engines.get(subject, "text")

            def embed(name: str) -> NDArray[np.float32]:
                if name not in known:
                    known[name] = class_embedding(engine, tokenizer(templates.prompts((name,))), self.batch)
                return known[name]

            fill_class_cell(cell, _class_names(view), embed, self.progress.advance)

    def fill_captions(self, view: View, subject: Subject) -> None:
        """Embed the captions of a view, where they are missing; raises EngineError where the engine fails."""
        cell, what = self.caption_cell(view, subject), f"{view.name}: captions, {subject.label}"
        missing = cell.missing()
        if not missing:
            return
        self.progress.start(what, min(len(missing) * cell.chunk, cell.rows))
        with _text_tower(what):
            engine = self._text_engines.get(subject, "text")
            tokens = _tokenizer(subject)(_captions(view))
            fill_text_cell(cell, engine, tokens, self.progress.advance, self.batch)

    def images(self, view: View, subject: Subject) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, str]]:
        """Row numbers, unit embeddings, and the samples left out with their reasons."""
        if not subject.has_embeddings:
            raise NotAnswered(_NO_EMBEDDINGS)

        def again() -> None:
            if failed := self.fill_images(view, [subject]):
                raise EngineError(failed[subject.label])

        rows, features, skipped = self.image_cell(view, subject).load(again)
        if skipped and self.suite.on_bad_image == "error":
            name, reason = next(iter(skipped.items()))
            raise DataError(f"{view.name}: {name}: {reason}; mend it, or leave such files out with --on-bad-image skip")
        if len(rows) == 0:
            raise DataError(f"{view.source}: none of its {len(view.samples)} images can be decoded")
        return rows, unit(features), skipped

    def captions(self, view: View, subject: Subject) -> NDArray[np.float32]:
        """Unit embeddings of a view's captions, image by image."""
        return self.caption_cell(view, subject).load(partial(self.fill_captions, view, subject))[1]

    def seen(
        self, view: View, subject: Subject, classes_of: View | None = None
    ) -> tuple[NDArray[np.int64], dict[str, str]]:
        """The rows of the samples that an engine saw, and the others with the reason."""
        if subject.has_embeddings:
            rows, _, skipped = self.images(view, subject)
            return rows, skipped
        given = self._given(view, subject, view if view.classes is not None else classes_of)
        return given.rows(view), given.skipped

    def _given(self, view: View, subject: Subject, classes_of: View | None) -> GivenView:
        """The predictions that came back of a view; raises NotAnswered where none did."""
        if classes_of is None:
            raise NotAnswered(_NO_EMBEDDINGS)
        with subject.bundle.unchanged():
            return predictions_of(subject.bundle, view, classes_of)

    def answers(self, view: View, subject: Subject, classes_of: View | None = None) -> Answers | GivenAnswers:
        """One engine's answers on a view, with the class prompts of that view or another."""
        if not subject.has_embeddings:
            found = self._given(view, subject, classes_of or view)
            labels = np.array([view.samples[row].label for row in found.rows(view)])
            return GivenAnswers(found.probabilities, labels, found.ids)
        rows, embeddings, _ = self.images(view, subject)
        return Answers(
            embeddings=embeddings,
            classifier=self.classifier(classes_of or view, subject),
            labels=np.array([view.samples[row].label for row in rows]),
            ids=tuple(view.samples[row].id for row in rows),
        )

    def classifier(self, view: View, subject: Subject) -> Classifier:
        """The zero-shot classifier of a view's classes."""
        assert view.classes is not None
        manifest = subject.bundle.manifest
        return Classifier(
            classes=self.class_cell(view, subject).load(partial(self.fill_classes, view, subject))[1],
            label_of_class=np.array(view.classes.label_of_class),
            logit_scale=manifest.logit_scale,
            logit_bias=manifest.logit_bias,
        )

    def templates_of(self, view: View, subject: Subject) -> TemplateSet:
        """The prompt templates that a view is asked with."""
        return choose_templates(view, subject.bundle, self.suite.templates_of(view.name))

    def image_cell(self, view: View, subject: Subject) -> Cell:
        """The cell of a view's images."""
        identity = {
            **numbers_of(subject, "image"),
            "view": view.digest,
            "preprocess": subject.bundle.manifest.preprocess.identity(),
            "batch": self._asked_batch,
        }
        return open_cell(self.storage, identity, len(view.samples), CHUNK)

    def class_cell(self, view: View, subject: Subject) -> Cell:
        """The cell of a view's classes, a row per class."""
        names, templates = _class_names(view), self.templates_of(view, subject)
        identity = {
            **self._text_identity(subject, templates.prompts(names)),
            "templates": len(templates.templates),
            "batches": "of one class",
        }
        return open_cell(self.storage, identity, len(names), CLASSES_PER_CHUNK)

    def caption_cell(self, view: View, subject: Subject) -> Cell:
        """The cell of a view's captions."""
        captions = _captions(view)
        return open_cell(self.storage, {**self._text_identity(subject, captions), "templates": 1}, len(captions), CHUNK)

    def _text_identity(self, subject: Subject, texts: Sequence[str]) -> dict[str, Any]:
        entry = subject.bundle.manifest.tokenizer
        return {
            **numbers_of(subject, "text"),
            "tokenizer": [entry.sha256, entry.cleaning, entry.context_length],
            # As a list, for a text may hold line breaks.
            "prompts": sha256_bytes(json.dumps(texts).encode()),
            "batch": self._asked_batch,
        }


@contextmanager
def _text_tower(what: str) -> Iterator[None]:
    """An engine's failure says what it was run on."""
    try:
        yield
    except EngineError as error:
        raise EngineError(f"text tower, {what}: {error}") from error


def _tokenizer(subject: Subject) -> TextTokenizer:
    with subject.bundle.unchanged():
        return TextTokenizer(subject.bundle)


def _class_names(view: View) -> tuple[str, ...]:
    assert view.classes is not None
    return view.classes.names


def _captions(view: View) -> list[str]:
    return [caption for sample in view.samples for caption in sample.captions]
