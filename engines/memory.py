"""Peak memory, of the host or the GPU, of a fresh process that loads one tower and runs one batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.engines.runtime import Feed, Load
from clipq.errors import EngineError

# The process that measures imports the runtime and numpy and nothing else, so that its size is the engine's.
_PROBE = """
import json, sys, numpy, onnxruntime
path, fed, asked = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = asked.get("threads", 0)
options.log_severity_level = 3
if asked.get("simulated"):
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
for entry in asked.get("config", {}).items():
    options.add_session_config_entry(*entry)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
session.run(None, {name: numpy.ones(shape, dtype) for name, (shape, dtype) in fed.items()})
if sys.platform == "linux":
    # Not getrusage: its peak counts what the process was before it became this program, which is its parent's size.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) * 1024
elif sys.platform == "darwin":
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
else:
    import psutil
    peak = psutil.Process().memory_info().peak_wset
print(peak)
"""

# The whole device is asked, before and after: drivers do not tell a container which process holds what.
_GPU_PROBE = """
import json, sys
from dataclasses import dataclass
from pathlib import Path
from clipq.bundle import open_bundle
from clipq.engines.catalog import open_engine
from clipq.engines.cuda import free_memory
import numpy
path, tower, runtime, batch = sys.argv[1:]
bundle = open_bundle(Path(path))
before = free_memory()
with open_engine(bundle, tower, runtime) as engine:
    loaded = free_memory()
    (spec,) = engine.inputs
    engine.run({spec.name: numpy.zeros((int(batch), *spec.shape[1:]), spec.dtype)})
    print(json.dumps({"engine": before - loaded, "peak": before - free_memory()}))
"""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of GPU memory a tower takes: once it is loaded, and with the buffers of a batch (lower is better)."""

    engine: int
    peak: int


def gpu_memory(bundle: Path, tower: str, runtime: str, batch: int) -> GpuMemory:
    """What loading a tower and running a batch takes of the GPU's memory; other processes must be quiet meanwhile."""
    done = _run(_GPU_PROBE, [str(bundle), tower, runtime, str(batch)], f"{bundle}, {tower} tower")
    return GpuMemory(**json.loads(done))


def peak_memory(path: Path, feed: Feed, **options: Any) -> int:
    """Peak resident memory in bytes (lower is better) of a tower in ONNX Runtime on the CPU, and of such a batch.

    Runtime and Python are counted; ``options`` are those of ``OrtEngine``.
    """
    fed = {name: (array.shape, str(array.dtype)) for name, array in feed.items()}
    return int(_run(_PROBE, [str(path), json.dumps(fed), json.dumps(options)], str(path)))


def gpu_bytes(runtime: str, load: Load, feed: Feed) -> int:
    """Peak GPU memory of a tower in a runtime of the catalog, and of a batch of this feed's size."""
    return gpu_memory(load.bundle.path, load.tower, runtime, len(next(iter(feed.values())))).peak


def _run(probe: str, arguments: Sequence[str], what: str) -> str:
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EngineError(f"measuring memory of {what} failed: {reason}")
    return done.stdout.strip().splitlines()[-1]
