"""What was found of an adopted engine beside its reference, in numbers and in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipq.bundle import TowerName

Verdict = Literal["agrees", "agrees as quantized", "explained", "explained in part", "not explained", "not comparable"]


@dataclass(frozen=True)
class Explanation:
    """A mistake, what is wrong and the way out, and the evidence.

    ``also`` are mistakes that explain it as well. Median cosines are of the ``rows`` samples that the mistake touches:
    as the engines are fed, and with the mistake mended (or made on the other side).
    """

    name: str
    sentence: str
    rows: int
    cosine_without: float
    cosine_with: float
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class TowerComparison:
    """One tower in both engines: cosines of the samples, and what explains a difference.

    ``similarity`` is the correlation of the similarities between samples, which asks for no common width and no common
    axes. Cosines are NaN where the widths differ. ``remaining`` is the median cosine with all explanations applied.
    """

    tower: TowerName
    samples: int
    median: float
    least: float
    similarity: float
    verdict: Verdict
    explanations: tuple[Explanation, ...] = ()
    remaining: float = float("nan")
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the engine answers as the reference does, as far as its precision goes."""
        return self.verdict.startswith("agrees")

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, a sentence each: what is wrong, the evidence, the way out."""
        found = f"{self.tower} tower: median cosine {_shown(self.median)}, least {_shown(self.least)} of {self.samples}"
        if self.verdict == "agrees":
            return (f"{found}: agrees with the reference",)
        if self.verdict == "agrees as quantized":
            return (f"{found}: agrees with the reference as far as a quantized engine does",)
        alike = f"similarities between samples correlate at {self.similarity:.3f}"
        if self.verdict == "not comparable":
            return (f"{self.tower} tower: embeddings have other widths, so none is compared; {alike}{self.note}",)
        if self.verdict == "not explained":
            return (f"{found}: no known mistake explains the difference ({alike}){self.note}",)
        lines = [f"{found}: differs from the reference"]
        for one in self.explanations:
            also = f" (explained as well by: {', '.join(one.also)})" if one.also else ""
            lines.append(
                f"{self.tower} tower, {one.name}{also}: {one.sentence}; without this mistake the median cosine of the "
                f"{one.rows} samples it touches is {_shown(one.cosine_with)}, not {_shown(one.cosine_without)}"
            )
        if self.verdict == "explained in part":
            lines.append(f"{self.tower} tower: what remains is not explained (median cosine {_shown(self.remaining)})")
        return tuple(lines)


@dataclass(frozen=True)
class Comparison:
    """An adopted engine beside its reference, tower by tower."""

    image: TowerComparison
    text: TowerComparison

    @property
    def agrees(self) -> bool:
        """Whether both towers answer as the reference's do."""
        return self.image.agrees and self.text.agrees

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found in both towers."""
        return (*self.image.sentences, *self.text.sentences)


def _shown(cosine: float) -> str:
    """A cosine with the digits that tell it from 1.

    >>> _shown(0.98765), _shown(0.999987), _shown(0.9999999)
    ('0.988', '0.99999', '1.00000')
    """
    return f"{cosine:.5f}" if cosine > 0.999 else f"{cosine:.3f}"
