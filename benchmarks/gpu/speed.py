"""Image towers in a runtime, side by side: time on the wall and on the device, memory, kernels, energy.

Imports nothing that needs more than the runtime: TensorRT 8.6.0 wants a Python that has little else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.models import CALIBRATION, family, filled
from benchmarks.gpu.record import Record
from clipq.bundle import Bundle, Plan
from clipq.engines.base import Array, Engine
from clipq.engines.census import Census, take_census
from clipq.engines.cuda import free_memory
from clipq.engines.gpu_state import joules_per_run, read_gpu_state
from clipq.engines.latency import Latency, measure_latency
from clipq.engines.layers import take_kernel_census, take_layers_census
from clipq.engines.ort import OrtEngine
from clipq.engines.tensorrt_library import PACKAGES
from clipq.engines.trt import TensorRtEngine

# ONNX Runtime on CUDA: half-precision activations times 4-bit weights in one CUTLASS kernel; off by default.
MIXED_GEMM = {"ep.cuda.fpa_intb_gemm": "1"}
ENERGY_BATCH = 32


def measure_speed(
    record: Record,
    work: Path,
    model: str,
    runtime: str,
    batches: list[int],
    repeats: int,
    only: list[str] | None = None,
) -> None:
    """Lines of one model in one runtime: every recipe (or those whose names begin with one of ``only``), every batch."""
    what = f"{model}, {runtime}"
    bundles = record.attempt(f"{what}: weights", lambda: filled(work, model, family(runtime))) or {}
    with _opened(record, model, bundles, runtime, max(*batches, ENERGY_BATCH), only or [""]) as engines:
        if not engines:
            return
        for batch in batches:
            feed = _pixels(bundles, batch)
            timed = record.attempt(
                f"{what}, batch {batch}",
                lambda f=feed: measure_latency(engines, [dict.fromkeys(engines, f)], repeats=repeats),
            )
            for label in engines if timed else ():
                record.add("speed", **_row(model, runtime, label, timed, batch))
            record.add("state", model=model, runtime=runtime, batch=batch, gpu=read_gpu_state())
        for label, engine in engines.items():
            feed = _pixels(bundles, ENERGY_BATCH)
            joules = record.attempt(
                f"{what}, {label}: energy", lambda e=engine, f=feed: joules_per_run(lambda: e.run(f))
            )
            ahead = record.attempt(f"{what}, {label}: ahead", lambda e=engine, f=feed: ahead_to_one_by_one(e, f))
            found = {
                "joules_per_image": None if joules is None else joules / ENERGY_BATCH,
                "ahead_to_one_by_one": ahead,
            }
            record.add("proof", model=model, runtime=runtime, recipe=label, batch=ENERGY_BATCH, **found)
        # Last, for the driver's tracer may slow what runs after it was started.
        for label, engine in engines.items():
            feed = _pixels(bundles, ENERGY_BATCH)
            census = record.attempt(
                f"{what}, {label}: kernels", lambda e=engine, n=label, f=feed: _census(e, bundles.get(n), f)
            )
            if census is not None:
                record.add(
                    "proof", model=model, runtime=runtime, recipe=label, batch=ENERGY_BATCH, census=_told(census)
                )


@contextmanager
def _opened(
    record: Record, model: str, bundles: Mapping[str, Bundle], runtime: str, batch: int, only: list[str]
) -> Iterator[dict[str, Engine]]:
    """Engines by label, each with a line on its size and the memory it takes with a batch; closed at the end."""
    engines: dict[str, Engine] = {}
    what = f"{model}, {runtime}"
    try:
        # Plans take minutes to build: first those that are compared with each other.
        for name, bundle in sorted(bundles.items(), key=lambda item: item[0] == "fp32"):
            for label, options in _variants(name, runtime):
                if not label.startswith(tuple(only)):
                    continue
                before, started = _free(runtime), time.perf_counter()
                found = record.attempt(
                    f"{what}, {label}: load", lambda b=bundle, o=options: _open(b, runtime, o, batch)
                )
                if found is None:
                    continue
                engine, size, built = found
                seconds = time.perf_counter() - started
                ran = record.attempt(f"{what}, {label}: first batch", lambda e=engine: e.run(_pixels(bundles, batch)))
                if ran is None:
                    engine.close()
                    continue
                engines[label] = engine
                used = None if before is None else before - (_free(runtime) or 0)
                record.add(
                    "proof",
                    model=model,
                    runtime=runtime,
                    recipe=label,
                    bytes=size,
                    gpu_bytes=used,
                    seconds=seconds,
                    **built,
                )
        yield engines
    finally:
        for engine in engines.values():
            engine.close()


def _variants(name: str, runtime: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, {}
    if runtime == "ort-cuda" and name.startswith("int4"):
        yield f"{name}, mixed GEMM", {"config": MIXED_GEMM}
    if name == "fp32" and runtime in PACKAGES:
        yield "tf32", {"tf32": True}
        if runtime == "tensorrt":
            yield "int8-entropy2", {"calibrator": "entropy2"}


def _open(bundle: Bundle, runtime: str, options: dict[str, Any], batch: int) -> tuple[Engine, int, dict[str, Any]]:
    """An image tower's engine, the bytes of its file, and what is known of its building."""
    path = bundle.tower_path("image")
    if runtime not in PACKAGES:
        return OrtEngine(path, runtime, **options), path.stat().st_size, {}  # type: ignore[arg-type]
    plan_path, plan = build(bundle, runtime, options, batch)
    engine = TensorRtEngine(plan_path, plan)
    return engine, plan_path.stat().st_size, {"layers": plan.layers, "flags": plan.flags}


def build(bundle: Bundle, runtime: str, options: dict[str, Any], batch: int) -> tuple[Path, Plan]:
    """The image tower's plan alone: ``clipq-export build`` makes both towers', which takes twice as long."""
    from clipq.exporters.build import BuildSettings, build_plan, open_toolchain
    from clipq.exporters.calibration_set import open_calibration_set
    from clipq.progress import Progress

    settings = BuildSettings(runtime, (1, min(32, batch), batch), **options)  # type: ignore[arg-type]
    toolchain = open_toolchain(settings)
    assert toolchain.gpu is not None, "plans are measured where they are built"
    feeds = None
    if settings.calibrator:
        calibration = open_calibration_set(CALIBRATION, bundle)
        feeds = lambda: calibration.feeds(bundle, "image", lambda done: None)  # noqa: E731
    cache = bundle.path / "image.calibration_cache"
    built = build_plan(bundle.tower_path("image"), toolchain, cache=cache, feeds=feeds, progress=Progress())
    path = bundle.path / f"{'-'.join(map(str, options)) or 'image'}.plan"
    path.write_bytes(built.plan)
    plan = Plan(
        runtime=settings.runtime, library=toolchain.library.name, capability=toolchain.capability,
        gpu=toolchain.gpu.name, driver_cuda=toolchain.gpu.driver_cuda, batch=settings.batch, flags=built.flags,
        strongly_typed=built.strongly_typed, layers=built.layers, source_sha256=bundle.manifest.image.digest,
        calibrator=settings.calibrator,
    )  # fmt: skip
    return path, plan


def _pixels(bundles: Mapping[str, Bundle], batch: int) -> dict[str, Array]:
    manifest = next(iter(bundles.values())).manifest
    shape = (batch, 3, *manifest.preprocess.image_size)
    return {manifest.image.input_name: np.random.default_rng(0).standard_normal(shape, np.float32)}


def _free(runtime: str) -> int | None:
    return None if runtime == "ort-cpu" else free_memory()


def _row(model: str, runtime: str, label: str, timed: dict[str, list[Latency]], batch: int) -> dict[str, Any]:
    (mine,) = timed[label]
    found: dict[str, Any] = {"model": model, "runtime": runtime, "recipe": label, "batch": batch}
    found["wall_ms"], found["device_ms"] = mine.milliseconds, mine.device_milliseconds
    base = next((rows[0] for name, rows in timed.items() if name.startswith("fp16")), None)
    for kind in ("milliseconds", "device_milliseconds"):
        own, other = getattr(mine, kind), getattr(base, kind, ())
        if own and other:
            # Taken in turns: each pair saw the same moment of the machine.
            ratios = np.array(own) / np.array(other)
            found[f"{kind}_to_fp16"] = [float(value) for value in np.percentile(ratios, (50, 5, 95))]
    return found


def ahead_to_one_by_one(engine: Engine, feed: Mapping[str, Array], batches: int = 8, rounds: int = 3) -> list[float]:
    """Seconds of batches copied while the one before runs, to seconds of each by itself: median, 5 % and 95 %."""
    ratios = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(batches):
            engine.run(feed)
        between = time.perf_counter()
        for _ in engine.run_ahead([feed] * batches):
            pass
        ratios.append((time.perf_counter() - between) / (between - started))
    return [float(value) for value in np.percentile(ratios, (50, 5, 95))]


def _census(engine: Engine, bundle: Bundle | None, feed: Mapping[str, Array]) -> Census:
    if isinstance(engine, TensorRtEngine):
        return take_layers_census(engine, "image", feed)
    assert isinstance(engine, OrtEngine)
    if engine.runtime == "ort-cpu":
        assert bundle is not None
        return take_census(bundle.tower_path("image"), "image", feed)
    return take_kernel_census(engine, "image", feed)


def _told(census: Census) -> dict[str, Any]:
    """What the record keeps: all kernels that multiply, and what else took more than a hundredth of the time."""
    total = sum(census.other_milliseconds.values()) + sum(group.milliseconds for group in census.groups)
    most = {name[:160]: time for name, time in census.other_milliseconds.items() if time > total / 100}
    groups = [vars(replace(group, kernels=tuple(name[:300] for name in group.kernels))) for group in census.groups]
    return {
        "verdict": census.verdict, "evidence": census.evidence, "integer_share": census.integer_share,
        "matmul_time_share": census.matmul_time_share, "reformat_share": census.reformat_share,
        "precision_time_shares": census.precision_time_shares, "groups": groups, "other_milliseconds": most,
        "milliseconds": total,
    }  # fmt: skip
