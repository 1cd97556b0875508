"""The engines of a grid: made by ``clipq-export`` where they are missing, one command per recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from clipq.bundle import MANIFEST
from clipq.engines.catalog import known_runtime
from clipq.errors import ResultsError
from clipq.evaluate.sweep.grid import Grid, folder_name
from clipq.files import write_atomic
from clipq.progress import Progress
from clipq.text_files import read_bytes

MADE = "made.json"


@dataclass
class MadeBundles:
    """The bundles of one checkpoint: what was made by which command, and which commands failed with what."""

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
    asked = {
        recipe: ["quantize", source, "-o", str(folder), "--recipe", recipe, *calibrated] for recipe in grid.recipes
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
        known = TypeAdapter(dict[str, list[str]]).validate_json(data)
    except ValidationError as error:
        raise ResultsError(f"{record} is damaged; delete it, and the engines beside it are made again") from error
    for step, command in commands(grid, checkpoint, found.folder).items():
        paths = known.get(" ".join(command))
        if paths is None or not all((Path(path) / MANIFEST).is_file() for path in paths):
            if not makes:
                continue
            paths = _export(command, step, found)
            if paths is None:
                continue
            known[" ".join(command)] = paths
            write_atomic(record, json.dumps(known, indent=1))
        found.made[step] = [path for path in paths if Path(path) not in found.paths]
        progress.advance(1)
    return found


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
