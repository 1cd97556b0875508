"""NVIDIA ModelOpt's quantizers on the same towers, nodes and calibration set as clipq's own.

ModelOpt has its own idea of which nodes to quantize; here it is given the placement that every recipe uses, so that
only the calibrator differs. It would calibrate on random data where it is given none, which is refused.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from clipq.errors import RecipeError
from clipq.exporters.half import as_half
from clipq.exporters.onnx_file import load, save
from clipq.exporters.placement import place
from clipq.exporters.quantize import TowerSource, prepared, quantize_tower
from clipq.exporters.recipes import ModelOpt, ModelOptFp8, ModelOptInt4, ModelOptInt8


@quantize_tower.register
def _(recipe: ModelOptInt8, source: TowerSource) -> onnx.ModelProto:
    return _quantized(recipe, source, quantize_mode="int8", calibration_method=recipe.ranges, dq_only=True)


@quantize_tower.register
def _(recipe: ModelOptFp8, source: TowerSource) -> onnx.ModelProto:
    return _quantized(recipe, source, quantize_mode="fp8", calibration_method="max", dq_only=True)


@quantize_tower.register
def _(recipe: ModelOptInt4, source: TowerSource) -> onnx.ModelProto:
    method = {"rtn": "rtn_dq", "awq-lite": "awq_lite", "awq-clip": "awq_clip"}[recipe.algorithm]
    model = _quantized(recipe, source, quantize_mode="int4", calibration_method=method, block_size=recipe.block_size)
    # For 4 bits ModelOpt leaves the rest in single precision whatever it is asked.
    return as_half(model) if recipe.floats == "fp16" else model


def _quantized(recipe: ModelOpt, source: TowerSource, **mode: Any) -> onnx.ModelProto:
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise RecipeError(
            f"{recipe.name} needs NVIDIA ModelOpt ({error}): pip install 'clip-quant[modelopt]' in an environment of "
            "its own, for it pins older versions of onnx and ONNX Runtime"
        ) from error
    if source.feeds is None:
        raise RecipeError(f"{recipe.name} needs a calibration set: give --calibration-set DIR")
    model = prepared(source.path, source.scratch)
    placement = place(model)
    batches = list(source.feeds())
    (name,) = batches[0]
    data = np.concatenate([batch[name] for batch in batches])
    left = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    path, output = source.scratch / "tower.onnx", source.scratch / "quantized.onnx"
    with _quiet():
        save(model, path)
        try:
            quantize(
                str(path),
                calibration_data={name: data},
                calibration_eps=["cpu"],
                nodes_to_quantize=list(placement.nodes),
                nodes_to_exclude=[node for node in left if node not in placement.nodes],
                high_precision_dtype=recipe.floats,
                disable_mha_qdq=True,
                output_path=str(output),
                log_level="ERROR",
                **mode,
            )
        except Exception as error:  # its own, torch's and ONNX Runtime's
            raise RecipeError(f"{recipe.name}: ModelOpt fails: {type(error).__name__}: {str(error)[:300]}") from error
        return load(output)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ModelOpt prints, draws bars and logs errors about GPUs it does not need; what fails raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
