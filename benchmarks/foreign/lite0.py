"""lite0-lit, a convolutional image tower trained on photos: torch.onnx.export, and ONNX Runtime's `quantize_static` of it.

python -m benchmarks.foreign.lite0 FOLDER --checkpoint lite0-lit --photos imagenet-1000 --tokenizer fp32/tokenizer.json
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from benchmarks.foreign.demo import Reader, config, images, model, say, token_ids, tool_versions
from benchmarks.foreign.torch_export import Way, export


def quantized(source: Path, target: Path, reader: Reader, left: list[str]) -> None:
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = target.with_suffix(".ready.onnx")
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    quantize_static(ready, target, reader, nodes_to_exclude=left)
    ready.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    options = parser.parse_args()
    paths = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[index] for index in np.random.default_rng(0).permutation(len(paths))[:64]]
    rows = images(64, chosen, options.checkpoint), token_ids(64, options.tokenizer)
    versions = tool_versions("torch", "open_clip_torch", "onnxruntime-gpu", "onnxruntime")
    raw, static = options.folder / "lite0-torch", options.folder / "lite0-static"
    for target in (raw, static):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copy(options.checkpoint / "open_clip_config.json", target)
    export(model(options.checkpoint), raw, Way(17), config(options.checkpoint), (rows[0][:2], rows[1][:2]))
    say(
        raw,
        layout="raw torch.onnx.export of open_clip",
        made_by=f"{versions} (dynamo=False, opset_version=17)",
        truth="lite0-lit FP32",
        trap="context length 32, size 224; no tokenizer and no logit scale: --like",
    )
    quantized(raw / "image.onnx", static / "image.onnx", Reader("image", rows[0]), [])
    # The defaults turn the text tower's causal mask into NaN scales, so that tower stays as it was exported.
    shutil.copy(raw / "text.onnx", static)
    say(
        static,
        layout="raw torch.onnx.export of open_clip, image tower quantized",
        made_by=f"{versions} (quant_pre_process, quantize_static in its defaults: QDQ, 64 photos, minmax)",
        truth="what ONNX Runtime's quantizer gives (it loses many points on this tower)",
        trap="the image tower alone is quantized; every operator of it, residual adds and pooling too",
    )


if __name__ == "__main__":
    main()
