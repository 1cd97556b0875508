"""A bundle: the folder that crosses from export to evaluation.

It holds two towers, a tokenizer, the prompts, and ``clipq.json``, which says everything else that evaluation needs.
The digest of a bundle is the digest of its manifest, and the manifest holds the digest of every other file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from clipq.errors import BundleError
from clipq.fields import Number, Whole
from clipq.files import Stamp, sha256_bytes, sha256_file, stamp, write_atomic
from clipq.given import as_path, is_nameable, without_folders
from clipq.hints import Hints
from clipq.making import restore
from clipq.onnx_graph import data_files, require_repeatable
from clipq.scheme import Scheme, with_scheme
from clipq.text_files import read_json

SCHEMA_VERSION = 6
MANIFEST = "clipq.json"

TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, TowerName] = ("image", "text")


# Of where an engine ran, as tables show it.
MOST_WORDS = 120

# What evaluation asks for by name: the default, and the one that calibration texts are made with.
TEMPLATE_SETS = ("imagenet-80", "simple-7")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _inside(file: str) -> str:
    parts = PurePosixPath(file).parts
    if not parts or file.startswith("/") or ".." in parts or "\\" in file or "\0" in file:
        raise ValueError(f"file {file!r} lies outside the bundle")
    return file


def _in_a_line(words: str) -> str:
    if not words.strip() or not is_nameable(words) or len(words) > MOST_WORDS:
        raise ValueError(f"where an engine ran is said in one line of at most {MOST_WORDS} letters")
    return words


def _prompt(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold {{}} exactly once")
    return template


# Bounds are far beyond any checkpoint: what lies outside them is a mistake, or made to fill the memory.
Size = Annotated[Whole, Field(ge=1, le=2**16)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1)]
# Of pixels between 0 and 1, and of logits that a float32 tells apart.
Mean = Annotated[Number, Field(ge=-10, le=10)]
Std = Annotated[Number, Field(ge=1e-4, le=1e4)]
LogitScale = Annotated[Number, Field(ge=1e-4, le=1e6)]
LogitBias = Annotated[Number, Field(ge=-1e4, le=1e4)]


class StoredFile(_Model):
    """A file of the bundle, by its path inside the bundle, SHA-256 and size in bytes."""

    file: Annotated[str, AfterValidator(_inside)]
    sha256: Digest
    bytes: Whole = Field(ge=0)


class Parity(_Model):
    """How far a tower is from the checkpoint: largest absolute difference and smallest cosine over a batch."""

    batch: int
    max_abs: float
    cosine: float


class Plan(_Model):
    """What built an engine plan, for which GPU, and what it accepts.

    ``gpu`` and ``driver_cuda`` are None where the plan was built without a GPU. ``batch`` is the smallest, the best and
    the largest batch. ``layers`` counts what the parsed network quantizes and multiplies, by kind and type. Of a plan
    that others built, only the library is known: the rest is None, or empty.
    """

    runtime: Literal["tensorrt", "tensorrt-rtx"]
    library: str
    capability: str | None
    gpu: str | None
    driver_cuda: str | None
    batch: tuple[Size, Size, Size] | None
    flags: tuple[str, ...]
    strongly_typed: bool | None
    layers: dict[str, int]
    source_sha256: str | None
    calibrator: str | None = None
    calibration_cache: StoredFile | None = None


class FurtherInput(_Model):
    """An input that a tower's file takes beside pixels or token ids, and what it is fed.

    ``role``: the tokenizer's mask (1: a token, 0: padding), positions counted from 0, zeros (``token_type_ids``); or
    ``idle``: what another tower in the same file takes, one row of ones (of zeros, where it is floating point).
    """

    name: Name
    dtype: Literal["int64", "int32", "float32", "float16", "bool"]
    shape: tuple[Size | None, ...]
    role: Literal["attention_mask", "position_ids", "token_type_ids", "idle"]


class StoredAnswers(_Model):
    """What an engine answered that ran where clipq cannot: its file holds answers, and no network.

    ``ran_on`` is where, in the words of who ran it. ``kind``: embeddings, each under the digest of what was embedded
    (``rows`` of them), or predictions alone, by view. ``unit_length`` and ``dtype`` say how embeddings came.
    """

    runtime: Literal["external"]
    ran_on: Annotated[str, AfterValidator(_in_a_line)]
    kind: Literal["embeddings", "predictions"]
    rows: Whole = Field(ge=0)
    dtype: str
    unit_length: bool
    source_sha256: tuple[Digest, ...]


class Tower(StoredFile):
    """One tower: its ONNX file or plan, what it takes and gives, and the recipe it was made by.

    ``data``: the files beside an ONNX file that hold its weights, where it could not hold them itself.
    ``input_shape``: of pixels or ids; a first dimension that is fixed is the only batch that the file takes.
    ``layout``: of pixels. ``further_inputs``: the file's others. ``further_outputs``: those that are no embeddings.
    ``answers``: of an engine that ran elsewhere, in place of a network.
    """

    data: tuple[StoredFile, ...] = ()
    input_name: Name
    input_dtype: Literal["float32", "float16", "int64", "int32"]
    input_shape: tuple[Size | None, ...]
    # Since schema 6: of engines that others made.
    layout: Literal["nchw", "nhwc"] = "nchw"
    further_inputs: tuple[FurtherInput, ...] = ()
    output_name: Name
    further_outputs: tuple[Name, ...] = ()
    recipe: str
    parity: tuple[Parity, ...] = ()
    plan: Plan | None = None
    # Since schema 6.
    answers: StoredAnswers | None = None

    def files(self) -> tuple[StoredFile, ...]:
        """All files of the tower."""
        return (self, *self.data)

    @property
    def batch(self) -> int | None:
        """The one number of rows that the file takes; None where it takes any."""
        return self.input_shape[0] if self.input_shape else None

    @property
    def is_plain(self) -> bool:
        """Whether it takes what clipq feeds and gives embeddings alone, as clipq's own towers do."""
        differs = self.further_inputs or self.further_outputs or self.batch or self.layout == "nhwc"
        return not differs and self.input_dtype != "float16"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.bytes for entry in self.files())

    @property
    def digest(self) -> str:
        """SHA-256 of its file; of the digests of all its files, where there are several."""
        digests = [f"{entry.file} {entry.sha256}" for entry in self.files()]
        return sha256_bytes("\n".join(digests).encode()) if self.data else self.sha256


class Preprocess(_Model):
    """The checkpoint's inference transform, as numbers (sizes in pixels, height first).

    ``library``: whose order of steps and rounding, which ``clipq.preprocess`` describes.
    """

    image_size: tuple[Size, Size]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]
    fill_color: Whole = Field(default=0, ge=0, le=255)
    library: Literal["open_clip", "transformers"] = "open_clip"

    def identity(self) -> dict[str, Any]:
        """All that pixels depend on, as keys hold it; open_clip is the library of before schema 6."""
        return self.model_dump(mode="json", exclude={"library"} if self.library == "open_clip" else None)

    def geometry(self) -> dict[str, Any]:
        """The same of uint8 pixels, before mean and std."""
        return {name: value for name, value in self.identity().items() if name not in ("mean", "std")}

    def difference(self, other: Preprocess) -> str:
        """The first thing in which it differs from another, with both values; empty where nothing does."""
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            # Only "longest" pads with it.
            if mine != theirs and (name != "fill_color" or self.resize_mode == "longest"):
                return f"{name} ({mine} and {theirs})"
        return ""


class Tokenizer(StoredFile):
    """The tokenizer's file, the cleaning that comes before it, and the fixed number of tokens of a text."""

    cleaning: Literal["lower", "canonicalize", "whitespace", "none"]
    context_length: Size


class Checkpoint(_Model):
    """Where the weights are from: ``ViT-B-32/laion2b_s34b_b79k``, ``transformers:...``, ``local-dir:...``, ``demo``."""

    # Bundles of older versions hold the whole path of their author's machine.
    name: Annotated[str, AfterValidator(without_folders)]
    weights_sha256: str | None = None


class Calibration(_Model):
    """What activation ranges were measured on: digest and number of images and texts, and where the texts are from."""

    digest: Digest
    images: int = Field(ge=0)
    texts: int = Field(ge=0)
    texts_from: str


class Recipe(_Model):
    """How the towers were quantized: name, scheme, every option as resolved, and what was measured on the way."""

    name: str
    scheme: Scheme
    options: dict[str, Any] = Field(default_factory=dict)
    towers: tuple[TowerName, ...] = Field(default=TOWERS, min_length=1)
    calibration: Calibration | None = None
    source_digest: str | None = None


class Compared(_Model):
    """An adopted engine beside one that is known to be right: whether they agree, and what was found, in sentences."""

    reference: str
    agrees: bool
    sentences: tuple[str, ...]


class Adopted(_Model):
    """Of an engine that others made: the layout it came in, and where each fact about it was read.

    ``sources``: by fact ("preprocessing", "logit scale"), the file or option that said it, in words. ``compared``: with
    what ``--against`` named.
    """

    layout: str
    sources: dict[str, str]
    compared: Compared | None = None

    @property
    def in_words(self) -> str:
        """The layout, the facts and what they were proved by, as a report has them."""
        said = [f"{fact}: {source}" for fact, source in self.sources.items()]
        proved = f"compared with {self.compared.reference}" if self.compared else "compared with nothing (--against)"
        found = self.compared.sentences if self.compared else ()
        return f"adopted ({self.layout}): " + "; ".join([*said, proved, *found])


class Manifest(_Model):
    """The content of ``clipq.json``."""

    schema_version: int
    checkpoint: Checkpoint
    recipe: Recipe
    image: Tower
    text: Tower
    embed_dim: Size
    logit_scale: LogitScale
    logit_bias: LogitBias | None = None
    preprocess: Preprocess
    tokenizer: Tokenizer
    prompts: StoredFile
    # Since schema 5.
    hints: Hints = ()
    # Since schema 6.
    adopted: Adopted | None = None
    environment: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """The towers take what preprocessing and tokenizer give."""
        pixels = self.preprocess.image_size
        given = {
            "image": (
                ("float32", "float16"),
                (None, 3, *pixels) if self.image.layout == "nchw" else (None, *pixels, 3),
            ),
            "text": (("int64", "int32"), (None, self.tokenizer.context_length)),
        }
        for name in TOWERS:
            tower, (types, shape) = self.tower(name), given[name]
            fits = len(tower.input_shape) == len(shape) and all(
                None in (mine, theirs) or mine == theirs for mine, theirs in zip(tower.input_shape, shape, strict=True)
            )
            if tower.input_dtype not in types or not fits:
                raise ValueError(
                    f"the {name} tower takes {tower.input_dtype} {list(tower.input_shape)}, it is given {types[0]} "
                    f"{list(shape)}"
                )
        if (self.image.plan is None) != (self.text.plan is None):
            raise ValueError("one tower is a plan and the other is not")
        if len({one.answers and (one.answers.kind, one.answers.ran_on) for one in (self.image, self.text)}) > 1:
            raise ValueError("the towers do not hold answers of one engine")
        # Towers may share weights, or be one file; what else is one would be written over when one is made anew.
        entries = (self.image, *([] if self.is_one_graph else [self.text]), self.tokenizer, self.prompts)
        alone = [PurePosixPath(entry.file) for entry in entries]
        taken = [PurePosixPath(MANIFEST), *(PurePosixPath(one.file) for t in TOWERS for one in self.tower(t).data)]
        for file in alone:
            if file in taken:
                raise ValueError(f"file '{file}' has two meanings")
            taken.append(file)
        return self

    @property
    def is_one_graph(self) -> bool:
        """Whether both towers are one file, of which each run computes both."""
        one = (self.image.file, self.image.digest) == (self.text.file, self.text.digest)
        # Else one file stands for two towers, of which it is one.
        return one and any(taken.role == "idle" for taken in self.text.further_inputs)

    @property
    def size(self) -> int:
        """Bytes of both towers' files, of one graph once."""
        return self.image.size if self.is_one_graph else self.image.size + self.text.size

    def tower(self, name: TowerName) -> Tower:
        """The image or the text tower."""
        return self.image if name == "image" else self.text

    def files(self) -> tuple[StoredFile, ...]:
        """Every file of the bundle but the manifest."""
        plans = (tower.plan for tower in (self.image, self.text) if tower.plan is not None)
        caches = (plan.calibration_cache for plan in plans if plan.calibration_cache is not None)
        towers = (self.image,) if self.is_one_graph else (self.image, self.text)
        return (*(file for tower in towers for file in tower.files()), self.tokenizer, self.prompts, *caches)


class Prompts(_Model):
    """Prompt templates by set name (``{}`` stands for the class name), and class names by data set."""

    templates: dict[str, Annotated[tuple[Annotated[str, AfterValidator(_prompt)], ...], Field(min_length=1)]]
    class_names: Annotated[dict[str, Annotated[tuple[Name, ...], Field(min_length=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_the_sets(self) -> Self:
        for name in TEMPLATE_SETS:
            if name not in self.templates:
                raise ValueError(f"templates: there is no set {name!r}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    # Of each file when its digest was last checked.
    _stamps: dict[str, Stamp | None] = field(default_factory=dict, repr=False, compare=False)

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
        """The runtime that this bundle holds plans or answers of; None where it holds ONNX files, which others take."""
        held = self.manifest.image.plan or self.manifest.image.answers
        return None if held is None else held.runtime

    @property
    def holds(self) -> str:
        """What it holds, in words: ``plans for tensorrt``."""
        if self.built_for is None:
            return "ONNX files"
        return f"answers of {self.built_for}" if self.ran_on else f"plans for {self.built_for}"

    @property
    def ran_on(self) -> str:
        """Where an engine ran whose answers this bundle holds, in the words of who ran it; empty where it can run."""
        answers = self.manifest.image.answers
        return "" if answers is None else answers.ran_on

    @cached_property
    def prompts(self) -> Prompts:
        """The templates and class names stored at export."""
        path = self.path / self.manifest.prompts.file
        with self.unchanged():
            return _validated(Prompts, read_json(path, BundleError, "make the bundle again"), path)

    def tower_path(self, tower: TowerName) -> Path:
        """The file of a tower that a runtime loads."""
        return self.path / self.manifest.tower(tower).file

    def copy(self, entries: Iterable[StoredFile], target: Path) -> None:
        """Copy files of the bundle to where they lie in a bundle in making."""
        for entry in entries:
            (target / entry.file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / entry.file, target / entry.file)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Around reading files of the bundle: what was read is what the manifest says, however long ago it was checked.

        Files that were written or exchanged since are digested again, before and after; raises BundleError for others.
        """
        self._require_unchanged()
        yield
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        if {entry.file: stamp(self.path / entry.file) for entry in self.manifest.files()} != self._stamps:
            self.verify()

    def verify(self) -> None:
        """Check each file against the manifest; raises BundleError on the first that differs, or is not in it."""
        stamps = {}
        for entry in self.manifest.files():
            path = self.path / entry.file
            stamps[entry.file] = stamp(path)
            if not path.is_file():
                raise BundleError(f"bundle {self.path}: {entry.file} is missing; export or copy the bundle again")
            if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
                raise BundleError(
                    f"bundle {self.path}: {entry.file} does not match the digest in {MANIFEST}; "
                    "it was changed or damaged after export: export or copy the bundle again"
                )
        for tower in (self.manifest.image, self.manifest.text):
            listed = {entry.file for entry in tower.data}
            is_graph = tower.plan is None and tower.answers is None
            for name in data_files(self.path, tower.file) if is_graph else ():
                if name not in listed:
                    raise BundleError(
                        f"bundle {self.path}: {tower.file} keeps weights in {name}, which {MANIFEST} does not list, so "
                        "they could change unseen; make the bundle again"
                    )
            if is_graph:
                require_repeatable(self.path / tower.file)
        self._stamps.update(stamps)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is stored: JSON, UTF-8, keys in schema order."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def stored_file(root: Path, file: str) -> dict[str, Any]:
    """The fields of StoredFile for a file of a bundle in making."""
    path = root / file
    return {"file": file, "sha256": sha256_file(path), "bytes": path.stat().st_size}


def stored_tower(root: Path, file: str) -> dict[str, Any]:
    """The fields of Tower that say which files it has, for an ONNX file of a bundle in making."""
    return {
        **stored_file(root, file),
        "data": tuple(StoredFile(**stored_file(root, name)) for name in data_files(root, file)),
    }


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``clipq.json``, the last act of making a bundle."""
    write_atomic(root / MANIFEST, manifest_bytes(manifest))


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check its digests; raises BundleError with the way out."""
    path = as_path(path, "bundle")
    for _ in range(3):
        before = stamp(path / MANIFEST)
        try:
            return _opened(path)
        except (BundleError, FileNotFoundError):
            # Another process may have put a new one in its place meanwhile, whole as this one was.
            if stamp(path / MANIFEST) == before:
                raise
    return _opened(path)


def _opened(path: Path) -> Bundle:
    manifest_path = path / MANIFEST
    restore(path)
    before = stamp(manifest_path)
    if not path.exists():
        raise BundleError(f"no bundle at {path}: the folder does not exist (clipq-export makes one)")
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: it is a file; give the folder that holds {MANIFEST}")
    if not manifest_path.is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST} (clipq-export makes one)")
    raw = read_json(manifest_path, BundleError, "make the bundle again")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is not int or version < 1:
        raise BundleError(f"{manifest_path} has no schema_version; make the bundle again")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{manifest_path} has schema version {version}, this clipq reads up to {SCHEMA_VERSION}; upgrade clip-quant"
        )
    if version < 3:
        raw["recipe"] = with_scheme(raw.get("recipe"), "name")
    # What is made of a bundle is written in today's schema.
    manifest = _validated(Manifest, raw | {"schema_version": SCHEMA_VERSION}, manifest_path)
    bundle = Bundle(path, manifest)
    bundle.verify()
    # Taken now, and so of the manifest that was read.
    if not bundle.digest or stamp(manifest_path) != before:
        raise BundleError(f"{manifest_path} changed while it was read; open the bundle again")
    # Its own content is checked as it is read.
    assert bundle.prompts
    return bundle


_Checked = TypeVar("_Checked", bound=_Model)


def _validated(model: type[_Checked], raw: Any, path: Path) -> _Checked:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise BundleError(f"{path}: {first_reason(error)}; make the bundle again") from error


def first_reason(error: ValidationError) -> str:
    """The first thing that is wrong with a bundle's values, in one line: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
