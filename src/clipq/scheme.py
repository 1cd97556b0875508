"""A quantization scheme: how many bits weights and activations have, and in which arithmetic they are multiplied."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Arithmetic = Literal["integer", "float", "simulated"]


class Scheme(BaseModel):
    """What a recipe makes of the towers it touches, as charts, regularities and verdicts group and judge engines.

    Bits are 0 where they are not known. ``arithmetic`` is what the recipe promises: ``integer`` products, ``float``
    ones, or ``simulated``, floating point that only rounds to the levels. ``method`` is the short name of how ranges or
    levels were chosen (``entropy``, ``gptq``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight_bits: int
    activation_bits: int
    arithmetic: Arithmetic
    method: str

    @property
    def widths(self) -> str:
        """The usual short form; in words where bits are not known.

        >>> Scheme(weight_bits=4, activation_bits=16, arithmetic="float", method="gptq").widths
        'W4A16'
        """
        return "bits unknown" if not self.weight_bits else f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def is_fp32(self) -> bool:
        """Whether nothing is quantized: what is quantized from, and what engines are compared with."""
        return (self.weight_bits, self.activation_bits, self.arithmetic) == (32, 32, "float")


FP32 = Scheme(weight_bits=32, activation_bits=32, arithmetic="float", method="fp32")


def with_scheme(entry: Any, name: str) -> Any:
    """An entry of a file written before files said schemes: with the scheme that its recipe's name and options mean.

    ``name`` is the key of the recipe's name; its options are under ``options``. What is no such entry stays as it is.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get(name), str):
        return entry
    options = entry.get("options")
    return {**entry, "scheme": _scheme_of_name(entry[name], options if isinstance(options, dict) else {}).model_dump()}


def _scheme_of_name(name: str, options: dict[str, Any]) -> Scheme:
    """A recipe that it does not know has 0 bits and its name as the method."""
    floats = 16 if options.get("floats") == "fp16" else 32
    method = str(options.get("algorithm") or options.get("ranges") or options.get("calibrator") or "")
    integer = name in ("int8-static", "int8-dynamic", "modelopt-int8", "tensorrt-int8")
    arithmetic: Arithmetic = "simulated" if name.startswith("simulated-") else "integer" if integer else "float"
    weights, activations = 0, 0
    if found := re.fullmatch(r"simulated-w(\d+)a(\d+)", name):
        weights, activations, method = int(found[1]), int(found[2]), f"simulated {method}".strip()
    elif found := re.fullmatch(r"(?:modelopt-)?int(\d+)(-weight-only)?(-static|-dynamic)?", name):
        maker = "modelopt " if name.startswith("modelopt") else ""
        weights = int(found[1])
        weight_only = bool(found[2]) or (bool(maker) and weights == 4)
        activations = floats if weight_only else 8
        method = maker + (method or ("dynamic" if found[3] == "-dynamic" else name))
    elif name == "tensorrt-int8":
        weights, activations, method = 8, 8, f"tensorrt {method}".strip()
    elif name == "modelopt-fp8":
        weights, activations, method = 8, 8, "modelopt fp8"
    elif found := re.fullmatch(r"[bf]p?f?(16|32)", name):
        weights, activations, method = int(found[1]), int(found[1]), name
    else:
        method = name
    return Scheme(weight_bits=weights, activation_bits=activations, arithmetic=arithmetic, method=method)
