"""Where cells lie: folders and stores by every kind of words, and what cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clipq.errors import ClipqError, ResultsError
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.settings import Settings
from clipq.given import as_store


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("cells", "/base/cells"),
        ("/data/cells/", "/data/cells"),
        ("./s3:x", "/base/s3:x"),
        ("my cells", "/base/my cells"),
        ("é/ü", "/base/é/ü"),
        ("file:///data/cells", "/data/cells"),
        ("file:///data/my cells/", "/data/my cells"),
        ("local:///data/cells", "/data/cells"),
        ("~/cells", str(Path("~/cells").expanduser())),
        ("memory://", "memory://"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket//", "s3://bucket"),
        ("s3://bucket/my cells/", "s3://bucket/my cells"),
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        ("unknown://x", "unknown://x"),
    ],
)
def test_a_place_is_taken_as_it_was_meant(said, meant):
    found = as_store(said, Path("/base"))
    assert found == meant and as_store(found, Path("/other")) == found
    assert Storage(found).is_remote == ("://" in meant)
    assert Settings(cells=said).within(Path("/base")).cells == meant


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "neither a folder nor a store"),
        (" s3://bucket/x", "neither"),
        ("s3://bucket/x ", "neither"),
        ("s3:/bucket/x", "neither"),
        ("s3:bucket", "neither"),
        ("file:/data", "neither"),
        ("a\nb", "neither"),
        ("a\0b", "neither"),
        ("simplecache::s3://bucket/x", "neither"),
        ("zip://a.zip::s3://bucket/x", "neither"),
        ("file://data/cells", "the whole path of a folder, as file:///FOLDER"),
        ("file://", "the whole path"),
        ("local:///", "the whole path"),
        ("http://host/x", "nothing can be kept there"),
        ("https://host/x", "nothing can be kept there"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("gs:///", "names no bucket"),
        ("~nobody-of-this-name/x", "home directory"),
    ],
)
def test_what_is_no_place_is_refused_in_one_line(said, words, tmp_path):
    with pytest.raises(ClipqError, match=words) as raised:
        as_store(said, tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(ClipqError, match="cells"):
        Settings(cells=said)


def test_a_store_says_where_it_can_be_written(tmp_path):
    for place in (tmp_path / "cells", tmp_path / "a" / "deep one"):
        Storage(str(place)).require_writable()
    Storage("memory://probe").require_writable()
    # Nothing is left of the question.
    assert list(tmp_path.iterdir()) == [] and Storage("memory://probe").tree() == {}


def test_a_store_that_takes_nothing_is_refused(tmp_path):
    (tmp_path / "file").write_text("here before")
    for place, words in (
        (str(tmp_path / "file" / "x"), "Not a directory"),
        (str(tmp_path / "file"), "cells cannot be kept there"),
        ("/proc/x/y", "cells cannot be kept there"),
        (str(tmp_path / ("x" * 300)), "name too long"),
        ("unknown://x", "Protocol not known: unknown"),
        ("zip://x", "cannot be opened"),
        ("reference://x", "cannot be opened"),
    ):
        with pytest.raises(ResultsError, match=words) as raised:
            Storage(place).require_writable()
        assert "\n" not in str(raised.value)
    assert (tmp_path / "file").read_text() == "here before"


def test_a_store_whose_library_is_missing_names_it(monkeypatch):
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(ResultsError, match="Install s3fs"):
        Storage("s3://bucket/x").require_writable()


def test_what_is_read_and_written_is_the_same_in_folders_and_stores(tmp_path):
    for storage in (Storage(str(tmp_path / "cells")), Storage("memory://same"), Storage("memory://")):
        storage.write("a/1", b"one")
        storage.write("a/2", b"two")
        storage.write("b/c/3", b"")
        assert storage.read("a/1") == b"one" and storage.read("b/c/3") == b""
        assert storage.names("a") == {"1", "2"} and storage.names("nowhere") == set()
        assert storage.tree()["a"] == {"1", "2"}
        with pytest.raises(FileNotFoundError):
            storage.read("a/3")
