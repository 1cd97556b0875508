"""Calibration sets are read as data sources are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from photos import image_folder, png

from clipq.errors import DataError
from clipq.exporters.calibration_set import open_calibration_set

BUNDLE = SimpleNamespace(prompts=SimpleNamespace(templates={"simple-7": ("a {}.", "the {}.")}))


@pytest.fixture
def root(tmp_path):
    return image_folder(tmp_path / "set", ("dog", "sea_horse"), each=2)


def test_images_and_texts_of_class_folders(root, caplog):
    (root / "dog" / "x.JFIF").write_bytes(png(1))
    for name in ("._0.png", "Thumbs.db"):
        (root / "dog" / name).write_text("x")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "y.png").write_bytes(png(1))
    found = open_calibration_set(root, BUNDLE)
    assert len(found.images) == 5 and found.texts == ("a dog.", "the dog.", "a sea horse.", "the sea horse.")
    assert "3 files are no images and are left out: '__MACOSX'" in caplog.text


def test_captions(root, caplog):
    (root / "captions.csv").write_text('file,caption\ndog/0.png,"a dog, white"\ndog/0.png,a dog\n')
    assert open_calibration_set(root, BUNDLE).texts == ("a dog, white", "a dog") and not caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,caption\ndog/0.png,a dog, white\n", "line 2 has 3 cells"),
        ("file,caption\ndog/0.png\n", "line 2 has 1 cells"),
        ('file,caption\ndog/0.png,"a dog\ndog/1.png,a dog\n', "line 2 is no CSV"),
        ("file,caption\ndog/0.png,\n", "line 2 has an empty caption"),
        ("file,text\ndog/0.png,a dog\n", "has no column 'caption'"),
        ("file,caption\ndog/9.png,a dog\n", "names dog/9.png, which is no file"),
        ("file,caption\n", "has no rows"),
        ("file,caption\ndog/0.png,caf\u00e9\n", "line 2 is not UTF-8"),
    ],
)
def test_captions_that_do_not_fit_are_refused(root, content, words):
    (root / "captions.csv").write_bytes(content.encode("cp1252"))
    with pytest.raises(DataError, match=words):
        open_calibration_set(root, BUNDLE)


def test_links_to_nothing_are_refused(root):
    (root / "dog" / "gone.png").symlink_to(root / "nothing")
    with pytest.raises(DataError, match=r"gone\.png: is a link to nothing"):
        open_calibration_set(root, BUNDLE)
