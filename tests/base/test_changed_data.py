"""Data that change while a run reads them: what is decoded is what the digest was taken of, or the run stops."""

from __future__ import annotations

import pickle
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipq.bundle import Preprocess
from clipq.data.open import open_view
from clipq.data.pixels import PixelCache, PixelReader
from clipq.data.views import choose_samples
from clipq.errors import DataChanged
from clipq.evaluate.axes.flips import write_thumbnail
from clipq.evaluate.suites.corruptions import corrupted_views

CONFIG = Preprocess(
    image_size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize_mode="squash"
)


def write_photos(root, seed):
    rng = np.random.default_rng(seed)
    for index in range(8):
        folder = root / ("cat" if index < 4 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")
    return root


def write_tar(root, photos):
    (root / "test").mkdir(parents=True, exist_ok=True)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("cat\ndog\n")
    with tarfile.open(root / "test" / "0.tar", "w") as shard:
        for path in sorted(photos.rglob("*.png")):
            (root / "label").write_text(str(int(path.parent.name == "dog")))
            shard.add(path, path.name)
            shard.add(root / "label", f"{path.stem}.cls")


def write_table(root, photos):
    datasets = pytest.importorskip("datasets")
    files = sorted(photos.rglob("*.png"))
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    # By their paths, as an image folder's table is before it is embedded.
    rows = {
        "image": [{"path": str(path), "bytes": None} for path in files],
        "label": [int(path.parent.name == "dog") for path in files],
    }
    root.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "test-0.parquet"))


@pytest.fixture(params=["folder", "csv", "tar", "table"])
def source(request, tmp_path):
    """A data set, and what puts other images in the place of its own."""
    photos, others = write_photos(tmp_path / "photos", 1), write_photos(tmp_path / "others", 2)

    def exchange():
        shutil.copytree(others, photos, dirs_exist_ok=True)

    if request.param == "tar":
        write_tar(tmp_path / "tars", photos)
        return f"wds:{tmp_path / 'tars'}", lambda: write_tar(tmp_path / "tars", others)
    if request.param == "table":
        write_table(tmp_path / "table", photos)
        return f"hf:{tmp_path / 'table'}", exchange
    if request.param == "csv":
        rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        (photos / "labels.csv").write_text("\n".join(["file,label", *rows]))
        return str(photos / "labels.csv"), exchange
    return str(photos), exchange


@pytest.mark.parametrize("bad", ["error", "skip"])
@pytest.mark.parametrize("kept", [False, True])
def test_images_that_change_after_their_digest_stop_the_run(source, bad, kept, tmp_path):
    spec, exchange = source
    view = open_view(spec)
    part = replace(choose_samples(view, 5, seed=0), name="part")
    views = [view, part, replace(view, name="renamed"), *corrupted_views(part, "contrast", (1,), seed=0)]
    before = [one.digest for one in views]
    exchange()
    cache = PixelCache(tmp_path / "pixels", 10**9) if kept else None
    for one in [*views, *pickle.loads(pickle.dumps(views))]:
        with pytest.raises(DataChanged, match=r"changed while it was read.*run again"):
            PixelReader(CONFIG, bad, cache).read(one, 0, 8)
    assert not list(tmp_path.glob("pixels/*/*.safetensors"))
    assert [one.digest for one in views] == before
    with pytest.raises(DataChanged):
        write_thumbnail(part, 0, tmp_path)
    # The next run sees the new ones.
    again = open_view(spec)
    assert again.digest != before[0] and len(PixelReader(CONFIG, bad, cache).read(again, 0, 8).rows) == 8


def test_what_was_decoded_first_is_what_the_digest_is_of(source):
    spec, exchange = source
    view = open_view(spec)
    view.image(0)
    exchange()
    with pytest.raises(DataChanged):
        view.image(0)


@pytest.mark.parametrize("how", ["link", "renamed", "written"])
def test_a_folder_that_changes_between_its_listing_and_its_digest_stops_the_run(how, tmp_path):
    first, second = write_photos(tmp_path / "first", 1), write_photos(tmp_path / "second", 2)
    link = tmp_path / "data"
    link.symlink_to(first)
    view = open_view(str(first if how == "renamed" else link))
    if how == "link":
        link.unlink()
        link.symlink_to(second)
    elif how == "renamed":
        first.rename(tmp_path / "old")
        second.rename(first)
    else:
        shutil.copytree(second, first, dirs_exist_ok=True)
    with pytest.raises(DataChanged):
        _ = view.digest


@pytest.mark.parametrize("bad", ["error", "skip"])
@pytest.mark.parametrize("when", ["before the digest", "after it"])
def test_a_file_that_is_deleted_meanwhile_is_no_bad_image(when, bad, tmp_path):
    photos = write_photos(tmp_path / "photos", 1)
    view = open_view(str(photos))
    if when == "after it":
        assert view.digest
    (photos / "cat" / "3.png").unlink()
    with pytest.raises(DataChanged, match=r"3\.png: changed.*No such file"):
        _ = view.digest
        PixelReader(CONFIG, bad).read(view, 0, 8)


def test_an_image_that_is_bad_from_the_start_is_left_out_still(tmp_path):
    photos = write_photos(tmp_path / "photos", 1)
    (photos / "cat" / "0.png").write_bytes(b"")
    view = open_view(str(photos))
    assert view.digest and list(PixelReader(CONFIG, "skip").read(view, 0, 8).skipped) == ["cat/0.png"]
    # But not one that becomes bad.
    (photos / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(DataChanged, match=r"1\.png"):
        PixelReader(CONFIG, "skip").read(view, 0, 8)
