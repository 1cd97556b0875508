from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, export

from clipq.errors import ClipqError
from clipq.files import directory_in_making, packed


def make(target):
    with directory_in_making(target) as folder:
        (folder / "clipq.json").write_text("{}")


def test_a_folder_of_an_earlier_run_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "new", "empty"):
        make(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_a_folder_of_someone_else_is_not(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(ClipqError, match="was not made by clipq"):
            make(tmp_path / name)
    assert (tmp_path / "photos" / "a.jpg").is_file() and len(list(tmp_path.iterdir())) == 2


def test_on_the_command_line(tmp_path):
    photos = tmp_path / "fp16"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"x")
    assert_refused(export("quantize", str(DEMO_BUNDLE), "--recipe", "fp16", "-o", str(tmp_path)), "not made by clipq")
    attack = export("attack", "demo", "--data", "demo:test", "-o", str(CALIBRATION))
    assert_refused(attack, "not made by clipq")
    assert (photos / "a.jpg").is_file() and (CALIBRATION / "captions.csv").is_file()


def test_arrays_come_back_in_the_order_of_their_axes():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    assert not array.flags.c_contiguous
    back = load(packed({"turned": array, "sliced": array[::2]}, {"said": "so"}))
    assert (back["turned"] == array).all() and (back["sliced"] == array[::2]).all()
