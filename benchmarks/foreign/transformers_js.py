"""transformers.js: `onnx/{vision,text}_model*.onnx`, exported and quantized as its `scripts/convert.py --split_modalities
--quantize` does (Optimum's `export_models`, onnxslim, ONNX Runtime's quantizers with its defaults for CLIP).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.foreign.demo import images, say, token_ids, tool_versions

TOWERS = ("vision", "text")


def optimum_towers(source: Path, target: Path) -> None:
    """Both towers with Optimum's configuration, as the script's `extra/clip.py` narrows it to the embeddings."""
    from optimum.exporters.onnx import export_models
    from optimum.exporters.onnx.model_configs import CLIPTextWithProjectionOnnxConfig, CLIPVisionModelOnnxConfig
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    class Vision(CLIPVisionModelOnnxConfig):
        @property
        def outputs(self) -> Any:
            return {"image_embeds": {0: "batch_size"}}

    class Text(CLIPTextWithProjectionOnnxConfig):
        @property
        def outputs(self) -> Any:
            return {"text_embeds": {0: "batch_size"}}

    vision = CLIPVisionModelWithProjection.from_pretrained(source)
    text = CLIPTextModelWithProjection.from_pretrained(source)
    export_models(
        models_and_onnx_configs={
            "vision_model": (vision, Vision(vision.config)),
            "text_model": (text, Text(text.config)),
        },
        output_dir=target,
    )


def masked_towers(source: Path, target: Path, any_length: bool = False) -> None:
    """Both towers by torch.onnx.export with `attention_mask` and every output that the classes have."""
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    class Named(torch.nn.Module):
        def __init__(self, model: Any, names: tuple[str, ...], outputs: tuple[str, ...]):
            super().__init__()
            self.model, self.names, self.outputs = model, names, outputs

        def forward(self, *values: Any) -> tuple[Any, ...]:
            said = self.model(**dict(zip(self.names, values, strict=True)))
            return tuple(getattr(said, name) for name in self.outputs)

    # The fused attention's mask is made by code that the tracing exporter cannot follow.
    vision = CLIPVisionModelWithProjection.from_pretrained(source, attn_implementation="eager").eval()
    text = CLIPTextModelWithProjection.from_pretrained(source, attn_implementation="eager").eval()
    ids = torch.from_numpy(token_ids(2))
    cases = (
        ("vision", vision, ("pixel_values",), (torch.from_numpy(images(2)),), ("image_embeds", "last_hidden_state")),
        (
            "text",
            text,
            ("input_ids", "attention_mask"),
            (ids, torch.ones_like(ids)),
            ("text_embeds", "last_hidden_state"),
        ),
    )
    for tower, model, names, values, outputs in cases:
        length = {1: "sequence_length"} if any_length and tower == "text" else {}
        torch.onnx.export(
            Named(model, names, outputs),
            values,
            str(target / f"{tower}_model.onnx"),
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch_size"} | length for name in names}
            | {name: {0: "batch_size"} for name in outputs},
            opset_version=17,
            dynamo=False,
        )


def eight_bits(kind: str) -> Callable[[Path, Path], None]:
    def quantized(model: Path, target: Path) -> None:
        import onnx
        from onnxruntime.quantization import QuantizationMode, QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.registry import IntegerOpsRegistry

        loaded = onnx.load(str(model))
        # `_quantized` is unsigned where the model has a convolution, for onnxruntime-web has no other ConvInteger.
        unsigned = kind == "uint8" or (
            kind == "quantized" and any(node.op_type == "Conv" for node in loaded.graph.node)
        )
        quantizer = ONNXQuantizer(
            loaded,
            per_channel=True,
            reduce_range=True,
            mode=QuantizationMode.IntegerOps,
            static=False,
            weight_qType=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=None,
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=set(IntegerOpsRegistry),
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
        onnx.save(quantizer.model.model, str(target))

    return quantized


def half(model: Path, target: Path, keep_io_types: bool = True) -> None:
    import onnx
    import onnxslim
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(onnxslim.slim(convert_float_to_float16(onnx.load(str(model)), keep_io_types=keep_io_types)), str(target))


def half_throughout(model: Path, target: Path) -> None:
    half(model, target, keep_io_types=False)


def four_bits(model: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(str(model)), block_size=32, is_symmetric=True, accuracy_level=None)
    quantizer.process()
    onnx.save(quantizer.model.model, str(target))


def four_bits_half(model: Path, target: Path) -> None:
    four_bits(model, target)
    half(target, target)


def bits_and_bytes(model: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

    quantizer = MatMulBnb4Quantizer(onnx.load(str(model)), MatMulBnb4Quantizer.NF4, 64)
    quantizer.process()
    onnx.save(quantizer.model.model, str(target))


VARIANTS: Mapping[str, Callable[[Path, Path], None]] = {
    "quantized": eight_bits("quantized"),
    "int8": eight_bits("int8"),
    "uint8": eight_bits("uint8"),
    "fp16": half,
    "q4": four_bits,
    "q4f16": four_bits_half,
    "bnb4": bits_and_bytes,
}


def lay_out(folder: Path, source: Path) -> Path:
    """A repository's folder: the checkpoint's configuration and tokenizer beside an empty `onnx/`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "onnx").mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder)
    return folder / "onnx"


def add_variants(onnx_folder: Path, variants: Mapping[str, Callable[[Path, Path], None]]) -> list[str]:
    failed = []
    for name, make in variants.items():
        for tower in TOWERS:
            try:
                make(onnx_folder / f"{tower}_model.onnx", onnx_folder / f"{tower}_model_{name}.onnx")
            except Exception as error:
                failed.append(f"{tower}_model_{name}: {type(error).__name__}: {str(error)[:200]}")
    return failed


def main(folder: Path) -> None:
    import onnx
    import onnxslim

    versions = tool_versions("optimum-onnx", "transformers", "torch", "onnxslim", "onnxruntime-gpu", "onnxruntime")
    source = folder / "clip-model"
    towers = lay_out(folder / "transformers-js", source)
    optimum_towers(source, towers)
    for tower in TOWERS:
        path = towers / f"{tower}_model.onnx"
        onnx.save(onnxslim.slim(onnx.load(str(path))), str(path))
    failed = add_variants(towers, VARIANTS)
    say(
        folder / "transformers-js",
        layout="transformers.js (onnx/{vision,text}_model{,_quantized,_int8,_uint8,_fp16,_q4,_q4f16,_bnb4}.onnx)",
        made_by=versions,
        truth="vision_model, text_model, _fp16: demo FP32; the others are what their tool gives",
        trap="all input dimensions symbolic (the size stands in preprocessor_config.json); no attention_mask; "
        "not made: " + ("; ".join(failed) or "nothing"),
    )
    towers = lay_out(folder / "transformers-js-mask", source)
    masked_towers(source, towers)
    half_throughout_failed = add_variants(towers, {"quantized": eight_bits("quantized"), "fp16": half_throughout})
    say(
        folder / "transformers-js-mask",
        layout="transformers.js, text tower with attention_mask, several outputs",
        made_by=versions + " (torch.onnx.export, dynamo=False)",
        truth="vision_model, text_model, _fp16: demo FP32",
        trap="two outputs (embeddings of rank 2, last_hidden_state of rank 3, the second output); _fp16 has float16 pixels "
        "in and float16 out (keep_io_types=False); a mask of ones and a mask that leaves padding out give the same "
        "embedding, for the tower is causal; not made: " + ("; ".join(half_throughout_failed) or "nothing"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
