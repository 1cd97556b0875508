"""Every engine of the zoo run in ONNX Runtime as its maker meant it, and how near it is to the demo's FP32 bundle.

Written without clipq's adopt, to say what adopt has to find: `python -m benchmarks.foreign.truth FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.foreign.demo import BUNDLE, config, images, token_ids

COUNT = 32
END = config()["model_cfg"]["text_cfg"]["vocab_size"] - 1
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def feed(entry: Any, pixels: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[Any]:
    if entry.name == "attention_mask":
        rows: NDArray[Any] = (np.cumsum(ids == END, axis=1) - (ids == END) == 0).astype(np.int64)
    elif len(entry.shape) == 4:
        rows = pixels.transpose(0, 2, 3, 1) if entry.shape[3] == 3 else pixels
    else:
        rows = ids
    return rows.astype(TYPES[entry.type])


def run(path: Path, pixels: NDArray[np.float32], ids: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    # NchwcTransformer takes the process down (a segmentation fault, ONNX Runtime 1.31.1 and 1.32.0) on torch's float16 GELU.
    session = ort.InferenceSession(
        str(path),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["NchwcTransformer"] if "float16" in str(path) else [],
    )
    feeds = {entry.name: feed(entry, pixels, ids) for entry in session.get_inputs()}
    first = session.get_inputs()[0].shape[0]
    batch = first if isinstance(first, int) else COUNT
    parts = [
        session.run(None, {name: rows[start : start + batch] for name, rows in feeds.items()})
        for start in range(0, COUNT, batch)
    ]
    ranks = {len(entry.shape) for entry in session.get_inputs()}
    tower = "both" if len(ranks) == 2 else "image" if ranks == {4} else "text"
    for entry, *rows in zip(session.get_outputs(), *parts, strict=True):
        if rows[0].ndim == 2 and not entry.name.startswith("logits"):
            yield entry.name.split("_")[0] if tower == "both" else tower, np.concatenate(rows).astype(np.float64)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main(folder: Path) -> None:
    ort.set_default_logger_severity(3)
    pixels, ids = images(COUNT), token_ids(COUNT)
    wanted = {}
    for tower in ("image", "text"):
        wanted |= {name: unit(rows) for name, rows in run(BUNDLE / f"{tower}.onnx", pixels, ids)}
    preprocess = config()["preprocess_cfg"]
    mean, std = (np.array(preprocess[key], np.float32).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    print("| engine | tower | least cosine to FP32 | lengths of embeddings |\n|---|---|---|---|")
    for path in sorted(folder.rglob("*.onnx")):
        if "bad" in path.parts or "lite0" in str(path):
            continue
        plain = pixels * std + mean if "torch-normalizes" in path.parts else pixels
        try:
            for tower, rows in run(path, plain.astype(np.float32), ids):
                cosine = (unit(rows) * wanted[tower]).sum(1).min()
                lengths = np.linalg.norm(rows, axis=1)
                print(
                    f"| {path.relative_to(folder)} | {tower} | {cosine:.6f} | {lengths.min():.3f} to {lengths.max():.3f} |"
                )
        except Exception as error:
            print(f"| {path.relative_to(folder)} | | {type(error).__name__}: {str(error).splitlines()[0][:160]} | |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
