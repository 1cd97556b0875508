"""Every file of a folder is read, or an error, or left out with a reason."""

from __future__ import annotations

import os
import shutil

import pytest
from photos import image_folder, png
from PIL import Image

from clipq.data.image_files import find_images
from clipq.data.open import open_view
from clipq.data.views import choose_samples
from clipq.errors import DataError
from clipq.image_formats import FORMATS, SUFFIXES
from clipq.preprocess import open_image

LEFTOVERS = ("Thumbs.db", "dog/._0.png", "dog/.DS_Store", "dog/readme.txt", "dog/deep/desktop.ini")
SYSTEM = ("@eaDir", "__pycache__", "__MACOSX", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN", "dog/@eadir")


@pytest.fixture
def root(tmp_path):
    return image_folder(tmp_path / "set", ("dog", "horse"))


def test_leftovers_are_named_and_are_no_classes(root):
    (root / "dog" / "deep").mkdir()
    for name in LEFTOVERS:
        (root / name).write_text("x")
    for name in SYSTEM:
        (root / name).mkdir()
        shutil.copy(root / "dog" / "0.png", root / name / "copy.png")
    shutil.copy(root / "dog" / "0.png", root / "beside.png")
    (root / "classnames.txt").write_text("a dog\na horse\n")
    view = open_view(str(root))
    assert view.classes.names == ("a dog", "a horse") and len(view.samples) == 6
    assert set(view.left_out) == {*LEFTOVERS, *SYSTEM, "beside.png"}
    assert view.left_out["dog/readme.txt"] == "no image's suffix"
    assert choose_samples(view, 3, seed=0).left_out == view.left_out
    everything = open_view(str(root), "images")
    assert len(everything.samples) == 7 and set(everything.left_out) == {*LEFTOVERS, *SYSTEM}


def test_every_suffix_of_an_image_is_a_sample(root):
    suffixes = [suffix for of_format in FORMATS.values() for suffix in of_format]
    for number, suffix in enumerate([*suffixes, ".heic", ".JXL", ".svg", ".JPEG"]):
        (root / "dog" / f"more{number}{suffix}").write_bytes(png(0))
    view = open_view(str(root))
    assert len(view.samples) == 6 + len(suffixes) + 4 and not view.left_out


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "QOI"])
def test_every_format_is_read(tmp_path, name):
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow has no {name}")
    path = tmp_path / f"x{FORMATS[name][0]}"
    Image.linear_gradient("L").convert("RGB").save(path, name)
    assert open_image(path).size == (256, 256)


def test_two_pictures_in_a_jpeg_are_its_first(tmp_path):
    first, second = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (32, 32))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    assert open_image(tmp_path / "phone.jpg").size == (64, 64)


@pytest.mark.parametrize("name", ["EPS", "PDF", "TGA", "ICO"])
def test_a_format_off_the_list_is_not_decoded_whatever_its_name(tmp_path, name, monkeypatch):
    Image.linear_gradient("L").save(tmp_path / "x", name)
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "x").rename(tmp_path / "x.png")
    with pytest.raises(DataError, match="not an image of a format that clipq reads"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    "error", [KeyError("x"), AttributeError("x"), RuntimeError("x"), AssertionError(), TypeError()]
)
def test_whatever_a_decoder_raises_is_a_bad_image(root, error, monkeypatch):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(DataError, match="cannot be decoded"):
        open_image(root / "dog" / "0.png")


def test_colours_that_do_not_become_rgb_are_a_bad_image(tmp_path):
    Image.new("LAB", (40, 40)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="LAB pixels"):
        open_image(tmp_path / "x.tif")


def test_an_empty_class_folder_is_refused(root):
    (root / "cow").mkdir()
    (root / "cow" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=r"class folder 'cow' holds no image.*; delete it"):
        open_view(str(root))


def test_links_are_followed_but_not_in_circles(root, tmp_path):
    shutil.move(root / "horse", tmp_path / "elsewhere")
    (root / "horse").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "again").symlink_to(root)
    (root / "dog" / "link.png").symlink_to(root / "dog" / "0.png")
    view = open_view(str(root))
    assert [sample.label for sample in view.samples] == [0] * 4 + [1] * 3
    assert view.left_out == {"dog/again": "a link to a folder around it"}


@pytest.mark.parametrize("name", ["dog/none.png", "cow"])
def test_a_link_to_nothing_is_refused(root, name):
    (root / name).symlink_to(root / "nothing")
    with pytest.raises(DataError, match=f"{name}: is a link to nothing"):
        open_view(str(root))


def test_what_cannot_be_listed_is_refused(root, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match="cannot be read"):
        find_images(root)


@pytest.mark.parametrize("bad", [b"dog/caf\xe9.png", b"caf\xe9/x.png"])
def test_names_that_no_record_can_hold_are_refused(root, bad):
    path = root / os.fsdecode(bad)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(0))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match=r"caf\\udce9.* is not UTF-8; rename it"):
        open_view(str(root))
    with pytest.raises(DataError, match="is not UTF-8, so that no record can name it"):
        open_view(f"{root}\udce9")


def test_a_fifo_is_no_image(root):
    os.mkfifo(root / "dog" / "pipe.png")
    assert open_view(str(root)).left_out == {"dog/pipe.png": "no regular file"}


def test_utkface_reads_the_same(tmp_path):
    for number, name in enumerate(("23_0_1_201701.jpg", "41_1_0_201702.JPG", "8_1_4_201703.png")):
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "list.txt").write_text("x")
    view = open_view(f"utkface:{tmp_path}")
    assert len(view.samples) == 3 and set(view.left_out) == {"list.txt"}


def test_every_picture_that_pillow_knows_of_is_read_or_a_bad_one():
    Image.init()
    # Documents, films and measurements.
    others = {
        ".ps", ".pdf", ".mpg", ".mpeg", ".fli", ".flc", ".bufr", ".grib", ".h5", ".hdf", ".iim", ".gbr", ".palm",
    }  # fmt: skip
    assert set(Image.registered_extensions()) - SUFFIXES <= others
