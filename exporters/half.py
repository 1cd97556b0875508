"""Half precision for what a tower computes in floating point."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from clipq.errors import RecipeError
from clipq.exporters.onnx_file import put_back, values_of, without_weights
from clipq.exporters.tower_check import is_mask
from clipq.onnx_graph import tensors
from clipq.progress import quiet_logging

# Smallest normal number of half precision: below it, scales would lose digits.
SMALLEST = float(np.finfo(np.float16).smallest_normal)
LARGEST = float(np.finfo(np.float16).max)
LEAST = float(np.finfo(np.float16).smallest_subnormal)


def as_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 turned to float16; inputs and outputs stay as they are.

    ONNX Runtime's converter does it. Scales of Q/DQ pairs are turned too, so the values around them are half as well,
    and their integers stay; ``storable_in_half`` made those scales exact beforehand. Raises RecipeError where a weight
    is beyond half precision's largest number.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    _refuse_out_of_reach(model)
    kept = [value.name for values in (model.graph.input, model.graph.output) for value in values]
    factors = _factors(model)
    typed = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    part = without_weights(model, but={value.name for value in model.graph.initializer} - factors)
    for field in ("value_info", "output"):
        part.graph.ClearField(field)
        getattr(part.graph, field).MergeFrom(getattr(typed, field))
    with quiet_logging():
        # It would infer shapes with all weights in one message, of which protobuf takes no more than 2 GB.
        half = convert_float_to_float16(part, keep_io_types=kept, disable_shape_infer=True)
        # It puts the casts of inputs last, and ONNX wants nodes after what they read.
        OnnxModel.graph_topological_sort(half.graph)
    # It keeps a weight in memory in both precisions, so those that make a tower large are turned here, one by one.
    turned = (_turned(value) for value in model.graph.initializer if value.name in factors)
    return put_back(half, turned)


def _turned(tensor: onnx.TensorProto) -> onnx.TensorProto:
    from onnxruntime.transformers.float16 import convert_np_to_float16

    array = values_of(tensor)
    # Five times as fast as on a matrix.
    return numpy_helper.from_array(convert_np_to_float16(array.ravel()).reshape(array.shape), tensor.name)


def _factors(model: onnx.ModelProto) -> set[str]:
    """Weights that are read by nothing but products: the converter turns them whatever stands around them."""
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            readers[name].add(node.op_type)
    floats = (value.name for value in model.graph.initializer if value.data_type == onnx.TensorProto.FLOAT)
    inputs = {value.name for value in model.graph.input}
    return {name for name in floats if readers[name] and readers[name] <= {"MatMul", "Gemm", "Conv"}} - inputs


def _refuse_out_of_reach(model: onnx.ModelProto) -> None:
    """Raise RecipeError for weights that half precision does not reach: the converter would take its own extremes.

    Single ones that vanish are left, and so are constants that keep a divisor from 0; where a whole tensor vanishes,
    its values would all be of one size.
    """
    for tensor in tensors(model):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = values_of(tensor)
            beyond = array[np.abs(array) > LARGEST]
            peak = np.abs(array).max(initial=0)
            if array.size > 1 and 0 < peak < LEAST:
                raise RecipeError(
                    f"{tensor.name or 'a constant'} has no value above {peak:g}, and half precision begins at "
                    f"{LEAST:g}: keep floats=fp32, or leave the tower as it is with --towers"
                )
            if beyond.size and not is_mask(array):
                raise RecipeError(
                    f"{tensor.name or 'a constant'} has the value {beyond[0]:g}, and half precision ends at "
                    f"{LARGEST:g}: keep floats=fp32, or leave the tower as it is with --towers"
                )


def storable_in_half(scale: NDArray[Any]) -> NDArray[np.float32]:
    """Positive scales rounded to half precision, and never below its normal numbers.

    Raises RecipeError for one beyond its largest number.
    """
    if np.max(scale, initial=0) > LARGEST:
        raise RecipeError(f"a scale is {np.max(scale):g}, and half precision ends at {LARGEST:g}: keep floats=fp32")
    return np.maximum(np.asarray(scale, np.float32), SMALLEST).astype(np.float16).astype(np.float32)
