"""Where an 8-bit engine depends on the CPU: how many sums of its integer products x86 without VNNI would lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipq.engines.base import Array
from clipq.engines.integer_products import IntegerProducts, Product
from clipq.engines.pair_sums import Weights
from clipq.errors import EngineError

Verdict = Literal["exact everywhere", "none saturated", "differs without VNNI", "unknown"]


@dataclass(frozen=True)
class ProductSaturation:
    """One integer product: how many 16-bit sums it took, how many of them saturate, and whether any ever could."""

    name: str
    op: str
    can_saturate: bool
    sums: int
    saturated: int


@dataclass(frozen=True)
class Saturation:
    """The integer products of a tower on some samples, in the order in which they run.

    Sums are those of the exact engine's integers: behind a product that saturates, another CPU has other integers.
    ``unknown`` says why nothing is known, and is mostly empty.
    """

    products: tuple[ProductSaturation, ...]
    samples: int
    unknown: str = ""

    @property
    def share(self) -> float:
        """Part of all 16-bit sums that saturate on these samples, 0 to 1."""
        sums = sum(one.sums for one in self.products)
        return sum(one.saturated for one in self.products) / sums if sums else 0.0

    @property
    def verdict(self) -> Verdict:
        """``exact everywhere`` is proved by the weights alone; ``none saturated`` holds for these samples."""
        if self.unknown:
            return "unknown"
        if not any(one.can_saturate for one in self.products):
            return "exact everywhere"
        return "differs without VNNI" if any(one.saturated for one in self.products) else "none saturated"


def take_saturation(path: Path, feeds: Iterable[Mapping[str, Array]]) -> Saturation:
    """Count a tower's saturating sums on some batches, as an exact CPU runs it."""
    sums: Counter[str] = Counter()
    saturated: Counter[str] = Counter()

    def multiply(product: Product, weights: Weights, rows: Array) -> Array:
        sums[product.name] += len(rows) * weights.pair_sums
        saturated[product.name] += weights.excess(rows)[1]
        return weights.exact(rows)

    samples = 0
    try:
        tower = IntegerProducts(path)
    except EngineError as error:
        return Saturation((), 0, unknown=str(error))
    try:
        for feed in feeds:
            tower.run(feed, multiply)
            samples += len(next(iter(feed.values())))
    finally:
        tower.close()
    products = (
        ProductSaturation(
            name=one.name,
            op=one.op,
            can_saturate=any(weights.can_saturate for weights in one.groups),
            sums=sums[one.name],
            saturated=saturated[one.name],
        )
        for one in tower.products
    )
    return Saturation(tuple(products), samples)
