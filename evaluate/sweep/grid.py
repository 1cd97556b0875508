"""A grid: which engines are evaluated by which suite, and what a cell may use; a TOML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipq.bounds import BATCH, GPUS, THREADS
from clipq.cpu import Precision
from clipq.engines.catalog import DEFAULT_RUNTIME, RUNTIMES, known_runtime
from clipq.errors import ClipqError, DataError
from clipq.evaluate.suites.suite import BUILT_IN, read_suite
from clipq.fields import Number, Whole
from clipq.files import file_stem
from clipq.given import as_store, hint
from clipq.text_files import parse_toml, read_text


class Grid(BaseModel):
    """What a sweep covers; defaults resolved, paths absolute.

    Engines are made of ``checkpoints`` by ``recipes`` (the FP32 one comes always), taken from folders that ``bundles``
    names (``*`` matches), or both. ``threads`` are the CPUs of one cell (0: all of the machine, on Ray one), ``gpus``
    the GPUs of one cell in a GPU runtime; ``cpu_precision`` as in ``Settings``. ``cells`` is where embeddings go: a
    folder, or the URL of a store that fsspec knows and can write to.
    """

    suite: str
    checkpoints: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = Field(default=(DEFAULT_RUNTIME,), min_length=1)
    calibration_set: Path | None = None
    bundles: tuple[str, ...] = ()
    threads: Whole = Field(default=0, ge=THREADS.least, le=THREADS.most)
    cpu_precision: Precision = "as-is"
    gpus: Number = Field(default=1.0, gt=GPUS.least, le=GPUS.most)
    batch_size: Whole = Field(default=32, ge=BATCH.least, le=BATCH.most)
    cells: str | None = None

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_grid(path: Path) -> Grid:
    """Read and check a grid; raises DataError with every complaint. Relative paths are meant from the file's folder."""
    raw = parse_toml(read_text(path, DataError), path, DataError)
    try:
        grid = Grid.model_validate(_resolve_paths(raw, path.resolve().parent))
    except ClipqError as error:
        complaints = [str(error)]
    except ValidationError as error:
        complaints = [f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}{_known(one)}" for one in error.errors()]
    else:
        return checked_grid(grid, path)
    raise DataError(f"{path}: " + "; ".join(complaints))


def checked_grid(grid: Grid, path: Path) -> Grid:
    """A grid that was read from a file, where it can be swept; raises DataError with every complaint."""
    if complaints := _check(grid):
        raise DataError(f"{path}: " + "; ".join(complaints))
    return grid


def _known(error: Mapping[str, Any]) -> str:
    if error["type"] != "extra_forbidden":
        return ""
    return f" (known keys: {', '.join(Grid.model_fields)}{hint(error['loc'][-1], Grid.model_fields)})"


def folder_name(name: str) -> str:
    """A checkpoint's name as a folder's: ``ViT-B-32/openai`` is ``ViT-B-32--openai``."""
    return file_stem(re.sub(r"[^\w.+-]+", "--", name).strip("-.") or "checkpoint")


def bundle_folders(grid: Grid) -> list[Path]:
    """The folders that ``bundles`` names; raises DataError for a pattern without any."""
    found: list[Path] = []
    for pattern in grid.bundles:
        root = Path(pattern)
        matches = sorted(Path(root.anchor).glob(str(root.relative_to(root.anchor))))
        folders = [path for path in matches if (path / "clipq.json").is_file()]
        if not folders:
            raise DataError(f"bundles: {pattern} matches no bundle (a folder with clipq.json)")
        found += [path for path in folders if path not in found]
    return found


def _check(grid: Grid) -> list[str]:
    complaints = []
    if not grid.checkpoints and not grid.bundles:
        complaints.append("no checkpoints and no bundles: there is no engine to evaluate")
    if grid.recipes and not grid.checkpoints:
        complaints.append("recipes need checkpoints to be applied to")
    for what, names in (("checkpoint", grid.checkpoints), ("recipe", grid.recipes), ("runtime", grid.runtimes)):
        complaints += [f"{what} {name!r} comes twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    folders = [folder_name(name) for name in dict.fromkeys(grid.checkpoints)]
    complaints += [f"two checkpoints would share the folder {one}" for one in set(folders) if folders.count(one) > 1]
    for check in (lambda: [known_runtime(name) for name in grid.runtimes], lambda: read_suite(grid.suite)):
        try:
            check()
        except ClipqError as error:
            complaints.append(str(error))
    elsewhere = [name for name in grid.runtimes if name in RUNTIMES and known_runtime(name).takes == "answers"]
    complaints += [f"runtime {name!r} makes no engines; give bundles of clipq-eval cells import" for name in elsewhere]
    if grid.calibration_set is not None and not grid.recipes:
        complaints.append("calibration_set is for recipes, and there are none")
    # Told by its value, for a grid that was written down and read again says all of them.
    if grid.gpus != Grid.model_fields["gpus"].default and not any(map(_on_gpu, grid.runtimes)):
        complaints.append(f"gpus {grid.gpus:g} are for GPU runtimes, and {', '.join(grid.runtimes)} is none")
    if grid.calibration_set is not None and not grid.calibration_set.is_dir():
        complaints.append(f"calibration_set {grid.calibration_set}: no such folder")
    return complaints


def _on_gpu(runtime: str) -> bool:
    # One that is unknown is complained of by its name.
    return runtime not in RUNTIMES or known_runtime(runtime).device == "cuda"


def _resolve_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    resolved = dict(raw)
    if isinstance(raw.get("suite"), str) and raw["suite"] not in BUILT_IN:
        resolved["suite"] = str(folder / raw["suite"])
    if isinstance(raw.get("calibration_set"), str):
        resolved["calibration_set"] = folder / raw["calibration_set"]
    if isinstance(raw.get("cells"), str):
        resolved["cells"] = as_store(raw["cells"], folder)
    if isinstance(raw.get("bundles"), list):
        resolved["bundles"] = [str(folder / one) if isinstance(one, str) else one for one in raw["bundles"]]
    return resolved
