"""Embeddings of subjects over views: filled into cells, read from them. An engine that fails is named and left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipq.bundle import TowerName
from clipq.data.views import OnBadImage, View
from clipq.engines.base import Array
from clipq.errors import DataError, EngineError
from clipq.evaluate.axes.classification import Answers
from clipq.evaluate.cells import (
    BATCH,
    CHUNK,
    BatchSize,
    Cell,
    ImageJob,
    fill_image_cells,
    fill_text_cell,
    open_cell,
    unit,
)
from clipq.evaluate.subjects import Subject
from clipq.evaluate.zeroshot import Classifier, TemplateSet, choose_templates
from clipq.files import sha256_bytes
from clipq.progress import Progress
from clipq.tokenizer import TextTokenizer

CLASSES_PER_CHUNK = 16


@dataclass
class Embeddings:
    """The cells of one results folder; ``failed`` says why an engine was given up, by label."""

    root: Path
    templates: str | None
    on_bad_image: OnBadImage
    progress: Progress
    batch: BatchSize = field(default_factory=BatchSize)
    failed: dict[str, str] = field(default_factory=dict)

    def fill_images(self, view: View, subjects: Sequence[Subject]) -> None:
        """Embed a view with every engine that lacks it."""
        # Towers that several bundles share (--towers image, or the reference's twin) are embedded once.
        jobs: dict[Path, ImageJob] = {}
        for subject in self._working(subjects):
            cell = self._image_cell(view, subject)
            jobs.setdefault(cell.folder, ImageJob(cell, _opener(subject, "image"), []))
            jobs[cell.folder].labels.append(subject.label)
        missing = sum(len(job.cell.missing()) for job in jobs.values()) * CHUNK
        if not missing:
            return
        self.progress.start(f"{view.name}: images", min(missing, len(jobs) * len(view.samples)))
        config = subjects[0].bundle.manifest.preprocess
        failures = fill_image_cells(
            view, list(jobs.values()), config, self.on_bad_image, self.progress.advance, self.batch
        )
        for job, error in failures:
            self.failed.update(dict.fromkeys(job.labels, f"image tower on {view.name}: {error}"))

    def fill_classes(self, view: View, subjects: Sequence[Subject]) -> None:
        """Embed the class prompts of a view with every engine that lacks them."""
        for subject in self._working(subjects):
            templates = self.templates_of(view, subject)
            prompts = templates.prompts(_class_names(view))
            cell = self._class_cell(view, subject)
            what = f"{view.name}: class prompts, {subject.label}"
            self._fill_text(cell, prompts, len(templates.templates), subject, what)

    def fill_captions(self, view: View, subjects: Sequence[Subject]) -> None:
        """Embed the captions of a view with every engine that lacks them."""
        captions = [caption for sample in view.samples for caption in sample.captions]
        for subject in self._working(subjects):
            cell = self._text_cell(captions, 1, len(captions), CHUNK, subject)
            self._fill_text(cell, captions, 1, subject, f"{view.name}: captions, {subject.label}")

    def images(self, view: View, subject: Subject) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, str]]:
        """Row numbers, unit embeddings, and the samples left out with their reasons."""
        rows, features, skipped = self._image_cell(view, subject).load()
        if skipped and self.on_bad_image == "error":
            name, reason = next(iter(skipped.items()))
            raise DataError(f"{view.name}: {name}: {reason}; mend it, or leave such files out with --on-bad-image skip")
        if len(rows) == 0:
            raise DataError(f"{view.source}: none of its {len(view.samples)} images can be decoded")
        return rows, unit(features), skipped

    def captions(self, view: View, subject: Subject) -> NDArray[np.float32]:
        """Unit embeddings of a view's captions, image by image."""
        captions = [caption for sample in view.samples for caption in sample.captions]
        return self._text_cell(captions, 1, len(captions), CHUNK, subject).load()[1]

    def answers(self, view: View, subject: Subject, classes_of: View | None = None) -> Answers:
        """One engine's answers on a view, with the class prompts of that view or another."""
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
            classes=self._class_cell(view, subject).load()[1],
            label_of_class=np.array(view.classes.label_of_class),
            logit_scale=manifest.logit_scale,
            logit_bias=manifest.logit_bias,
        )

    def templates_of(self, view: View, subject: Subject) -> TemplateSet:
        """The prompt templates that a view is asked with."""
        return choose_templates(view, subject.bundle, self.templates)

    def text_identity(self, view: View, subject: Subject) -> dict[str, Any]:
        """What determines the class embeddings of a view."""
        templates = self.templates_of(view, subject)
        return self._text_identity(templates.prompts(_class_names(view)), len(templates.templates), subject)

    def _working(self, subjects: Sequence[Subject]) -> list[Subject]:
        return [subject for subject in subjects if subject.label not in self.failed]

    def _fill_text(self, cell: Cell, texts: Sequence[str], per_row: int, subject: Subject, what: str) -> None:
        missing = cell.missing()
        if not missing:
            return
        self.progress.start(what, len(missing) * cell.chunk)
        tokenizer = TextTokenizer(subject.bundle)

        def tokens(start: int, stop: int) -> Array:
            return tokenizer(texts[start * per_row : stop * per_row])

        try:
            fill_text_cell(cell, _opener(subject, "text"), tokens, per_row, self.progress.advance, self.batch)
        except EngineError as error:
            self.failed[subject.label] = f"text tower, {what}: {error}"

    def _image_cell(self, view: View, subject: Subject) -> Cell:
        identity = {
            **subject.identity("image"),
            "view": view.digest,
            "preprocess": subject.bundle.manifest.preprocess.model_dump(mode="json"),
            "batch": BATCH,
        }
        return open_cell(self.root, identity, len(view.samples), CHUNK)

    def _class_cell(self, view: View, subject: Subject) -> Cell:
        identity = self.text_identity(view, subject)
        return open_cell(self.root, identity, len(_class_names(view)), CLASSES_PER_CHUNK)

    def _text_cell(self, texts: Sequence[str], per_row: int, rows: int, chunk: int, subject: Subject) -> Cell:
        return open_cell(self.root, self._text_identity(texts, per_row, subject), rows, chunk)

    def _text_identity(self, texts: Sequence[str], per_row: int, subject: Subject) -> dict[str, Any]:
        entry = subject.bundle.manifest.tokenizer
        return {
            **subject.identity("text"),
            "tokenizer": [entry.sha256, entry.cleaning, entry.context_length],
            "prompts": sha256_bytes("\n".join(texts).encode()),
            "templates": per_row,
            "batch": BATCH,
        }


def _class_names(view: View) -> tuple[str, ...]:
    assert view.classes is not None
    return view.classes.names


def _opener(subject: Subject, tower: TowerName) -> Callable[[], Any]:
    return lambda: subject.open(tower)
