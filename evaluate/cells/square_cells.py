"""The Square attack on engines: results kept in cells, so that a killed run goes on."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from clipq.bundle import Preprocess
from clipq.engines.base import Engine
from clipq.errors import EngineError, NotAnswered
from clipq.evaluate.cells.cells import BatchSize, Cell, open_cell, run_on_pixels, unit
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.square import Pixels, square_attack
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.metrics.predictions import Booleans, Floats, Integers
from clipq.evaluate.metrics.zeroshot import Classifier
from clipq.evaluate.settings import METRIC_THREADS
from clipq.evaluate.suites.plan import PlannedSquare

# Images that are attacked side by side.
CHUNK = 32


@dataclass(frozen=True)
class SquareOutcome:
    """Per image: right before the attack, right after it, queries spent."""

    clean: Booleans
    right: Booleans
    queries: Floats


def attack_cell(planned: PlannedSquare, epsilon: int, subject: Subject, embeddings: Embeddings) -> Cell:
    """The cell of one engine's attack: clean, right and queries by image."""
    view = planned.view
    classes = embeddings.class_cell(view, subject)
    identity: dict[str, Any] = {
        **json.loads(embeddings.image_cell(view, subject).identity),
        "attack": ["square", epsilon, planned.entry.queries, embeddings.suite.seed],
        "labels": [sample.label for sample in view.samples],
        "classes": classes.name,
    }
    assert view.classes is not None
    if not view.classes.is_plain:
        # Which classes a label's probability is summed of, and at which temperature.
        identity["counted"] = [view.classes.label_of_class, subject.bundle.manifest.logit_scale]
    return open_cell(embeddings.storage, identity, len(view.samples), CHUNK)


def attack_outcome(planned: PlannedSquare, epsilon: int, subject: Subject, embeddings: Embeddings) -> SquareOutcome:
    """What an attack came to that is done; raises NotAnswered for an engine that ran elsewhere."""
    _require_queries(subject)
    cell = attack_cell(planned, epsilon, subject, embeddings)
    _, stored, _ = cell.load(partial(fill_attack, planned, epsilon, subject, embeddings))
    return SquareOutcome(stored[:, 0] > 0, stored[:, 1] > 0, stored[:, 2].astype(np.float64))


def fill_attack(planned: PlannedSquare, epsilon: int, subject: Subject, embeddings: Embeddings) -> None:
    """Attack one engine, whose classes are embedded; raises EngineError where it fails.

    That is NotAnswered for one that ran elsewhere.
    """
    _require_queries(subject)
    view, seed = planned.view, embeddings.suite.seed
    cell = attack_cell(planned, epsilon, subject, embeddings)
    missing = cell.missing()
    if not missing:
        return
    embeddings.progress.start(f"{view.name}: Square attack ε={epsilon}/255 on {subject.label}", len(view.samples))
    classifier, reader = embeddings.classifier(view, subject), embeddings.reader(subject)
    try:
        engine = embeddings.image_engine(subject)
        for start in missing:
            batch = reader.read(view, start, start + CHUNK)
            ids = [view.samples[row].id for row in batch.rows]
            labels = np.array([view.samples[row].label for row in batch.rows])
            victim = _Victim(engine, reader.config, classifier, labels, embeddings.batch)
            rngs = [np.random.default_rng([seed, epsilon, zlib.crc32(one.encode())]) for one in ids]
            columns = np.zeros((0, 3))
            if ids:
                with threadpool_limits(METRIC_THREADS, user_api="blas"):
                    done = square_attack(
                        batch.pixels, victim.margin, epsilon=epsilon, queries=planned.entry.queries, rngs=rngs
                    )
                columns = np.stack([done.clean, done.right, done.queries], axis=1)
            cell.store(start, batch.rows, columns, batch.skipped)
            embeddings.progress.advance(len(ids))
    except EngineError as error:
        raise EngineError(f"image tower under the Square attack: {error}") from error


def _require_queries(subject: Subject) -> None:
    if not subject.runs_here:
        raise NotAnswered("it asks an engine itself again and again, and this one ran elsewhere")


@dataclass(frozen=True)
class _Victim:
    """An engine as the attack sees it: pixels in, margins out."""

    engine: Engine
    preprocess: Preprocess
    classifier: Classifier
    labels: Integers
    batch: BatchSize

    def margin(self, pixels: Pixels, rows: Integers) -> Floats:
        """The log-probability of the label minus the largest other label's, of attacks on these rows."""
        embedded = unit(run_on_pixels(self.engine, pixels, self.preprocess, self.batch))
        logits = self.classifier.logits(self.classifier.cosines(embedded))
        by_label = np.full((self.classifier.labels, len(logits)), -np.inf)
        # Several classes that count as one label have the sum of their probabilities, as wherever a label is predicted.
        np.logaddexp.at(by_label, self.classifier.label_of_class, logits.T)
        columns = np.arange(len(rows))
        own = by_label[self.labels[rows], columns].copy()
        by_label[self.labels[rows], columns] = -np.inf
        return np.asarray(own - by_label.max(0))
