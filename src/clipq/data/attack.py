"""A stored attack: adversarial images made from a checkpoint's gradients, as pixels after resize and crop.

The folder holds ``clipq-attack.json`` and ``pixels.safetensors`` (uint8, N × H × W × 3): ``clean`` and one array per
strength, ``epsilon_4`` for ε = 4/255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from clipq.bundle import Digest, Name, Preprocess
from clipq.data.views import Classes, Sample, View
from clipq.errors import DataError
from clipq.files import sha256_bytes, write_atomic
from clipq.making import restore
from clipq.packed import Damaged, packed, unpacked
from clipq.text_files import read_bytes

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "clipq-attack.json"
PIXELS = "pixels.safetensors"

Pixels = NDArray[np.uint8]
# In 255ths; 0 would be no attack.
Epsilon = Annotated[int, Field(ge=1, le=255)]


class AttackManifest(BaseModel):
    """What was attacked, how, and whether the attack fooled the model it was made for (per strength and image)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1]
    method: Name
    options: dict[str, Any]
    epsilons: tuple[Epsilon, ...] = Field(min_length=1)
    checkpoint: str
    preprocess: Preprocess
    source: str
    ids: tuple[str, ...] = Field(min_length=1)
    labels: tuple[int, ...]
    class_names: tuple[Name, ...] = Field(min_length=1)
    class_keys: tuple[str, ...]
    templates_name: str
    templates: tuple[str, ...] = Field(min_length=1)
    fooled: dict[str, tuple[bool, ...]]
    pixels_sha256: Digest

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """Every image has an id, a label among the classes, and an answer per strength."""
        n, classes = len(self.ids), len(self.class_names)
        for what, values in (("epsilons", self.epsilons), ("ids", self.ids)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}: one comes twice")
        if len(self.labels) != n or not all(0 <= label < classes for label in self.labels):
            raise ValueError(f"labels: there must be {n}, one per image, from 0 to {classes - 1}")
        if len(self.class_keys) != classes:
            raise ValueError(f"class_keys: there are {len(self.class_keys)} for {classes} classes")
        if not all("{}" in template for template in self.templates):
            raise ValueError("templates: one has no {} for the class name")
        answers = {epsilon: len(answered) for epsilon, answered in self.fooled.items()}
        if answers != dict.fromkeys(map(str, self.epsilons), n):
            raise ValueError(f"fooled: there must be {n} answers for each of the epsilons")
        return self


@dataclass(frozen=True)
class AttackedView(View):
    """Images of one strength of a stored attack; strength 0 is the clean images."""

    is_in_memory: ClassVar[bool] = True

    stored: Pixels
    preprocess: Preprocess

    def image(self, index: int) -> Image.Image:
        """The stored pixels as an image."""
        return Image.fromarray(self.stored[index])

    def image_digest(self, index: int) -> str:
        """SHA-256 of the stored pixels."""
        return sha256_bytes(self.stored[index].tobytes())

    def cropped(self, index: int, config: Preprocess) -> Pixels:
        """The stored pixels: resize and crop were done before the attack, so how else a tower would is no matter."""
        if wrong := self.unlike(config):
            raise DataError(f"{self.source}: was made for another preprocessing than the bundle's: {wrong}")
        return self.stored[index]

    def unlike(self, config: Preprocess) -> str:
        """Why a tower cannot be given these pixels; empty where it can."""
        (height, width), own = config.image_size, self.preprocess.image_size
        if (height, width) == own:
            return ""
        return f"its images have {own[0]} × {own[1]} pixels, and the tower takes {height} × {width}"


@dataclass(frozen=True)
class StoredAttack:
    """An attack as it was read: nothing of it is read again."""

    folder: Path
    manifest: AttackManifest
    pixels: Mapping[str, Pixels]

    def view(self, epsilon: int, name: str) -> AttackedView:
        """The images at one strength (255ths), or the clean ones (0)."""
        manifest = self.manifest
        stored = self.pixels[tensor_name(epsilon)]
        samples = tuple(Sample(one, label) for one, label in zip(manifest.ids, manifest.labels, strict=True))
        classes = Classes.plain(manifest.class_names, manifest.class_keys, manifest.templates)
        return AttackedView(name, str(self.folder), samples, classes, stored, manifest.preprocess)


def tensor_name(epsilon: int) -> str:
    """What the images of a strength are called in the file."""
    return f"epsilon_{epsilon}" if epsilon else "clean"


def write_attack(folder: Path, manifest: dict[str, Any], pixels: dict[int, Pixels]) -> None:
    """Write a stored attack; ``pixels`` are by strength, 0 for the clean images."""
    checked = AttackManifest(**manifest, schema_version=SCHEMA_VERSION, pixels_sha256="0" * 64)
    arrays = {tensor_name(epsilon): array for epsilon, array in pixels.items()}
    data = packed(arrays, {"manifest": _digest(checked)})
    checked = checked.model_copy(update={"pixels_sha256": sha256_bytes(data)})
    write_atomic(folder / PIXELS, data)
    write_atomic(folder / MANIFEST, checked.model_dump_json(indent=1) + "\n")


def open_attack(folder: Path) -> StoredAttack:
    """Read a stored attack and check its digest; raises DataError with the way out."""
    path, again = folder / MANIFEST, "make the attack again"
    restore(folder)
    if not path.exists():
        raise DataError(f"{folder}: holds no {MANIFEST}; clipq-export attack makes one")
    try:
        manifest = AttackManifest.model_validate_json(read_bytes(path, DataError))
    except ValidationError as error:
        first = error.errors()[0]
        where, version = ".".join(map(str, first["loc"])), first["input"]
        if where == "schema_version" and isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema version {version}, this clipq reads up to {SCHEMA_VERSION}; upgrade clip-quant"
            ) from error
        raise DataError(f"{path}: is damaged ({where}: {first['msg']}); {again}") from error
    path = folder / PIXELS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {again}") from error
    if sha256_bytes(data) != manifest.pixels_sha256:
        raise DataError(f"{path}: does not match the digest in {MANIFEST}; {again}")
    try:
        # The manifest's digest is checksum enough; files of earlier versions have no other.
        pixels, said = unpacked(data, unsealed=frozenset())
    except Damaged as error:
        raise DataError(f"{path}: is damaged, {error}; {again}") from error
    if wrong := _misfit(manifest, pixels):
        raise DataError(f"{path}: {wrong}; {again}")
    if said.get("manifest", _digest(manifest)) != _digest(manifest):
        raise DataError(f"{folder / MANIFEST}: is damaged, it is not what was written; {again}")
    return StoredAttack(folder, manifest, pixels)


def _digest(manifest: AttackManifest) -> str:
    """Of all that a manifest says but the pixels' digest; it is stored with the pixels."""
    return sha256_bytes(manifest.model_dump_json(exclude={"pixels_sha256"}).encode())


def _misfit(manifest: AttackManifest, pixels: Mapping[str, NDArray[Any]]) -> str:
    """How the images are not what the manifest says; nothing where they are."""
    shape = (len(manifest.ids), *manifest.preprocess.image_size, 3)
    named = {tensor_name(epsilon): epsilon for epsilon in (0, *manifest.epsilons)}
    if set(pixels) != set(named):
        return f"holds {', '.join(sorted(pixels))}, not {', '.join(named)}"
    clean = pixels[tensor_name(0)]
    for name, epsilon in named.items():
        images = pixels[name]
        if images.dtype != np.uint8 or images.shape != shape:
            return f"{name} is {images.dtype} {list(images.shape)}, not uint8 {list(shape)}"
        # Without signs, for that would be twice the memory.
        if (np.maximum(images, clean) - np.minimum(images, clean)).max() > epsilon:
            return f"{name} is farther than {epsilon} from the clean images"
    return ""
