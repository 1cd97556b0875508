"""Quantization recipes: what can be asked for, every option explicit, nothing left to a library's defaults.

A recipe is written ``NAME`` or ``NAME:option=value,option=value``; ``parse_recipe`` reads it, ``slug`` names the bundle
made by it, ``scheme`` and ``options`` are what the manifest records.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from clipq.engines.catalog import DEFAULT_RUNTIME
from clipq.errors import RecipeError
from clipq.given import hint
from clipq.scheme import Scheme

TENSORRT = ("tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-tensorrt-rtx")
# 7 bits: two products with 8-bit activations fit into the 16 bits in which CPUs without VNNI add them.
WeightLevels = Literal["8bit", "7bit"]
Granularity = Literal["per-channel", "per-tensor"]
# Values that an option had before another took them over, and still may be given to it.
FORMERLY = {("weights", "per-channel"): "granularity", ("weights", "per-tensor"): "granularity"}


@dataclass(frozen=True)
class Recipe(ABC):
    """Base of all recipes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    # The module beside this one that registers the quantizer with ``quantize_tower``.
    quantizer: ClassVar[str] = "quantize"
    # Options that a runtime needs to be other than their defaults; given explicitly, the user's own value stays.
    fitted: ClassVar[dict[str, dict[str, str]]] = {}
    # What a value of an option wants of others, for every runtime; given explicitly, the user's own value stays too.
    goes_with: ClassVar[dict[tuple[str, str], dict[str, str]]] = {}
    # Values that some runtimes have no use for, and why.
    unfit: ClassVar[dict[tuple[str, str], tuple[tuple[str, ...], str]]] = {}
    no_kernels: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method of what it makes; no recipe inherits a guess."""

    @property
    def needs_calibration(self) -> bool:
        """Whether it measures activations on a calibration set."""
        return False

    def idle(self) -> dict[str, str]:
        """Options that change nothing beside the others, each with what it goes with; given, they are refused."""
        return {}

    def slug(self) -> str:
        """A folder name that tells this recipe from its variants, e.g. ``int8-static-entropy``."""
        parts = [self.name]
        for index, field in enumerate(dataclasses.fields(self)):
            value = getattr(self, field.name)
            # The first option is the method and is always named; the others only where they differ.
            if index == 0 or value != self._usual(field):
                parts.append(_word(field.name, value))
        return "-".join(parts)

    def _usual(self, field: dataclasses.Field[Any]) -> Any:
        """What an option is where it is not given, beside the others as they are."""
        for (option, value), wanted in self.goes_with.items():
            if field.name in wanted and str(getattr(self, option)) == value:
                return wanted[field.name]
        return field.default

    def options(self) -> dict[str, Any]:
        """Every option as resolved."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Fp16(Recipe):
    """Weights and activations in half precision; inputs and outputs stay float32."""

    name: ClassVar[str] = "fp16"
    summary: ClassVar[str] = "half precision (on the CPU: half the size, not faster)"

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(weight_bits=16, activation_bits=16, arithmetic="float", method=self.name)


@dataclass(frozen=True)
class Static(Recipe):
    """Weights and activations of fixed widths, activation ranges from a calibration set, at linears and convolutions.

    ``ranges``: ``minmax`` takes the extremes seen; ``entropy`` the clipping with the least Kullback-Leibler divergence
    (Migacz, 2017); ``percentile`` keeps ``percentile`` % of the magnitudes; ``mse`` the clipping with the least squared
    error. ``activations``: ``symmetric`` (zero point 0, all that TensorRT takes) or ``asymmetric``. ``smoothing``:
    SmoothQuant's alpha (Xiao et al., 2023), how much of the activations' outliers moves into the weights behind each
    LayerNorm; 0 leaves them.
    """

    activation_bits: ClassVar[int] = 8

    ranges: Literal["minmax", "entropy", "percentile", "mse"] = "minmax"
    percentile: float = 99.99
    activations: Literal["symmetric", "asymmetric"] = "symmetric"
    granularity: Granularity = "per-channel"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"{self.name}: percentile={self.percentile} must lie in (50, 100]")
        if not 0 <= self.smoothing < 1:
            raise RecipeError(f"{self.name}: smoothing={self.smoothing} must lie in [0, 1)")

    @property
    @abstractmethod
    def weight_bits(self) -> int:
        """Bits of a weight."""

    @property
    def needs_calibration(self) -> bool:
        """Always: activations need ranges."""
        return True

    def idle(self) -> dict[str, str]:
        """The share of magnitudes to keep, where ranges are found otherwise."""
        return {} if self.ranges == "percentile" else {"percentile": "ranges=percentile"}


@dataclass(frozen=True)
class Int8Static(Static):
    """8-bit weights and activations as Q/DQ pairs, which runtimes turn into integer kernels.

    ``weights``: with ``7bit``, levels within ±63. ``floats``: the type of what stays floating point. ``attention``:
    quantize the attention products too, to compare.
    ``form``: ``qdq``, or ``matmulinteger`` for ONNX Runtime's CUDA provider, which has no integer kernel for Q/DQ.
    """

    name: ClassVar[str] = "int8-static"
    summary: ClassVar[str] = "8-bit weights and activations, ranges from a calibration set"
    fitted: ClassVar[dict[str, dict[str, str]]] = {
        **{runtime: {"activations": "symmetric", "floats": "fp16"} for runtime in TENSORRT},
        "ort-cuda": {"activations": "symmetric", "form": "matmulinteger", "floats": "fp16"},
    }
    # Both are forms for GPUs.
    goes_with: ClassVar[dict[tuple[str, str], dict[str, str]]] = {
        ("floats", "fp16"): {"activations": "symmetric"},
        ("form", "matmulinteger"): {"activations": "symmetric"},
    }
    unfit: ClassVar[dict[tuple[str, str], tuple[tuple[str, ...], str]]] = {
        ("activations", "asymmetric"): (TENSORRT, "takes no zero points"),
        ("weights", "7bit"): ((*TENSORRT, "ort-cuda"), "adds products in 32 bits"),
    }

    # What is best on a CPU: a zero point does the clipping of a ReLU, which stays in floating point without.
    activations: Literal["asymmetric", "symmetric"] = "asymmetric"
    floats: Literal["fp32", "fp16"] = "fp32"
    weights: WeightLevels = "8bit"
    attention: bool = False
    form: Literal["qdq", "matmulinteger"] = "qdq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "matmulinteger" and self.activations != "symmetric":
            raise RecipeError(f"{self.name}: form=matmulinteger goes with activations=symmetric")

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(weight_bits=self.weight_bits, activation_bits=8, arithmetic="integer", method=self.ranges)

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return _levels(self.weights)


@dataclass(frozen=True)
class Simulated(Static):
    """Fake quantization: values rounded to the levels of any width, all arithmetic in floating point."""

    name: ClassVar[str] = "simulated-wXaY"
    summary: ClassVar[str] = "fake quantization in floating point; X-bit weights, Y-bit activations, each from 2 to 8"
    weight_bits = 8

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            arithmetic="simulated",
            method=f"simulated {self.ranges}",
        )

    def slug(self) -> str:
        """``simulated-w4a8``, with the options that differ from their defaults."""
        return super().slug().replace(f"{self.name}-minmax", self.name)


def _simulated(weight_bits: int, activation_bits: int) -> type[Simulated]:
    name = f"simulated-w{weight_bits}a{activation_bits}"
    members = {"name": name, "weight_bits": weight_bits, "activation_bits": activation_bits}
    return type(f"SimulatedW{weight_bits}A{activation_bits}", (Simulated,), members)


@dataclass(frozen=True)
class Int8Dynamic(Recipe):
    """8-bit weights; activations quantized at run time, by the range of each batch."""

    name: ClassVar[str] = "int8-dynamic"
    summary: ClassVar[str] = "8-bit weights, activations quantized at run time"
    no_kernels: ClassVar[tuple[str, ...]] = (*TENSORRT, "ort-cuda")

    granularity: Granularity = "per-channel"
    weights: WeightLevels = "8bit"

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(weight_bits=_levels(self.weights), activation_bits=8, arithmetic="integer", method="dynamic")

    def slug(self) -> str:
        """``int8-dynamic``, with the options that differ from their defaults."""
        return super().slug().replace(f"{self.name}-per-channel", self.name)


@dataclass(frozen=True)
class WeightOnly(Recipe):
    """Block-wise low-bit weights, floating-point activations in the file.

    ``algorithm``: ``rtn`` rounds to nearest; ``hqq`` fits the zero points by half-quadratic splitting (Badri and
    Shaji, 2023); ``gptq`` makes up for each column's error in the next (Frantar et al., 2023); ``awq`` scales salient
    channels up behind each LayerNorm (Lin et al., 2024). The last two need a calibration set. ``form``:
    ``matmulnbits`` (ONNX Runtime's operator) or ``qdq`` (standard ONNX and what TensorRT reads: 4 bits, symmetric with
    positive scales, any algorithm but ``hqq``, whose zero points it cannot express). ``floats``: the type of the rest.
    ``kernel``: with ``int8`` the runtime may round activations to 8 bits for speed, with ``float`` it may not.
    ``token_table``: quantize the text tower's token embeddings too, at 4 bits.
    """

    bits: ClassVar[int]
    fitted: ClassVar[dict[str, dict[str, str]]] = {
        **{runtime: {"form": "qdq", "symmetric": "true", "floats": "fp16"} for runtime in TENSORRT},
        # The CUDA provider's mixed GEMM takes half precision, symmetric blocks of 32.
        "ort-cuda": {"symmetric": "true", "floats": "fp16"},
    }

    algorithm: Literal["rtn", "hqq", "gptq", "awq"] = "rtn"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    form: Literal["matmulnbits", "qdq"] = "matmulnbits"
    symmetric: bool = False
    kernel: Literal["int8", "float"] = "int8"
    token_table: bool = False
    floats: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        if self.form == "qdq" and (self.bits != 4 or self.algorithm == "hqq" or not self.symmetric):
            raise RecipeError(
                f"{self.name}: form=qdq exists for 4 bits, symmetric=true and algorithm=rtn|awq|gptq "
                "(hqq fits zero points); use form=matmulnbits"
            )
        if self.token_table and (self.form == "qdq" or self.bits != 4):
            # ONNX Runtime's operator for tables of other widths does not exist, and its quantizer leaves them.
            raise RecipeError(f"{self.name}: token_table=true exists for 4 bits and needs form=matmulnbits")
        if self.algorithm == "hqq" and (self.symmetric or self.bits != 4):
            raise RecipeError(
                f"{self.name}: algorithm=hqq fits zero points at 4 bits; it goes with symmetric=false only"
            )

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(
            weight_bits=self.bits, activation_bits=_bits(self.floats), arithmetic="float", method=self.algorithm
        )

    @property
    def needs_calibration(self) -> bool:
        """Where the algorithm looks at inputs."""
        return self.algorithm in ("gptq", "awq")

    def idle(self) -> dict[str, str]:
        """The kernel of an operator that is not in the file."""
        return {"kernel": "form=matmulnbits"} if self.form == "qdq" else {}

    @property
    def grid(self) -> Literal["asymmetric", "symmetric", "positive"]:
        """Where the levels of a block lie. TensorRT wants positive scales, ONNX Runtime's own are signed."""
        return "positive" if self.form == "qdq" else "symmetric" if self.symmetric else "asymmetric"


@dataclass(frozen=True)
class Int8WeightOnly(WeightOnly):
    """Block-wise 8-bit weights."""

    name: ClassVar[str] = "int8-weight-only"
    summary: ClassVar[str] = "block-wise 8-bit weights"
    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4WeightOnly(WeightOnly):
    """Block-wise 4-bit weights."""

    name: ClassVar[str] = "int4-weight-only"
    summary: ClassVar[str] = "block-wise 4-bit weights"
    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class Int2WeightOnly(WeightOnly):
    """Block-wise 2-bit weights."""

    name: ClassVar[str] = "int2-weight-only"
    summary: ClassVar[str] = "block-wise 2-bit weights (to see the floor)"
    bits: ClassVar[int] = 2


@dataclass(frozen=True)
class ModelOpt(Recipe):
    """Base of the recipes that NVIDIA ModelOpt's quantizer makes, on clipq's placement and calibration set."""

    quantizer: ClassVar[str] = "modelopt_quantizer"

    floats: Literal["fp32", "fp16"] = "fp16"

    @property
    def needs_calibration(self) -> bool:
        """Always: without data ModelOpt would take random numbers."""
        return True

    def slug(self) -> str:
        """``modelopt-int8-max``: the method is named first, the floats only where they differ."""
        rest = [field.name for field in dataclasses.fields(self) if field.name != "floats"]
        words = [_word(name, getattr(self, name)) for name in rest]
        return "-".join([self.name, *words, *(["fp32"] if self.floats == "fp32" else [])])


@dataclass(frozen=True)
class ModelOptInt8(ModelOpt):
    """8-bit weights and activations as Q/DQ pairs, ranges by ModelOpt's ``max`` or ``entropy``."""

    name: ClassVar[str] = "modelopt-int8"
    summary: ClassVar[str] = "NVIDIA ModelOpt: 8-bit weights and activations"

    ranges: Literal["max", "entropy"] = "max"

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(weight_bits=8, activation_bits=8, arithmetic="integer", method=f"modelopt {self.ranges}")


@dataclass(frozen=True)
class ModelOptInt4(ModelOpt):
    """Block-wise 4-bit weights by ModelOpt: rounding, or AWQ with or without its clipping search."""

    name: ClassVar[str] = "modelopt-int4"
    summary: ClassVar[str] = "NVIDIA ModelOpt: block-wise 4-bit weights"

    algorithm: Literal["rtn", "awq-lite", "awq-clip"] = "awq-lite"
    block_size: Literal[32, 64, 128] = 128

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(
            weight_bits=4, activation_bits=_bits(self.floats), arithmetic="float", method=f"modelopt {self.algorithm}"
        )


@dataclass(frozen=True)
class ModelOptFp8(ModelOpt):
    """8-bit floating-point weights and activations (E4M3), for Ada, Hopper and later."""

    name: ClassVar[str] = "modelopt-fp8"
    summary: ClassVar[str] = "NVIDIA ModelOpt: 8-bit floating point, for sm_89 and later"

    @property
    def scheme(self) -> Scheme:
        """Bits, arithmetic and method."""
        return Scheme(weight_bits=8, activation_bits=8, arithmetic="float", method="modelopt fp8")


SIMULATED = tuple(_simulated(weights, activations) for weights in range(2, 9) for activations in range(2, 9))
# What there is, and what ``clipq-export list`` shows: the simulated ones in one line.
KINDS: tuple[type[Recipe], ...] = (
    Fp16,
    Int8Static,
    Int8Dynamic,
    Int8WeightOnly,
    Int4WeightOnly,
    Int2WeightOnly,
    ModelOptInt8,
    ModelOptInt4,
    ModelOptFp8,
    Simulated,
)


def known_recipes() -> dict[str, type[Recipe]]:
    """Every recipe by its name, each width of the simulated ones too."""
    return {recipe.name: recipe for kind in KINDS for recipe in (SIMULATED if kind is Simulated else (kind,))}


def parse_recipe(text: str, runtime: str = DEFAULT_RUNTIME) -> Recipe:
    """``int8-static:ranges=entropy`` to a recipe; raises RecipeError naming what is known.

    Options not given take the value that ``runtime`` needs (``fitted``), else their default.

    >>> parse_recipe("int4-weight-only:algorithm=hqq").slug()
    'int4-weight-only-hqq'
    """
    name, _, rest = text.partition(":")
    recipes = known_recipes()
    if name not in recipes:
        known = ", ".join(kind.name for kind in KINDS)
        raise RecipeError(f"unknown recipe {name!r}; known: {known} (fp32 is always there){hint(name, recipes)}")
    kind = recipes[name]
    types = typing.get_type_hints(kind)
    options = [field.name for field in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        option, value = option.strip().replace("-", "_"), value.strip()
        option = FORMERLY.get((option, value), option)
        if not equals or option not in options:
            raise RecipeError(
                f"{name}: unknown option {item!r}; known: {', '.join(options) or 'none'}{hint(option, options)}"
            )
        if option in values:
            raise RecipeError(f"{name}: option {option!r} is given twice")
        values[option] = _convert(name, option, value, types[option])
    given = set(values)
    if runtime in kind.no_kernels:
        raise RecipeError(f"{name}: {runtime} has no kernels for it; use int8-static")
    for (option, value), (runtimes, reason) in kind.unfit.items():
        if runtime in runtimes and str(values.get(option)) == value:
            raise RecipeError(f"{name}: {option}={value} is not for {runtime}, which {reason}; leave it out")
    for option, value in kind.fitted.get(runtime, {}).items():
        values.setdefault(option, _convert(name, option, value, types[option]))
    for (option, value), others in kind.goes_with.items():
        if str(values.get(option)) == value:
            values = {other: _convert(name, other, text, types[other]) for other, text in others.items()} | values
    recipe = kind(**values)
    for option, wanted in recipe.idle().items():
        if option in given:
            raise RecipeError(f"{name}: {option} changes nothing without {wanted}; give that too, or leave it out")
    return recipe


def _convert(recipe: str, option: str, value: str, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if str(choice) == value:
                return choice
        choices = [str(choice) for choice in typing.get_args(kind)]
        raise RecipeError(f"{recipe}: {option}={value!r}; known: {', '.join(choices)}{hint(value, choices)}")
    if kind is bool:
        if value not in ("true", "false"):
            raise RecipeError(f"{recipe}: {option}={value!r}; known: true, false")
        return value == "true"
    try:
        return kind(value)
    except ValueError as error:
        raise RecipeError(f"{recipe}: {option}={value!r} is not a number") from error


def _levels(weights: WeightLevels) -> int:
    return int(weights.removesuffix("bit"))


def _bits(floats: Literal["fp32", "fp16"]) -> int:
    return 16 if floats == "fp16" else 32


def _word(option: str, value: Any) -> str:
    if isinstance(value, bool):
        return option.replace("_", "-") if value else f"no-{option.replace('_', '-')}"
    if isinstance(value, int | float):
        return f"{'block' if option == 'block_size' else option}{value:g}"
    return f"{value}-kernel" if option == "kernel" else str(value)
