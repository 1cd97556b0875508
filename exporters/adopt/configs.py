"""Preprocessing and context lengths as the files beside an engine say them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipq.bundle import Preprocess, first_reason
from clipq.errors import BundleError
from clipq.text_files import read_json

# Pillow's numbers, by which transformers names what it resizes with.
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


def find_file(folders: Iterable[Path], name: str) -> Path | None:
    """The first file of a name."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; raises BundleError for what is none."""
    value = read_json(path, BundleError, "mend it")
    if not isinstance(value, dict):
        raise BundleError(f"{path}: holds no JSON object; mend it")
    return value


def read_preprocess(folders: Iterable[Path]) -> tuple[Preprocess, str] | None:
    """Preprocessing, and the files that say it; None where none does. Raises BundleError where two disagree."""
    folders = tuple(folders)
    found: dict[str, Preprocess] = {}
    for name, read in _READERS.items():
        if (path := find_file(folders, name)) is not None:
            try:
                fields = read(read_object(path))
                said = None if fields is None else Preprocess(**fields)
            except (KeyError, TypeError, ValueError) as error:
                reason = (
                    first_reason(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
                )
                raise BundleError(
                    f"{path}: says no preprocessing that clipq knows ({reason}); mend it, or give --like"
                ) from error
            if said is not None:
                found[name] = said
    for name, one in found.items():
        their, other = next(iter(found.items()))
        if wrong := one.difference(other):
            raise BundleError(f"{name} and {their} disagree in {wrong}; delete the one that the engine is not fed by")
    return (next(iter(found.values())), " and ".join(found)) if found else None


def _transformers(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of transformers' image processors, whose steps can be left out one by one."""
    if "image_mean" not in config and "size" not in config and "crop_size" not in config:
        return None
    size, crop = config.get("size"), config.get("crop_size")
    resized, cropped = _size(size), _size(crop)
    crops = config.get("do_center_crop", False) and cropped is not None
    if not config.get("do_resize", True):
        raise ValueError("do_resize is false, and clipq resizes")
    if config.get("do_pad"):
        raise ValueError("do_pad is true, and clipq does not pad so")
    squash = isinstance(size, Mapping) and "height" in size
    if not crops and not squash:
        raise ValueError("it resizes the shortest side and does not crop, so images have several sizes")
    if crops and cropped != resized:
        raise ValueError(f"it resizes to {resized} and crops to {cropped}, and clipq crops to what it resized to")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = config["image_mean"], config["image_std"]
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    # Pixels × factor, less mean, by std: as clipq's own division by 255 gives it.
    return {
        "image_size": resized,
        "mean": [one / (255 * factor) for one in mean],
        "std": [one / (255 * factor) for one in std],
        "interpolation": _RESAMPLING[config.get("resample", 3)],
        "resize_mode": "squash" if squash and not crops else "shortest",
    }


def _size(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _open_clip(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of open_clip_config.json."""
    said = config.get("preprocess_cfg")
    return None if said is None else _transform({"size": config["model_cfg"]["vision_cfg"]["image_size"], **said})


def _transform(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of open_clip's transform, as Immich keeps it in a file of its own."""
    return {
        "image_size": _size(config["size"]),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config.get("interpolation", "bicubic"),
        "resize_mode": config.get("resize_mode", "shortest"),
        "fill_color": config.get("fill_color") or 0,
    }


_READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "preprocess_cfg.json": _transform,
    "preprocessor_config.json": _transformers,
    "open_clip_config.json": _open_clip,
}
