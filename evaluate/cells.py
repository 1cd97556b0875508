"""Cells: embeddings of one engine over one view, stored in chunks under a key made of digests.

A chunk is written whole or not at all, so a run that was killed goes on where it stopped, and a run that was finished
finds everything there and does no inference.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipq.data.views import OnBadImage, View
from clipq.engines.base import Array, Engine
from clipq.errors import EngineError, OutOfMemory, ResultsError
from clipq.files import sha256_bytes, write_atomic
from clipq.preprocess import normalize

# Dynamic quantization takes its ranges from the batch, so the batches are fixed and part of the key.
logger = logging.getLogger(__name__)

BATCH = 32
CHUNK = 8 * BATCH


@dataclass(frozen=True)
class Cell:
    """One array of embeddings in the making or done: where its chunks lie, and how many rows there will be."""

    folder: Path
    rows: int
    chunk: int

    def missing(self) -> list[int]:
        """First rows of the chunks that are not stored yet."""
        return [start for start in range(0, self.rows, self.chunk) if not self._path(start).is_file()]

    def store(self, start: int, rows: NDArray[np.int64], features: Array, skipped: Mapping[str, str]) -> None:
        """Store one chunk."""
        tensors: dict[str, Array] = {"rows": rows, "features": features.astype(np.float32)}
        write_atomic(self._path(start), save(tensors, {"skipped": json.dumps(dict(skipped))}))

    def load(self) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[str, str]]:
        """Row numbers, features (rows × dimension) and the skipped samples with their reasons."""
        rows, features, skipped = [], [], {}
        for start in range(0, self.rows, self.chunk):
            path = self._path(start)
            try:
                with safe_open(path, framework="numpy") as stored:
                    rows.append(stored.get_tensor("rows"))
                    features.append(stored.get_tensor("features"))
                    skipped.update(json.loads((stored.metadata() or {})["skipped"]))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise ResultsError(f"{path} is damaged ({error}); delete it and run again") from error
        return np.concatenate(rows), np.concatenate(features), skipped

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.safetensors"


def open_cell(root: Path, identity: Mapping[str, Any], rows: int, chunk: int) -> Cell:
    """The cell of an identity (engine, view, preprocessing): its folder is named by the identity's digest."""
    described = json.dumps(dict(identity), sort_keys=True)
    folder = root / sha256_bytes(described.encode())[:32]
    if not (folder / "cell.json").is_file():
        write_atomic(folder / "cell.json", described + "\n")
    return Cell(folder, rows, chunk)


@dataclass(frozen=True)
class ImageJob:
    """One engine's share of filling a view's cells; ``open`` loads it when it is needed, ``labels`` are its names."""

    cell: Cell
    open: Callable[[], Engine]
    labels: list[str]


def fill_image_cells(
    view: View,
    jobs: Sequence[ImageJob],
    preprocess: Any,
    on_bad_image: OnBadImage,
    advance: Callable[[int], None],
    batch_size: BatchSize,
) -> list[tuple[ImageJob, EngineError]]:
    """Embed a view with every engine that lacks it; each image is decoded once for all of them.

    Returns the jobs that were given up, each with the reason: their engines failed, or answered with what is no
    embedding.
    """
    missing = {id(job): set(job.cell.missing()) for job in jobs}
    engines: dict[int, Engine] = {}
    failures: list[tuple[ImageJob, EngineError]] = []
    with contextlib.ExitStack() as stack:
        waiting = []
        for job in jobs:
            if missing[id(job)]:
                try:
                    engines[id(job)] = stack.enter_context(job.open())
                    waiting.append(job)
                except EngineError as error:
                    failures.append((job, error))
        for start in range(0, len(view.samples), CHUNK):
            due = [job for job in waiting if start in missing[id(job)]]
            if not due:
                continue
            batch = view.pixels(start, start + CHUNK, preprocess, on_bad_image)
            array = normalize(batch.pixels, preprocess) if len(batch.rows) else batch.pixels
            for job in due:
                try:
                    features = run_in_batches(engines[id(job)], array, batch_size)
                    unit(features)
                except EngineError as error:
                    failures.append((job, error))
                    waiting.remove(job)
                    continue
                job.cell.store(start, batch.rows, features, batch.skipped)
                advance(len(batch.rows))
    return failures


def fill_text_cell(
    cell: Cell,
    open_engine: Callable[[], Engine],
    prompts: Callable[[int, int], Array],
    templates: int,
    advance: Callable[[int], None],
    batch_size: BatchSize,
) -> None:
    """Embed class prompts and store one averaged, normalized embedding per class (rows are classes).

    ``prompts(start, stop)`` gives the token ids of those classes, class by class, all templates of a class in a row.
    """
    missing = cell.missing()
    if not missing:
        return
    with open_engine() as engine:
        for start in missing:
            stop = min(start + cell.chunk, cell.rows)
            features = unit(run_in_batches(engine, prompts(start, stop), batch_size))
            averaged = unit(features.reshape(stop - start, templates, -1).mean(1))
            cell.store(start, np.arange(start, stop, dtype=np.int64), averaged, {})
            advance(stop - start)


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; raises EngineError for a row that is zero or not finite."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise EngineError("an embedding is zero or not finite: the engine is broken on this input")
    return np.asarray(features / length)


@dataclass
class BatchSize:
    """How many samples engines are given at once; ``automatic``: halved, for all that follow, where memory ends."""

    size: int = BATCH
    automatic: bool = False

    def halve(self) -> bool:
        """Go on with half as many, where that was allowed and is possible."""
        if not self.automatic or self.size == 1:
            return False
        self.size //= 2
        logger.warning("out of GPU memory: going on with batches of %d", self.size)
        return True


def run_in_batches(engine: Engine, array: Array, batch: BatchSize) -> NDArray[np.float32]:
    """An engine's features of an array, in batches; raises OutOfMemory where they may not or cannot be halved."""
    (name,) = (spec.name for spec in engine.inputs)
    (output,) = engine.outputs
    parts: list[NDArray[np.float32]] = []
    start = 0
    while start < len(array):
        part = array[start : start + batch.size]
        try:
            parts.append(engine.run({name: part})[output.name])
        except OutOfMemory:
            if not batch.halve():
                raise
            continue
        start += len(part)
    return np.concatenate(parts) if parts else np.zeros((0, output.shape[-1] or 0), np.float32)
