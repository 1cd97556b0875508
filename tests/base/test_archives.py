"""Webdataset tars, from disk and over real HTTP."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
from photos import png

from clipq.data import downloads
from clipq.data.open import open_view
from clipq.demo import world
from clipq.errors import DataError

NAMES = ("circle", "ring", "star")


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def shards(root, label=".cls", count=2):
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text(f"{count}\n")
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    for shard in range(count):
        with tarfile.open(root / "test" / f"{shard}.tar", "w") as tar:
            for index in range(6):
                add(tar, f"s{shard}{index}.png", png(6 * shard + index))
                text = str(index % 3) if label == ".cls" else f"first of {index}\nsecond of {index}\n"
                add(tar, f"s{shard}{index}{label}", text.encode())
    return root


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Fails the first requests for a file, then serves it; counts what was asked."""

    failures = 0
    asked: list[str]

    def do_GET(self):
        type(self).asked.append(self.path)
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    Flaky.failures, Flaky.asked = 0, []
    handler = functools.partial(Flaky, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_webdataset_from_a_folder(tmp_path):
    view = open_view(f"wds:{shards(tmp_path / 'wds_set')}")
    assert view.name == "wds_set" and len(view.samples) == 12 and view.classes.names == NAMES
    assert [sample.label for sample in view.samples] == [0, 1, 2] * 4
    assert view.classes.templates == ("a photo of a {}.",)
    assert (np.asarray(view.image(7)) == world.sample("test", 7)[1]).all()
    assert len(set(view.image_digests)) == 12


def test_webdataset_over_http_is_kept(tmp_path, server):
    shards(tmp_path / "set")
    Flaky.failures = 2
    view = open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    local = open_view(f"wds:{tmp_path / 'set'}")
    assert view.digest == local.digest and view.classes == local.classes
    before = len(Flaky.asked)
    again = open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    assert again.digest == view.digest and len(Flaky.asked) == before


def test_dead_and_wrong_addresses(tmp_path, server):
    with pytest.raises(DataError, match="--fetch allows downloads"):
        open_view(f"wds:{server}/set")
    Flaky.failures = 99
    with pytest.raises(DataError, match=r"could not be fetched in 4 attempts \(503"):
        open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    assert len(Flaky.asked) == 4
    Flaky.failures = 0
    with pytest.raises(DataError, match=r"has no test/nshards.txt"):
        open_view(f"wds:{server}/nothing", cache=tmp_path / "cache")
    with pytest.raises(DataError, match="could not be fetched in 4 attempts"):
        open_view("wds:http://127.0.0.1:9/set", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar"))


@pytest.mark.parametrize(
    "name", ["test/nshards.txt", "test/0.tar", "classnames.txt", "zeroshot_classification_templates.txt"]
)
@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><title>Log in {}</title>",
        b"\n <HTML>{}",
        b"<!-- {} --><html>",
        b"<Error>{}</Error>",
        b"\x1f\x8b\x08{}",
        b'{"error": "rate limit {}"}',
        b"",
    ],
)
def test_what_a_server_sends_in_place_of_a_file_is_not_kept(tmp_path, server, name, page):
    place = shards(tmp_path / "set") / name
    good = place.read_bytes()
    place.write_bytes(page)
    if page or name in ("test/nshards.txt", "test/0.tar"):
        with pytest.raises(DataError, match=rf"{server}/set/{name}: "):
            open_view(f"wds:{server}/set", cache=tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob(place.name))
    place.write_bytes(good)
    assert len(open_view(f"wds:{server}/set", cache=tmp_path / "cache").samples) == 12


def test_a_cut_shard_of_a_server(tmp_path, server):
    root = shards(tmp_path / "set")
    good = (root / "test" / "1.tar").read_bytes()
    (root / "test" / "1.tar").write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=rf"{server}/set/test/1\.tar: is truncated inside"):
        open_view(f"wds:{server}/set", cache=tmp_path / "cache")
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["0.tar", "nshards.txt"]


def test_hostile_and_broken_tars(tmp_path):
    root = shards(tmp_path / "set")
    good = (root / "test" / "1.tar").read_bytes()
    with tarfile.open(root / "test" / "1.tar", "w") as tar:
        add(tar, "../../escape.png", png(0))
    with pytest.raises(DataError, match="points outside the archive"):
        open_view(f"wds:{root}")
    for length in (700, len(good) // 2, 100):
        (root / "test" / "1.tar").write_bytes(good[:length])
        with pytest.raises(DataError, match=r"1\.tar: is (truncated|no readable tar)"):
            open_view(f"wds:{root}")
    (root / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"test/1\.tar is missing"):
        open_view(f"wds:{root}")


def test_webdataset_labels_and_captions(tmp_path):
    root = shards(tmp_path / "set", label=".txt")
    with pytest.raises(DataError, match=r"no \.cls with a class index"):
        open_view(f"wds:{root}")
    view = open_view(f"wds:{root}", "captions")
    assert view.samples[1].captions == ("first of 1", "second of 1") and view.classes is None
    other = shards(tmp_path / "other")
    (other / "classnames.txt").write_text("circle\nring\n")
    with pytest.raises(DataError, match="has class 2"):
        open_view(f"wds:{other}")
