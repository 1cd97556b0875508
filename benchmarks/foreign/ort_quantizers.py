"""ONNX Runtime's own quantizers on our FP32 pair of the demo: static QDQ, static QOperator, dynamic, 4-bit blocks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.foreign.demo import BUNDLE, Reader, images, say, token_ids, tool_versions

Quantizer = Callable[[Path, Path, Reader], None]


def activation_products(model: Path) -> list[str]:
    """Names of the products of two activations: quantized, the text tower's mask of minus infinity makes them NaN."""
    import onnx

    graph = onnx.load(str(model)).graph
    stored = {entry.name for entry in graph.initializer} | {
        name
        for node in graph.node
        if node.op_type in ("Constant", "Transpose", "Identity") and not node.input
        for name in node.output
    }
    return [node.name for node in graph.node if node.op_type == "MatMul" and not stored & set(node.input)]


def static(form: str, defaults: bool = False) -> Quantizer:
    def quantized(model: Path, target: Path, reader: Reader) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        options = (
            {} if defaults else {"op_types_to_quantize": ["MatMul"], "nodes_to_exclude": activation_products(model)}
        )
        quantize_static(
            model,
            target,
            reader,
            quant_format=QuantFormat[form],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=form == "QDQ",
            **options,
        )

    return quantized


def dynamic(model: Path, target: Path, reader: Reader) -> None:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    bare = onnx.load(str(model))
    # "Inferred shape and existing shape differ": its shape inference stumbles on the stored shapes.
    del bare.graph.value_info[:]
    work = target.with_suffix(".work.onnx")
    onnx.save(bare, str(work))
    quantize_dynamic(work, target)
    work.unlink()


def blocks(model: Path, target: Path, reader: Reader) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(str(model)), bits=4, block_size=32, accuracy_level=4)
    quantizer.process()
    onnx.save(quantizer.model.model, str(target))


MAKERS: dict[str, tuple[Quantizer, str]] = {
    "ort-static-qdq": (
        static("QDQ"),
        "QuantizeLinear/DequantizeLinear, u8 activations (asymmetric), s8 weights per channel",
    ),
    "ort-static-qoperator": (static("QOperator"), "QLinearMatMul: integers from end to end, no Q/DQ pairs"),
    "ort-dynamic": (dynamic, "DynamicQuantizeLinear, MatMulInteger, and ConvInteger in the image tower"),
    "ort-matmulnbits": (blocks, "MatMulNBits (com.microsoft), block 32, accuracy_level 4"),
    "ort-static-defaults": (
        static("QDQ", defaults=True),
        "every operator of the defaults: the text tower's mask of minus infinity gives NaN scales; what such a user has",
    ),
}


def main(folder: Path) -> None:
    for name, (quantize, form) in MAKERS.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        failed = []
        for tower, given, rows in (("image", "image", images(64)), ("text", "text", token_ids(64))):
            try:
                quantize(BUNDLE / f"{tower}.onnx", target / f"{tower}.onnx", Reader(given, np.ascontiguousarray(rows)))
            except Exception as error:
                failed.append(f"{tower}: {type(error).__name__}: {str(error)[:200]}")
        say(
            target,
            layout="a pair of files, image.onnx and text.onnx, nothing beside them",
            made_by=tool_versions("onnxruntime-gpu", "onnxruntime", "onnx"),
            truth="what ONNX Runtime's quantizer gives from the demo's FP32 bundle",
            trap=f"{form}; --like src/clipq/demo/bundle; not made: {'; '.join(failed) or 'nothing'}",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
