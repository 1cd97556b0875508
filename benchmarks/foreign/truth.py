"""What `clipq-export adopt` and `clipq-eval run` have to find of every engine of the zoo, found without them.

    python -m benchmarks.foreign.truth FOLDER

Each pair runs in ONNX Runtime as its maker meant it (masks, types, layouts, batches, the tokenizer's own padding): the
least cosine to the demo's FP32 bundle, the lengths of the embeddings, and top-1 on the built-in world's 960 photos, each
class the mean of its 80 prompts. Of clipq only the photos, class names and templates are used. Dynamic quantization takes
its ranges from a batch, so batches are those of `clipq-eval run`: 32, no two classes in one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.foreign.demo import BUNDLE, config
from clipq.demo import world

BATCH = 32
END = config()["model_cfg"]["text_cfg"]["vocab_size"] - 1
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
# What a text tower is called beside its image tower.
BESIDE = {"image": "text", "vision": "text", "visual": "textual"}
Rows = NDArray[Any]


class World:
    """The built-in world's test photos, as 0 to 1 and NCHW, with their classes' prompts."""

    def __init__(self) -> None:
        drawn = [world.sample("test", index) for index in range(world.SETS["test"].count)]
        self.pixels = np.stack([pixels for _, pixels in drawn]).transpose(0, 3, 1, 2).astype(np.float32) / 255
        self.labels = np.array([world.CLASS_NAMES.index(scene.shape) for scene, _ in drawn])
        preprocess = config()["preprocess_cfg"]
        mean, std = (np.array(preprocess[name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        self.normalized = (self.pixels - mean) / std
        templates = json.loads((BUNDLE / "prompts.json").read_text())["templates"]["imagenet-80"]
        tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
        self.prompts = [
            np.array([one.ids for one in tokenizer.encode_batch([text.format(name).lower() for text in templates])])
            for name in world.CLASS_NAMES
        ]


def mask(ids: Rows) -> Rows:
    """1 up to the end token."""
    ends = ids == END
    return (np.cumsum(ends, axis=1) - ends == 0).astype(np.int64)


def feed(entry: Any, rows: Rows) -> Rows:
    """Pixels or ids as one input takes them; of the other tower's, nothing that matters."""
    rank = len(entry.shape)
    if entry.name == "attention_mask":
        rows = mask(rows) if rows.ndim == 2 else np.ones((1, 24))
    elif rank != rows.ndim:
        rows = np.zeros((1, 3, 48, 48)) if rank == 4 else np.full((1, 24), END)
    elif rank == 4 and entry.shape[3] == 3:
        rows = rows.transpose(0, 2, 3, 1)
    return rows.astype(TYPES[entry.type])


class Tower:
    """A file, and which of its outputs is the embedding."""

    def __init__(self, path: Path, kind: str):
        # NchwcTransformer takes the process down (ONNX Runtime 1.31.1 and 1.32.0) on torch's float16 GELU.
        without = ["NchwcTransformer"] if "float16" in str(path) else []
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"], disabled_optimizers=without)
        names = [entry.name for entry in self.session.get_outputs() if not entry.name.startswith(("logits", "last"))]
        (self.output,) = names if len(names) == 1 else (name for name in names if name.startswith(kind))
        fixed = {entry.shape[0] for entry in self.session.get_inputs() if isinstance(entry.shape[0], int)}
        self.batch = fixed.pop() if fixed else BATCH

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        parts = [self._run(rows[start : start + self.batch]) for start in range(0, len(rows), self.batch)]
        return np.concatenate(parts).astype(np.float64)

    def _run(self, rows: Rows) -> Rows:
        feeds = {entry.name: feed(entry, rows) for entry in self.session.get_inputs()}
        (given,) = self.session.run([self.output], feeds)
        return given


def unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Both files of every engine; the same one twice where it is one graph."""
    found = []
    for path in sorted(folder.rglob("*.onnx")):
        if {"bad", "lite0-torch", "lite0-static"} & set(path.parts):
            continue
        name = str(path.relative_to(folder))
        others = [folder / name.replace(image, text) for image, text in BESIDE.items() if image in name]
        if other := next((other for other in others if other.exists() and other != path), None):
            found.append((path, other))
        elif path.parent.name == "optimum-combined":
            found.append((path, path))
    return found


def top1(images: Rows, classes: Sequence[Rows], labels: Rows) -> float:
    weights = np.stack([unit(unit(rows).mean(0)) for rows in classes])
    return 100 * float(((unit(images) @ weights.T).argmax(1) == labels).mean())


def main(folder: Path) -> None:
    ort.set_default_logger_severity(3)
    test = World()
    wanted = (
        Tower(BUNDLE / "image.onnx", "image")(test.normalized),
        [Tower(BUNDLE / "text.onnx", "text")(ids) for ids in test.prompts],
    )
    print(f"demo's FP32: top-1 {top1(*wanted, test.labels):.2f} %\n")
    print("| engine | least cosine, images | texts | lengths, images | texts | top-1 % |\n|---|---|---|---|---|---|")
    for image, text in pairs(folder):
        said = f"| {image.relative_to(folder)} "
        # transformers' tokenizers pad with the end token, open_clip's with 0.
        pad = END if any(folder.glob(f"{image.relative_to(folder).parts[0]}/**/tokenizer_config.json")) else 0
        prompts = [np.where(mask(ids) == 1, ids, pad) for ids in test.prompts]
        try:
            pixels = test.pixels if "torch-normalizes" in image.parts else test.normalized
            words = Tower(text, "text")
            answered = Tower(image, "image")(pixels), [words(ids) for ids in prompts]
        except Exception as error:
            print(f"{said}| {type(error).__name__}: {str(error).splitlines()[0][:160]} |")
            continue
        for mine, theirs in zip(
            (answered[0], np.concatenate(answered[1])), (wanted[0], np.concatenate(wanted[1])), strict=True
        ):
            said += f"| {(unit(mine) * unit(theirs)).sum(1).min():.6f} "
        for rows in (answered[0], np.concatenate(answered[1])):
            lengths = np.linalg.norm(rows, axis=1)
            said += f"| {lengths.min():.2f} to {lengths.max():.2f} "
        print(f"{said}| {top1(*answered, test.labels):.2f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
