"""Pixels decoded once: for a second reader, another process, a corrupted view; and what a full cache does."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from clipq.ahead import ahead
from clipq.bundle import Preprocess
from clipq.data.open import open_view
from clipq.data.pixels import PixelCache, PixelReader
from clipq.data.views import FileView, choose_samples
from clipq.errors import DataError
from clipq.evaluate.suites.corruptions import corrupted_views
from clipq.packed import packed, unpacked
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


def test_every_flipped_bit_of_a_chunk_is_told(photos, tmp_path, decoded):
    good = reader(tmp_path).read(photos, 8, 16)
    (chunk,) = tmp_path.glob("*/*.safetensors")
    data = chunk.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    # The length, the header with metadata and padding, then rows and pixels here and there.
    for byte in (*range(8), *range(8, start, 5), *range(start, len(data), 1999), len(data) - 1):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << byte % 8
        chunk.write_bytes(flipped)
        decoded.clear()
        again = reader(tmp_path).read(photos, 8, 16)
        assert (again.pixels == good.pixels).all() and again.skipped == good.skipped
        assert len(decoded) == 8 and chunk.read_bytes() == data


OTHERS = {
    "of an earlier layout": lambda arrays, said: save(arrays, said),
    "rows of another type": lambda arrays, said: packed(arrays | {"rows": arrays["rows"].astype(np.float16)}, said),
    "other rows": lambda arrays, said: packed(arrays | {"rows": arrays["rows"][::-1]}, said),
    "fewer rows": lambda arrays, said: packed({name: array[:3] for name, array in arrays.items()}, said),
    "pixels of another shape": lambda arrays, said: packed(arrays | {"pixels": arrays["pixels"][:, :16]}, said),
    "pixels of another type": lambda arrays, said: packed(arrays | {"pixels": arrays["pixels"] / 255}, said),
    "no pixels": lambda arrays, said: packed({"rows": arrays["rows"]}, said),
    "skipped is a list": lambda arrays, said: packed(arrays, said | {"skipped": "[[1, 2]]"}),
    "skipped is a number": lambda arrays, said: packed(arrays, said | {"skipped": "1"}),
    "skipped is no JSON": lambda arrays, said: packed(arrays, said | {"skipped": "{"}),
    "skipped names a sample that is there": lambda arrays, said: packed(
        arrays, said | {"skipped": '{"dog/08.png": ""}'}
    ),
    "another chunk": lambda arrays, said: packed(arrays, said | {"chunk": "elsewhere"}),
    "no metadata": lambda arrays, said: packed(arrays),
    "nothing": lambda arrays, said: b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_chunk_of_these_samples_is_made_again(name, photos, tmp_path):
    good = reader(tmp_path).read(photos, 8, 16)
    (chunk,) = tmp_path.glob("*/*.safetensors")
    data = chunk.read_bytes()
    chunk.write_bytes(OTHERS[name](*unpacked(data)))
    assert chunk.read_bytes() != data
    assert (reader(tmp_path).read(photos, 8, 16).pixels == good.pixels).all()
    assert chunk.read_bytes() == data


@pytest.mark.parametrize("what", ["a pipe", "a folder", "terabytes of holes"])
def test_what_stands_in_a_chunks_place_costs_time_alone(what, photos, tmp_path):
    good = reader(tmp_path).read(photos, 8, 16)
    (chunk,) = tmp_path.glob("*/*.safetensors")
    chunk.unlink()
    if what == "a pipe":
        os.mkfifo(chunk)
    elif what == "a folder":
        chunk.mkdir()
    else:
        chunk.touch()
        os.truncate(chunk, 2**42)
    assert (reader(tmp_path).read(photos, 8, 16).pixels == good.pixels).all()


@pytest.mark.parametrize("how", ["below a file", "a file", "full", "read-only", "without locks"])
def test_a_cache_that_cannot_be_written_is_only_slower_and_that_is_said(how, photos, tmp_path, monkeypatch, caplog):
    cache = tmp_path / how
    if how in ("below a file", "a file"):
        cache.write_text("no folder")
        cache = cache / "cache" if how == "below a file" else cache

    def refuse(number, *_, **__):
        raise OSError(number, os.strerror(number))

    if how == "full":
        monkeypatch.setattr("clipq.data.pixels.write_atomic", partial(refuse, errno.ENOSPC))
    if how == "read-only":
        for name in ("clipq.data.pixels.write_atomic", "clipq.data.pixels.FileLock.acquire", "os.utime"):
            monkeypatch.setattr(name, partial(refuse, errno.EROFS))
    if how == "without locks":
        monkeypatch.setattr("clipq.data.pixels.FileLock.acquire", partial(refuse, errno.ENOLCK))
    plain = PixelReader(CONFIG, "skip").read(photos, 0, 8)
    for _ in range(2):
        assert (reader(cache).read(photos, 0, 8).pixels == plain.pixels).all()
    assert len(caplog.messages) == (how != "without locks")


def test_a_warm_cache_that_may_only_be_read_is_read(photos, tmp_path, decoded, monkeypatch, caplog):
    good = reader(tmp_path).read(photos, 0, 16)
    decoded.clear()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("os.utime", "pathlib.Path.mkdir", "clipq.data.pixels.write_atomic", "clipq.data.pixels.FileLock"):
        monkeypatch.setattr(name, refuse)
    again = reader(tmp_path).read(photos, 0, 16)
    assert (again.pixels == good.pixels).all() and not decoded and not caplog.messages


def test_a_cache_may_be_deleted_at_any_time(photos, tmp_path):
    plain = PixelReader(CONFIG, "skip").read(photos, 0, 16)
    done = threading.Event()

    def delete():
        while not done.is_set():
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    deleter = threading.Thread(target=delete)
    deleter.start()
    try:
        for _ in range(40):
            read = [reader(tmp_path / "cache").read(photos, start, start + 2) for start in range(0, 16, 2)]
            assert (np.concatenate([batch.pixels for batch in read]) == plain.pixels).all()
    finally:
        done.set()
        deleter.join()


HOLD = """
import sys, time
from pathlib import Path
from clipq.data.pixels import PixelCache
with PixelCache(Path(sys.argv[1]).parent.parent, 10**8).lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_who_was_stopped_while_making_a_chunk_stops_nobody_for_long(photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("clipq.data.pixels.PATIENCE", 0.5)
    chunk = reader(tmp_path).cache.path(photos, 0, 8, CONFIG)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(chunk)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        plain = PixelReader(CONFIG, "skip").read(photos, 0, 8)
        assert (reader(tmp_path).read(photos, 0, 8).pixels == plain.pixels).all()
        assert "stopped" in caplog.text and chunk.is_file()
    finally:
        holder.kill()
        holder.communicate()


def test_nothing_but_chunks_piles_up(photos, tmp_path):
    folder = tmp_path / "cache"
    reader(folder).read(photos, 0, 8)
    (chunk,) = folder.rglob("*.safetensors")
    # What killed processes left behind, today and long ago; and a view that nobody uses any more.
    for age in (0, 10**5):
        for name in (f"{age}.lock", f".{age}.safetensors.x"):
            (chunk.parent / name).write_bytes(b"")
            os.utime(chunk.parent / name, (time.time() - age, time.time() - age))
    os.utime(chunk, (1, 1))
    reader(folder, 2 * CHUNK_BYTES).read(photos, 4, 12)
    assert sorted(path.name for path in chunk.parent.iterdir()) == [
        ".0.safetensors.x", "0.lock", "00000004-00000012.safetensors"
    ]  # fmt: skip
    (folder / "alone").mkdir()
    (folder / "alone" / chunk.name).write_bytes(bytes(CHUNK_BYTES))
    os.utime(folder / "alone" / chunk.name, (1, 1))
    reader(folder, 2 * CHUNK_BYTES).read(photos, 8, 16)
    assert not (folder / "alone").exists()


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


def test_an_image_of_an_extreme_shape_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("1", (200_000, 1)).save(tmp_path / "a/long.png")
    with pytest.raises(DataError, match=r"a/long\.png: an image of 200000x1 pixels"):
        PixelReader(CONFIG).read(open_view(str(tmp_path), "images"), 0, 1)
