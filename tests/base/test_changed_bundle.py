"""A bundle that is exchanged after it was opened: its numbers must not be kept under the old digest."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from support import CALIBRATION, DEMO_BUNDLE

from clipq import bundle as module
from clipq.bundle import Bundle, open_bundle
from clipq.engines.catalog import open_engine
from clipq.errors import BundleError, DataChanged
from clipq.exporters.calibration_set import open_calibration_set


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(DEMO_BUNDLE, tmp_path / "fp32")


def write_other(path, how):
    """Other content of the same size: written in place, or renamed in."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    if how == "renamed":
        (path.parent / "new").write_bytes(data)
        (path.parent / "new").rename(path)
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["written", "renamed"])
@pytest.mark.parametrize("file", ["image", "text", "tokenizer", "prompts"])
def test_an_exchanged_file_is_not_read(copy, file, how):
    bundle = open_bundle(copy)
    write_other(copy / getattr(bundle.manifest, file).file, how)
    for one in (bundle, pickle.loads(pickle.dumps(bundle))):
        with pytest.raises(BundleError, match="does not match the digest"):
            open_engine(one, "image", "ort-cpu")
        # Read, and checked, when it was opened.
        assert one.prompts == bundle.prompts


def test_a_file_that_is_exchanged_while_it_is_loaded_is_told(copy, monkeypatch):
    from clipq.engines import ort

    bundle, make = open_bundle(copy), ort.make_session

    def exchanging(path, *arguments):
        session = make(path, *arguments)
        write_other(copy / bundle.manifest.text.file, "renamed")
        return session

    monkeypatch.setattr(ort, "make_session", exchanging)
    with pytest.raises(BundleError, match="does not match the digest"):
        open_engine(bundle, "text", "ort-cpu")


def test_a_linked_bundle_that_leads_elsewhere_is_told(copy, tmp_path):
    other = shutil.copytree(copy, tmp_path / "other")
    write_other(other / "image.onnx", "written")
    (tmp_path / "link").symlink_to(copy)
    bundle = open_bundle(tmp_path / "link")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(BundleError, match=r"image\.onnx does not match"):
        open_engine(bundle, "image", "ort-cpu")


def test_the_same_content_is_digested_again_and_read(copy, monkeypatch):
    bundle = open_bundle(copy)
    digested = []
    original = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda path: digested.append(path.name) or original(path))
    open_engine(bundle, "image", "ort-cpu").close()
    assert digested == []
    os.utime(copy / "image.onnx")
    for _ in range(2):
        open_engine(bundle, "image", "ort-cpu").close()
    assert digested.count("image.onnx") == 1


def test_a_bundles_digest_is_of_the_manifest_that_was_read(copy):
    bundle, digest = open_bundle(copy), open_bundle(copy).digest
    (copy / "clipq.json").write_text("{}")
    assert bundle.digest == digest


def test_ranges_are_of_the_images_that_the_manifest_names(tmp_path):
    folder = shutil.copytree(CALIBRATION, tmp_path / "set")
    bundle = open_bundle(DEMO_BUNDLE)
    before = open_calibration_set(folder, bundle).digest()
    calibration = open_calibration_set(folder, bundle)
    feeds = calibration.feeds(bundle, "image", lambda count: None)
    next(feeds)
    for path in calibration.images:
        Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(path)
    with pytest.raises(DataChanged):
        list(feeds)
    assert open_calibration_set(folder, bundle).digest() != before
    # What was measured on has the digest that it had then.
    calibration = open_calibration_set(folder, bundle)
    list(calibration.feeds(bundle, "image", lambda count: None))
    shutil.copytree(CALIBRATION, folder, dirs_exist_ok=True)
    assert calibration.digest() != before


def test_a_bundle_that_is_replaced_by_another_while_it_is_opened(copy, monkeypatch):
    """As two processes that make the same one do: what is there then is whole too."""
    verify, seen = Bundle.verify, []

    def replaced(bundle):
        verify(bundle)
        if not seen:
            shutil.copytree(bundle.path, bundle.path.with_name("new"))
            (bundle.path / "clipq.json").rename(bundle.path / "old.json")
            (bundle.path.with_name("new") / "clipq.json").rename(bundle.path / "clipq.json")
        seen.append(bundle)

    monkeypatch.setattr(Bundle, "verify", replaced)
    assert open_bundle(copy).digest and len(seen) == 2
