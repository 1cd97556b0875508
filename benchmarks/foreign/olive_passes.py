"""Microsoft Olive's passes on our FP32 pair of the demo: dynamic and static quantization, float16."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.foreign.demo import BUNDLE, images, say, token_ids, tool_versions
from benchmarks.foreign.ort_quantizers import activation_products


def run(kind: Any, config: dict[str, Any], model: Path, target: Path) -> None:
    import onnx
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict

    with tempfile.TemporaryDirectory() as work:
        made = create_pass_from_dict(kind, config, disable_search=True)
        result = made.run(ONNXModelHandler(str(model)), str(Path(work) / "olive"))
        onnx.save(onnx.load(result.model_path), str(target))


def data(name: str, rows: NDArray[Any]) -> Any:
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry

    # Pairs of inputs and a label that nothing reads; Olive's own loader makes batches of one of them.
    Registry.register_dataset(f"zoo_{name}")(lambda: [({name: row}, 0) for row in rows])
    return DataConfig(name=name, load_dataset_config=DataComponentConfig(type=f"zoo_{name}"))


def main(folder: Path) -> None:
    from olive.passes.onnx.float16_conversion import OnnxFloatToFloat16
    from olive.passes.onnx.quantization import OnnxDynamicQuantization, OnnxStaticQuantization

    feeds = {"image": images(64), "text": token_ids(64)}
    passes: dict[str, tuple[Any, dict[str, Any], str]] = {
        "olive-dynamic": (OnnxDynamicQuantization, {}, "OnnxDynamicQuantization in its defaults"),
        "olive-static": (
            OnnxStaticQuantization,
            {"op_types_to_quantize": ["MatMul", "Conv"], "quant_preprocess": False, "activation_type": "uint8"},
            "OnnxStaticQuantization of MatMul and Conv, attention's products left out, uint8 activations",
        ),
        "olive-static-signed": (
            OnnxStaticQuantization,
            {"op_types_to_quantize": ["MatMul", "Conv"], "quant_preprocess": False},
            "the same with its default, int8 activations: ONNX Runtime from 1.27 on refuses to load the image tower",
        ),
        "olive-float16": (OnnxFloatToFloat16, {"keep_io_types": False}, "OnnxFloatToFloat16, keep_io_types=False"),
    }
    for name, (kind, config, form) in passes.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        failed = []
        for tower in ("image", "text"):
            source, options = BUNDLE / f"{tower}.onnx", dict(config)
            if "static" in name:
                options["data_config"] = data(tower, np.ascontiguousarray(feeds[tower]))
                options["nodes_to_exclude"] = activation_products(source)
            try:
                run(kind, options, source, target / f"{tower}.onnx")
            except Exception as error:
                failed.append(f"{tower}: {type(error).__name__}: {str(error)[:200]}")
        say(
            target,
            layout="a pair of files, image.onnx and text.onnx, nothing beside them",
            made_by=tool_versions("olive-ai", "onnxruntime-gpu", "onnx") + f" ({form})",
            truth="demo FP32" if "float16" in name else "what Olive gives from the demo's FP32 bundle",
            trap=f"--like src/clipq/demo/bundle; not made: {'; '.join(failed) or 'nothing'}",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
