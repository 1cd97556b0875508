"""How an engine was quantized, as charts and regularities group engines: bits, method, towers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clipq.evaluate.results.record import Record


@dataclass(frozen=True)
class Scheme:
    """Bits of weights and activations (0: unknown), the method, and the towers: ``both``, ``image`` or ``text``."""

    weight_bits: int
    activation_bits: int
    method: str
    towers: str

    @property
    def widths(self) -> str:
        """The usual short form.

        >>> Scheme(4, 16, "gptq", "both").widths
        'W4A16'
        """
        return f"W{self.weight_bits}A{self.activation_bits}"


def scheme_of(record: Record) -> Scheme:
    """From the recipe's name and options. A recipe that it does not know has 0 bits and its name as the method."""
    name, options = record.bundle.recipe, record.bundle.options
    towers = record.bundle.towers
    scope = "both" if len(towers) != 1 else towers[0]
    floats = 16 if options.get("floats") == "fp16" else 32
    method = str(options.get("algorithm") or options.get("ranges") or options.get("calibrator") or "")
    if found := re.fullmatch(r"simulated-w(\d+)a(\d+)", name):
        return Scheme(int(found[1]), int(found[2]), f"simulated {method}".strip(), scope)
    if found := re.fullmatch(r"(?:modelopt-)?int(\d+)(-weight-only)?(-static|-dynamic)?", name):
        maker = "modelopt " if name.startswith("modelopt") else ""
        bits = int(found[1])
        weight_only = bool(found[2]) or (bool(maker) and bits == 4)
        kind = method or ("dynamic" if found[3] == "-dynamic" else "")
        return Scheme(bits, floats if weight_only else 8, f"{maker}{kind or name}", scope)
    if name == "tensorrt-int8":
        return Scheme(8, 8, f"tensorrt {method}".strip(), scope)
    if name == "modelopt-fp8":
        return Scheme(8, 8, "modelopt fp8", scope)
    if found := re.fullmatch(r"[bf]p?f?(16|32)", name):
        return Scheme(int(found[1]), int(found[1]), name, scope)
    return Scheme(0, 0, name, scope)
