"""Whether a tower can be quantized at all: its graph runs, and its weights are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from clipq.bundle import Bundle, TowerName
from clipq.engines.ort import OrtEngine
from clipq.errors import BundleError, RecipeError
from clipq.exporters.onnx_file import load, values_of
from clipq.onnx_graph import tensors

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
# What towers add to scores that softmax is not to see, and clip by where nothing is cut off.
_LIMITS = np.array([-np.inf, np.finfo(np.float32).min, np.finfo(np.float32).max])


def check_tower(bundle: Bundle, name: TowerName) -> None:
    """Raise EngineError where ONNX Runtime does not load a tower, BundleError where it is none of the manifest's names.

    Raises RecipeError where a weight is not finite: rounding makes any number of it, and clipq would measure that.
    """
    path, tower = bundle.tower_path(name), bundle.manifest.tower(name)
    # As it is written, and without the copies of weights that kernels make to be fast: nothing is run.
    with OrtEngine(path, simulated=True, config={"session.disable_prepacking": "1"}) as engine:
        found = {spec.name for spec in (*engine.inputs, *engine.outputs)}
    if not {tower.input_name, tower.output_name} <= found:
        raise BundleError(
            f"{path}: has {', '.join(sorted(found))}, where the manifest says {tower.input_name} and "
            f"{tower.output_name}; export the bundle again"
        )
    for tensor in tensors(load(path)):
        if tensor.data_type in _FLOATS:
            array = values_of(tensor)
            finite = np.isfinite(array)
            if not finite.all() and not is_mask(array):
                raise RecipeError(
                    f"{path}: {tensor.name or 'a constant'} has {finite.size - finite.sum()} values that are not "
                    f"finite, the first {array[~finite][0]}: mend the checkpoint, or leave this tower with --towers"
                )


def is_mask(array: NDArray[Any]) -> bool:
    """Whether an array is nothing but zeros and the ends of the numbers: an attention mask, or limits that are none."""
    return bool(((array == 0) | np.isin(array, _LIMITS)).all())
