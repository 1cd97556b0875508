"""What ONNX Runtime answers in a process of its own, on this CPU or on one that ``qemu-x86_64 -cpu NAME`` emulates."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

QEMU = "qemu-x86_64"

# With numpy and ONNX Runtime alone: under the emulator clipq itself takes minutes to start.
_PROGRAM = """
import json, sys
import numpy, onnxruntime
array, size = numpy.load(sys.argv[1]), int(sys.argv[2])
for path, config, target in json.loads(sys.argv[3]):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    for entry in config.items():
        options.add_session_config_entry(*entry)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: array[i : i + size]})[0] for i in range(0, len(array), size)]
    numpy.save(target, numpy.concatenate(parts))
"""


def outputs(
    launcher: Sequence[str], towers: Sequence[tuple[Path, Mapping[str, str]]], array: NDArray[Any], *, batch: int
) -> list[NDArray[Any]]:
    """The outputs of towers, each with its session's entries, in batches, by one thread below ``launcher``.

    Raises SystemExit with what the process said where it ends badly.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.npy"
        np.save(given, array)
        jobs = [(str(path), dict(config), f"{folder}/{index}.npy") for index, (path, config) in enumerate(towers)]
        line = [*launcher, sys.executable, "-c", _PROGRAM, str(given), str(batch), json.dumps(jobs)]
        # The emulator warns of every feature that it lacks.
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return [np.load(target) for _, _, target in jobs]
