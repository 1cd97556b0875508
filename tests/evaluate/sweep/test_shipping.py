"""Bundles through a store: fetched by many processes at once, checked, and told when they are damaged."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from support import DEMO_BUNDLE

from clipq.errors import BundleError
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import Subject, gather_cohort
from clipq.evaluate.settings import Settings
from clipq.evaluate.sweep import shipping

PROCESSES, ROUNDS = 12, 6


class Shelf(LocalFileSystem):
    """A store that several processes of this machine see, under a scheme of its own."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("shelf:/"))

    def pipe_file(self, path, value, **options):
        self.makedirs(self._parent(path), exist_ok=True)
        super().pipe_file(path, value, **options)


@pytest.fixture
def storage(tmp_path):
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    return Storage(f"shelf:/{tmp_path}/store")


@pytest.fixture
def sent(tmp_path, storage, monkeypatch):
    """A subject whose bundle is in the store and no longer where it was made."""
    shutil.copytree(DEMO_BUNDLE, tmp_path / "made" / "fp32")
    (subject,) = gather_cohort([tmp_path / "made" / "fp32"], Settings(threads=1)).subjects
    shipping.ship(subject.bundle, storage)
    shutil.rmtree(tmp_path / "made")
    monkeypatch.setattr(shipping, "FETCHED", tmp_path / "fetched")
    return subject


def fetch(subject: Subject, storage: Storage, together, told) -> None:
    for number in range(ROUNDS):
        shipping.FETCHED = shipping.FETCHED.parent / f"round-{number}"
        together.wait()
        try:
            there = shipping.fetched(subject, storage)
            there.bundle.verify()
            told.put("" if there.bundle.digest == subject.bundle.digest else "another bundle")
        except BaseException as error:
            told.put(f"{type(error).__name__}: {error}")


def test_many_processes_fetch_one_bundle(sent, storage, tmp_path):
    context = multiprocessing.get_context("fork")
    together, told = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=fetch, args=(sent, storage, together, told)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    said = [told.get(timeout=120) for _ in range(PROCESSES * ROUNDS)]
    for process in processes:
        process.join()
    assert said == [""] * (PROCESSES * ROUNDS)
    for number in range(ROUNDS):
        (folder,) = (tmp_path / f"round-{number}").iterdir()
        assert [path.name for path in folder.iterdir()] == ["fp32"]


def test_what_a_killed_fetch_left_is_removed_by_the_next_one(sent, storage, tmp_path):
    left = [tmp_path / "fetched" / digest / ".clipq-fetching-1" / "fp32" for digest in ("old", "new")]
    for path in left:
        path.mkdir(parents=True)
    os.utime(left[0].parent, (time.time() - 8 * 24 * 3600,) * 2)
    shipping.fetched(sent, storage)
    assert [path.is_dir() for path in left] == [False, True]


def test_a_damaged_bundle_in_the_store_is_not_kept(sent, storage, tmp_path):
    stored = tmp_path / "store" / "bundles" / sent.bundle.digest
    whole = (stored / "image.onnx").read_bytes()
    for damaged in (whole[:-9], whole[:100] + b"x" + whole[101:]):
        (stored / "image.onnx").write_bytes(damaged)
        with pytest.raises(BundleError, match="is damaged; delete it from the store"):
            shipping.fetched(sent, storage)
    assert not list((tmp_path / "fetched").rglob("*.onnx"))
    (stored / "image.onnx").unlink()
    with pytest.raises(BundleError, match="is not in the store"):
        shipping.fetched(sent, storage)
    (stored / "image.onnx").write_bytes(whole)
    there = shipping.fetched(sent, storage)
    assert there.bundle.path == tmp_path / "fetched" / sent.bundle.digest / "fp32"


def test_what_was_fetched_and_changed_is_refused(sent, storage):
    there = shipping.fetched(sent, storage)
    shipping._opened.cache_clear()
    (there.bundle.path / "text.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="it is fetched again"):
        shipping.fetched(sent, storage)


def test_a_machine_that_cannot_keep_bundles_says_so(sent, storage, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(shipping, "FETCHED", tmp_path / "file" / "below")
    with pytest.raises(BundleError, match="engines cannot be kept there"):
        shipping.fetched(sent, storage)
