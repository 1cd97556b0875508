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
