"""Half a minute of checks on a machine with a GPU, each by itself: what does not work is known before time is spent."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.gpu.models import DEMO, quantize
from benchmarks.gpu.record import Record
from benchmarks.gpu.speed import MIXED_GEMM
from clipq.bundle import open_bundle
from clipq.engines.ort import OrtEngine
from clipq.evaluate.bench.bench import plausible_feed

BATCH = 8
# Smallest cosine to FP32 on the CPU, by the recipe's name; whatever else is in it, a wrong kernel is far below.
CLOSE = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.98, "int4": 0.95}


def smoke(record: Record) -> bool:
    """Check the driver's edge, then every recipe of the demo on ``ort-cuda``; True where FP32 runs."""
    passed = {}

    def check(name: str, function: Callable[[], Any]) -> None:
        started = time.perf_counter()
        try:
            said, passed[name] = function(), True
        except BaseException:
            said, passed[name] = traceback.format_exc(limit=-3)[-1200:], False
        record.add("check", name=name, passed=passed[name], seconds=time.perf_counter() - started, said=said)

    check("driver", _driver)
    check("buffers, streams, events", _buffers)
    check("NVML", _state)
    check("ort-cuda", _provider)
    with TemporaryDirectory() as folder:
        made: list[Path] = []

        def quantized() -> list[str]:
            made.extend(quantize(DEMO, "ort-cuda", Path(folder)))
            return [path.name for path in made]

        check("quantize the demo", quantized)
        for path in (DEMO, *made):
            name = "fp32" if path == DEMO else path.name
            check(name, lambda p=path, n=name: {tower: _parity(p, n, tower) for tower in ("image", "text")})
            if name.startswith("int4"):
                check(f"{name}, mixed GEMM", lambda p=path, n=name: _parity(p, n, "image", MIXED_GEMM))
        for path in (DEMO, *made):
            check(f"CUPTI: {'fp32' if path == DEMO else path.name}", lambda p=path: _kernels(p))
    print("failed:", ", ".join(name for name, fine in passed.items() if not fine) or "none", flush=True)
    return passed.get("fp32", False)


def _driver() -> str:
    from clipq.engines.cuda import current_gpu, free_memory, pci_bus_id

    return f"{current_gpu()}, {free_memory() / 1e9:.1f} GB free, {pci_bus_id()!r}"


def _buffers() -> str:
    from clipq.engines.cuda import Buffer, Event, Stream, free_memory

    before = free_memory()
    numbers = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    one, event = Buffer(numbers.shape, numbers.dtype, pinned=True), Event()
    stream, other = Stream(), Stream()
    milliseconds = stream.timed(lambda: one.upload(numbers, stream))
    stream.mark(event)
    other.follow(event)
    one.download(other)
    other.wait()
    assert (one.host == numbers).all(), "the round trip changed the numbers"
    one.free()
    stream.close()
    other.close()
    event.close()
    return f"4 MB uploaded in {milliseconds:.3f} ms by events; {before - free_memory()} bytes not given back"


def _state() -> Any:
    from clipq.engines.gpu_state import read_gpu_state

    state = read_gpu_state()
    assert state is not None, "NVML is not installed, or finds no GPU"
    return state


def _provider() -> dict[str, Any]:
    from clipq.engines.catalog import RUNTIMES

    found = {name: runtime.status() for name, runtime in RUNTIMES.items()}
    assert found["ort-cuda"].works, found["ort-cuda"].detail
    return found


def _parity(path: Path, name: str, tower: str, config: dict[str, str] | None = None) -> str:
    bundle = open_bundle(path)
    feed = plausible_feed(bundle, tower, BATCH)
    with OrtEngine(DEMO / f"{tower}.onnx") as cpu, OrtEngine(path / f"{tower}.onnx", "ort-cuda", config=config) as gpu:
        (expected,), (actual,) = cpu.run(feed).values(), gpu.run(feed).values()
        again = next(iter(gpu.run(feed).values()))
        device = gpu.device_milliseconds(feed)
    cosine = (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    least = next(value for start, value in CLOSE.items() if name.startswith(start))
    assert np.isfinite(actual).all(), "not finite"
    assert cosine.min() > least, f"cosine {cosine.min()}, wanted {least}"
    return f"cosine {cosine.min():.7f}, repeatable {bool((actual == again).all())}, {device} ms on the device"


def _kernels(path: Path) -> dict[str, float]:
    from clipq.engines.kernel_trace import trace_gpu_kernels

    with OrtEngine(path / "image.onnx", "ort-cuda") as engine:
        feed = plausible_feed(open_bundle(path), "image", BATCH)
        times = trace_gpu_kernels(lambda: engine.run(feed), runs=3)
    most = sorted(times, key=times.__getitem__, reverse=True)[:8]
    return {name[:200]: round(times[name], 5) for name in most}
