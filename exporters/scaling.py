"""Scales that move between activations and weights without changing the tower's function: SmoothQuant and AWQ.

Behind a LayerNorm, dividing a channel by s is free: it goes into the LayerNorm's own scale and bias, and the linears
that read it multiply their weights' row by s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from clipq.engines.base import Array
from clipq.exporters.blocks import rounded
from clipq.exporters.onnx_file import values_of
from clipq.exporters.placement import Placement
from clipq.exporters.ranges import observe
from clipq.exporters.recipes import WeightOnly

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class NormalizedLinears:
    """A LayerNorm and the linears that alone read its output."""

    norm: onnx.NodeProto
    linears: tuple[onnx.NodeProto, ...]

    @property
    def tensor(self) -> str:
        """The LayerNorm's output."""
        return str(self.norm.output[0])


def normalized_linears(model: onnx.ModelProto, placement: Placement) -> list[NormalizedLinears]:
    """Every LayerNorm whose output nothing but chosen linears reads."""
    chosen = set(placement.linears)
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in model.graph.output}
    constants = {value.name for value in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.output[0] in outputs:
            continue
        linears = readers[node.output[0]]
        own = all(name in constants and len(readers[name]) == 1 for name in node.input[1:] if name)
        if linears and own and all(reader.name in chosen and len(readers[reader.input[1]]) == 1 for reader in linears):
            found.append(NormalizedLinears(node, tuple(linears)))
    return found


def smooth(model: onnx.ModelProto, placement: Placement, alpha: float, feeds: Iterable[dict[str, Array]]) -> bool:
    """SmoothQuant (Xiao et al., 2023), in place: s = max|x| ** alpha ÷ max|w| ** (1 − alpha) per channel.

    Returns whether the tower has a LayerNorm that linears alone read: without, nothing changes.
    """
    groups = normalized_linears(model, placement)
    if not groups:
        return False
    peaks: dict[str, Vector] = {}
    for seen in observe(model, [group.tensor for group in groups], feeds):
        for group in groups:
            values = np.abs(seen[group.tensor]).reshape(-1, seen[group.tensor].shape[-1]).max(0)
            peaks[group.tensor] = np.maximum(peaks.get(group.tensor, np.zeros_like(values)), values)
    for group in groups:
        weights = np.max([np.abs(weight_of(model, linear)).max(1) for linear in group.linears], axis=0)
        activations = np.maximum(peaks[group.tensor], 1e-5)
        scale = activations**alpha / np.maximum(weights, 1e-5) ** (1 - alpha)
        move_scale(model, group, np.maximum(scale, 1e-5).astype(np.float64))
    return True


def second_moments(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Iterable[dict[str, Array]]
) -> dict[str, NDArray[np.float64]]:
    """Mean outer product of each tensor's last axis with itself (K × K); its size is all the memory this takes."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for seen in observe(model, tensors, feeds):
        for name in tensors:
            rows = seen[name].reshape(-1, seen[name].shape[-1])
            product = (rows.T @ rows).astype(np.float64)
            sums[name] = sums[name] + product if name in sums else product
            counts[name] = counts.get(name, 0) + len(rows)
    return {name: sums[name] / counts[name] for name in tensors}


def protect_salient(
    model: onnx.ModelProto, placement: Placement, recipe: WeightOnly, feeds: Iterable[dict[str, Array]]
) -> bool:
    """AWQ's search (Lin et al., 2024), in place: scale up the weights that large activations meet, before rounding.

    For each LayerNorm and its linears, s = rms(x) ** alpha with the alpha of least squared output error, which the
    inputs' second moments give without running anything again. Returns whether there is such a LayerNorm.
    """
    groups = normalized_linears(model, placement)
    if not groups:
        return False
    moments = second_moments(model, [group.tensor for group in groups], feeds)
    for group in groups:
        inputs = moments[group.tensor]
        size = np.sqrt(np.maximum(np.diag(inputs), 1e-12))
        weights = [weight_of(model, linear).astype(np.float64) for linear in group.linears]
        best, least = np.ones_like(size), np.inf
        for alpha in np.linspace(0, 1, 21):
            scale = size**alpha
            scale /= np.sqrt(scale.max() * scale.min())
            error = 0.0
            for weight in weights:
                coarse = rounded((weight * scale[:, None]).T, recipe.bits, recipe.block_size, recipe.grid).T
                off = coarse / scale[:, None] - weight
                error += float(np.einsum("kn,kl,ln->", off, inputs, off, optimize=True))
            if error < least:
                best, least = scale, error
        move_scale(model, group, best)
    return True


def move_scale(model: onnx.ModelProto, group: NormalizedLinears, scale: Vector) -> None:
    """Divide the LayerNorm's output by ``scale`` (per channel) and multiply the linears' weights by it."""
    for name in group.norm.input[1:]:
        if name:
            _replace(model, name, lambda values: values / scale)
    for linear in group.linears:
        _replace(model, linear.input[1], lambda values: values * scale[:, None])


def weight_of(model: onnx.ModelProto, linear: onnx.NodeProto) -> NDArray[np.float32]:
    """A linear's weight, inputs × outputs."""
    return values_of(next(value for value in model.graph.initializer if value.name == linear.input[1]))


def _replace(
    model: onnx.ModelProto, name: str, change: Callable[[NDArray[np.floating[Any]]], NDArray[np.floating[Any]]]
) -> None:
    stored = next(value for value in model.graph.initializer if value.name == name)
    before = values_of(stored)
    stored.CopyFrom(numpy_helper.from_array(change(before).astype(before.dtype), name))
