"""TensorRT's own INT8 calibrators (implicit quantization): the classes that feed them, and their cache files.

The library measures activation ranges itself, chooses which layers run in integers, and keeps what it found in a
cache. TensorRT has them up to 10.16; 11 and TensorRT-RTX do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipq.engines.base import Array
from clipq.engines.cuda import Buffer, Stream
from clipq.engines.tensorrt_library import Features
from clipq.errors import BuildError, ClipqError
from clipq.files import write_atomic
from clipq.onnx_graph import read_graph

Calibrator = Literal["entropy2", "minmax", "legacy"]
CALIBRATORS: dict[Calibrator, str] = {
    "entropy2": "IInt8EntropyCalibrator2",
    "minmax": "IInt8MinMaxCalibrator",
    "legacy": "IInt8LegacyCalibrator",
}
QUANTILE = 0.9999


class WholeBatches:
    """Batches of one size in a GPU's memory, each in place of the one before; a batch of another size is left out.

    What goes wrong is kept in ``error``: the library swallows exceptions. ``feeds`` is None where no batch is needed.
    """

    def __init__(self, trt: Any, feeds: Callable[[], Iterator[dict[str, Array]]] | None, size: int):
        self.size = size
        self.error: ClipqError | None = None
        self._trt = trt
        self._needed = feeds is not None
        self._feeds: Iterator[dict[str, Array]] = iter(()) if feeds is None else feeds()
        self._buffers: dict[str, Buffer] = {}
        self._stream: Stream | None = None

    def draw(self, names: list[str]) -> list[int] | None:
        """Device addresses of the next batch's inputs, in the order of ``names``; None at the end or on an error."""
        try:
            feed = next((feed for feed in self._feeds if len(next(iter(feed.values()))) == self.size), None)
            if feed is None:
                if not self._buffers and self._needed:
                    self.error = BuildError(f"the calibration set has no whole batch of {self.size}; add samples")
                self._free()
                return None
            self._stream = self._stream or Stream()
            for name, array in feed.items():
                if name not in self._buffers:
                    self._buffers[name] = Buffer(array.shape, input_dtype(self._trt, array.dtype))
                self._buffers[name].upload(array, self._stream)
            self._stream.wait()
            return [self._buffers[name].device for name in names]
        except Exception as error:
            # The library would take it for the end of the data and calibrate on a part.
            failed = BuildError(f"calibration failed: {type(error).__name__}: {error}")
            self.error = error if isinstance(error, ClipqError) else failed
            self._free()
            return None

    def _free(self) -> None:
        for buffer in self._buffers.values():
            buffer.free()
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def make_calibrator(
    trt: Any, kind: Calibrator, cache: Path, feeds: Callable[[], Iterator[dict[str, Array]]] | None, batch: int
) -> Any:
    """A calibrator of the library's class that draws whole batches from ``feeds`` and keeps its ranges in ``cache``.

    Where ``cache`` is a file already, the library reads that and asks for no batch. ``legacy`` clips at the quantile
    0.9999. What goes wrong in a callback is kept in ``error``.
    """
    base = getattr(trt, CALIBRATORS[kind])
    batches = WholeBatches(trt, feeds, batch)

    class Feeder(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        @property
        def error(self) -> ClipqError | None:
            return batches.error

        def get_batch_size(self) -> int:
            return batches.size

        def get_batch(self, names: list[str]) -> list[int] | None:
            return batches.draw(names)

        def read_calibration_cache(self) -> bytes | None:
            return cache.read_bytes() if cache.is_file() else None

        def write_calibration_cache(self, data: Any) -> None:
            write_atomic(cache, bytes(data))

        def get_quantile(self) -> float:
            return QUANTILE

        def get_regression_cutoff(self) -> float:
            return 1.0

        def read_histogram_cache(self, length: int) -> bytes | None:
            return None

        def write_histogram_cache(self, data: Any, length: int) -> None:
            return None

    return Feeder()


def input_dtype(trt: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type the library reads an input in: 8.6 has no 64-bit integers, and token ids fit 32 bits."""
    return np.dtype(np.int32) if dtype == np.int64 and not Features(trt).int64 else dtype


def check_cache(cache: Path, model: Path) -> None:
    """Refuse a calibration cache that was not made for this model: most of its tensors must be the model's.

    A cache is text: a line ``TRT-8600-EntropyCalibration2``, then ``tensor: scale as hexadecimal float`` a line.
    """
    if not cache.is_file():
        raise BuildError(f"--calibration-cache: {cache} does not exist; name a bundle built with --calibrator")
    lines = cache.read_text(errors="replace").splitlines()
    if not lines or not lines[0].startswith("TRT-"):
        raise BuildError(f"{cache} is no TensorRT calibration cache: its first line must begin with TRT-")
    named = {line.rpartition(":")[0] for line in lines[1:] if ":" in line}
    graph = read_graph(model).graph
    tensors = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
    # The library also names tensors it made itself, so not all of them can be found.
    if not named or len(named & tensors) < len(named) / 2:
        raise BuildError(
            f"{cache} belongs to another model: {len(named & tensors)} of its {len(named)} tensors "
            f"are in {model.name}; calibrate again with --calibration-set"
        )
