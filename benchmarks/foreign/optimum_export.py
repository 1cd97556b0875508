"""Optimum (`optimum-cli export onnx`): one combined graph of both towers and the logits, and each tower by its own class."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.foreign.demo import say, tool_versions

CLI = Path(sys.executable).with_name("optimum-cli")
TRUTH = "demo FP32 (logits = 33.18 x cosine)"


def export(source: Path, target: Path, task: str) -> str:
    command = [str(CLI), "export", "onnx", "--model", str(source), "--task", task, str(target)]
    shutil.rmtree(target, ignore_errors=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return f"optimum-cli export onnx --model clip-model --task {task} {target.name}"


def main(folder: Path) -> None:
    versions = tool_versions("optimum", "optimum-onnx", "transformers", "torch")
    target = folder / "optimum-combined"
    how = export(folder / "clip-model", target, "zero-shot-image-classification")
    say(
        target,
        layout="Optimum, one combined graph",
        made_by=versions,
        truth=TRUTH,
        trap="every dimension of the inputs is symbolic (height, width, sequence_length); both batches are free and differ; "
        "embeddings are unit length; padding is <end_of_text>; the logit scale stands in the graph and in no config "
        "(config.json's logit_scale_init_value is the untrained one)",
        how=how,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
