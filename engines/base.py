"""What every runtime's engine is: named inputs, named outputs, and ``run``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipq.ahead import ahead
from clipq.errors import EngineError, OutOfMemory

Array = NDArray[Any]

# Batches that are on a device at once: one runs, the next is copied.
SLOTS = 2


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of an engine's input or output; ``None`` in a shape is a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def accepts(self, array: Array) -> bool:
        """Whether an array has this type and a shape this one covers."""
        fits = all(want is None or want == have for want, have in zip(self.shape, array.shape, strict=False))
        return array.dtype == self.dtype and array.ndim == len(self.shape) and fits

    def agrees(self, other: TensorSpec) -> bool:
        """Whether name and type are the same, and no dimension that both know differs."""
        fits = all(None in pair or pair[0] == pair[1] for pair in zip(self.shape, other.shape, strict=False))
        return (self.name, self.dtype, len(self.shape)) == (other.name, other.dtype, len(other.shape)) and fits

    def __str__(self) -> str:
        shape = " × ".join("batch" if size is None else str(size) for size in self.shape)
        return f"{self.name!r} ({self.dtype}, {shape})"


class Engine(ABC):
    """One tower loaded in one runtime; a context manager that frees what it holds."""

    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; the arrays returned are fresh.

        Raises EngineError where a name, type or shape does not fit, before the runtime sees it.
        """
        self._check(feed)
        return self._run(self._stage(feed, 0))

    def run_ahead(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Run batches in order; each is made, and copied to the device if there is one, while the one before runs.

        Raises what ``run`` and the making of a feed raise, where that batch's result would have come.
        """

        def staged() -> Iterator[Any]:
            for index, feed in enumerate(feeds):
                self._check(feed)
                yield self._stage(feed, index % SLOTS)

        try:
            with closing(ahead(staged())) as batches:
                for batch in batches:
                    yield self._run(batch)
        except OutOfMemory:
            self._free_batches()
            raise

    def _check(self, feed: Mapping[str, Array]) -> None:
        wanted = {spec.name for spec in self.inputs}
        if set(feed) != wanted:
            raise EngineError(f"{self.runtime}: fed {sorted(feed)}, expected {sorted(wanted)}")
        for spec in self.inputs:
            array = feed[spec.name]
            if not spec.accepts(array):
                raise EngineError(
                    f"{self.runtime}: input {spec.name!r} is {array.dtype} of shape {array.shape}, "
                    f"expected {spec.dtype} of shape {spec.shape}"
                )

    def _stage(self, feed: Mapping[str, Array], slot: int) -> Any:
        """What ``_run`` takes: the feed, or its copy on a device in memory of this slot; may be called in a thread."""
        return feed

    @abstractmethod
    def _run(self, staged: Any) -> dict[str, Array]: ...

    def _free_batches(self) -> None:  # noqa: B027 (nothing to free where there is no device)
        """Free what ``_stage`` keeps on a device, so that smaller batches have room."""

    def device_milliseconds(self, feed: Mapping[str, Array]) -> float | None:
        """Milliseconds of one batch on the device alone, by its own events; None where there is no such device."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the runtime's memory; the engine cannot run afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
