"""Pixels decoded once: for a second reader, another process, a corrupted view; and what a full cache does."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clipq.ahead import ahead
from clipq.bundle import Preprocess
from clipq.data.open import open_view
from clipq.data.pixels import PixelCache, PixelReader
from clipq.data.views import FileView, choose_samples
from clipq.errors import DataError
from clipq.evaluate.suites.corruptions import corrupted_views
from clipq.preprocess import normalize, preprocess

CONFIG = Preprocess(
    image_size=(32, 32), mean=(0.48, 0.45, 0.4), std=(0.26, 0.26, 0.27), interpolation="bicubic", resize_mode="shortest"
)
CHUNK_BYTES = 8 * 32 * 32 * 3


@pytest.fixture
def photos(tmp_path):
    """Sixteen photos of two classes, the last of them broken."""
    rng = np.random.default_rng(0)
    for index in range(16):
        folder = tmp_path / "photos" / ("cat" if index < 8 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{index:02d}.png")
    (tmp_path / "photos" / "dog" / "15.png").write_bytes(b"no image")
    return open_view(str(tmp_path / "photos"))


@pytest.fixture
def decoded(monkeypatch):
    """The indices that were decoded, in order."""
    seen = []
    original = FileView.image
    monkeypatch.setattr(FileView, "image", lambda self, index: seen.append(index) or original(self, index))
    return seen


def reader(folder, capacity=10**8, bad="skip", since=None):
    cache = PixelCache(folder, capacity, time.time() if since is None else since)
    return PixelReader(CONFIG, bad, cache)


def test_what_comes_from_the_cache_is_what_was_decoded(photos, tmp_path, decoded):
    plain = PixelReader(CONFIG, "skip").read(photos, 0, 16)
    first = reader(tmp_path / "cache").read(photos, 0, 16)
    decoded.clear()
    second = reader(tmp_path / "cache").read(photos, 0, 16)
    assert decoded == []
    for batch in (first, second):
        assert (batch.pixels == plain.pixels).all() and (batch.rows == plain.rows).all()
        assert batch.skipped == plain.skipped and list(plain.skipped) == ["dog/15.png"]


def test_checkpoints_that_differ_in_normalization_alone_share_pixels(photos, tmp_path, decoded):
    reader(tmp_path).read(photos, 0, 16)
    decoded.clear()
    cache = PixelCache(tmp_path, 10**8)
    PixelReader(CONFIG.model_copy(update={"mean": (0.5, 0.5, 0.5)}), "skip", cache).read(photos, 0, 16)
    assert decoded == []
    PixelReader(CONFIG.model_copy(update={"interpolation": "bilinear"}), "skip", cache).read(photos, 0, 16)
    assert len(decoded) == 16


def test_a_bad_image_is_an_error_from_the_cache_too(photos, tmp_path):
    reader(tmp_path).read(photos, 0, 16)
    with pytest.raises(DataError, match=r"15\.png.*--on-bad-image skip"):
        reader(tmp_path, bad="error").read(photos, 0, 16)


def test_corruptions_are_drawn_from_decoded_pixels_and_kept(photos, tmp_path, decoded):
    part = choose_samples(photos, 12, seed=0)
    views = [view for name in ("contrast", "shot_noise") for view in corrupted_views(part, name, (1, 5), seed=0)]
    expected = [PixelReader(CONFIG, "skip").read(view, 0, 12).pixels for view in views]
    decoded.clear()
    for view, pixels in zip(views, expected, strict=True):
        assert (reader(tmp_path).read(view, 0, 12).pixels == pixels).all()
    assert len(decoded) == 12
    first = views[0].cropped(0, CONFIG)
    assert (first == expected[0][0]).all()


def test_a_full_cache_keeps_what_it_has_used_and_evicts_what_it_has_not(photos, tmp_path):
    capacity = 2 * (CHUNK_BYTES + 1000)
    cache, begun = tmp_path / "cache", time.time()
    reader(cache, capacity, since=begun).read(photos, 0, 8)
    reader(cache, capacity, since=begun).read(photos, 8, 16)
    first, second = sorted(cache.glob("*/*.safetensors"))
    # A view that does not fit does not push its own beginning out.
    reader(cache, capacity, since=begun).read(photos, 4, 12)
    assert sorted(cache.glob("*/*.safetensors")) == [first, second]
    # A later run takes the room of what nobody used since it began, the oldest first.
    os.utime(first, (begun - 100, begun - 100))
    os.utime(second, (begun - 50, begun - 50))
    reader(cache, capacity, since=begun - 10).read(photos, 4, 12)
    assert not first.exists() and second.exists() and len(list(cache.glob("*/*.safetensors"))) == 2
    assert sum(path.stat().st_size for path in cache.glob("*/*.safetensors")) <= capacity


def test_a_damaged_chunk_is_made_again(photos, tmp_path):
    good = reader(tmp_path).read(photos, 0, 8)
    (chunk,) = tmp_path.glob("*/*.safetensors")
    chunk.write_bytes(chunk.read_bytes()[:-100])
    assert (reader(tmp_path).read(photos, 0, 8).pixels == good.pixels).all()
    assert (reader(tmp_path).read(photos, 0, 8).pixels == good.pixels).all()


def test_a_cache_that_cannot_be_written_is_only_slower(photos, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    plain = PixelReader(CONFIG, "skip").read(photos, 0, 8)
    assert (reader(blocked / "cache").read(photos, 0, 8).pixels == plain.pixels).all()


READ_IN_PROCESS = """
import sys
from pathlib import Path
from clipq.ahead import ahead
from clipq.bundle import Preprocess
from clipq.data.pixels import PixelCache, PixelReader
from clipq.data.open import open_view
from clipq.data.views import FileView

seen = []
original = FileView.image
FileView.image = lambda self, index: seen.append(index) or original(self, index)
view = open_view(sys.argv[1])
reader = PixelReader(Preprocess.model_validate_json(sys.argv[3]), "skip", PixelCache(Path(sys.argv[2]), 10**8))
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 16, 4):
    reader.read(view, start, start + 4)
print(len(seen))
"""


def test_processes_that_want_the_same_decode_it_once(photos, tmp_path):
    command = [sys.executable, "-c", READ_IN_PROCESS, str(tmp_path / "photos"), str(tmp_path / "cache")]
    command.append(CONFIG.model_dump_json())
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert sum(int(worker.communicate(timeout=60)[0]) for worker in workers) == 16


def test_reading_ahead_gives_the_chunks_in_order_and_raises_where_it_is_used(photos):
    ranges = [(0, 6), (6, 12), (12, 16)]
    rows = [batch.rows.tolist() for batch in PixelReader(CONFIG, "skip").ahead(photos, ranges)]
    assert rows == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14]]
    chunks = PixelReader(CONFIG, "error").ahead(photos, ranges)
    assert len(next(chunks).rows) == 6
    with pytest.raises(DataError, match=r"15\.png"):
        list(chunks)


def test_normalizing_a_stack_is_normalizing_each(photos):
    batch = PixelReader(CONFIG, "skip").read(photos, 0, 8)
    together = normalize(batch.pixels, CONFIG)
    for row, one in zip(batch.rows, together, strict=True):
        assert (preprocess(photos.image(int(row)), CONFIG) == one).all()
        scaled = batch.pixels[row].astype(np.float32) / np.float32(255)
        expected = (scaled - np.array(CONFIG.mean, np.float32)) / np.array(CONFIG.std, np.float32)
        assert (one == np.moveaxis(expected, -1, 0)).all()


def test_ahead_ends_at_the_end_and_not_at_nothing():
    assert list(ahead([1, None, 2])) == [1, None, 2] and list(ahead([])) == []
