"""Hints: what making a bundle showed that whoever runs it should know, as a code with its numbers.

The sentences are made here, of one table, so that a bundle keeps facts and every place says them in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

from clipq.fields import Number


@dataclass(frozen=True)
class HintKind:
    """What a hint says; of each tower, its numbers; and the device that it is about, None where that is any.

    ``is_counted``: evaluating the engine counts it.
    """

    says: str
    of_tower: str
    device: Literal["cpu", "cuda"] | None = None
    is_counted: bool = False

    @property
    def numbers(self) -> set[str]:
        """The names of its numbers."""
        return {name for _, name, _, _ in Formatter().parse(self.of_tower) if name}


# Bundles keep codes and numbers: other numbers are another code, so that a bundle of any clipq can be read by any.
HINTS = {
    "float-relus": HintKind("ReLUs in floating point, which activations=asymmetric takes in", "{relus:g}", "cpu"),
    "float-token-table": HintKind("token table not quantized", "FP{bits:g}, {table_mb:g} of {tower_mb:g} MB"),
    "saturating-weights": HintKind(
        "products that can saturate on a CPU without VNNI, and with weights=7bit cannot", "{products:g}", "cpu", True
    ),
    "saturating-attention": HintKind(
        "attention products that can saturate on a CPU without VNNI", "{products:g}", "cpu", True
    ),
    "idle-smoothing": HintKind("smoothing changes nothing, for linears alone read no LayerNorm", "{alpha:g}"),
    "idle-awq": HintKind("algorithm=awq changes nothing, for linears alone read no LayerNorm", ""),
    "slow-matmulinteger": HintKind(
        "form=matmulinteger took, on an H200 with ViTs and RN50, times the time of fp16",
        "{least:g} to {most:g}",
        "cuda",
    ),
}


class Hint(BaseModel):
    """A fact about one tower: its code in HINTS, with the numbers that its words have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    code: str
    tower: Literal["image", "text"]
    # Counts, shares of a tower in megabytes, options: nothing is negative, and nothing is larger than any machine.
    numbers: dict[str, Annotated[Number, Field(ge=0, le=1e9)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if self.code not in HINTS:
            raise ValueError(f"unknown hint {self.code!r}")
        if self.numbers.keys() != HINTS[self.code].numbers:
            raise ValueError(f"hint {self.code!r} has other numbers: {', '.join(self.numbers) or 'none'}")
        return self

    @property
    def is_counted(self) -> bool:
        """Whether evaluating the engine counts what this says can be."""
        return HINTS[self.code].is_counted

    def is_about(self, device: str) -> bool:
        """Whether it says something of an engine on this device."""
        return HINTS[self.code].device in (None, device)


def _known(given: Any) -> Any:
    """Without hints of a newer clipq, which this one has no words for: no bundle is unreadable for a nicety."""
    if not isinstance(given, list):
        return given
    codes = [one.get("code") if isinstance(one, dict) else None for one in given]
    return [one for one, code in zip(given, codes, strict=True) if not isinstance(code, str) or code in HINTS]


# As bundles and records hold them.
Hints = Annotated[tuple[Hint, ...], BeforeValidator(_known)]


def sentences(hints: Iterable[Hint]) -> list[str]:
    """Hints as they are told, one of each kind: what it says, and the towers with their numbers."""
    towers: dict[str, list[str]] = {}
    for hint in hints:
        words = f"{hint.tower} tower {HINTS[hint.code].of_tower.format(**hint.numbers)}"
        towers.setdefault(hint.code, []).append(words.rstrip())
    return [f"{HINTS[code].says}: {', '.join(found)}" for code, found in towers.items()]
