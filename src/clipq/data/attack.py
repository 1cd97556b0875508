"""A stored attack: adversarial images made from a checkpoint's gradients, as pixels after resize and crop.

The folder holds ``clipq-attack.json`` and ``pixels.safetensors`` (uint8, N × H × W × 3): ``clean`` and one array per
strength, ``epsilon_4`` for ε = 4/255.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from clipq.bundle import Preprocess
from clipq.data.views import Classes, Sample, View
from clipq.errors import DataError
from clipq.files import packed, restore, sha256_bytes, sha256_file, write_atomic

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
    """An attack on disk."""

    folder: Path
    manifest: AttackManifest

    @cached_property
    def _pixels(self) -> dict[str, Pixels]:
        try:
            return load_file(self.folder / PIXELS)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.folder / PIXELS}: cannot be read ({error}); make the attack again") from error

    def view(self, epsilon: int, name: str) -> AttackedView:
        """The images at one strength (255ths), or the clean ones (0)."""
        manifest = self.manifest
        stored = self._pixels[tensor_name(epsilon)]
        samples = tuple(Sample(one, label) for one, label in zip(manifest.ids, manifest.labels, strict=True))
        classes = Classes.plain(manifest.class_names, manifest.class_keys, manifest.templates)
        return AttackedView(name, str(self.folder), samples, classes, stored, manifest.preprocess)


def tensor_name(epsilon: int) -> str:
    """What the images of a strength are called in the file."""
    return f"epsilon_{epsilon}" if epsilon else "clean"


def write_attack(folder: Path, manifest: dict[str, Any], pixels: dict[int, Pixels]) -> None:
    """Write a stored attack; ``pixels`` are by strength, 0 for the clean images."""
    data = packed({tensor_name(epsilon): array for epsilon, array in pixels.items()})
    checked = AttackManifest(**manifest, schema_version=SCHEMA_VERSION, pixels_sha256=sha256_bytes(data))
    write_atomic(folder / PIXELS, data)
    write_atomic(folder / MANIFEST, checked.model_dump_json(indent=1) + "\n")


def open_attack(folder: Path) -> StoredAttack:
    """Read a stored attack and check its digest; raises DataError with the way out."""
    path = folder / MANIFEST
    restore(folder)
    try:
        raw = json.loads(path.read_bytes())
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(f"{path} has schema version {version}, this clipq reads up to {SCHEMA_VERSION}")
        manifest = AttackManifest.model_validate(raw)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: holds no {MANIFEST}; clipq-export attack makes one") from error
    except (ValueError, AttributeError, ValidationError) as error:
        raise DataError(f"{path}: is damaged; make the attack again") from error
    if not (folder / PIXELS).is_file() or sha256_file(folder / PIXELS) != manifest.pixels_sha256:
        raise DataError(f"{folder / PIXELS}: does not match the digest in {MANIFEST}; make the attack again")
    return StoredAttack(folder, manifest)
