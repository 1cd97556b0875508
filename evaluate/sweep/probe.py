"""What a sweep is going to cost: a few batches of every engine and a few images of every view, timed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from clipq.bundle import TowerName
from clipq.data.views import View
from clipq.errors import ClipqError
from clipq.evaluate.bench.bench import seconds_per_sample
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.suites.plan import PlannedSquare
from clipq.evaluate.sweep.jobs import Job, Target, tower_of
from clipq.progress import Progress

BATCH = 8
IMAGES = 2


@dataclass(frozen=True)
class Cost:
    """Seconds of one cell slot for inference and for pixels (once per node), and bytes of cells and pixels."""

    inference: float
    pixels: float
    cell_bytes: int
    pixel_bytes: int

    def seconds(self, slots: int) -> float:
        """An estimate for so many cells at once: all of it shared evenly."""
        return (self.inference + self.pixels) / slots


def probe(jobs: Sequence[Job], targets: Sequence[Target], embeddings: Embeddings, progress: Progress) -> Cost:
    """Estimate the cost of jobs; an engine or image that fails the probe counts as nothing."""
    speeds: dict[str, float] = {}
    views: dict[int, tuple[float, int]] = {}
    inference, cell_bytes = 0.0, 0
    progress.start("timing a few batches", len(jobs))
    for job in jobs:
        target = targets[job.target]
        tower = tower_of(job.kind)
        key = json.dumps(job.subject.identity(tower), sort_keys=True)
        if key not in speeds:
            speeds[key] = _seconds_per_sample(job.subject, tower)
        inference += speeds[key] * job.rows * _runs_per_row(job, target, embeddings)
        cell_bytes += job.rows * 4 * (3 if job.kind == "attack" else job.subject.bundle.manifest.embed_dim)
        if job.kind == "images" and job.target not in views:
            assert isinstance(target, View)
            views[job.target] = _pixel_cost(target, job.subject, embeddings)
        progress.advance(1)
    return Cost(
        inference, sum(seconds for seconds, _ in views.values()), cell_bytes, sum(size for _, size in views.values())
    )


def free_bytes(folder: Path) -> int:
    """Free space of the disk that a folder, or its first parent that exists, lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _runs_per_row(job: Job, target: Target, embeddings: Embeddings) -> int:
    if isinstance(target, tuple):
        planned: PlannedSquare = target[0]
        return planned.entry.queries
    return len(embeddings.templates_of(target, job.subject).templates) if job.kind == "classes" else 1


def _seconds_per_sample(subject: Subject, tower: TowerName) -> float:
    try:
        with subject.open(tower) as engine:
            return seconds_per_sample(engine, subject.bundle, tower, BATCH)
    except ClipqError:
        return 0.0


def _pixel_cost(view: View, subject: Subject, embeddings: Embeddings) -> tuple[float, int]:
    """Seconds and bytes of all of a view's pixels, by a few images that no cache answers."""
    config = subject.bundle.manifest.preprocess
    height, width = config.image_size
    count = min(IMAGES, len(view.samples))
    try:
        started = perf_counter()
        for index in range(count):
            view.cropped(index, config)
        seconds = (perf_counter() - started) / count
    except ClipqError:
        seconds = 0.0
    return seconds * len(view.samples), 0 if view.is_in_memory else len(view.samples) * height * width * 3
