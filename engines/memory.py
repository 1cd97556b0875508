"""Peak host memory of a fresh process that loads one tower and runs one batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clipq.errors import EngineError

# The process that measures imports the runtime and numpy and nothing else, so that its size is the engine's.
_PROBE = """
import sys, numpy, onnxruntime
path, name, dtype, threads, simulated, *shape = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.log_severity_level = 3
if simulated == "1":
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
session.run(None, {name: numpy.zeros([int(n) for n in shape], dtype)})
import psutil
memory = psutil.Process().memory_info()
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
except ImportError:
    peak = memory.peak_wset
print(peak)
"""


def peak_memory(
    path: Path, input_name: str, dtype: str, shape: Sequence[int], *, threads: int = 0, simulated: bool = False
) -> int:
    """Peak resident memory in bytes (lower is better), runtime and Python included."""
    arguments = [str(path), input_name, dtype, str(threads), str(int(simulated)), *map(str, shape)]
    done = subprocess.run([sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(
            f"measuring memory of {path} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        )
    return int(done.stdout)
