"""Checkpoint to FP32 bundle: both towers as ONNX, checked against torch, with tokenizer and prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError

from clipq import __version__
from clipq.bundle import (
    SCHEMA_VERSION,
    Bundle,
    Checkpoint,
    LogitBias,
    LogitScale,
    Manifest,
    Recipe,
    StoredFile,
    Tokenizer,
    Tower,
    first_reason,
    open_bundle,
    stored_file,
    stored_tower,
    write_manifest,
)
from clipq.errors import CheckpointError
from clipq.exporters.checkpoints import DEMO, load_checkpoint, parse_checkpoint
from clipq.exporters.loaded_checkpoint import LoadedCheckpoint
from clipq.exporters.prompts import write_prompts
from clipq.making import check_target, directory_in_making
from clipq.scheme import FP32

logger = logging.getLogger(__name__)

PARITY_BATCHES = (1, 7)


def export_bundle(
    checkpoint: str, pretrained: str | None, target: Path, *, opset: int = 21, progress: Callable[[str], None]
) -> Bundle:
    """Export a checkpoint to an FP32 bundle at ``target``; nothing is left behind on failure.

    ``opset`` is 21, or 17 for TensorRT 8.6.
    """
    from clipq.exporters.tokenizer_file import write_tokenizer
    from clipq.exporters.towers import ImageTower, TextTower, make_exportable

    check_target(target)
    progress(f"loading {checkpoint}")
    loaded = load_checkpoint(parse_checkpoint(checkpoint, pretrained))
    with directory_in_making(target) as making:
        # First: one that has no such form is refused before minutes of work on the towers.
        cleaning = write_tokenizer(loaded.tokenizer, making / "tokenizer.json")
        scale = _scalar(loaded.model.logit_scale.exp(), "logit_scale", LogitScale)
        bias = None if loaded.model.logit_bias is None else _scalar(loaded.model.logit_bias, "logit_bias", LogitBias)
        # The reference values come from the untouched model: parity covers the rewriting as well as the export.
        recorded = {
            "image": _Recorded(ImageTower(loaded.model), _image_feeds(loaded)),
            "text": _Recorded(TextTower(loaded.model), _text_feeds(loaded)),
        }
        make_exportable(loaded.model)
        entries = {}
        for name, tower in recorded.items():
            progress(f"exporting the {name} tower")
            entries[name] = _exported_tower(name, tower, making, opset)
        write_prompts(making / "prompts.json", _class_names(loaded.name))
        manifest = _manifest(
            schema_version=SCHEMA_VERSION,
            checkpoint=Checkpoint(name=loaded.name, weights_sha256=loaded.weights_sha256),
            recipe=Recipe(name="fp32", scheme=FP32),
            image=entries["image"],
            text=entries["text"],
            embed_dim=_embed_dim(recorded["image"]),
            logit_scale=scale,
            logit_bias=bias,
            preprocess=loaded.preprocess,
            tokenizer=Tokenizer(
                **stored_file(making, "tokenizer.json"),
                cleaning=cleaning,
                context_length=loaded.tokenizer.context_length,
            ),
            prompts=StoredFile(**stored_file(making, "prompts.json")),
            environment={
                "clipq": __version__,
                "opset": str(opset),
                **{package: version(package) for package in loaded.packages},
            },
        )
        write_manifest(making, manifest)
    return open_bundle(target)


def _manifest(**fields: Any) -> Manifest:
    try:
        return Manifest(**fields)
    except ValidationError as error:
        raise CheckpointError(f"the checkpoint does not agree with itself: {first_reason(error)}") from error


class _Recorded:
    """A tower with the untouched module's answers, so that they can be compared after the module was rewritten."""

    def __init__(self, module: Any, feeds: list[np.ndarray]):
        import torch

        self.module, self.feeds = module, feeds
        with torch.no_grad():
            self._answers = {len(feed): module(torch.from_numpy(feed)) for feed in feeds}
        if not all((torch.isfinite(answer).all() and answer.any(1).all()) for answer in self._answers.values()):
            wrong = [name for name, value in module.model.named_parameters() if not torch.isfinite(value).all()]
            said = f": {wrong[0]} has values that are not finite" if wrong else ""
            raise CheckpointError(
                f"the checkpoint's own embeddings are not finite, or zero{said}; mend the checkpoint, or take another"
            )

    def __call__(self, feed: Any) -> Any:
        return self._answers[len(feed)]


def _exported_tower(name: str, recorded: _Recorded, making: Path, opset: int) -> Tower:
    import torch

    from clipq.exporters.graph import check_parity, export_onnx

    example = torch.from_numpy(recorded.feeds[1][:2])
    names, file = (name, f"{name}_features"), making / f"{name}.onnx"
    export_onnx(recorded.module, example, names, file, opset=cast("Any", opset))
    parity = check_parity(recorded, file, recorded.feeds)  # type: ignore[arg-type]
    return Tower(
        **stored_tower(making, file.name),
        input_name=name,
        input_dtype="float32" if name == "image" else "int64",
        input_shape=(None, *recorded.feeds[0].shape[1:]),
        output_name=f"{name}_features",
        recipe="fp32",
        parity=parity,
    )


def _embed_dim(recorded: _Recorded) -> int:
    return int(next(iter(recorded._answers.values())).shape[1])


def _scalar(value: Any, name: str, kind: Any) -> float:
    if value.numel() != 1:
        raise CheckpointError(f"{name} has {value.numel()} values; clipq knows one per checkpoint")
    found = float(value.detach().reshape(()))
    try:
        return cast("float", TypeAdapter(kind).validate_python(found))
    except ValidationError as error:
        raise CheckpointError(f"{name} is {found:g}: {first_reason(error)}; mend the checkpoint") from error


def _image_feeds(loaded: LoadedCheckpoint) -> list[np.ndarray]:
    """Real pixels through the checkpoint's own transform: scenes of the demo world, enlarged."""
    from PIL import Image

    from clipq.demo import world

    def pixels(index: int) -> np.ndarray:
        image = Image.fromarray(world.sample("calibration", index)[1]).resize((320, 256), Image.Resampling.BICUBIC)
        return loaded.transform(image).numpy()

    return [np.stack([pixels(index) for index in range(batch)]) for batch in PARITY_BATCHES]


def _text_feeds(loaded: LoadedCheckpoint) -> list[np.ndarray]:
    from clipq.demo import world

    captions = [world.sample("calibration", index)[0].caption() for index in range(max(PARITY_BATCHES))]
    return [loaded.tokenizer(captions[:batch]).numpy() for batch in PARITY_BATCHES]


def _class_names(checkpoint: str) -> dict[str, list[str]] | None:
    """Those of a checkpoint that knows no others; None where ImageNet's will do."""
    from clipq.demo import world

    return {"demo": list(world.CLASS_NAMES)} if checkpoint == DEMO else None
