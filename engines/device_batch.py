"""A batch in a GPU's memory: buffers allocated once per size, filled on a stream of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipq.engines.base import Array, TensorSpec
from clipq.engines.cuda import Buffer, Event, Graph, Stream
from clipq.errors import EngineError


def refuse_dynamic(runtime: str, specs: Sequence[TensorSpec]) -> None:
    """Raise EngineError where another dimension than the batch is not fixed: buffers are made for their shape."""
    for spec in specs:
        if None in spec.shape[1:]:
            raise EngineError(f"{runtime}: {spec.name!r} is {spec.shape}; only the batch may be dynamic")


class DeviceBatch:
    """The buffers of one batch size and slot; raises OutOfMemory where the device has no room for them.

    ``dtypes`` are the types on the device, by name. ``graph`` is what its owner captured over these buffers.
    """

    def __init__(
        self,
        size: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        dtypes: Mapping[str, np.dtype[Any]],
    ):
        self.size = size
        self.graph: Graph | None = None
        self.buffers: dict[str, Buffer] = {}
        self._outputs = [spec.name for spec in outputs]
        try:
            for specs, pinned in ((inputs, False), (outputs, True)):
                for spec in specs:
                    shape = tuple(size if length is None else length for length in spec.shape)
                    self.buffers[spec.name] = Buffer(shape, dtypes[spec.name], pinned=pinned)
            self.uploaded = Event()
        except EngineError:
            self._free()
            raise

    def upload(self, feed: Mapping[str, Array], stream: Stream) -> None:
        """Queue the inputs' copies to the device; ``uploaded`` says when they are there.

        The feed's arrays must not change before that.
        """
        for name, array in feed.items():
            self.buffers[name].upload(array, stream)
        stream.mark(self.uploaded)

    def download(self, stream: Stream) -> None:
        """Queue the outputs' copies to the host."""
        for name in self._outputs:
            self.buffers[name].download(stream)

    def results(self) -> dict[str, Array]:
        """Copies of the outputs, once they are downloaded."""
        return {name: self.buffers[name].host.copy() for name in self._outputs}

    def close(self) -> None:
        """Free the buffers; nothing may be queued on them."""
        self.uploaded.close()
        self._free()

    def _free(self) -> None:
        for buffer in self.buffers.values():
            buffer.free()
