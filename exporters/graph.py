"""torch module to ONNX file, and the proof that they agree."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clipq.bundle import Parity
from clipq.engines.ort import OrtEngine
from clipq.errors import CheckpointError, ParityError
from clipq.exporters.onnx_file import load, save

Opset = Literal[17, 21]
OPSET: Opset = 21
MAX_BATCH = 4096
TOLERANCE_MAX_ABS = 1e-4
TOLERANCE_COSINE = 0.99999


def export_onnx(
    module: torch.nn.Module,
    example: torch.Tensor,
    names: tuple[str, str],
    target: Path,
    *,
    opset: Opset = OPSET,
) -> None:
    """Write a module of one input and one output (``names``) as ONNX, with a dynamic batch, as ``onnx_file.save`` does.

    Opset 21 is written by torch's current exporter, opset 17 by TorchScript's: that is what TensorRT 8.6 reads, which
    has no Gelu and no 4-bit types. Raises CheckpointError where torch cannot export it.
    """
    # torch has a rule of its own for large towers, and in opset 17 a file for each weight.
    with TemporaryDirectory(dir=target.parent) as folder:
        _export(module, example, names, Path(folder) / target.name, opset)
        save(load(Path(folder) / target.name), target)


def _export(module: torch.nn.Module, example: torch.Tensor, names: tuple[str, str], target: Path, opset: Opset) -> None:
    input_name, output_name = names
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            logging.getLogger("onnxscript").setLevel(logging.ERROR)
            if opset == 17:
                torch.onnx.export(
                    module,
                    (example,),
                    str(target),
                    dynamo=False,
                    dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
                    input_names=[input_name],
                    output_names=[output_name],
                    opset_version=opset,
                )
                return
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
                input_names=[input_name],
                output_names=[output_name],
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            for node in program.model.graph.all_nodes():
                # The paths of this machine.
                node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
            program.save(str(target), external_data=False)
    except Exception as error:
        # torch wraps the reason in a page of advice; the innermost exception says what it was.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise CheckpointError(f"torch cannot export the {input_name} tower: {first[:400]}") from error


def check_parity(module: torch.nn.Module, path: Path, feeds: Sequence[NDArray[Any]]) -> tuple[Parity, ...]:
    """Compare an ONNX tower with its module on each feed; raises ParityError over the tolerance.

    The cosine is the smallest over the rows, the difference is relative to features of unit length.
    """
    results = []
    with OrtEngine(path) as engine:
        for feed in feeds:
            with torch.no_grad():
                expected = module(torch.from_numpy(feed)).numpy().astype(np.float64)
            (name,) = (spec.name for spec in engine.inputs)
            (actual,) = (array.astype(np.float64) for array in engine.run({name: feed}).values())
            # Towers differ in the length of their features; evaluation normalizes them, so parity does too.
            scale = np.linalg.norm(expected, axis=1, keepdims=True)
            cosine = (expected * actual).sum(1) / (scale[:, 0] * np.linalg.norm(actual, axis=1))
            furthest, least = float(np.abs((expected - actual) / scale).max()), float(cosine.min())
            # Not a number, neither holds.
            if not (furthest <= TOLERANCE_MAX_ABS and least >= TOLERANCE_COSINE):
                raise ParityError(
                    f"{path.name}: the exported tower differs from torch at batch {len(feed)}: "
                    f"max abs {furthest:.2e} (allowed {TOLERANCE_MAX_ABS:.0e}), "
                    f"cosine {least:.6f} (at least {TOLERANCE_COSINE})"
                )
            results.append(Parity(batch=len(feed), max_abs=furthest, cosine=least))
    return tuple(results)
