"""What every runtime's engine is: named inputs, named outputs, and ``run``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from clipq.errors import EngineError

Array = NDArray[Any]


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


class Engine(ABC):
    """One tower loaded in one runtime; a context manager that frees what it holds."""

    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; the arrays returned are fresh.

        Raises EngineError where a name, type or shape does not fit, before the runtime sees it.
        """
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
        return self._run(feed)

    @abstractmethod
    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array]: ...

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
