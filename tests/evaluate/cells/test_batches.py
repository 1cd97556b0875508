"""Batches that do not fit the GPU: an error, or halved on request and never silently."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import ON_THIS_CPU, evaluate

from clipq.engines.base import Engine, TensorSpec
from clipq.errors import OutOfMemory
from clipq.evaluate.bench.batch_size import SIZES
from clipq.evaluate.cells.cells import BatchSize, run_in_batches
from clipq.evaluate.cells.open_engines import OpenEngines


class Small(Engine):
    """Doubles its input, and has memory for eight samples."""

    runtime = "test"
    inputs = (TensorSpec("x", np.dtype(np.float32), (None, 2)),)
    outputs = (TensorSpec("y", np.dtype(np.float32), (None, 2)),)

    def __init__(self):
        self.sizes = []

    def _run(self, feed):
        self.sizes.append(len(feed["x"]))
        if len(feed["x"]) > 8:
            raise OutOfMemory("test: no memory")
        return {"y": 2 * feed["x"]}

    def close(self):
        pass


def test_halved_on_request_and_for_all_that_follow():
    engine, batch = Small(), BatchSize(32, automatic=True)
    x = np.arange(70, dtype=np.float32).reshape(35, 2)
    np.testing.assert_array_equal(run_in_batches(engine, x, batch), 2 * x)
    assert engine.sizes == [32, 16, 8, 8, 8, 8, 3] and batch.size == 8
    run_in_batches(engine, x[:9], batch)
    assert engine.sizes[-2:] == [8, 1]


def test_an_error_otherwise():
    with pytest.raises(OutOfMemory):
        run_in_batches(Small(), np.zeros((35, 2), np.float32), BatchSize(32))
    with pytest.raises(OutOfMemory):
        run_in_batches(Small(), np.zeros((35, 2), np.float32), BatchSize(size=9, automatic=False))


def test_nothing_to_run():
    assert run_in_batches(Small(), np.zeros((0, 2), np.float32), BatchSize(32)).shape == (0, 2)


def test_the_fastest_batch_is_found_and_recorded(bundles, tmp_path):
    done = evaluate(
        "run", bundles / "fp32", "--data", "demo:test:n=96", "--batch-size", "measure", "--no-bench", "-o", tmp_path / "r"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    batch = json.loads((tmp_path / "r" / "records" / f"fp32__{ON_THIS_CPU}.json").read_text())["arguments_resolved"][
        "batch"
    ]
    assert batch in SIZES
    cell = next((tmp_path / "r" / "cells").glob("*/cell.json")).read_text()
    assert json.loads(cell)["batch"] == batch


@pytest.mark.parametrize("size", ["0", "257", "fast"])
def test_a_batch_size_that_is_none_is_refused(size):
    done = evaluate("run", "nowhere", "--data", "demo:test", "-o", "nowhere", "--batch-size", size)
    assert done.returncode == 2 and "--batch-size" in done.stderr


class Opened:
    """A subject whose engines count how often they are loaded and closed."""

    def __init__(self, file):
        self.file, self.threads, self.graphs, self.closed, self.loaded = file, 1, False, 0, 0

    def identity(self, tower):
        return {"tower": self.file}

    def open(self, tower):
        self.loaded += 1
        engine = Small()
        engine.close = lambda: setattr(self, "closed", self.closed + 1)
        return engine


def test_engines_stay_open_and_a_shared_file_is_loaded_once():
    one, twin, other = Opened("a"), Opened("a"), Opened("b")
    engines = OpenEngines()
    assert engines.get(one, "image") is engines.get(twin, "image") is engines.get(one, "image")
    assert engines.get(other, "image") is not engines.get(one, "image")
    assert (one.loaded, twin.loaded, other.loaded, one.closed) == (1, 0, 1, 0)
    engines.close()
    assert (one.closed, other.closed) == (1, 1)


def test_of_many_engines_the_one_unused_for_longest_is_closed():
    subjects = [Opened(name) for name in "abc"]
    engines = OpenEngines(2)
    for subject in (subjects[0], subjects[1], subjects[0], subjects[2]):
        engines.get(subject, "image")
    assert [subject.closed for subject in subjects] == [0, 1, 0]
    engines.get(subjects[1], "image")
    assert [subject.closed for subject in subjects] == [1, 1, 0] and subjects[1].loaded == 2
