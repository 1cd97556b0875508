"""torch.onnx.export of open_clip's encode_image and encode_text, in the ways that people write it: both exporters, several
opsets, fixed batches, int32 ids, float16, NHWC pixels, unit-length outputs, normalization in the graph.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.foreign.demo import config, images, model, say, token_ids, tool_versions, write_hub_files

IMAGE, TEXT = ("image.onnx", "image", "image_embedding"), ("text.onnx", "text", "text_embedding")


class EncodeImage(torch.nn.Module):
    def __init__(self, clip: Any, *, unit: bool = False, nhwc: bool = False, statistics: Any = None):
        super().__init__()
        self.clip, self.unit, self.nhwc, self.statistics = clip, unit, nhwc, statistics

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.nhwc:
            pixels = pixels.permute(0, 3, 1, 2)
        if self.statistics:
            mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in self.statistics)
            pixels = (pixels - mean) / std
        return self.clip.encode_image(pixels, normalize=self.unit)


class EncodeText(torch.nn.Module):
    def __init__(self, clip: Any, *, unit: bool = False):
        super().__init__()
        self.clip, self.unit = clip, unit

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_text(ids, normalize=self.unit)


@dataclass(frozen=True)
class Way:
    """How one pair is exported."""

    opset: int
    dynamo: bool = False
    batch: int | None = None
    ids: torch.dtype = torch.int64
    half: bool = False
    nhwc: bool = False
    unit: bool = False
    statistics_inside: bool = False
    truth: str = "demo FP32"
    trap: str = "none known"


WAYS = {
    "torch-opset14": Way(14, trap="old opset; no normalization layer operator"),
    "torch-opset17": Way(17),
    "torch-opset18-dynamo": Way(18, dynamo=True, trap="weights may lie in NAME.onnx.data beside the graph"),
    "torch-batch1": Way(17, batch=1, trap="fixed batch of 1: evaluation and bench must feed one sample at a time"),
    "torch-batch8-int32": Way(
        17, batch=8, ids=torch.int32, trap="fixed batch of 8 (the last chunk must be padded); int32 ids"
    ),
    "torch-int32": Way(17, ids=torch.int32, trap="int32 ids"),
    "torch-float16": Way(
        17, half=True, truth="demo FP32 within half precision (cosine > 0.9999)", trap="float16 pixels in, float16 out"
    ),
    "torch-nhwc": Way(17, nhwc=True, trap="pixels [batch, 48, 48, 3]"),
    "torch-unit": Way(17, unit=True, trap="unit-length outputs"),
    "torch-normalizes": Way(
        17,
        statistics_inside=True,
        trap="the graph subtracts mean and divides by std: it wants pixels in 0..1 (mean 0, std 1); with the checkpoint's "
        "statistics applied twice it answers nonsense",
    ),
}


def export(
    clip: Any, folder: Path, way: Way, checkpoint_config: dict[str, Any] | None = None, rows: Any = None
) -> None:
    pixels = torch.from_numpy(rows[0] if rows else images(way.batch or 2))
    ids = torch.from_numpy(rows[1] if rows else token_ids(way.batch or 2)).to(way.ids)
    preprocess = (checkpoint_config or config())["preprocess_cfg"]
    statistics = (preprocess["mean"], preprocess["std"])
    if way.statistics_inside:
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in statistics)
        pixels = pixels * std + mean
    if way.nhwc:
        pixels = pixels.permute(0, 2, 3, 1).contiguous()
    if way.half:
        clip, pixels = clip.half(), pixels.half()
    image = EncodeImage(clip, unit=way.unit, nhwc=way.nhwc, statistics=statistics if way.statistics_inside else None)
    for module, value, (name, given, output) in (
        (image, pixels, IMAGE),
        (EncodeText(clip, unit=way.unit), ids, TEXT),
    ):
        options: dict[str, Any] = {"input_names": [given], "output_names": [output], "opset_version": way.opset}
        if way.dynamo:
            if way.batch is None:
                options["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=1024)},)
            torch.onnx.export(module, (value,), str(folder / name), dynamo=True, **options)
        else:
            if way.batch is None:
                options["dynamic_axes"] = {given: {0: "batch"}, output: {0: "batch"}}
            torch.onnx.export(module, (value,), str(folder / name), dynamo=False, **options)


def main(folder: Path) -> None:
    for name, way in WAYS.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        write_hub_files(target)
        export(model(), target, way)
        said = "dynamo=True" if way.dynamo else "dynamo=False"
        say(
            target,
            layout="raw torch.onnx.export of open_clip: image.onnx, text.onnx, open_clip_config.json (no tokenizer file)",
            made_by=tool_versions("torch", "open_clip_torch", "onnxscript" if way.dynamo else "torch")
            + f" ({said}, opset_version={way.opset})",
            truth=way.truth,
            trap=f"{way.trap}; no tokenizer and no logit scale in the folder: --like",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
