"""Preprocessing and context lengths as the files beside an engine say them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipq.bundle import Preprocess, first_reason
from clipq.errors import BundleError, CheckpointError
from clipq.exporters.image_processor import preprocess_of, transform_of
from clipq.text_files import read_json


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
                said = read(read_object(path))
            except CheckpointError as error:
                raise BundleError(f"{path}: {error}; give --like BUNDLE, if the engine is fed otherwise") from error
            except (KeyError, TypeError, ValueError, IndexError) as error:
                reason = first_reason(error) if isinstance(error, ValidationError) else f"no {error}"
                raise BundleError(f"{path}: says no preprocessing that clipq knows ({reason}); mend it") from error
            if said is not None:
                found[name] = said
    for name, one in found.items():
        their, other = next(iter(found.items()))
        # Whose rounding it is, follows from the file; numbers must agree.
        if wrong := one.model_copy(update={"library": other.library}).difference(other):
            raise BundleError(f"{name} and {their} disagree in {wrong}; delete the one that the engine is not fed by")
    return (next(iter(found.values())), " and ".join(found)) if found else None


def _transformers(config: Mapping[str, Any]) -> Preprocess | None:
    """Of transformers' image processors; what a file leaves out is what CLIP's does."""
    if not {"image_mean", "size", "crop_size"} & set(config):
        return None
    whole: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "resample": 3,
    }
    whole |= {"do_center_crop": "crop_size" in config, **config}
    # As numbers alone before version 4.25.
    if isinstance(whole.get("size"), int):
        whole["size"] = {"shortest_edge": whole["size"]}
    if isinstance(whole.get("crop_size"), int):
        whole["crop_size"] = dict.fromkeys(("height", "width"), whole["crop_size"])
    return preprocess_of(whole, "as it says")


def _open_clip(config: Mapping[str, Any]) -> Preprocess | None:
    """Of open_clip_config.json."""
    said = config.get("preprocess_cfg")
    # What it says itself goes before the model's.
    return None if said is None else _transform({"size": config["model_cfg"]["vision_cfg"]["image_size"], **said})


def _transform(config: Mapping[str, Any]) -> Preprocess:
    """Of open_clip's transform, as Immich keeps it in a file of its own."""
    return transform_of(config, config["size"])


_READERS: dict[str, Callable[[dict[str, Any]], Preprocess | None]] = {
    "preprocess_cfg.json": _transform,
    "preprocessor_config.json": _transformers,
    "open_clip_config.json": _open_clip,
}
