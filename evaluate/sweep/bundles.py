"""The engines of a grid: made by ``clipq-export`` where they are missing, one command per recipe."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from clipq.bundle import MANIFEST
from clipq.engines.catalog import DEFAULT_RUNTIME, known_runtime
from clipq.errors import ResultsError
from clipq.evaluate.sweep.grid import Grid, folder_name
from clipq.files import sha256_file, write_atomic
from clipq.progress import Progress
from clipq.text_files import read_bytes

MADE = "made.json"


@dataclass
class MadeBundles:
    """The bundles of one checkpoint: what each step made, and which steps failed with what."""

    folder: Path
    made: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """The bundles, in the order they were made."""
        return [Path(path) for paths in self.made.values() for path in paths]


def make_bundles(grid: Grid, results: Path, progress: Progress, *, makes: bool = True) -> dict[str, MadeBundles]:
    """The bundles of every checkpoint of a grid, by folder name; without ``makes``, those that are there already.

    A recipe that cannot be applied is named in ``failed`` and the rest goes on.
    """
    progress.start("exporting and quantizing", len(grid.checkpoints) * (1 + len(grid.recipes)))
    return {folder_name(name): _make(grid, name, results / "bundles", progress, makes) for name in grid.checkpoints}


def commands(grid: Grid, checkpoint: str, folder: Path) -> dict[str, list[str]]:
    """What ``clipq-export`` is asked for, by step: the FP32 bundle, each recipe, and plans for TensorRT's runtimes."""
    calibrated = [] if grid.calibration_set is None else ["--calibration-set", str(grid.calibration_set)]
    plans = [runtime for runtime in grid.runtimes if known_runtime(runtime).takes == "plan"]
    if plans:
        every = [flag for recipe in grid.recipes for flag in ("--recipe", recipe)]
        runtimes = [flag for runtime in grid.runtimes for flag in ("--runtime", runtime)]
        return {"all": ["run", checkpoint, "-o", str(folder), *every, *runtimes, *calibrated]}
    source = "demo" if checkpoint == "demo" else str(folder / "fp32")
    # Several runtimes run the same files, made for the default one.
    made_for = ["--runtime", *grid.runtimes] if len(grid.runtimes) == 1 and grid.runtimes[0] != DEFAULT_RUNTIME else []
    asked = {
        recipe: ["quantize", source, "-o", str(folder), "--recipe", recipe, *calibrated, *made_for]
        for recipe in grid.recipes
    }
    if checkpoint == "demo" and grid.recipes:
        # The built-in bundle comes with its first recipe, and needs no torch.
        return asked
    return {"fp32": ["onnx", checkpoint, "-o", str(folder / "fp32")], **asked}


def _make(grid: Grid, checkpoint: str, parent: Path, progress: Progress, makes: bool) -> MadeBundles:
    found = MadeBundles(parent / folder_name(checkpoint))
    record = found.folder / MADE
    try:
        data = read_bytes(record, ResultsError) if record.exists() else b"{}"
        known = TypeAdapter(dict[str, dict[str, str] | list[str]]).validate_json(data)
    except ValidationError as error:
        raise ResultsError(f"{record} is damaged; delete it, and the engines beside it are made again") from error
    content = _digest(_local_files(grid, checkpoint))
    for step, command in commands(grid, checkpoint, found.folder).items():
        key = " ".join([*command, *([f"# {content}"] if content else [])])
        paths = known.get(key)
        if not isinstance(paths, dict) or paths != _manifests(paths):
            if not makes:
                continue
            made = _export(command, step, found)
            if made is None:
                continue
            known[key] = paths = _manifests(made)
            write_atomic(record, json.dumps(known, indent=1))
        found.made[step] = [path for path in paths if Path(path) not in found.paths]
        progress.advance(1)
    return found


def _manifests(paths: Iterable[str]) -> dict[str, str]:
    """Bundles that are there, with the digests of their manifests: another command can have made them anew since.

    Earlier versions remembered the paths alone, which does not say whose engines lie there now.
    """
    there = {path: Path(path) / MANIFEST for path in paths}
    return {path: sha256_file(manifest) for path, manifest in there.items() if manifest.is_file()}


def _local_files(grid: Grid, checkpoint: str) -> list[Path]:
    """The files of this machine that engines are made of, which can be others under the same names one day."""
    from clipq.data.image_files import find_images

    found: list[Path] = []
    if grid.calibration_set is not None:
        found += [*find_images(grid.calibration_set).files, *sorted(grid.calibration_set.glob("*.csv"))]
    if checkpoint.startswith(("local-dir:", "transformers:")):
        # A repository of the hub is no folder, and holds none.
        found += sorted(Path(checkpoint.partition(":")[2]).glob("*"))
    else:
        # A file of weights stands where others have a tag.
        found.append(Path(checkpoint.partition("/")[2]))
    return [path for path in found if path.is_file()]


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents; of no files, nothing."""
    state = hashlib.sha256()
    for path in files:
        state.update(os.fsencode(path) + f"\0{sha256_file(path)}\n".encode())
    return state.hexdigest() if files else ""


def _export(command: Sequence[str], step: str, found: MadeBundles) -> list[str] | None:
    done = subprocess.run(
        [sys.executable, "-m", "clipq.exporters.cli", *command], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}, no message"]
        said = [line for line in lines if line.startswith("error: ")] or [f"exit code {done.returncode}: {lines[-1]}"]
        found.failed[step] = said[-1].removeprefix("error: ")
        return None
    return [line for line in done.stdout.splitlines() if (Path(line) / MANIFEST).is_file()]
