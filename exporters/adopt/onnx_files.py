"""The towers of an engine to adopt as ONNX files: copied as they are, loaded, and tried."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipq.bundle import TOWERS, Bundle, TowerName, stored_tower
from clipq.engines.catalog import DEFAULT_RUNTIME, open_engine
from clipq.engines.interface import Interface
from clipq.engines.ort import OrtEngine
from clipq.engines.ort_rows import onnxruntime_version
from clipq.errors import BundleError, EngineError
from clipq.exporters.adopt.foreign import ForeignEngine
from clipq.exporters.adopt.layouts import Found
from clipq.exporters.adopt.precision import read_scheme
from clipq.exporters.adopt.samples import default_samples
from clipq.exporters.adopt.signature import Answer, inputs_of, output_of
from clipq.exporters.onnx_file import load
from clipq.exporters.tower_check import not_finite
from clipq.onnx_graph import data_files, read_graph
from clipq.scheme import Scheme

# Rows that a tower is tried with: enough to tell them from other dimensions.
ROWS = 3
# Of two embeddings of different inputs; a tower that gives more alike ones looks at nothing.
SAME = 1 - 1e-6
_TRIAL = """
import sys, onnxruntime
onnxruntime.set_default_logger_severity(4)
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


class OnnxFiles:
    """Two towers in ONNX Runtime on the CPU, or one graph of both; a context manager that frees them.

    Raises BundleError where weights are missing, EngineError where ONNX Runtime refuses a file.
    """

    def __init__(self, engine: ForeignEngine, found: Found, making: Path):
        self._engine, self._making = engine, making
        self._sources: dict[TowerName, Path] = {"image": found.image, "text": found.text}
        one = found.image == found.text
        self._placed = {tower: _copy(path, making, "both" if one else tower) for tower, path in self._sources.items()}
        self._opened = ExitStack()
        self._engines: dict[TowerName, OrtEngine] = {}

    def __enter__(self) -> OnnxFiles:
        # One graph of both towers is loaded once.
        loaded: dict[str, OrtEngine] = {}
        for tower, file in self._placed.items():
            if file not in loaded:
                loaded[file] = self._opened.enter_context(_load(self._making / file, self._sources[tower]))
            self._engines[tower] = loaded[file]
        return self

    def __exit__(self, *raised: object) -> None:
        self._opened.close()

    def inputs(self, tower: TowerName) -> dict[str, Any]:
        """What a tower takes, as fields of the manifest."""
        return inputs_of(self._sources[tower], tower, self._engines[tower].inputs)

    def stored(self, tower: TowerName) -> dict[str, Any]:
        """Which files a tower has, as fields of the manifest."""
        return stored_tower(self._making, self._placed[tower])

    @cached_property
    def precision(self) -> tuple[Scheme, tuple[TowerName, ...], dict[str, Any]]:
        """The scheme, the towers that are quantized, and what was found in words."""
        return read_scheme({tower: self._making / file for tower, file in self._placed.items()})

    def warning(self, tower: TowerName) -> str | None:
        """What is wrong with a tower that runs all the same: weights or scales that are no numbers."""
        return not_finite(load(self._making / self._placed[tower]))

    def answer(self, draft: Bundle, tower: TowerName) -> Answer:
        """What a tower gives, of a run on a few real inputs."""
        interface, path = Interface(draft, tower), self._sources[tower]
        rows = interface.batch or ROWS
        try:
            answered = self._engines[tower].run(interface.first(default_samples().feed(draft, tower, rows)))
        except EngineError as error:
            raise EngineError(f"{path}: does not run on {rows} rows: {error}") from error
        name = output_of(path, tower, answered, rows, self._engine.output(tower))
        lengths = np.linalg.norm(answered[name].astype(np.float64), axis=1)
        others = tuple(one for one in answered if one != name)
        return Answer(name, answered[name].shape[1], others, bool(np.allclose(lengths, 1, atol=5e-3)))

    def check(self, bundle: Bundle) -> None:
        """Raise BundleError where a tower does not look at what it is given, EngineError where it gives no numbers."""
        for tower in TOWERS:
            path = self._sources[tower]
            with open_engine(bundle, tower, DEFAULT_RUNTIME) as engine:
                (embeddings,) = engine.run(default_samples().feed(bundle, tower, 2)).values()
            lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
            what = "images" if tower == "image" else "texts"
            if not np.isfinite(lengths).all() or (lengths == 0).any():
                raise EngineError(f"{path}: embeddings of ordinary {what} are zero or not finite; mend the export")
            first, second = embeddings.astype(np.float64) / lengths
            if float(first @ second) > SAME:
                raise BundleError(
                    f"{path}: gives two different {what} one embedding: it is pooled at the wrong token, or its input "
                    "is not what it takes; mend the export"
                )


def _copy(path: Path, making: Path, folder: str) -> str:
    """Copy a tower and the files with its weights into the bundle; its path there."""
    for name in (path.name, *data_files(path.parent, path.name)):
        source, target = path.parent / name, making / folder / name
        if not source.is_file():
            raise BundleError(f"{path}: keeps weights in {name}, which is not there; put it into {path.parent}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(source, target)
    return f"{folder}/{path.name}"


def _load(path: Path, source: Path) -> OrtEngine:
    """A tower in ONNX Runtime; what that refuses is said with what the file asks for."""
    # First in another process: there are files at which ONNX Runtime ends, and takes with it whoever asked.
    trial = subprocess.run([sys.executable, "-c", _TRIAL, str(path)], capture_output=True, check=False)
    if trial.returncode < 0:
        raise EngineError(
            f"{source}: {onnxruntime_version()} ends with signal {-trial.returncode} when it loads this file, and so "
            "would clipq; export it another way (half precision: export float32, and convert that file)"
        )
    try:
        return OrtEngine(path)
    except EngineError as error:
        asks = ", ".join(f"{one.domain or 'ai.onnx'} {one.version}" for one in read_graph(path).opset_import)
        reason = str(error).replace(str(path), str(source))
        raise EngineError(f"{reason} (the file asks for operators of {asks}; {onnxruntime_version()})") from error
