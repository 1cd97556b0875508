"""clip-as-service and Neural Magic: `visual.onnx`, `textual.onnx`, `open_clip_config.json`; one of them with its weights in
files beside the graphs.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.foreign.demo import images, model, say, token_ids, tool_versions, write_hub_files
from benchmarks.foreign.torch_export import EncodeImage, EncodeText


def export(clip: Any, target: Path, names: tuple[str, str, str, str], opset: int) -> None:
    for module, value, file, (given, output) in (
        (EncodeImage(clip), torch.from_numpy(images(2)), "visual.onnx", names[:2]),
        (EncodeText(clip), torch.from_numpy(token_ids(2)), "textual.onnx", names[2:]),
    ):
        torch.onnx.export(
            module,
            (value,),
            str(target / file),
            input_names=[given],
            output_names=[output],
            dynamic_axes={given: {0: "batch"}, output: {0: "batch"}},
            opset_version=opset,
            dynamo=False,
        )


def weights_beside(path: Path) -> None:
    import onnx

    loaded = onnx.load(str(path))
    onnx.save(
        loaded,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=1024,
    )


def main(folder: Path) -> None:
    import numpy as np
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from benchmarks.foreign.demo import Reader

    clip, versions = model(), tool_versions("torch", "open_clip_torch", "onnxruntime-gpu", "onnxruntime")
    service = folder / "clip-as-service"
    shutil.rmtree(service, ignore_errors=True)
    write_hub_files(service)
    export(clip, service, ("pixel_values", "output", "input_ids", "output"), 14)
    for name in ("visual.onnx", "textual.onnx"):
        weights_beside(service / name)
    say(
        service,
        layout="clip-as-service (visual.onnx, textual.onnx), external data",
        made_by=f"{versions}, onnx.save(save_as_external_data=True)",
        truth="demo FP32",
        trap="weights in visual.onnx.data and textual.onnx.data; both outputs are called output; no tokenizer, no logit scale",
    )
    magic = folder / "neural-magic"
    shutil.rmtree(magic, ignore_errors=True)
    write_hub_files(magic)
    export(clip, magic, ("inputs", "outputs", "inputs", "outputs"), 14)
    for name, rows in (("visual.onnx", images(32)), ("textual.onnx", token_ids(32))):
        path = magic / name
        products = [node for node in onnx.load(str(path)).graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
        stored = {entry.name for entry in onnx.load(str(path)).graph.initializer}
        quantize_static(
            path,
            path,
            Reader("inputs", np.ascontiguousarray(rows)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            # Products of two activations stay as they are, and with them the mask of minus infinity.
            nodes_to_exclude=[node.name for node in products if not stored & set(node.input)],
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"]},
        )
    say(
        magic,
        layout="Neural Magic / DeepSparse (visual.onnx, textual.onnx, open_clip_config.json), quantized QDQ",
        made_by=f"{versions}; QDQ by ONNX Runtime, for sparseml is no longer installable",
        truth="what its tool gives; cosine to demo FP32 > 0.99",
        trap="the same names in both towers (inputs, outputs): only rank and type of the input tell them apart",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
