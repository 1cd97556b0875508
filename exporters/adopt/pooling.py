"""A transformer tower pooled in another way: its graph cut where tokens become one vector, another pooling between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from clipq.bundle import Bundle, TowerName
from clipq.engines.base import Array
from clipq.engines.ort import OrtEngine
from clipq.errors import ClipqError
from clipq.exporters.onnx_file import load, save, without_weights

# Tensors before the output that are looked at: blocks of a transformer are far behind its pooling.
_NEAR = 60
_POOLED = "clipq_pooled"
# Of tokens (rows, tokens, width) and the tower's input.
Pool = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Pooling:
    """A name and what it makes of tokens; without ``projected``, what comes behind the pooling is left out."""

    name: str
    pool: Pool
    projected: bool = True


def text_poolings(end: int | None) -> tuple[Pooling, ...]:
    """How text towers are pooled; ``end`` is the id of the end token."""

    def at_end(hidden: Array, ids: Array) -> Array:
        return hidden[np.arange(len(ids)), _first(ids, end)]

    def mean_to_end(hidden: Array, ids: Array) -> Array:
        taken = np.arange(ids.shape[1]) <= _first(ids, end)[:, None]
        return (hidden * taken[..., None]).sum(1) / taken.sum(1)[:, None]

    return (
        Pooling("the first token", lambda hidden, ids: hidden[:, 0]),
        Pooling("the last token", lambda hidden, ids: hidden[:, -1]),
        Pooling("the mean of all tokens", lambda hidden, ids: hidden.mean(1)),
        Pooling("the mean of all tokens up to the end token", mean_to_end),
        Pooling("the end token", at_end),
        Pooling("the end token, without the projection behind it", at_end, projected=False),
    )


def _first(ids: Array, end: int | None) -> Array:
    """Where the end token first stands; without one, where ids are largest, as CLIP's towers look for it."""
    return ids.argmax(1) if end is None else (ids == end).argmax(1)


IMAGE_POOLINGS = (
    Pooling("the class token", lambda hidden, pixels: hidden[:, 0]),
    Pooling("the mean of all tokens", lambda hidden, pixels: hidden.mean(1)),
    Pooling("the mean of all tokens but the first", lambda hidden, pixels: hidden[:, 1:].mean(1)),
    Pooling("the class token, without the projection behind it", lambda hidden, pixels: hidden[:, 0], projected=False),
)


class CutTower:
    """A tower in two parts: from its input to its tokens, and from the pooled vector to its output."""

    def __init__(self, before: OrtEngine, behind: OrtEngine | None):
        self._before, self._behind = before, behind

    def run(self, array: Array, pooling: Pooling) -> Array:
        """Embeddings of a batch, pooled so."""
        (name,) = (spec.name for spec in self._before.inputs)
        (hidden,) = self._before.run({name: array}).values()
        pooled = np.ascontiguousarray(pooling.pool(hidden, array), np.float32)
        if self._behind is None or not pooling.projected:
            return pooled
        (answer,) = self._behind.run({_POOLED: pooled}).values()
        return answer


@contextmanager
def cut_tower(bundle: Bundle, name: TowerName, batch: Array) -> Iterator[CutTower | None]:
    """The tower in two parts, by the shapes that tensors have for a batch; None where it is not pooled from tokens."""
    entry = bundle.manifest.tower(name)
    with TemporaryDirectory() as temporary, ExitStack() as opened:
        folder = Path(temporary)

        def engine(model: onnx.ModelProto, file: str) -> OrtEngine:
            save(model, folder / file)
            return opened.enter_context(OrtEngine(folder / file))

        cut = None
        try:
            model = load(bundle.tower_path(name)) if entry.plan is None else None
            if model is not None and len(model.graph.input) == len(model.graph.output) == 1:
                found = _pooling_site(model, {entry.input_name: batch}, engine)
                if found is not None:
                    hidden, pooled = found
                    before = engine(_part(model, None, hidden), "before.onnx")
                    output = model.graph.output[0].name
                    behind = None if pooled == output else engine(_part(model, pooled, output), "behind.onnx")
                    cut = CutTower(before, behind)
        except ClipqError:
            # A graph that has no such parts is pooled in a way that is not known here.
            cut = None
        yield cut


def _pooling_site(
    model: onnx.ModelProto, feed: Mapping[str, Array], engine: Callable[[onnx.ModelProto, str], OrtEngine]
) -> tuple[str, str] | None:
    """Names of the last tensor of tokens (rows, tokens, width), and of the first (rows, width) that is made of it."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph.value_info
    floats = {value.name for value in inferred if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    made = [name for node in model.graph.node for name in node.output]
    output = model.graph.output[0].name
    near = [name for name in made if name in floats and name != output][-_NEAR:]
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in near)
    shapes = {name: array.shape for name, array in engine(seen, "seen.onnx").run(feed).items()}
    (array,) = feed.values()
    rows, tokens = len(array), array.shape[1] if array.ndim == 2 else None
    hidden = next(
        (n for n in reversed(near) if len(shapes[n]) == 3 and shapes[n][0] == rows and shapes[n][1] > 1
         and shapes[n][1] == (tokens or shapes[n][1])), None
    )  # fmt: skip
    if hidden is None:
        return None
    behind = _made_of(model, hidden, None)
    wanted = (rows, shapes[hidden][2])
    pooled = next((name for name in (*near, output) if name in behind and shapes[name] == wanted), None)
    # What comes behind must be made of the pooled vector alone.
    return (
        None if pooled is None or (pooled != output and output in _made_of(model, hidden, pooled)) else (hidden, pooled)
    )


def _made_of(model: onnx.ModelProto, name: str, but: str | None) -> set[str]:
    """Tensors that are made of one, other than by way of ``but``."""
    found = {name}
    for node in model.graph.node:
        if found & set(node.input):
            found |= set(node.output) - {but}
    return found - {name}


def _part(model: onnx.ModelProto, start: str | None, end: str) -> onnx.ModelProto:
    """The nodes that make ``end``, of the model's input or of ``start``, which becomes the only input."""
    needed = {end}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & set(node.output) - {start}:
            nodes.insert(0, node)
            needed |= set(node.input)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = part.graph
    graph.name = "part"
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    graph.node.extend(nodes)
    graph.output.append(onnx.ValueInfoProto(name=end))
    if start is None:
        graph.input.extend(model.graph.input)
    else:
        graph.input.append(onnx.helper.make_tensor_value_info(_POOLED, onnx.TensorProto.FLOAT, ["batch", None]))
        for node in graph.node:
            node.input[:] = [_POOLED if name == start else name for name in node.input]
    return part
