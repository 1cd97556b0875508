from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import load, save
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, export

from clipq.bundle import open_bundle
from clipq.errors import ClipqError
from clipq.files import remove_stale, write_atomic
from clipq.making import check_target, directory_in_making, restore
from clipq.packed import Damaged, packed, unpacked


def make(target):
    with directory_in_making(target) as folder:
        (folder / "clipq.json").write_text("{}")


def test_a_folder_of_an_earlier_run_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "new", "empty"):
        make(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


# Makes TARGET, and dies at the Nth time that it changes anything in the file system.
DYING = """
import os, signal, sys
from pathlib import Path
from clipq.making import directory_in_making

left = int(sys.argv[2])

def hook(event, arguments):
    global left
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
with directory_in_making(Path(sys.argv[1])) as folder:
    for name in ("a", "b", "clipq.json"):
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("old", [True, False])
def test_killed_at_any_step_the_old_folder_or_the_new_one_is_there_and_whole(tmp_path, old):
    target, contents = tmp_path / "bundle", set()
    for step in range(1, 40):
        make(target)
        if not old:
            (target / "clipq.json").unlink()
        done = subprocess.run([sys.executable, "-c", DYING, str(target), str(step)], check=False)
        restore(target)
        found = {path.name: path.read_text() for path in target.iterdir()}
        assert found in ({"clipq.json": "{}"} if old else {}, dict.fromkeys(("a", "b", "clipq.json"), "new")), step
        contents.add(len(found))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        # The next run is not locked out, and leaves nothing of the dead one behind.
        make(target)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    else:
        raise AssertionError("it never came to an end")
    assert contents == {int(old), 3}


def test_folders_that_others_remove_while_remainders_are_looked_for_stop_nobody(tmp_path, monkeypatch):
    def vanishing(folder, pattern):
        yield from ()
        raise FileNotFoundError(2, "No such file or directory", str(folder / ".clipq-fetching-another's"))

    monkeypatch.setattr(Path, "glob", vanishing)
    remove_stale(tmp_path, "**/.clipq-fetching-*")


def test_a_folder_that_is_being_made_is_left_alone(tmp_path):
    with directory_in_making(tmp_path / "one") as making:
        make(tmp_path / "two")
        assert making.is_dir()
        (making / "clipq.json").write_text("{}")
    # Of another machine too, whose lock cannot be seen from here, unless it is very old.
    foreign = tmp_path / ".clipq-making-elsewhere-1"
    foreign.mkdir()
    make(tmp_path / "two")
    assert foreign.is_dir()
    os.utime(foreign, (time.time() - 1e6, time.time() - 1e6))
    make(tmp_path / "two")
    assert not foreign.is_dir()


def test_what_killed_writers_left_is_removed_by_the_next_one(tmp_path):
    left = [tmp_path / f".clipq-writing-{name}" for name in ("file", "folder", "link", "recent")]
    left[0].write_text("half")
    left[1].mkdir()
    left[2].symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    left[3].write_text("half")
    for path in left[:3]:
        os.utime(path, (time.time() - 8 * 24 * 3600,) * 2, follow_symlinks=False)
    write_atomic(tmp_path / "new", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".clipq-writing-recent", "kept", "new"]


def test_of_two_that_make_one_folder_the_last_one_stays(tmp_path):
    with directory_in_making(tmp_path / "one") as making:
        make(tmp_path / "one")
        (making / "clipq.json").write_text("last")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one" / "clipq.json").read_text() == "last"


def test_a_link_is_followed(tmp_path):
    make(tmp_path / "disk" / "one")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "one")
    (tmp_path / "disk" / "one" / "old").touch()
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "disk" / "one" / "old").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_mount(), reason="needs another file system")
def test_a_link_to_another_file_system_is_no_mount_point(tmp_path):
    with TemporaryDirectory(dir="/dev/shm") as other:
        (Path(other) / "one").mkdir()
        (tmp_path / "link").symlink_to(Path(other) / "one")
        check_target(tmp_path / "link")
        make(tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and any((Path(other) / "one").iterdir())
    (tmp_path / "mounted").symlink_to("/dev/shm")
    with pytest.raises(ClipqError, match="mount point"):
        check_target(tmp_path / "mounted")


def test_quantize_killed_leaves_a_good_bundle(tmp_path):
    words = ["quantize", str(DEMO_BUNDLE), "--recipe", "fp16", "-o", str(tmp_path)]
    assert export(*words).returncode == 0
    command = [sys.executable, "-m", "clipq.exporters.cli", *words]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None and not list(tmp_path.glob(".clipq-making-*/*")):
                time.sleep(0.002)
            running.kill()
        open_bundle(tmp_path / "fp16")
    assert export(*words).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fp16"]


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o022])
def test_the_umask_is_honoured(tmp_path, mask):
    before = os.umask(mask)
    try:
        make(tmp_path / "folder")
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_names_as_long_as_names_get(tmp_path):
    make(tmp_path / ("b" * 255))
    make(tmp_path / ("b" * 255))
    write_atomic(tmp_path / ("f" * 255), "x")
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["b", "f"]


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
