"""A bundle: the folder that crosses from export to evaluation.

It holds two towers, a tokenizer, the prompts, and ``clipq.json``, which says everything else that evaluation needs.
The digest of a bundle is the digest of its manifest, and the manifest holds the digest of every other file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clipq.errors import BundleError
from clipq.files import restore, sha256_file, write_atomic
from clipq.given import as_path, without_folders
from clipq.scheme import Scheme, with_scheme

SCHEMA_VERSION = 3
MANIFEST = "clipq.json"

TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, TowerName] = ("image", "text")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_Model):
    """A file of the bundle, by its path inside the bundle, SHA-256 and size in bytes."""

    file: str
    sha256: str
    bytes: int


class Parity(_Model):
    """How far a tower is from the checkpoint: largest absolute difference and smallest cosine over a batch."""

    batch: int
    max_abs: float
    cosine: float


class Plan(_Model):
    """What built an engine plan, for which GPU, and what it accepts.

    ``gpu`` and ``driver_cuda`` are None where the plan was built without a GPU. ``batch`` is the smallest, the best and
    the largest batch. ``layers`` counts what the parsed network quantizes and multiplies, by kind and type.
    """

    runtime: Literal["tensorrt", "tensorrt-rtx"]
    library: str
    capability: str
    gpu: str | None
    driver_cuda: str | None
    batch: tuple[int, int, int]
    flags: tuple[str, ...]
    strongly_typed: bool
    layers: dict[str, int]
    source_sha256: str
    calibrator: str | None = None
    calibration_cache: StoredFile | None = None


class Tower(StoredFile):
    """One tower: its ONNX file or plan, its single input and output, and the recipe it was made by."""

    input_name: str
    input_dtype: Literal["float32", "int64", "int32"]
    input_shape: tuple[int | None, ...]
    output_name: str
    recipe: str
    parity: tuple[Parity, ...] = ()
    plan: Plan | None = None


class Preprocess(_Model):
    """open_clip's inference transform, as numbers (sizes in pixels, height first)."""

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]
    fill_color: int = 0


class Tokenizer(StoredFile):
    """The tokenizer's file, the cleaning that comes before it, and the fixed number of tokens of a text."""

    cleaning: Literal["lower", "canonicalize", "whitespace"]
    context_length: int


class Checkpoint(_Model):
    """Where the weights came from: ``ViT-B-32/laion2b_s34b_b79k``, ``local-dir:...``, ``demo``."""

    # Bundles of older versions hold the whole path of their author's machine.
    name: Annotated[str, AfterValidator(without_folders)]
    weights_sha256: str | None = None


class Recipe(_Model):
    """How the towers were quantized: name, scheme, every option as resolved, and what was measured on the way."""

    name: str
    scheme: Scheme
    options: dict[str, Any] = Field(default_factory=dict)
    towers: tuple[TowerName, ...] = TOWERS
    calibration: dict[str, Any] | None = None
    source_digest: str | None = None


class Manifest(_Model):
    """The content of ``clipq.json``."""

    schema_version: int
    checkpoint: Checkpoint
    recipe: Recipe
    image: Tower
    text: Tower
    embed_dim: int
    logit_scale: float
    logit_bias: float | None = None
    preprocess: Preprocess
    tokenizer: Tokenizer
    prompts: StoredFile
    environment: dict[str, str] = Field(default_factory=dict)

    def tower(self, name: TowerName) -> Tower:
        """The image or the text tower."""
        return self.image if name == "image" else self.text

    def files(self) -> tuple[StoredFile, ...]:
        """Every file of the bundle but the manifest."""
        plans = (tower.plan for tower in (self.image, self.text) if tower.plan is not None)
        caches = (plan.calibration_cache for plan in plans if plan.calibration_cache is not None)
        return (self.image, self.text, self.tokenizer, self.prompts, *caches)


class Prompts(_Model):
    """Prompt templates by set name (``{}`` stands for the class name), and class names by data set."""

    templates: dict[str, tuple[str, ...]]
    class_names: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The folder's name: what tables and charts call this bundle."""
        # Of "." too, and of a link the link's.
        return Path(os.path.abspath(self.path)).name  # noqa: PTH100

    def __fspath__(self) -> str:
        """Its folder: a bundle stands wherever a path is asked for."""
        return str(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest as it is stored, and so of everything in the bundle."""
        return sha256_file(self.path / MANIFEST)

    @property
    def built_for(self) -> str | None:
        """The runtime whose plans this bundle holds; None where it holds ONNX files, which every other one takes."""
        plan = self.manifest.image.plan
        return None if plan is None else plan.runtime

    @cached_property
    def prompts(self) -> Prompts:
        """The templates and class names stored at export."""
        return Prompts.model_validate_json((self.path / self.manifest.prompts.file).read_bytes())

    def tower_path(self, tower: TowerName) -> Path:
        """The file of a tower that a runtime loads."""
        return self.path / self.manifest.tower(tower).file

    def verify(self) -> None:
        """Check each file's digest against the manifest; raises BundleError on the first that differs."""
        for entry in self.manifest.files():
            path = self.path / entry.file
            if not path.is_file():
                raise BundleError(f"bundle {self.path}: {entry.file} is missing; export or copy the bundle again")
            if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
                raise BundleError(
                    f"bundle {self.path}: {entry.file} does not match the digest in {MANIFEST}; "
                    "it was changed or damaged after export: export or copy the bundle again"
                )


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is stored: JSON, UTF-8, keys in schema order."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def stored_file(root: Path, file: str) -> dict[str, Any]:
    """The fields of StoredFile for a file of a bundle in making."""
    path = root / file
    return {"file": file, "sha256": sha256_file(path), "bytes": path.stat().st_size}


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``clipq.json``, the last act of making a bundle."""
    write_atomic(root / MANIFEST, manifest_bytes(manifest))


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check its digests; raises BundleError with the way out."""
    path = as_path(path, "bundle")
    manifest_path = path / MANIFEST
    restore(path)
    if not path.exists():
        raise BundleError(f"no bundle at {path}: the folder does not exist (clipq-export makes one)")
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: it is a file; give the folder that holds {MANIFEST}")
    if not manifest_path.is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST} (clipq-export makes one)")
    try:
        raw = json.loads(manifest_path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise BundleError(f"{manifest_path} is not valid JSON ({error}); export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise BundleError(f"{manifest_path} has no schema_version; export the bundle again")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{manifest_path} has schema version {version}, this clipq reads up to {SCHEMA_VERSION}; upgrade clip-quant"
        )
    if version < 3:
        raw["recipe"] = with_scheme(raw.get("recipe"), "name")
    try:
        # What is made of a bundle is written in today's schema.
        manifest = Manifest.model_validate(raw | {"schema_version": SCHEMA_VERSION})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{manifest_path}: {where}: {first['msg']}; export the bundle again") from error
    for entry in manifest.files():
        if Path(entry.file).is_absolute() or ".." in Path(entry.file).parts:
            raise BundleError(f"{manifest_path}: file {entry.file!r} lies outside the bundle")
    bundle = Bundle(path, manifest)
    bundle.verify()
    return bundle
