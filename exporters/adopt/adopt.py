"""An engine that others made, as a bundle: its files as they are, and what they do not say read from beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clipq import __version__
from clipq.bundle import (
    SCHEMA_VERSION,
    TOWERS,
    Adopted,
    Bundle,
    Checkpoint,
    Compared,
    LogitBias,
    LogitScale,
    Manifest,
    Preprocess,
    Recipe,
    StoredFile,
    Tokenizer,
    Tower,
    TowerName,
    first_reason,
    open_bundle,
    stored_file,
    write_manifest,
)
from clipq.environment import onnxruntime_package
from clipq.errors import BundleError
from clipq.exporters.adopt.configs import read_preprocess
from clipq.exporters.adopt.diagnosis import compare_engines
from clipq.exporters.adopt.foreign import ForeignEngine
from clipq.exporters.adopt.layouts import Found, find
from clipq.exporters.adopt.logits import fit_logits
from clipq.exporters.adopt.onnx_files import OnnxFiles
from clipq.exporters.adopt.plan_files import PlanFiles
from clipq.exporters.adopt.signature import Answer, with_idle_shapes
from clipq.exporters.adopt.text import Written, write_tokenizer
from clipq.exporters.prompts import write_prompts
from clipq.making import check_target, directory_in_making
from clipq.scheme import FP32


def adopt(
    engine: ForeignEngine,
    target: Path,
    against: Bundle | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Make a bundle of an engine's files at ``target``; nothing is left behind on failure.

    ``against``: an engine that is right, which it is compared with; the manifest says what was found. ``progress`` is
    told of each step.

    Raises BundleError for what is no engine, and for what no file or option says, EngineError where it does not run.
    """
    check_target(target)
    found = find(engine)
    like = None if engine.like is None else open_bundle(engine.like)
    with directory_in_making(target) as making:
        opened = PlanFiles(engine, found, making, like) if found.is_plan else OnnxFiles(engine, found, making)
        with opened as towers:
            manifest = _Draft(engine, found, like, making, towers, {}).manifest()
        opened.check(Bundle(making, manifest))
        if against is not None:
            manifest = _compared(Bundle(making, manifest), against, progress)
        write_manifest(making, manifest)
    return open_bundle(target)


def _compared(bundle: Bundle, against: Bundle, progress: Callable[[str], None]) -> Manifest:
    """The manifest with what a comparison found."""
    found = compare_engines(bundle, against, progress=progress)
    assert bundle.manifest.adopted is not None
    compared = Compared(reference=against.name, agrees=found.agrees, sentences=found.sentences)
    adopted = bundle.manifest.adopted.model_copy(update={"compared": compared})
    return bundle.manifest.model_copy(update={"adopted": adopted})


@dataclass(frozen=True)
class _Draft:
    """A bundle in the making; ``sources`` says of each fact where it was read."""

    engine: ForeignEngine
    found: Found
    like: Bundle | None
    making: Path
    files: OnnxFiles | PlanFiles
    sources: dict[str, str]

    def manifest(self) -> Manifest:
        """Everything that ``clipq.json`` says."""
        fields = self._fields()
        draft = Bundle(self.making, _validated(fields))
        image, text = (self.files.answer(draft, tower) for tower in TOWERS)
        if image.width != text.width:
            raise BundleError(
                f"the image tower's {image.name} has {image.width} columns and the text tower's {text.name} "
                f"{text.width}: not one embedding space; give towers with their projections, or say which outputs: "
                "--image-output NAME --text-output NAME"
            )
        for tower, answer in zip(TOWERS, (image, text), strict=True):
            fields[tower] |= {"output_name": answer.name, "further_outputs": answer.others}
            self._say(tower, draft.manifest.tower(tower), answer)
        fields["embed_dim"] = image.width
        fields["logit_scale"], fields["logit_bias"] = self._logits(Bundle(self.making, _validated(fields)))
        return _validated(fields | {"adopted": Adopted(layout=self.found.layout, sources=self.sources)})

    def _fields(self) -> dict[str, Any]:
        """What is known before a tower has run: outputs, their width and the logits are not."""
        preprocess, folders = self._preprocess(), self.found.folders
        taken = {tower: self.files.inputs(tower) for tower in TOWERS}
        fixed, asked = taken["text"]["input_shape"][1], self.engine.context_length
        written = write_tokenizer(folders, fixed, asked, self.like, self.making / "tokenizer.json")
        self.sources.update({"tokenizer": written.source, "context length": written.length_source})
        self._write_prompts()
        scheme, quantized, said = self.files.precision
        towers: dict[str, Any] = {
            tower: {
                **self.files.stored(tower),
                **taken[tower],
                "further_inputs": with_idle_shapes(
                    taken[tower]["further_inputs"], preprocess.image_size, written.context_length
                ),
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
            "environment": {"clipq": __version__, **dict(filter(None, [onnxruntime_package()]))},
        }

    def _say(self, tower: TowerName, entry: Tower, answer: Answer) -> None:
        """Where what is known of a tower was read."""
        self.sources[f"{tower} output"] = answer.name
        if entry.batch is not None:
            self.sources[f"{tower} batch"] = f"fixed in the file: {entry.batch}"
        if (wrong := self.files.warning(tower)) is not None:
            self.sources[f"{tower} weights"] = wrong
        if answer.unit is not None:
            self.sources[f"{tower} embeddings"] = "of unit length" if answer.unit else "not of unit length"

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
        if self.engine.checkpoint is not None:
            return Checkpoint(name=self.engine.checkpoint)
        if self.like is not None:
            return self.like.manifest.checkpoint
        return Checkpoint(name=f"adopted:{(self.engine.folder or self.found.image.parent).resolve().name}")

    def _tokenizer(self, written: Written) -> Tokenizer:
        stored = stored_file(self.making, "tokenizer.json")
        return Tokenizer(**stored, cleaning=written.cleaning, context_length=written.context_length)

    def _write_prompts(self) -> None:
        target = self.making / "prompts.json"
        if self.like is not None:
            shutil.copyfile(self.like.path / self.like.manifest.prompts.file, target)
        else:
            write_prompts(target)

    def _logits(self, draft: Bundle) -> tuple[float, float | None]:
        """The logit scale and bias: as the user says, else a graph's own logits, else those of ``like``."""
        asked, bias = self.engine.logit_scale, self.engine.logit_bias
        if asked is not None:
            self.sources["logit scale"] = "--logit-scale"
            return _number(asked, "--logit-scale", LogitScale), None if bias is None else _number(
                bias, "--logit-bias", LogitBias
            )
        if (
            self.found.both is not None
            and not self.found.is_plan
            and (fitted := fit_logits(draft, self.found.both)) is not None
        ):
            self.sources["logit scale"] = f"the logits that {self.found.both.name} gives"
            return fitted
        if self.like is not None:
            self.sources["logit scale"] = f"--like {self.like.name}"
            return self.like.manifest.logit_scale, self.like.manifest.logit_bias
        raise BundleError(
            "the logit scale is in no file, and confidences depend on it: give --logit-scale (the checkpoint's "
            "exp(logit_scale): 100 for OpenAI's CLIP), or --like BUNDLE"
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
