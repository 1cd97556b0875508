"""fastembed (Qdrant/clip-ViT-B-32-vision and -text): two repositories, each `model.onnx` with its own configuration, which
fastembed itself then runs from disk.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.foreign.demo import CALIBRATION, captions, say, tool_versions
from benchmarks.foreign.transformers_js import masked_towers

TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
IMAGE_FILES = ("config.json", "preprocessor_config.json")


def run_by_fastembed(vision: Path, text: Path) -> str:
    """Let fastembed itself embed two photos and two captions."""
    import numpy as np
    from fastembed import ImageEmbedding, TextEmbedding

    photos = sorted((CALIBRATION / "images").glob("*.png"))[:2]
    image = np.stack(
        list(
            ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=str(vision)).embed(
                [str(p) for p in photos]
            )
        )
    )
    words = np.stack(list(TextEmbedding("Qdrant/clip-ViT-B-32-text", specific_model_path=str(text)).embed(captions(2))))
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    return (
        f"fastembed runs both; cosines of 2 photos with their captions {np.round((image * words).sum(1), 3).tolist()}"
    )


def main(folder: Path) -> None:
    source = folder / "clip-model"
    vision, text = folder / "fastembed" / "clip-demo-vision", folder / "fastembed" / "clip-demo-text"
    with tempfile.TemporaryDirectory() as work:
        masked_towers(source, Path(work), any_length=True)
        for target, tower, files in ((vision, "vision", IMAGE_FILES), (text, "text", TEXT_FILES)):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            shutil.copy(Path(work) / f"{tower}_model.onnx", target / "model.onnx")
            for name in files:
                shutil.copy(source / name, target)
    try:
        ran = run_by_fastembed(vision, text)
    except Exception as error:
        ran = f"fastembed could not run them: {type(error).__name__}: {str(error)[:200]}"
    say(
        folder / "fastembed",
        layout="fastembed (two folders, NAME-vision and NAME-text, each with model.onnx)",
        made_by=tool_versions("fastembed", "transformers", "torch") + " (torch.onnx.export, dynamo=False)",
        truth=f"demo FP32; {ran}",
        trap="two folders; text takes any sequence length (fastembed pads to the longest text) and wants attention_mask; both have a second output, last_hidden_state; no logit scale; "
        "the folder's config.json is the checkpoint's, not the tower's",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
