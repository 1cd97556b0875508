"""A tower's outputs as a CPU would give them whose integer kernels saturate: a simulation, on any x86 CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipq.engines.base import Array, Engine
from clipq.engines.integer_products import IntegerProducts, Product
from clipq.engines.pair_sums import Weights


class PredictedEngine(Engine):
    """A tower as ONNX Runtime runs it on a CPU without VNNI.

    Its integer products are those of such a CPU to the last bit; floating point between them is this CPU's, whose last
    digits can turn a rounding. Raises EngineError where a product is not understood.
    """

    runtime = "ort-cpu"

    def __init__(self, path: Path):
        self._tower = IntegerProducts(path)
        self.inputs, self.outputs = self._tower.inputs, self._tower.outputs

    def _run(self, staged: Any) -> dict[str, Array]:
        return self._tower.run(staged, _saturated)

    def close(self) -> None:
        """Free the sessions of the tower's parts."""
        self._tower.close()


def _saturated(product: Product, weights: Weights, rows: Array) -> Array:
    return weights.saturated(rows)
