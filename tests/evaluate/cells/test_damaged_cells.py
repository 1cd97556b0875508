"""Cells that are not what was stored: told, whatever bit it is, and made again in the same run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save
from support import DEMO_BUNDLE, assert_refused, evaluate

from clipq.errors import ResultsError
from clipq.evaluate.cells.cells import open_cell
from clipq.evaluate.cells.storage import Storage
from clipq.packed import packed, unpacked

RNG = np.random.default_rng(0)
SUITE = """
templates = "simple-7"
[[view]]
source = "demo:test:n=48"
[[view]]
name = "pairs"
source = "demo:test:n=24"
role = "retrieval"
[[square]]
of = "demo-test"
epsilons = [4]
queries = 3
samples = 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with cells of every kind, and the words of its command but for where it writes."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "suite.toml").write_text(SUITE)
    words = ["run", str(DEMO_BUNDLE), "--suite", str(folder / "suite.toml"), "--no-bench", "-o"]
    done = evaluate(*words, str(folder / "out"))
    assert done.returncode == 0, done.stderr
    return folder / "out", words


def content(results):
    return {
        path.relative_to(results): path.read_bytes()
        for path in (results / "results.csv", *results.glob("cells/*/*.safetensors"))
    }


def flipped(data, byte):
    data = bytearray(data)
    data[byte] ^= 1 << byte % 8
    return bytes(data)


@pytest.mark.parametrize("how", ["a bit of the tensors", "a bit of the header", "an earlier version", "empty", "gone"])
def test_a_damaged_chunk_of_every_kind_of_cell_is_made_again_in_the_same_run(how, run, tmp_path):
    results, words = run
    expected = content(results)
    copy = shutil.copytree(results, tmp_path / "out")
    chunks = sorted(copy.glob("cells/*/*.safetensors"))
    assert len({chunk.parent for chunk in chunks}) == 5
    for chunk in chunks:
        data = chunk.read_bytes()
        if how == "gone":
            chunk.unlink()
            continue
        chunk.write_bytes(
            {
                "a bit of the tensors": flipped(data, len(data) - 3),
                "a bit of the header": flipped(data, 40),
                "an earlier version": save(unpacked(data)[0], {"skipped": "{}"}),
                "empty": b"",
            }[how]
        )
    done = evaluate(*words, str(copy))
    assert done.returncode == 0, done.stderr
    assert content(copy) == expected
    assert done.stderr.count("made again") == (0 if how == "gone" else 5), done.stderr


def test_a_chunk_in_the_place_of_another_cell_is_made_again(run, tmp_path):
    results, words = run
    copy = shutil.copytree(results, tmp_path / "out")
    first, second = sorted(copy.glob("cells/*/00000000.safetensors"))[:2]
    shutil.copyfile(first, second)
    assert evaluate(*words, str(copy)).returncode == 0
    assert content(copy) == content(results)


def cell_of(folder, rows=40, chunk=16):
    cell = open_cell(Storage(str(folder)), {"made": "for a test"}, rows, chunk)
    features = RNG.normal(size=(rows, 4)).astype(np.float32)
    for start in cell.starts():
        part = np.arange(start, min(start + chunk, rows))
        skipped = {"16": "bad", "17": "bad"} if start == 16 else {}
        part = part[len(skipped) :]
        cell.store(start, part, features[part], skipped)
    return cell


def refuse():
    raise AssertionError("nothing is damaged")


def test_every_flipped_bit_of_a_chunk_is_told(tmp_path):
    cell = cell_of(tmp_path)
    good = cell.load(refuse)
    chunk = tmp_path / cell.name / "00000016.safetensors"
    data = chunk.read_bytes()
    for byte in range(len(data)):
        chunk.write_bytes(flipped(data, byte))
        asked = []

        def again(asked=asked):
            asked.append(cell.missing())
            chunk.write_bytes(data)

        rows, features, skipped = cell.load(again)
        assert asked == [[16]] and skipped == good[2]
        assert (rows == good[0]).all() and (features == good[1]).all()


OTHERS = {
    "rows of another type": lambda arrays, said: (arrays | {"rows": arrays["rows"].astype(np.float16)}, said),
    "rows of another chunk": lambda arrays, said: (arrays | {"rows": arrays["rows"] + 16}, said),
    "rows in another order": lambda arrays, said: (arrays | {"rows": arrays["rows"][::-1]}, said),
    "rows twice": lambda arrays, said: (arrays | {"rows": np.full_like(arrays["rows"], 20)}, said),
    "rows of two axes": lambda arrays, said: (arrays | {"rows": arrays["rows"].reshape(-1, 1)}, said),
    "a row less": lambda arrays, said: ({name: array[1:] for name, array in arrays.items()}, said | {"skipped": "{}"}),
    "fewer features": lambda arrays, said: (arrays | {"features": arrays["features"][:3]}, said),
    "narrower features": lambda arrays, said: (arrays | {"features": arrays["features"][:, :3]}, said),
    "flat features": lambda arrays, said: (arrays | {"features": arrays["features"].reshape(-1)}, said),
    "features of another type": lambda arrays, said: (arrays | {"features": arrays["features"].astype(float)}, said),
    "features that are not finite": lambda arrays, said: (arrays | {"features": arrays["features"] * np.nan}, said),
    "no features": lambda arrays, said: ({"rows": arrays["rows"]}, said),
    "skipped is a number": lambda arrays, said: (arrays, said | {"skipped": "1"}),
    "skipped is a list": lambda arrays, said: (arrays, said | {"skipped": "[[1, 2, 3, 4]]"}),
    "too many skipped": lambda arrays, said: (arrays, said | {"skipped": json.dumps(dict.fromkeys("abc", "bad"))}),
    "nothing skipped": lambda arrays, said: (arrays, said | {"skipped": "{}"}),
    "of another cell": lambda arrays, said: (arrays, said | {"cell": "another"}),
    "no metadata": lambda arrays, said: (arrays, None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_chunk_of_another_kind_is_damaged(name, tmp_path):
    cell = cell_of(tmp_path)
    good = cell.load(refuse)
    chunk = tmp_path / cell.name / "00000016.safetensors"
    data = chunk.read_bytes()
    chunk.write_bytes(packed(*OTHERS[name](*unpacked(data))))
    with pytest.raises(ResultsError, match=r"is damaged.*delete it and run again"):
        cell.load(lambda: chunk.write_bytes(packed(*OTHERS[name](*unpacked(data)))))
    # Of chunks that disagree on the dimension none is believed.
    cell.load(lambda: cell_of(tmp_path))
    assert (cell.load(refuse)[0] == good[0]).all()


def test_a_chunk_that_cannot_be_replaced_is_named(run, tmp_path):
    results, words = run
    copy = shutil.copytree(results, tmp_path / "out")
    for chunk in copy.glob("cells/*/*.safetensors"):
        chunk.unlink()
        chunk.mkdir()
    assert_refused(evaluate(*words, str(copy)), "safetensors")
