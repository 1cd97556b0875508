"""Whether a tower can be quantized at all: its graph runs, and its weights are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from clipq.bundle import Bundle, TowerName
from clipq.engines.catalog import check_signature
from clipq.engines.ort import OrtEngine
from clipq.errors import BundleError, RecipeError
from clipq.exporters.onnx_file import load, values_of, without_weights
from clipq.onnx_graph import tensors

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
# What towers add to scores that softmax is not to see, and clip by where nothing is cut off.
_LIMITS = np.array([-np.inf, np.finfo(np.float32).min, np.finfo(np.float32).max])


def check_tower(bundle: Bundle, name: TowerName) -> None:
    """Raise EngineError where ONNX Runtime does not load a tower, BundleError where it is not what the manifest says.

    Raises RecipeError where a weight is not finite: rounding makes any number of it, and clipq would measure that.
    """
    path = bundle.tower_path(name)
    # As it is written, and without the copies of weights that kernels make to be fast: nothing is run.
    with OrtEngine(path, simulated=True, config={"session.disable_prepacking": "1"}) as engine:
        check_signature(engine, bundle, name)
    model = load(path)
    try:
        # ONNX Runtime takes what libraries read in another way: of two weights of one name, one takes the first.
        onnx.checker.check_model(without_weights(model))
    except onnx.checker.ValidationError as error:
        raise BundleError(f"{path}: is no valid ONNX graph ({error}); make the bundle again") from error
    if (said := not_finite(model)) is not None:
        raise RecipeError(f"{path}: {said}: mend the checkpoint, or leave this tower with --towers")


def not_finite(model: onnx.ModelProto) -> str | None:
    """The first weights of a model, as ``load`` gives it, that are no numbers, in words; masks may hold infinities."""
    for tensor in tensors(model):
        if tensor.data_type in _FLOATS:
            array = values_of(tensor)
            finite = np.isfinite(array)
            if not finite.all() and not is_mask(array):
                count, first = finite.size - finite.sum(), array[~finite][0]
                return f"{tensor.name or 'a constant'} has {count} values that are not finite, the first {first}"
    return None


def is_mask(array: NDArray[Any]) -> bool:
    """Whether an array is nothing but zeros and the ends of the numbers: an attention mask, or limits that are none."""
    return bool(((array == 0) | np.isin(array, _LIMITS)).all())
