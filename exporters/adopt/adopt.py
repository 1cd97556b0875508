"""An engine that others made, as a bundle: its files as they are, and what they do not say read from beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from clipq import __version__
from clipq.bundle import (
    SCHEMA_VERSION,
    TOWERS,
    Adopted,
    Bundle,
    Checkpoint,
    LogitBias,
    LogitScale,
    Manifest,
    Preprocess,
    Recipe,
    StoredFile,
    Tokenizer,
    TowerName,
    first_reason,
    open_bundle,
    stored_file,
    stored_tower,
    write_manifest,
)
from clipq.engines.base import Engine
from clipq.engines.catalog import open_engine
from clipq.engines.interface import Interface
from clipq.engines.ort import OrtEngine
from clipq.engines.ort_rows import onnxruntime_version
from clipq.environment import onnxruntime_package
from clipq.errors import BundleError, EngineError
from clipq.exporters.adopt.configs import read_preprocess
from clipq.exporters.adopt.layouts import Found, find
from clipq.exporters.adopt.logits import fit_logits
from clipq.exporters.adopt.options import Options
from clipq.exporters.adopt.precision import read_scheme
from clipq.exporters.adopt.samples import Samples
from clipq.exporters.adopt.signature import inputs_of, output_of, with_idle_shapes
from clipq.exporters.adopt.text import Written, write_tokenizer
from clipq.making import check_target, directory_in_making
from clipq.onnx_graph import data_files, read_graph
from clipq.scheme import FP32

# Rows that a tower is tried with: enough to tell them from other dimensions.
ROWS = 3
_TRIAL = """
import sys, onnxruntime
onnxruntime.set_default_logger_severity(4)
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""
# Of two embeddings of different inputs; a tower that gives more alike ones looks at nothing.
SAME = 1 - 1e-6


def adopt(options: Options, target: Path) -> Bundle:
    """Make a bundle of an engine's files at ``target``; nothing is left behind on failure.

    Raises BundleError for what is no engine, and for what no file or option says, EngineError where it does not run.
    """
    check_target(target)
    found = find(options)
    like = None if options.like is None else open_bundle(options.like)
    with directory_in_making(target) as making:
        draft = _Draft(options, found, like, making, {})
        manifest = draft.manifest()
        write_manifest(making, manifest)
        _check(Bundle(making, manifest))
    return open_bundle(target)


@dataclass(frozen=True)
class _Draft:
    """A bundle in the making; ``sources`` says of each fact where it was read."""

    options: Options
    found: Found
    like: Bundle | None
    making: Path
    sources: dict[str, str]

    def manifest(self) -> Manifest:
        """Everything that ``clipq.json`` says."""
        placed = {tower: _copy(path, self.making, self._folder(tower)) for tower, path in self._towers().items()}
        engines = {tower: _load(self.making / file, self._towers()[tower]) for tower, file in placed.items()}
        try:
            return self._manifest(placed, engines)
        finally:
            for engine in engines.values():
                engine.close()

    def _towers(self) -> dict[TowerName, Path]:
        return {"image": self.found.image, "text": self.found.text}

    def _folder(self, tower: TowerName) -> str:
        return "both" if self.found.image == self.found.text else tower

    def _manifest(self, placed: Mapping[TowerName, str], engines: Mapping[TowerName, Engine]) -> Manifest:
        fields = self._fields(placed, engines)
        draft = Bundle(self.making, _validated(fields))
        answered = {tower: self._try(draft, tower, engines[tower]) for tower in TOWERS}
        (image, columns), (text, others) = answered["image"], answered["text"]
        if columns != others:
            raise BundleError(
                f"the image tower's {image} has {columns} columns and the text tower's {text} {others}: not one "
                "embedding space; give towers with their projections, or say which outputs: --image-output NAME "
                "--text-output NAME"
            )
        for tower in TOWERS:
            unused = tuple(spec.name for spec in engines[tower].outputs if spec.name != answered[tower][0])
            fields[tower] |= {"output_name": answered[tower][0], "unused": unused}
        fields["embed_dim"] = columns
        fields["logit_scale"], fields["logit_bias"] = self._logits(Bundle(self.making, _validated(fields)))
        return _validated(fields | {"adopted": Adopted(layout=self.found.layout, sources=self.sources)})

    def _fields(self, placed: Mapping[TowerName, str], engines: Mapping[TowerName, Engine]) -> dict[str, Any]:
        """What is known before a tower has run: outputs, their width and the logits are not."""
        preprocess, folders = self._preprocess(), self.found.folders
        taken = {tower: inputs_of(self._towers()[tower], tower, engines[tower].inputs) for tower in TOWERS}
        fixed, asked = taken["text"]["input_shape"][1], self.options.context_length
        written = write_tokenizer(folders, fixed, asked, self.like, self.making / "tokenizer.json")
        self.sources.update({"tokenizer": written.source, "context length": written.length_source})
        self._write_prompts()
        scheme, quantized, said = read_scheme({tower: self.making / file for tower, file in placed.items()})
        towers: dict[str, Any] = {
            tower: {
                **stored_tower(self.making, placed[tower]),
                **taken[tower],
                "also": with_idle_shapes(taken[tower]["also"], preprocess.image_size, written.context_length),
                "output_name": "?",
                "recipe": FP32.method if scheme.is_fp32 or tower not in quantized else "adopted",
            }
            for tower in TOWERS
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "checkpoint": self._checkpoint(),
            "recipe": Recipe(name="adopted", scheme=scheme, options=said, towers=quantized),
            **towers,
            "embed_dim": 1,
            "logit_scale": 1.0,
            "preprocess": preprocess,
            "tokenizer": self._tokenizer(written),
            "prompts": StoredFile(**stored_file(self.making, "prompts.json")),
            "environment": {"clipq": __version__, **dict([onnxruntime_package() or ("onnxruntime", "")])},
        }

    def _preprocess(self) -> Preprocess:
        said = read_preprocess(self.found.folders)
        if said is not None:
            self.sources["preprocessing"] = said[1]
            return said[0]
        if self.like is None:
            raise BundleError(
                "how are images resized and normalized? no preprocessor_config.json, preprocess_cfg.json or "
                "open_clip_config.json lies beside the towers; put it there, or give --like BUNDLE"
            )
        self.sources["preprocessing"] = f"--like {self.like.name}"
        return self.like.manifest.preprocess

    def _checkpoint(self) -> Checkpoint:
        if self.options.checkpoint is not None:
            return Checkpoint(name=self.options.checkpoint)
        if self.like is not None:
            return self.like.manifest.checkpoint
        return Checkpoint(name=f"adopted:{(self.options.folder or self.found.image.parent).resolve().name}")

    def _tokenizer(self, written: Written) -> Tokenizer:
        stored = stored_file(self.making, "tokenizer.json")
        return Tokenizer(**stored, cleaning=written.cleaning, context_length=written.context_length)

    def _write_prompts(self) -> None:
        target = self.making / "prompts.json"
        if self.like is not None:
            shutil.copyfile(self.like.path / self.like.manifest.prompts.file, target)
        else:
            target.write_bytes(files("clipq.exporters").joinpath("prompts.json").read_bytes())

    def _try(self, draft: Bundle, tower: TowerName, engine: Engine) -> tuple[str, int]:
        """A tower's output and its width, of a run on a few real inputs."""
        interface, path = Interface(draft, tower), self._towers()[tower]
        rows = interface.batch or ROWS
        try:
            answered = engine.run(interface.first(Samples.of(rows).feed(draft, tower)))
        except EngineError as error:
            raise EngineError(f"{path}: does not run on {rows} rows: {error}") from error
        name = output_of(path, tower, answered, rows, self.options.output(tower))
        self.sources[f"{tower} output"] = name
        if interface.batch is not None:
            self.sources[f"{tower} batch"] = f"fixed in the file: {interface.batch}"
        norms = np.linalg.norm(answered[name].astype(np.float64), axis=1)
        self.sources[f"{tower} length"] = "unit" if np.allclose(norms, 1, atol=5e-3) else "as they come"
        return name, answered[name].shape[1]

    def _logits(self, draft: Bundle) -> tuple[float, float | None]:
        """The logit scale and bias: as the user says, else a graph's own logits, else those of ``like``."""
        asked, bias = self.options.logit_scale, self.options.logit_bias
        if asked is not None:
            self.sources["logit scale"] = "--logit-scale"
            return _number(asked, "--logit-scale", LogitScale), None if bias is None else _number(
                bias, "--logit-bias", LogitBias
            )
        if self.found.both is not None and (fitted := fit_logits(draft, self.found.both)) is not None:
            self.sources["logit scale"] = f"the logits that {self.found.both.name} gives"
            return fitted
        if self.like is not None:
            self.sources["logit scale"] = f"--like {self.like.name}"
            return self.like.manifest.logit_scale, self.like.manifest.logit_bias
        raise BundleError(
            "the logit scale is in no file, and confidences depend on it: give --logit-scale (the checkpoint's "
            "exp(logit_scale): 100 for OpenAI's CLIP), or --like BUNDLE"
        )


def _copy(path: Path, making: Path, folder: str) -> str:
    """Copy a tower and the files with its weights into the bundle; its path there."""
    try:
        beside = data_files(path.parent, path.name)
    except BundleError as error:
        raise BundleError(str(error).replace("export it again", "put its weights beside it")) from error
    for name in (path.name, *beside):
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
            f"{source}: {onnxruntime_version()} ends with signal {-trial.returncode} when it loads this file, "
            "and so would clipq; export it by another way"
        )
    try:
        return OrtEngine(path)
    except EngineError as error:
        model = read_graph(path)
        asks = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
        raise EngineError(
            f"{str(error).replace(str(path), str(source))} (it asks for the operators of {asks})"
        ) from error


def _check(bundle: Bundle) -> None:
    """Raise BundleError where a tower does not look at what it is given, EngineError where it gives no numbers."""
    samples = Samples.of(2)
    for tower in TOWERS:
        with open_engine(bundle, tower, "ort-cpu") as engine:
            (embeddings,) = engine.run(samples.feed(bundle, tower)).values()
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise EngineError(f"{bundle.manifest.tower(tower).file}: gives embeddings that are zero or not finite")
        first, second = embeddings.astype(np.float64) / lengths
        if float(first @ second) > SAME:
            what = "images" if tower == "image" else "texts"
            raise BundleError(
                f"{bundle.manifest.tower(tower).file}: gives two different {what} one embedding: it is pooled at the "
                "wrong token, or its input is not what it takes; export it again"
            )


def _number(value: float, option: str, kind: Any) -> float:
    try:
        return float(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise BundleError(f"{option} {value:g}: {first_reason(error)}") from error


def _validated(fields: Mapping[str, Any]) -> Manifest:
    try:
        return Manifest(**fields)
    except ValidationError as error:
        raise BundleError(f"the engine does not agree with what is beside it: {first_reason(error)}") from error
