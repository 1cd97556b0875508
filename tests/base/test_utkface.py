"""UTKFace's file names."""

from __future__ import annotations

import pytest
from photos import png

from clipq.data.open import open_view
from clipq.errors import DataError


def test_utkface(tmp_path):
    for number, name in enumerate(("23_0_1_201701", "41_1_0_201702", "8_1_4_201703", "67_0_3_201704")):
        (tmp_path / f"{name}.jpg").write_bytes(png(number))
    view = open_view(f"utkface:{tmp_path}")
    assert view.classes.names == ("male", "female") and [sample.label for sample in view.samples] == [0, 1, 0, 1]
    assert view.samples[0].groups == {"gender": "male", "race": "Black", "age": "20-29"}
    assert open_view(f"utkface:{tmp_path}", "images").classes is None
    (tmp_path / "odd.jpg").write_bytes(png(0))
    with pytest.raises(DataError, match="AGE_GENDER_RACE"):
        open_view(f"utkface:{tmp_path}")
