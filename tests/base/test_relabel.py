"""Classes of another view."""

from __future__ import annotations

import pytest
from photos import image_folder

from clipq.data.open import open_view
from clipq.data.relabel import restrict_classes
from clipq.errors import DataError


def test_classes_of_another_view_by_key_and_by_map(tmp_path):
    inside = image_folder(tmp_path / "imagenet", ("n01", "n02", "n03", "n04"), each=2)
    (inside / "classnames.txt").write_text("tench\ngoldfish\nshark\nray\n")
    inside = open_view(str(inside))
    subset = restrict_classes(open_view(str(image_folder(tmp_path / "a", ("n02", "n04"), each=2))), inside, None)
    assert subset.classes.names == ("goldfish", "ray") and subset.classes.label_of_class == (0, 1)
    other = open_view(str(image_folder(tmp_path / "objects", ("fish", "flat"), each=2)))
    with pytest.raises(DataError, match="'fish' is no class of"):
        restrict_classes(other, inside, None)
    (tmp_path / "map.csv").write_text("label,class\nfish,tench\nfish,n02\nflat,ray\n")
    joined = restrict_classes(other, inside, tmp_path / "map.csv")
    assert joined.classes.names == ("tench", "goldfish", "ray") and joined.classes.label_of_class == (0, 0, 1)
    (tmp_path / "map.csv").write_text("label,class\nfish,tench\n")
    with pytest.raises(DataError, match="says nothing about label 'flat'"):
        restrict_classes(other, inside, tmp_path / "map.csv")


def test_numbers_of_another_data_set_are_other_classes(tmp_path, caplog):
    """Both count their classes from 0 on."""
    keys = ("0", "1", "2")
    for name, names in (("in", "cat\ndog\nfox\n"), ("out", "dog\ncat\nfox\n"), ("like", "tabby\ndog\nfox\n")):
        root = image_folder(tmp_path / name, keys, each=1)
        (root / "classnames.txt").write_text(names)
    inside, swapped, like = (open_view(str(tmp_path / name)) for name in ("in", "out", "like"))
    with pytest.raises(DataError, match=r"label '0' is 'dog', in .*in it is 'cat'; give a label_map"):
        restrict_classes(swapped, inside, None)
    (tmp_path / "map.csv").write_text("label,class\n0,dog\n1,cat\n2,fox\n")
    assert restrict_classes(swapped, inside, tmp_path / "map.csv").classes.names == ("dog", "cat", "fox")
    assert restrict_classes(like, inside, None).classes.names == ("cat", "dog", "fox")
    assert "its label 0 is 'tabby'" in caplog.text


def test_classes_of_a_view_whose_labels_are_several_classes(tmp_path):
    """A shifted set of ObjectNet, say, which counts several of ImageNet's classes as one label: all of them are meant."""
    imagenet = open_view(str(image_folder(tmp_path / "imagenet", ("n01", "n02", "n03", "n04"), each=1)))
    (tmp_path / "map.csv").write_text("label,class\nfish,n01\nfish,n02\nflat,n03\n")
    objects, shifted = (open_view(str(image_folder(tmp_path / name, ("fish", "flat"), each=1))) for name in "ab")
    objects = restrict_classes(objects, imagenet, tmp_path / "map.csv")
    assert restrict_classes(shifted, objects, None).classes == objects.classes
    (tmp_path / "map.csv").write_text("label,class\nfish,flat\nflat,fish\n")
    crossed = restrict_classes(shifted, objects, tmp_path / "map.csv").classes
    assert (crossed.names, crossed.label_of_class) == (("n03", "n01", "n02"), (0, 1, 1))
    # A class of several by its own name, and a label that means another one there.
    (tmp_path / "map.csv").write_text("label,class\nfish,n02\nflat,n03\n")
    assert restrict_classes(shifted, objects, tmp_path / "map.csv").classes.names == ("n02", "n03")
    (tmp_path / "a" / "classnames.txt").write_text("n03\nsole\n")
    with pytest.raises(DataError, match=r"label 'fish' is 'n03', in .* it is 'n01' or 'n02'; give a label_map"):
        restrict_classes(open_view(str(tmp_path / "a")), objects, None)
