"""An image processor of transformers, or a transform of open_clip's configuration, as the numbers of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from clipq.bundle import Preprocess, first_reason
from clipq.errors import CheckpointError
from clipq.preprocess import preprocess

# Pillow's numbers.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}

# Width and height of what the numbers are tried on: upright, wide, larger and smaller than the engine's.
_TRIED = ((128, 96), (77, 203), (301, 200), (40, 30))


def pixels_of(processor: Any, image: Image.Image) -> NDArray[np.float32]:
    """What a processor makes of an image: (3, height, width)."""
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0], np.float32)


def checked_preprocess(processor: Any, model_size: Any, name: str) -> Preprocess:
    """A processor as numbers, tried beside it on images.

    ``model_size`` is the image tower's, a number or height and width. Raises CheckpointError for what numbers do not
    hold, and where the two sizes differ.
    """
    found = preprocess_of(processor.to_dict(), name)
    wanted = tuple(model_size) if isinstance(model_size, list | tuple) else (model_size, model_size)
    if found.image_size != wanted:
        raise CheckpointError(
            f"{name}: the image processor makes {_spoken(found.image_size)} pixels, the image tower takes "
            f"{_spoken(wanted)}; mend size and crop_size in preprocessor_config.json, or image_size in config.json"
        )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    for shape in _TRIED:
        image = noise.resize(shape, Image.Resampling.BICUBIC)
        if np.abs(preprocess(image, found) - pixels_of(processor, image)).max() > 1e-5:
            raise CheckpointError(
                f"{name}: {type(processor).__name__} makes other pixels than its configuration says, and a bundle "
                "holds that alone; take a processor of CLIP's or SigLIP's kind"
            )
    return found


def preprocess_of(config: dict[str, Any], name: str) -> Preprocess:
    """What a processor says of itself (``to_dict()``), as numbers; raises CheckpointError for what they do not hold."""

    def refused(what: str) -> CheckpointError:
        return CheckpointError(f"{name}: the image processor {what}, which a bundle does not hold")

    crop = config.get("crop_size") or {}
    cropped = (crop.get("height"), crop.get("width")) if config.get("do_center_crop") else None
    mode, shape = _resize_of(config)
    if mode is None or cropped not in ((None, shape) if mode == "squash" else (shape,)):
        cut = f"crops {_spoken(cropped)}" if cropped else "crops nothing"
        resized = config.get("size") if config.get("do_resize") else "nothing"
        raise refused(f"resizes to {resized} and {cut}")
    if config.get("resample") not in _INTERPOLATIONS:
        known = ", ".join(f"{number} {kind}" for number, kind in _INTERPOLATIONS.items())
        raise refused(f"resizes with resample={config.get('resample')} (it holds {known})")
    if not config.get("do_rescale") or abs(config.get("rescale_factor", 0) * 255 - 1) > 1e-6:
        raise refused(f"does not divide by 255 (rescale_factor {config.get('rescale_factor')})")
    if config.get("do_pad"):
        raise refused("pads")
    mean, std = (0, 0, 0), (1, 1, 1)
    if config.get("do_normalize"):
        mean, std = config["image_mean"], config["image_std"]
    numbers = {"image_size": shape, "mean": mean, "std": std, "interpolation": _INTERPOLATIONS[config["resample"]]}
    try:
        return Preprocess.model_validate({**numbers, "resize_mode": mode, "library": "transformers"})
    except ValidationError as error:
        raise CheckpointError(
            f"{name}: the image processor: {first_reason(error)}; mend it, and save it again"
        ) from error


def transform_of(config: Mapping[str, Any], size: Any) -> Preprocess:
    """What open_clip's ``preprocess_cfg`` says; ``size`` is a number, or height and width.

    Raises KeyError and pydantic's ValidationError, each a word on what is wrong, for what is no such configuration.
    """
    kind = config.get("interpolation", "bicubic")
    return Preprocess(
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        mean=config["mean"],
        std=config["std"],
        # Random in training alone.
        interpolation="bicubic" if kind == "random" else kind,
        resize_mode=config.get("resize_mode", "shortest"),
        fill_color=config.get("fill_color") or 0,
    )


def _resize_of(config: dict[str, Any]) -> tuple[str | None, tuple[int, int]]:
    """Mode, height and width; no mode where a bundle holds no such one."""
    size = {key: value for key, value in dict(config.get("size") or {}).items() if value is not None}
    if config.get("do_resize") and set(size) == {"height", "width"}:
        return "squash", (size["height"], size["width"])
    if config.get("do_resize") and set(size) == {"shortest_edge"}:
        return "shortest", (size["shortest_edge"], size["shortest_edge"])
    return None, (0, 0)


def _spoken(shape: tuple[Any, ...]) -> str:
    return "x".join(map(str, shape))
