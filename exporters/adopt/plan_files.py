"""The towers of an engine to adopt as TensorRT's plans: what their headers say, and what a GPU tells of the rest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from clipq.bundle import Bundle, Plan, TowerName, stored_file
from clipq.engines.tensorrt_library import TensorRtRuntime, named
from clipq.errors import BundleError
from clipq.exporters.adopt.foreign import ForeignEngine
from clipq.exporters.adopt.layouts import Found
from clipq.exporters.adopt.signature import Answer
from clipq.scheme import Scheme

# The first bytes of a plan; where its size stands, where that is known; and its library's version, a byte a number.
_MAGIC: dict[bytes, tuple[TensorRtRuntime, slice | None]] = {
    b"vtrt": ("tensorrt-rtx", slice(16, 24)),
    b"ftrt": ("tensorrt", None),
    b"ptrt": ("tensorrt", None),
}
_VERSION = slice(24, 28)
# Nothing in a plan says its bits without its library and its GPU; the census says them where it runs.
UNKNOWN = Scheme(weight_bits=0, activation_bits=0, arithmetic="float", method="plan")


class PlanFiles:
    """Two plans. What they take and give is what ``--like`` says of the ONNX files that they were built of.

    The library holds it against the plan wherever one is loaded. Raises BundleError for what is no plan.
    """

    def __init__(self, engine: ForeignEngine, found: Found, making: Path, like: Bundle | None):
        if like is None or like.built_for is not None:
            raise BundleError(
                f"{found.image}: a plan tells its inputs and outputs on its GPU alone: give --like BUNDLE, with the "
                "ONNX files that it was built of"
            )
        self._like, self._making = like.manifest, making
        self._files: dict[TowerName, str] = {}
        self._plans: dict[TowerName, Plan] = {}
        sources: dict[TowerName, Path] = {"image": found.image, "text": found.text}
        for tower, path in sources.items():
            self._plans[tower] = read_plan(path)
            self._files[tower] = f"{tower}/{path.name}"
            (making / tower).mkdir()
            shutil.copyfile(path, making / self._files[tower])
        libraries = {plan.library for plan in self._plans.values()}
        if len(libraries) > 1:
            raise BundleError(f"{found.image} and {found.text}: built by {' and by '.join(sorted(libraries))}")

    def __enter__(self) -> PlanFiles:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def inputs(self, tower: TowerName) -> dict[str, Any]:
        """What a tower takes, as fields of the manifest."""
        entry = self._like.tower(tower)
        return {
            name: getattr(entry, name)
            for name in ("input_name", "input_dtype", "input_shape", "layout", "further_inputs")
        }

    def stored(self, tower: TowerName) -> dict[str, Any]:
        """Its file and what is known of the plan, as fields of the manifest."""
        return {**stored_file(self._making, self._files[tower]), "plan": self._plans[tower]}

    @property
    def precision(self) -> tuple[Scheme, tuple[TowerName, ...], dict[str, Any]]:
        """Nothing that is known here."""
        said = {f"{tower}_products": "not known until the plan runs on its GPU" for tower in self._files}
        return UNKNOWN, tuple(self._files), said

    def warning(self, tower: TowerName) -> str | None:
        """Nothing that is known here."""
        return None

    def answer(self, draft: Bundle, tower: TowerName) -> Answer:
        """What a tower gives."""
        entry = self._like.tower(tower)
        return Answer(entry.output_name, self._like.embed_dim, entry.further_outputs, None)

    def check(self, bundle: Bundle) -> None:
        """Nothing runs here."""


def read_plan(path: Path) -> Plan:
    """What a plan's header says: the library that built it, and its version."""
    with path.open("rb") as stream:
        head = stream.read(_VERSION.stop)
    if head[:4] not in _MAGIC or len(head) < _VERSION.stop:
        raise BundleError(
            f"{path}: is no plan of TensorRT or TensorRT-RTX (it begins with {head[:4]!r}); give what trtexec wrote"
        )
    runtime, where = _MAGIC[head[:4]]
    size = path.stat().st_size
    if where is not None and (said := int.from_bytes(head[where], "little")) != size:
        raise BundleError(f"{path}: has {size} bytes and says {said}; copy the plan again")
    version = ".".join(map(str, head[_VERSION]))
    return Plan(
        runtime=runtime, library=named(runtime, version), capability=None, gpu=None, driver_cuda=None,
        batch=None, flags=(), strongly_typed=None, layers={}, source_sha256=None,
    )  # fmt: skip
