"""Pixels as towers see them, a chunk ahead of who uses them, kept on disk so that each image is decoded once.

The cache is a folder of chunks under keys made of digests, shared by all runs and processes of a machine. Decoding is
done by threads, for Pillow and the disk release Python's lock; corruptions are drawn by one, for their library draws
from numpy's global generator.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from clipq.ahead import ahead
from clipq.bundle import Preprocess
from clipq.data.views import DrawnView, OnBadImage, PixelBatch, View
from clipq.errors import DataChanged, DataError
from clipq.files import sha256_bytes, write_atomic
from clipq.made_by import makers
from clipq.packed import packed, unpacked

logger = logging.getLogger(__name__)

# Of chunks. Those of the first may hold images with exchanged axes, those of the second other images than they say.
_LAYOUT = 3

DECODERS = min(8, os.cpu_count() or 1)

# How long one waits for who makes the same chunk, in seconds. That rarely takes longer, unless its process was stopped.
PATIENCE = 30.0

# Bytes of a chunk beside pixels, and of what is said of each sample: its row, or its id and why it was left out.
_MOST_SAID = 2**16

# Locks and unfinished files that are older, in seconds, were left behind by processes that are no more.
STALE = 3600.0


@dataclass(frozen=True)
class PixelCache:
    """A folder of decoded chunks of at most ``capacity`` bytes.

    Where it is full, chunks that nobody used since ``since`` (seconds since 1970) go, oldest first; what then does not
    fit is not kept. So a data set larger than the cache is kept in part, and does not push itself out. Whatever becomes
    of the folder, a cache is only slower: it may be deleted, damaged, full or closed to writing at any time.
    """

    folder: Path
    capacity: int
    since: float = field(default_factory=time.time)

    def path(self, view: View, start: int, stop: int, config: Preprocess) -> Path:
        """Where a chunk lies: its key holds all that decides uint8 pixels, so mean and std are not in it."""
        made = {"view": view.digest, "geometry": config.geometry(), "layout": _LAYOUT, **makers("image")}
        key = json.dumps(made, sort_keys=True)
        return self.folder / sha256_bytes(key.encode())[:32] / f"{start:08d}-{stop:08d}.safetensors"

    def read(self, path: Path, most: int) -> PixelBatch | None:
        """A chunk of at most ``most`` bytes; None where it is not there, damaged, or lies where another belongs."""
        try:
            found = path.stat()
            # A pipe would have this process wait, and a file with holes may have any size.
            if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                return None
            with path.open("rb") as stream:
                # Not mapped into memory: whoever shortens the file then would end this process.
                data = bytearray(os.fstat(stream.fileno()).st_size)
                stream.readinto(data)
            arrays, said = unpacked(data)
            if said["chunk"] != _name(path):
                return None
            batch = PixelBatch(arrays["rows"], arrays["pixels"], json.loads(said["skipped"]))
        except (OSError, KeyError, ValueError):
            return None
        # What says that it was used; a cache that this process may only read has an owner who sees to that.
        with contextlib.suppress(OSError):
            os.utime(path)
        return batch

    def write(self, path: Path, batch: PixelBatch) -> None:
        """Keep a chunk if it fits; a cache that cannot be written is only slower."""
        said = {"skipped": json.dumps(batch.skipped), "chunk": _name(path)}
        data = packed({"rows": batch.rows, "pixels": batch.pixels}, said)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._make_room(len(data)):
                write_atomic(path, data)
        except FileNotFoundError:
            pass  # deleted meanwhile
        except OSError as error:
            _say_once(f"the pixel cache {self.folder} cannot be written ({error.strerror}): images are decoded again")

    @contextlib.contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Held while a chunk is made, so that processes that want the same wait for it and read it.

        None has to: where there can be no lock, or its holder keeps it too long, both make the chunk.
        """
        held = FileLock(path.with_suffix(".lock"), PATIENCE)
        # NotImplementedError: a file system without locks.
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                held.acquire()
            except Timeout:
                logger.warning(
                    "%s: held for %g s by another process, was it stopped? Going on", held.lock_file, PATIENCE
                )
        try:
            yield
        finally:
            if held.is_locked:
                # While it is held: who waits for it finds the chunk made, and so does who makes a new one.
                with contextlib.suppress(OSError):
                    Path(held.lock_file).unlink(missing_ok=True)
                held.release()

    def _make_room(self, size: int) -> bool:
        chunks = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.suffix == ".safetensors":
                    chunks.append((found.st_mtime, found.st_size, path))
                elif found.st_mtime < time.time() - STALE:
                    path.unlink()
        over = sum(kept for _, kept, _ in chunks) + size - self.capacity
        for used, kept, chunk in sorted(chunks):
            if over <= 0 or used >= self.since:
                break
            chunk.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                chunk.parent.rmdir()
            over -= kept
        return over <= 0


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)


@dataclass(frozen=True)
class PixelReader:
    """Reads pixels of views for one preprocessing, from the cache where there is one."""

    config: Preprocess
    on_bad_image: OnBadImage = "error"
    cache: PixelCache | None = None

    def read(self, view: View, start: int, stop: int) -> PixelBatch:
        """Samples ``start`` to ``stop``; raises DataError for a bad image unless those are to be skipped."""
        stop = min(stop, len(view.samples))
        if self.cache is None or view.is_in_memory:
            return self._make(view, start, stop)
        path = self.cache.path(view, start, stop, self.config)
        batch = self._kept(path, view, start, stop)
        if batch is None:
            with self.cache.lock(path):
                batch = self._kept(path, view, start, stop)
                if batch is None:
                    batch = self._make(view, start, stop)
                    self.cache.write(path, batch)
        if batch.skipped and self.on_bad_image == "error":
            raise _unusable(next(iter(batch.skipped.values())))
        return batch

    def ahead(self, view: View, ranges: Iterable[tuple[int, int]]) -> Iterator[PixelBatch]:
        """Chunks in order, each read while the one before is used; two are in memory at once."""
        return ahead(self.read(view, start, stop) for start, stop in ranges)

    def _kept(self, path: Path, view: View, start: int, stop: int) -> PixelBatch | None:
        """A chunk of the cache, where it has one of these samples."""
        height, width = self.config.image_size
        most = _MOST_SAID + (stop - start) * (_MOST_SAID + height * width * 3)
        batch = None if self.cache is None else self.cache.read(path, most)
        if batch is None or not isinstance(batch.skipped, dict):
            return None
        ids = {index: view.samples[index].id for index in range(start, stop)}
        rows = [index for index, name in ids.items() if name not in batch.skipped]
        fits = (
            batch.rows.dtype == np.int64
            and batch.rows.tolist() == rows
            and batch.pixels.dtype == np.uint8
            and batch.pixels.shape == (len(rows), *self.config.image_size, 3)
            and batch.skipped.keys() <= set(ids.values())
        )
        return batch if fits else None

    def _make(self, view: View, start: int, stop: int) -> PixelBatch:
        if isinstance(view, DrawnView):
            base = self.read(view.base, start, stop)
            drawn = [view.draw(int(row), pixels) for row, pixels in zip(base.rows, base.pixels, strict=True)]
            return PixelBatch(base.rows, np.stack(drawn) if drawn else base.pixels, base.skipped)
        rows, arrays, skipped = [], [], {}
        for index, pixels in zip(range(start, stop), self._decoded(view, start, stop), strict=True):
            if isinstance(pixels, DataError):
                if self.on_bad_image == "error":
                    raise _unusable(str(pixels)) from pixels
                skipped[view.samples[index].id] = str(pixels)
            else:
                arrays.append(pixels)
                rows.append(index)
        stacked = np.stack(arrays) if arrays else np.zeros((0, *self.config.image_size, 3), np.uint8)
        return PixelBatch(np.array(rows, dtype=np.int64), stacked, skipped)

    def _decoded(self, view: View, start: int, stop: int) -> Iterator[np.ndarray | DataError]:
        decode = partial(_decode, view, self.config)
        with ThreadPoolExecutor(DECODERS, "decode") as decoders:
            yield from decoders.map(decode, range(start, stop))


def _decode(view: View, config: Preprocess, index: int) -> np.ndarray | DataError:
    try:
        return view.cropped(index, config)
    except DataChanged:
        # No bad image: it would be left out for good of what is kept under the digest of its former content.
        raise
    except DataError as error:
        return error


def _unusable(reason: str) -> DataError:
    return DataError(f"{reason}; mend it or take it out, or leave such files out with clipq-eval's --on-bad-image skip")
