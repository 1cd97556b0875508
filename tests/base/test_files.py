from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, export

from clipq.errors import ClipqError
from clipq.files import Damaged, directory_in_making, packed, unpacked


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


ARRAYS = {"rows": np.arange(3), "features": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)}
SAID = {"skipped": '{"a\\"sha256\\":\\"é": "why"}', "cell": "x"}


def test_packed_arrays_come_back_and_are_the_same_bytes_each_time():
    data = packed(ARRAYS, SAID)
    assert data == packed(dict(reversed(ARRAYS.items())), dict(reversed(SAID.items())))
    arrays, said = unpacked(data)
    assert said == SAID and all((arrays[name] == array).all() for name, array in ARRAYS.items())
    assert (load(data)["features"] == ARRAYS["features"]).all()


def test_every_bit_of_packed_arrays_is_told():
    data = packed(ARRAYS, SAID)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        for unsealed in (None, SAID.keys()):
            with pytest.raises(Damaged):
                unpacked(bytes(flipped), unsealed)
    for cut in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(Damaged):
            unpacked(data[:cut])
    with pytest.raises(Damaged):
        unpacked(data + b"\0")


def test_arrays_without_a_checksum_are_read_where_they_are_from_before():
    old = save(ARRAYS, SAID)
    assert unpacked(old, SAID.keys())[1] == SAID
    for unsealed in (None, frozenset(), {"skipped"}):
        with pytest.raises(Damaged, match="no checksum"):
            unpacked(old, unsealed)
    assert unpacked(save(ARRAYS), frozenset())[1] == {}
    for unsealed in (None, SAID.keys()):
        with pytest.raises(Damaged):
            unpacked(save(ARRAYS), unsealed)
