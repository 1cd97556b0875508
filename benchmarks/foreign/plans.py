"""TensorRT-RTX plans of the demo's FP32 pair, alone in a folder, as `trtexec` leaves them (built without a GPU)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.foreign.demo import BUNDLE, say, tool_versions


def main(folder: Path) -> None:
    target = folder / "tensorrt-rtx-plans"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    command = ["clipq-export", "build", str(BUNDLE), "--runtime", "tensorrt-rtx", "--target", "sm_86"]
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([*command, "-o", work], check=True, capture_output=True, text=True)
        for path in Path(work).rglob("*"):
            if path.suffix in (".plan", ".engine") or path.name in ("image.onnx", "text.onnx"):
                tower = "visual" if path.stem.startswith("image") else "textual"
                shutil.copy(path, target / f"{tower}.plan")
    say(
        target,
        layout="a TensorRT pair: visual.plan, textual.plan",
        made_by=tool_versions("tensorrt-rtx", "tensorrt_rtx") + " for sm_86, profile 1, 8, 32",
        truth="demo FP32, on a GPU of sm_86; here it can only be checked",
        trap="no GPU here: a plan cannot be deserialized, so its inputs and outputs are unknown; no preprocessing, no tokenizer",
        how="clipq-export build src/clipq/demo/bundle --runtime tensorrt-rtx --target sm_86",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
