"""One quantized tower per recipe: ``quantize_tower`` dispatches on the recipe's type."""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from clipq.engines.base import Array
from clipq.errors import RecipeError
from clipq.exporters.blocks import PackedBlocks, pack_blocks, rtn_blocks, unpack
from clipq.exporters.gptq import gptq_blocks
from clipq.exporters.half import as_half, storable_in_half
from clipq.exporters.hqq import hqq_blocks
from clipq.exporters.integer_products import with_integer_products
from clipq.exporters.onnx_file import inline, load, put_back, size, values_of, without_weights
from clipq.exporters.placement import place
from clipq.exporters.qdq import FakeQuantInserter, QdqInserter
from clipq.exporters.ranges import collect_ranges
from clipq.exporters.recipes import Fp16, Int8Dynamic, Int8Static, Recipe, Simulated, Static, WeightOnly
from clipq.exporters.scaling import protect_salient, second_moments, smooth
from clipq.progress import quiet_logging

# Of GPTQ's second moments at once: where they are more (ViT-H-14's image tower has 8 GB), the set is run several times.
MOMENTS_BYTES = 3 * 2**29
# Of weights that ONNX Runtime's quantizer is given at once: it has each in memory three times.
SHARE_BYTES = 256 * 2**20
Feeds = Callable[[], Iterator[dict[str, Array]]]


@dataclass(frozen=True)
class TowerSource:
    """An FP32 tower to quantize: its file, a folder for what is made on the way, and (where needed) calibration feeds.

    The folder must last as long as the quantized model is used: weights that exceed a file stay in it. ``idle`` gathers
    what the making showed to change nothing, as hints' codes with their numbers (``clipq.hints``).
    """

    path: Path
    scratch: Path
    feeds: Feeds | None = None
    idle: dict[str, dict[str, float]] = field(default_factory=dict)


@singledispatch
def quantize_tower(recipe: Recipe, source: TowerSource) -> onnx.ModelProto:
    """The tower quantized by the recipe; raises RecipeError where the recipe does not fit it."""
    raise RecipeError(f"recipe {recipe.name!r} has no quantizer")


@quantize_tower.register
def _(recipe: Fp16, source: TowerSource) -> onnx.ModelProto:
    return as_half(load(source.path))


@quantize_tower.register
def _(recipe: Int8Static, source: TowerSource) -> onnx.ModelProto:
    model = _as_opset_20(_with_ranges(recipe, source, QdqInserter))
    if recipe.floats == "fp16":
        model = as_half(model)
    return _without_unused(with_integer_products(model)) if recipe.form == "matmulinteger" else model


@quantize_tower.register
def _(recipe: Simulated, source: TowerSource) -> onnx.ModelProto:
    return _with_ranges(recipe, source, FakeQuantInserter)


def _with_ranges(recipe: Static, source: TowerSource, kind: type[QdqInserter]) -> onnx.ModelProto:
    """Measure activation ranges and insert quantizers of a kind at every chosen node."""
    if source.feeds is None:
        raise RecipeError(f"{recipe.name} needs a calibration set: give --calibration-set DIR")
    model = prepared(source.path, source.scratch)
    placement = place(model, attention=isinstance(recipe, Int8Static) and recipe.attention)
    if not placement.nodes:
        raise RecipeError(f"{source.path.name}: no linear or convolution to quantize")
    if recipe.smoothing and not smooth(model, placement, recipe.smoothing, source.feeds()):
        # No error: of a convolutional image tower and a transformer for texts one has what it smooths.
        source.idle["idle-smoothing"] = {"alpha": recipe.smoothing}
    inserter = kind(model, placement, recipe)
    histograms = collect_ranges(model, inserter.tensors, source.feeds(), counted=recipe.ranges != "minmax")
    inserter.insert({name: histogram.range(recipe) for name, histogram in histograms.items()})
    del model.graph.value_info[:]
    return _without_unused(model)


def _require_linear(model: onnx.ModelProto, recipe: Recipe, source: TowerSource) -> None:
    constants = {value.name for value in model.graph.initializer}
    if not any(node.op_type == "MatMul" and node.input[1] in constants for node in model.graph.node):
        raise RecipeError(f"{recipe.name}: {source.path.name} has no linear, and convolutions have no such kernel")


def _as_opset_20(model: onnx.ModelProto) -> onnx.ModelProto:
    """Declare opset 20: the same operators mean the same, but for what 21 added (4 bits, blocks, ``output_dtype``).

    From 1.27 on, ONNX Runtime writes ``output_dtype`` into opset-21 Q/DQ pairs that it moves past a Transpose, changes
    their zero point afterwards, and then refuses its own graph ("output_dtype INT8 does not match y_zero_point type
    UINT8"; ConvNeXt).
    """
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version == 21:
            opset.version = 20
    return model


@quantize_tower.register
def _(recipe: Int8Dynamic, source: TowerSource) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, dynamic = prepared(source.path, source.scratch), source.scratch / "dynamic.onnx"
    _require_linear(model, recipe, source)
    for share in _shares(model):
        with quiet_logging():
            # Linears alone: ONNX Runtime's ConvInteger has one weight scale for all channels and is slower than float.
            quantize_dynamic(
                without_weights(model, but=share),
                dynamic,
                op_types_to_quantize=["MatMul"],
                per_channel=recipe.granularity == "per-channel",
                # Its levels are then within ±64.
                reduce_range=recipe.weights == "7bit",
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
            )
        model = put_back(load(dynamic), model.graph.initializer)
    return model


def _shares(model: onnx.ModelProto) -> Iterator[set[str]]:
    """The weights of linears in shares of SHARE_BYTES, those that read the same tensor in one: it is quantized once."""
    weights = {value.name: value for value in model.graph.initializer}
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            readers[node.input[0]].add(node.input[1])
    share: set[str] = set()
    for names in readers.values():
        share |= names
        if sum(size(weights[name]) for name in share) > SHARE_BYTES:
            yield share
            share = set()
    if share:
        yield share


@quantize_tower.register
def _(recipe: WeightOnly, source: TowerSource) -> onnx.ModelProto:
    if recipe.needs_calibration and source.feeds is None:
        raise RecipeError(f"{recipe.name}: algorithm={recipe.algorithm} needs a calibration set: --calibration-set DIR")
    model = prepared(source.path, source.scratch)
    _require_linear(model, recipe, source)
    if (
        recipe.algorithm == "awq"
        and source.feeds is not None
        and not protect_salient(model, place(model), recipe, source.feeds())
    ):
        source.idle["idle-awq"] = {}
    if recipe.algorithm in ("hqq", "gptq") or recipe.form == "qdq":
        _quantize_linears(model, recipe, source)
        if recipe.token_table:
            model = _round_to_nearest(model, recipe, ("Gather",))
        model = _without_unused(model)
        model = model if recipe.form == "qdq" else _with_contrib_opset(model)
    else:
        model = _round_to_nearest(model, recipe, ("MatMul", "Gather") if recipe.token_table else ("MatMul",))
    return as_half(model) if recipe.floats == "fp16" else model


def prepared(path: Path, scratch: Path) -> onnx.ModelProto:
    """The tower with constants folded, shapes inferred and Gemm split, as quantizers want it.

    ONNX Runtime's ``quant_pre_process`` does this too, with several copies of the weights, and up to 2 GB.
    """
    import onnxruntime
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    folded, inferred = scratch / "folded.onnx", scratch / "inferred.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{folded.name}.data")
    # Nothing is run.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        onnx.shape_inference.infer_shapes_path(str(folded), str(inferred))
    except Exception as error:  # ONNX Runtime's and ONNX's share no base
        # Both say of a full disk that something could not be serialized.
        if shutil.disk_usage(scratch).free < path.stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch.parent)) from error
        raise RecipeError(f"{path}: its constants cannot be folded or its shapes inferred: {error}") from error
    model = load(inferred)
    add_pre_process_metadata(model)
    _name_nodes(model)
    return _gemm_as_matmul(model)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name the nodes that have no name: those to quantize are told by it."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(name for tries in count() if (name := f"node_{index}{'_' * tries}") not in taken)
            taken.add(node.name)


def _gemm_as_matmul(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write each Gemm with a constant weight as MatMul and Add: quantizers skip Gemm."""
    constants = {value.name: value for value in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = not attributes.get("transA") and attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or node.input[1] not in constants or not plain:
            nodes.append(node)
            continue
        weight = values_of(constants[node.input[1]])
        weight_name = f"{node.name}_weight"
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(
                np.ascontiguousarray(weight.T if attributes.get("transB") else weight), weight_name
            )
        )
        biased = len(node.input) > 2 and node.input[2] != ""
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight_name], [product], name=node.name))
        if biased:
            nodes.append(
                onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_bias")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return _without_unused(model)


def _round_to_nearest(model: onnx.ModelProto, recipe: WeightOnly, op_types: tuple[str, ...]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(
        block_size=recipe.block_size,
        is_symmetric=recipe.symmetric,
        accuracy_level=_accuracy_level(recipe),
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=op_types,
        quant_axes=(("MatMul", 0), ("Gather", 1)),
        bits=recipe.bits,
    )
    # It divides a block of zeros by the block's scale, 0, and by that scale it comes out as zeros.
    with quiet_logging(), np.errstate(divide="ignore", invalid="ignore"):
        try:
            quantizer = MatMulNBitsQuantizer(inline(model), algo_config=config)
            quantizer.process()
        except AssertionError as error:
            # ONNX Runtime 1.23, the last for Python 3.10, knows 4 and 8 bits alone.
            raise RecipeError(f"{recipe.name}: {error}; it needs a newer ONNX Runtime") from error
    return quantizer.model.model


def _accuracy_level(recipe: WeightOnly) -> int:
    # ONNX Runtime's numbers: 1 computes in float32, 4 allows int8 activations.
    return 4 if recipe.kernel == "int8" else 1


def _quantize_linears(model: onnx.ModelProto, recipe: WeightOnly, source: TowerSource) -> None:
    """Turn the weight of every MatMul that has a constant one into blocks of few bits."""
    weights = {value.name: value for value in model.graph.initializer if len(value.dims) == 2}
    linears = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    packed: list[PackedBlocks] = []
    for group in _groups(linears, weights):
        moments: dict[str, NDArray[np.float64]] = {}
        if recipe.algorithm == "gptq" and source.feeds is not None:
            moments = second_moments(model, list(dict.fromkeys(node.input[0] for node in group)), source.feeds())
        packed += [_blocks(node, values_of(weights[node.input[1]]).T, recipe, moments) for node in group]
    # Only now, so that every group's inputs are those of the tower as it was.
    for node, blocks in zip(linears, packed, strict=True):
        if recipe.form == "qdq":
            _as_dequantized(model, node, blocks, recipe)
        else:
            _as_matmul_n_bits(model, node, blocks, weights[node.input[1]].dims, recipe)


def _groups(
    linears: Sequence[onnx.NodeProto], weights: Mapping[str, onnx.TensorProto]
) -> Iterator[Sequence[onnx.NodeProto]]:
    """Linears in their order, in groups whose inputs' second moments take no more than MOMENTS_BYTES."""
    group: list[onnx.NodeProto] = []
    sizes: dict[str, int] = {}
    for node in linears:
        own = {node.input[0]: 8 * weights[node.input[1]].dims[0] ** 2}
        if group and sum((sizes | own).values()) > MOMENTS_BYTES:
            yield group
            group, sizes = [], {}
        group.append(node)
        sizes |= own
    yield group


def _blocks(
    node: onnx.NodeProto, weight: NDArray[np.float32], recipe: WeightOnly, moments: Mapping[str, NDArray[np.float64]]
) -> PackedBlocks:
    """A linear's weight (outputs × inputs) in blocks of few bits."""
    bits, size = recipe.bits, recipe.block_size
    if recipe.form == "qdq" and weight.shape[1] % size:
        raise RecipeError(
            f"{recipe.name}: {node.name} has {weight.shape[1]} inputs; form=qdq needs a multiple of block_size={size}"
        )
    if recipe.algorithm == "hqq":
        return hqq_blocks(weight, bits, size)
    if recipe.algorithm == "gptq":
        return gptq_blocks(weight, moments[node.input[0]], bits=bits, block_size=size, grid=recipe.grid)
    return pack_blocks(*rtn_blocks(weight, bits, size, recipe.grid), bits, size)


def _as_dequantized(model: onnx.ModelProto, node: onnx.NodeProto, blocks: PackedBlocks, recipe: WeightOnly) -> None:
    """Put a 4-bit weight (inputs × outputs) behind a block-wise DequantizeLinear (opset 21)."""
    outputs = len(blocks.packed)
    integers = unpack(blocks.packed, recipe.bits).reshape(outputs, -1).T.astype(np.int8) - 2 ** (recipe.bits - 1)
    scales = blocks.scales.reshape(outputs, -1).T
    if recipe.floats == "fp16":
        scales = storable_in_half(scales)
    stem = node.input[1]
    names = [f"{node.name}_{part}" for part in ("quantized", "scales")]
    flat = integers.reshape(-1)
    nibbles = (flat[0::2] & 15) | ((flat[1::2] & 15) << 4)
    raw = nibbles.astype(np.uint8).tobytes()
    model.graph.initializer.append(
        onnx.helper.make_tensor(names[0], onnx.TensorProto.INT4, integers.shape, raw, raw=True)
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(scales, np.float32), names[1]))
    dequantize = onnx.helper.make_node(
        "DequantizeLinear", names, [f"{stem}_dequantized"], name=f"{node.name}_DQ", axis=0, block_size=recipe.block_size
    )
    node.input[1] = dequantize.output[0]
    model.graph.node.insert(list(model.graph.node).index(node), dequantize)


def _as_matmul_n_bits(
    model: onnx.ModelProto, node: onnx.NodeProto, blocks: PackedBlocks, shape: Sequence[int], recipe: WeightOnly
) -> None:
    """Multiply by packed blocks in place of a weight of this shape (inputs × outputs)."""
    names = [f"{node.name}_{part}" for part in ("quantized", "scales", "zero_points")]
    arrays: list[Any] = [blocks.packed, blocks.scales, blocks.zero_points]
    for name, array in zip(names, arrays, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    replacement = onnx.helper.make_node(
        "MatMulNBits",
        [node.input[0], *names],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        K=shape[0],
        N=shape[1],
        bits=recipe.bits,
        block_size=recipe.block_size,
        accuracy_level=_accuracy_level(recipe),
    )
    node.CopyFrom(replacement)


def _without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {name for node in model.graph.node for name in node.input}
    # One by one: to put back those that stay would copy them, and protobuf keeps what it was rid of.
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]
    return model


def _with_contrib_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model
