"""A stored attack: adversarial images made from a checkpoint's gradients, as pixels after resize and crop.

The folder holds ``clipq-attack.json`` and ``pixels.safetensors`` (uint8, N × H × W × 3): ``clean`` and one array per
strength, ``epsilon_4`` for ε = 4/255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from clipq.bundle import Preprocess
from clipq.data.views import Classes, Sample, View
from clipq.errors import DataError
from clipq.files import Damaged, packed, sha256_bytes, unpacked, write_atomic
from clipq.text_files import read_json

SCHEMA_VERSION = 1
MANIFEST = "clipq-attack.json"
PIXELS = "pixels.safetensors"

Pixels = NDArray[np.uint8]


class AttackManifest(BaseModel):
    """What was attacked, how, and whether the attack fooled the model it was made for (per strength and image)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    method: str
    options: dict[str, Any]
    epsilons: tuple[int, ...]
    checkpoint: str
    preprocess: Preprocess
    source: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    class_keys: tuple[str, ...]
    templates_name: str
    templates: tuple[str, ...]
    fooled: dict[str, tuple[bool, ...]]
    pixels_sha256: str


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
        """The stored pixels: resize and crop were done before the attack."""
        if config != self.preprocess:
            raise DataError(f"{self.source}: was made for another preprocessing than the bundle's; make it again")
        return self.stored[index]


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
    checked = AttackManifest(**manifest, schema_version=SCHEMA_VERSION, pixels_sha256="")
    arrays = {tensor_name(epsilon): array for epsilon, array in pixels.items()}
    data = packed(arrays, {"manifest": _digest(checked)})
    checked = checked.model_copy(update={"pixels_sha256": sha256_bytes(data)})
    write_atomic(folder / PIXELS, data)
    write_atomic(folder / MANIFEST, checked.model_dump_json(indent=1) + "\n")


def open_attack(folder: Path) -> StoredAttack:
    """Read a stored attack and check its digest; raises DataError with the way out."""
    path, again = folder / MANIFEST, "make the attack again"
    if not path.is_file():
        raise DataError(f"{folder}: holds no {MANIFEST}; clipq-export attack makes one")
    raw = read_json(path, DataError, again)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(f"{path} has schema version {version}, this clipq reads up to {SCHEMA_VERSION}")
    try:
        manifest = AttackManifest.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{path}: is damaged; {again}") from error
    try:
        data = (folder / PIXELS).read_bytes()
    except OSError as error:
        raise DataError(f"{folder / PIXELS}: cannot be read ({error.strerror}); {again}") from error
    if sha256_bytes(data) != manifest.pixels_sha256:
        raise DataError(f"{folder / PIXELS}: does not match the digest in {MANIFEST}; {again}")
    try:
        # The manifest's digest is checksum enough; files of earlier versions have no other.
        pixels, said = unpacked(data, unsealed=frozenset())
    except Damaged as error:
        raise DataError(f"{folder / PIXELS}: is damaged, {error}; {again}") from error
    wrong = _misfit(manifest, pixels)
    if said.get("manifest", _digest(manifest)) != _digest(manifest):
        wrong = "it is not what was written"
    if wrong:
        raise DataError(f"{path}: is damaged, {wrong}; {again}")
    return StoredAttack(folder, manifest, pixels)


def _digest(manifest: AttackManifest) -> str:
    """Of all that a manifest says but the pixels' digest; it is stored with the pixels."""
    return sha256_bytes(manifest.model_copy(update={"pixels_sha256": ""}).model_dump_json().encode())


def _misfit(manifest: AttackManifest, pixels: Mapping[str, NDArray[Any]]) -> str:
    """What in a stored attack does not fit together; nothing where all does."""
    n, classes, strengths = len(manifest.ids), len(manifest.class_names), manifest.epsilons
    if not n or len(set(manifest.ids)) != n:
        return "ids are missing or not distinct"
    if len(manifest.labels) != n or any(not 0 <= label < classes for label in manifest.labels):
        return "labels do not fit ids and class_names"
    if len(manifest.class_keys) != classes or classes < 2:
        return "class_keys do not fit class_names"
    if not strengths or len(set(strengths)) != len(strengths) or any(not 0 < one < 256 for one in strengths):
        return "epsilons are not distinct numbers of 1 to 255"
    if {key: len(turned) for key, turned in manifest.fooled.items()} != {str(one): n for one in strengths}:
        return "fooled does not fit ids and epsilons"
    if not manifest.templates or any("{}" not in template for template in manifest.templates):
        return "templates have no {}"
    shapes = {name: (array.dtype, array.shape) for name, array in pixels.items()}
    expected = (np.dtype(np.uint8), (n, *manifest.preprocess.image_size, 3))
    if shapes != {tensor_name(one): expected for one in (0, *strengths)}:
        return f"{PIXELS} holds other arrays"
    return ""
