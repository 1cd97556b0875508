"""NVIDIA ModelOpt's ONNX quantization of our FP32 pair of the demo, in its own defaults and placement."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.foreign.demo import BUNDLE, images, say, token_ids, tool_versions

MODES: dict[str, tuple[dict[str, Any], str]] = {
    "modelopt-int8": ({"quantize_mode": "int8", "high_precision_dtype": "fp32"}, "int8 Q/DQ, float32 beside"),
    "modelopt-int8-half": ({"quantize_mode": "int8"}, "int8 Q/DQ, float16 beside (its default)"),
    "modelopt-int4": (
        {"quantize_mode": "int4", "calibration_method": "awq_lite"},
        "int4 blocks (awq_lite), DequantizeLinear of 4-bit weights",
    ),
}


def main(folder: Path) -> None:
    from modelopt.onnx.quantization import quantize

    feeds = {"image": images(32), "text": token_ids(32)}
    for name, (mode, form) in MODES.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        failed = []
        for tower, rows in feeds.items():
            # A copy: ModelOpt writes names and batch sizes into the file that it is given.
            source = Path(shutil.copy(BUNDLE / f"{tower}.onnx", target / f"source_{tower}.onnx"))
            try:
                quantize(
                    str(source),
                    calibration_data={tower: np.ascontiguousarray(rows)},
                    calibration_eps=["cpu"],
                    output_path=str(target / f"{tower}.onnx"),
                    log_level="ERROR",
                    **mode,
                )
            except Exception as error:
                failed.append(f"{tower}: {type(error).__name__}: {str(error)[:200]}")
        for path in target.iterdir():
            # What it leaves behind of its work.
            if path.name not in ("image.onnx", "text.onnx"):
                path.unlink()
        say(
            target,
            layout="a pair of files, image.onnx and text.onnx, nothing beside them",
            made_by=tool_versions("nvidia-modelopt", "onnx", "onnxruntime") + f" ({form})",
            truth="what ModelOpt gives from the demo's FP32 bundle",
            trap=f"--like src/clipq/demo/bundle; not made: {'; '.join(failed) or 'nothing'}",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
