"""Batches that do not fit the GPU: an error, or halved on request and never silently."""

from __future__ import annotations

import numpy as np
import pytest

from clipq.engines.base import Engine, TensorSpec
from clipq.errors import OutOfMemory
from clipq.evaluate.cells import BatchSize, run_in_batches


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
    engine, batch = Small(), BatchSize(automatic=True)
    x = np.arange(70, dtype=np.float32).reshape(35, 2)
    np.testing.assert_array_equal(run_in_batches(engine, x, batch), 2 * x)
    assert engine.sizes == [32, 16, 8, 8, 8, 8, 3] and batch.size == 8
    run_in_batches(engine, x[:9], batch)
    assert engine.sizes[-2:] == [8, 1]


def test_an_error_otherwise():
    with pytest.raises(OutOfMemory):
        run_in_batches(Small(), np.zeros((35, 2), np.float32), BatchSize())
    with pytest.raises(OutOfMemory):
        run_in_batches(Small(), np.zeros((35, 2), np.float32), BatchSize(size=9, automatic=False))


def test_nothing_to_run():
    assert run_in_batches(Small(), np.zeros((0, 2), np.float32), BatchSize()).shape == (0, 2)
