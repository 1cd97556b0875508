"""The Square attack on every engine of a plan: results kept in cells, so that a killed run goes on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipq.bundle import Preprocess
from clipq.engines.base import Engine
from clipq.errors import EngineError
from clipq.evaluate.cells import BATCH, BatchSize, open_cell, run_in_batches, unit
from clipq.evaluate.embeddings import Embeddings
from clipq.evaluate.plan import Plan, PlannedSquare
from clipq.evaluate.predictions import Booleans, Floats, Integers
from clipq.evaluate.square import Pixels, square_attack
from clipq.evaluate.subjects import Subject
from clipq.evaluate.zeroshot import Classifier
from clipq.preprocess import normalize


@dataclass(frozen=True)
class SquareOutcome:
    """Per image: right before the attack, right after it, queries spent."""

    clean: Booleans
    right: Booleans
    queries: Floats


# By view, ε in 255ths, and the engine's label.
SquareResults = dict[tuple[str, int, str], SquareOutcome]


def attack_all(plan: Plan, subjects: Sequence[Subject], embeddings: Embeddings, root: Path) -> SquareResults:
    """Attack every engine that has not failed."""
    results: SquareResults = {}
    for planned in plan.squares:
        for subject in subjects:
            for epsilon in planned.entry.epsilons:
                if subject.label in embeddings.failed:
                    continue
                try:
                    outcome = _attack(planned, epsilon, subject, embeddings, root, plan.suite.seed)
                except EngineError as error:
                    embeddings.failed[subject.label] = f"image tower under the Square attack: {error}"
                    continue
                results[planned.view.name, epsilon, subject.label] = outcome
    return results


def _attack(
    planned: PlannedSquare, epsilon: int, subject: Subject, embeddings: Embeddings, root: Path, seed: int
) -> SquareOutcome:
    view, entry = planned.view, planned.entry
    identity = {
        **subject.identity("image"),
        "attack": ["square", epsilon, entry.queries, seed],
        "view": view.digest,
        "labels": [sample.label for sample in view.samples],
        "classes": embeddings.text_identity(view, subject),
        "preprocess": subject.bundle.manifest.preprocess.model_dump(mode="json"),
        "batch": BATCH,
    }
    cell = open_cell(root, identity, len(view.samples), BATCH)
    missing = cell.missing()
    if missing:
        embeddings.progress.start(f"{view.name}: Square attack ε={epsilon}/255 on {subject.label}", len(view.samples))
        classifier = embeddings.classifier(view, subject)
        config = subject.bundle.manifest.preprocess
        with subject.open("image") as engine:
            for start in missing:
                batch = view.pixels(start, start + BATCH, config, embeddings.on_bad_image)
                ids = [view.samples[row].id for row in batch.rows]
                labels = np.array([view.samples[row].label for row in batch.rows])
                victim = _Victim(engine, config, classifier, labels, embeddings.batch)
                rngs = [np.random.default_rng([seed, epsilon, zlib.crc32(one.encode())]) for one in ids]
                columns = np.zeros((0, 3))
                if ids:
                    done = square_attack(batch.pixels, victim.margin, epsilon=epsilon, queries=entry.queries, rngs=rngs)
                    columns = np.stack([done.clean, done.right, done.queries], axis=1)
                cell.store(start, batch.rows, columns, batch.skipped)
                embeddings.progress.advance(len(ids))
    _, stored, _ = cell.load()
    return SquareOutcome(stored[:, 0] > 0, stored[:, 1] > 0, stored[:, 2].astype(np.float64))


@dataclass(frozen=True)
class _Victim:
    """An engine as the attack sees it: pixels in, margins out."""

    engine: Engine
    preprocess: Preprocess
    classifier: Classifier
    labels: Integers
    batch: BatchSize

    def margin(self, pixels: Pixels, rows: Integers) -> Floats:
        """The label's logit minus the largest other label's, of attacks on these rows."""
        embedded = unit(run_in_batches(self.engine, normalize(pixels, self.preprocess), self.batch))
        logits = self.classifier.logits(self.classifier.cosines(embedded))
        by_label = np.full((self.classifier.labels, len(logits)), -np.inf)
        np.maximum.at(by_label, self.classifier.label_of_class, logits.T)
        columns = np.arange(len(rows))
        own = by_label[self.labels[rows], columns].copy()
        by_label[self.labels[rows], columns] = -np.inf
        return np.asarray(own - by_label.max(0))
