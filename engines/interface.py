"""What a tower's file takes and gives, between pixels or token ids and embeddings.

clipq feeds one array, float32 pixels ``(rows, 3, H, W)`` or ids ``(rows, context_length)``, and takes one, embeddings
``(rows, width)``. Files that others made take masks and positions beside it, other types and layouts, one batch alone,
and give more than embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipq.bundle import Bundle, FurtherInput, TowerName
from clipq.engines.base import Array, Engine, TensorSpec
from clipq.errors import BundleError
from clipq.tokenizer import TextTokenizer


class Interface:
    """The interface of one tower of a bundle."""

    def __init__(self, bundle: Bundle, tower: TowerName):
        self._entry = bundle.manifest.tower(tower)
        self.batch = self._entry.batch
        manifest, kind = bundle.manifest, np.dtype(np.float32)
        shape: tuple[int, ...] = (3, *manifest.preprocess.image_size)
        if tower == "text":
            shape, kind = (manifest.tokenizer.context_length,), np.dtype(self._entry.input_dtype)
        self.taken = TensorSpec(self._entry.input_name, kind, (None, *shape))
        self.given = TensorSpec(self._entry.output_name, np.dtype(np.float32), (None, manifest.embed_dim))
        masked = any(one.role == "attention_mask" for one in self._entry.further_inputs)
        self._tokenizer = TextTokenizer(bundle) if masked else None

    def feed(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the file is fed for what clipq feeds, of as many rows as it takes."""
        (array,) = feed.values()
        if self._entry.layout == "nhwc":
            array = np.moveaxis(array, 1, -1)
        own = np.ascontiguousarray(array, np.dtype(self._entry.input_dtype))
        return {
            self._entry.input_name: own,
            **{one.name: self._further(one, own) for one in self._entry.further_inputs},
        }

    def first(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the file is fed once for what clipq feeds: its own batch where it takes one alone."""
        ((name, array),) = feed.items()
        return self.feed({name: array if self.batch is None else _whole(array[: self.batch], self.batch)})

    def _further(self, one: FurtherInput, array: Array) -> Array:
        dtype = np.dtype(one.dtype)
        if one.role == "idle":
            shape = tuple(size or 1 for size in one.shape)
            return np.zeros(shape, dtype) if dtype.kind == "f" else np.ones(shape, dtype)
        if one.role == "attention_mask":
            assert self._tokenizer is not None
            return self._tokenizer.mask(array).astype(dtype)
        if one.role == "position_ids":
            positions = np.arange(array.shape[1], dtype=dtype)
            if len(one.shape) == 1:
                return positions
            return np.tile(positions, (1 if one.shape[0] == 1 else len(array), 1))
        return np.zeros(array.shape, dtype)

    def features(self, results: Mapping[str, Array]) -> Array:
        """The embeddings among what the file gave."""
        return results[self._entry.output_name].astype(np.float32, copy=False)

    def check(self, engine: Engine, bundle: Bundle) -> None:
        """Raise BundleError where a loaded file does not take and give what the manifest says."""
        entry = self._entry
        main = TensorSpec(entry.input_name, np.dtype(entry.input_dtype), entry.input_shape)
        taken = [main, *(TensorSpec(one.name, np.dtype(one.dtype), one.shape) for one in entry.further_inputs)]
        # Some towers answer in half precision; what is stored is float32.
        answered = {spec.name: spec.dtype for spec in engine.outputs if spec.dtype.kind == "f"}
        kind = answered.get(entry.output_name, np.dtype(np.float32))
        given = [TensorSpec(entry.output_name, kind, self.given.shape)]
        found = [spec for spec in engine.outputs if spec.name not in entry.further_outputs]
        for what, there, said in (("takes", engine.inputs, taken), ("gives", found, given)):
            by_name = {spec.name: spec for spec in there}
            if len(there) != len(said) or not all(
                spec.name in by_name and by_name[spec.name].agrees(spec) for spec in said
            ):
                has, wanted = (", ".join(map(str, some)) or "nothing" for some in (there, said))
                raise BundleError(
                    f"{bundle.path}: {entry.file} {what} {has}, the manifest says {wanted}; make the bundle again"
                )


class FedEngine(Engine):
    """An engine that is fed through its interface: it takes and gives what clipq's own towers do.

    A file of one batch alone runs as often as the rows need; what is missing of the last batch repeats the last row.
    """

    def __init__(self, engine: Engine, interface: Interface):
        self._engine, self._interface = engine, interface
        self.runtime = engine.runtime
        self.inputs, self.outputs = (interface.taken,), (interface.given,)

    def _stage(self, feed: Mapping[str, Array], slot: int) -> Any:
        if self._interface.batch is None:
            return self._engine._stage(self._interface.feed(feed), slot)
        return feed

    def _run(self, staged: Any) -> dict[str, Array]:
        interface, size = self._interface, self._interface.batch
        if size is None:
            return {interface.given.name: interface.features(self._engine._run(staged))}
        ((name, array),) = staged.items()
        parts = []
        for start in range(0, len(array), size):
            part = array[start : start + size]
            answered = interface.features(self._engine.run(interface.feed({name: _whole(part, size)})))
            parts.append(answered[: len(part)])
        return {interface.given.name: np.concatenate(parts)}

    def _free_batches(self) -> None:
        self._engine._free_batches()

    def device_milliseconds(self, feed: Mapping[str, Array]) -> float | None:
        """Those of the engine itself, of a batch that it takes as it is."""
        return self._engine.device_milliseconds(self._interface.feed(feed))

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def _whole(rows: Array, size: int) -> Array:
    """As many rows as a file takes: the last one again and again where there are too few."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
