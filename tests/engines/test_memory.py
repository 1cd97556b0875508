"""Peak memory is the engine's own, whatever the process that asks has grown to."""

from __future__ import annotations

import numpy as np
import pytest
from support import DEMO_BUNDLE

from clipq.engines.memory import peak_memory


def peak():
    return peak_memory(DEMO_BUNDLE / "text.onnx", {"text": np.zeros((1, 24), np.int64)})


def test_the_size_of_the_asking_process_does_not_count():
    psutil = pytest.importorskip("psutil")
    small = peak()
    grown = np.ones(2_000_000_000 // 8)
    assert psutil.Process().memory_info().rss > grown.nbytes
    assert peak() < 1.2 * small < grown.nbytes
