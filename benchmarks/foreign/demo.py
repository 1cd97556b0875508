"""What every engine here is made of: the demo's checkpoint (or another open_clip folder), photos and captions; and the
words in which a script says what it made. Needs numpy, Pillow and onnx at its top level; no clipq, which the other
tools' Pythons do not have.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKPOINT = ROOT / "src/clipq/demo/checkpoint"
BUNDLE = ROOT / "src/clipq/demo/bundle"
CALIBRATION = ROOT / "calib_data/demo"

Feeds = dict[str, NDArray[Any]]


def config(checkpoint: Path = CHECKPOINT) -> dict[str, Any]:
    return json.loads((checkpoint / "open_clip_config.json").read_text())


def model(checkpoint: Path = CHECKPOINT) -> Any:
    """The open_clip model on the CPU, in eval mode."""
    import open_clip
    import torch

    # Its fused kernel has no ONNX form.
    torch.backends.mha.set_fastpath_enabled(False)
    loaded = open_clip.create_model(f"local-dir:{checkpoint}").eval()
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    return loaded


def images(count: int, paths: Sequence[Path] = (), checkpoint: Path = CHECKPOINT) -> NDArray[np.float32]:
    """Photos as the checkpoint's preprocessing gives them, float32 NCHW."""
    from PIL import Image

    cfg = config(checkpoint)
    size, preprocess = cfg["model_cfg"]["vision_cfg"]["image_size"], cfg["preprocess_cfg"]
    mean, std = np.array(preprocess["mean"], np.float32), np.array(preprocess["std"], np.float32)
    paths = paths or sorted((CALIBRATION / "images").glob("*.png"))
    rows = []
    for path in paths[:count]:
        image = Image.open(path)
        shrink = size / min(image.size)
        image = image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        pixels = np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"), np.float32) / 255
        rows.append(((pixels - mean) / std).transpose(2, 0, 1))
    return np.stack(rows).astype(np.float32)


def captions(count: int) -> list[str]:
    with (CALIBRATION / "captions.csv").open(newline="") as file:
        return [row["caption"] for row in csv.DictReader(file)][:count]


def token_ids(count: int, tokenizer: Path = BUNDLE / "tokenizer.json") -> NDArray[np.int64]:
    """Ids of the demo's captions, (count, context length)."""
    from tokenizers import Tokenizer

    rows = Tokenizer.from_file(str(tokenizer)).encode_batch([text.lower() for text in captions(count)])
    return np.array([row.ids for row in rows], np.int64)


class Reader:
    """Calibration batches of one sample, as ONNX Runtime's quantizers ask for them."""

    def __init__(self, name: str, rows: NDArray[Any], batch: int = 1):
        self._feeds = [{name: rows[start : start + batch]} for start in range(0, len(rows), batch)]
        self.rewind()

    def rewind(self) -> None:
        self._next = iter(self._feeds)

    def get_next(self) -> Feeds | None:
        return next(self._next, None)

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self._feeds)


def copy_bundle_towers(folder: Path, image: str = "image.onnx", text: str = "text.onnx") -> tuple[Path, Path]:
    """Our own FP32 export, for the tools that start from an ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(BUNDLE / "image.onnx", folder / image)
    shutil.copy(BUNDLE / "text.onnx", folder / text)
    return folder / image, folder / text


def write_hub_files(folder: Path) -> None:
    """What an open_clip repository has beside its weights: its config and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CHECKPOINT / "open_clip_config.json", folder)


def tool_versions(*packages: str) -> str:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def say(folder: Path, *, layout: str, made_by: str, truth: str, trap: str = "none known", how: str = "") -> None:
    """Print what stands in a folder, as a section of a list."""
    import onnx

    print(f"\n## {folder.name}\n\n- layout: {layout}\n- made by: {made_by}\n- command: `{how or _command()}`")
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".onnx":
            file = onnx.load(str(path), load_external_data=False)
            opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in file.opset_import)
            print(f"- `{path.relative_to(folder)}` ({path.stat().st_size:,} bytes; {opsets})")
            stored = {entry.name for entry in file.graph.initializer}
            for kind, values in (("in", file.graph.input), ("out", file.graph.output)):
                for value in values:
                    if value.name not in stored:
                        print(f"    - {kind} `{value.name}` {_said(value)}")
        elif path.is_file():
            print(f"- `{path.relative_to(folder)}` ({path.stat().st_size:,} bytes)")
    print(f"- truth: {truth}\n- trap: {trap}", flush=True)


def _command() -> str:
    import sys

    return f"python -m benchmarks.foreign.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}"


def _said(value: Any) -> str:
    import onnx

    kind = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    shape = [entry.dim_param or entry.dim_value or "?" for entry in kind.shape.dim]
    return f"{name} [{', '.join(map(str, shape))}]"
