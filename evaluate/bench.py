"""Latency, memory and kernels of subjects: measured once for a set of subjects and settings, then kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, ValidationError

from clipq.bundle import TOWERS, Bundle, Recipe, TowerName
from clipq.engines.base import Array, Engine
from clipq.engines.census import Census, take_census, unknown_census
from clipq.engines.gpu_state import joules_per_run, read_gpu_state
from clipq.engines.latency import measure_latency
from clipq.engines.layers import take_kernel_census, take_layers_census
from clipq.engines.memory import gpu_memory, peak_memory
from clipq.engines.ort import OrtEngine
from clipq.engines.ort_providers import OrtRuntime
from clipq.engines.trt import TensorRtEngine
from clipq.environment import environment
from clipq.errors import RuntimeUnavailable
from clipq.evaluate.statistics import percentile_draws
from clipq.evaluate.subjects import Subject
from clipq.files import sha256_bytes, write_atomic
from clipq.record import BundleRecord, CensusRecord, GpuRecord, KernelRecord, LatencyRecord, Measurement
from clipq.tokenizer import TextTokenizer

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class BenchSettings:
    """Batch sizes, warm-up and repeats of the latency measurement."""

    batches: tuple[int, ...] = (1, 8)
    warmup: int = 3
    repeats: int = 30


class SubjectBench(BaseModel):
    """What was measured of one subject: memory in bytes, of the host or of the GPU by tower."""

    latency: tuple[LatencyRecord, ...]
    census: tuple[CensusRecord, ...]
    peak_rss_bytes: dict[str, int] = {}
    gpu_bytes: dict[str, int] = {}
    joules_per_sample: dict[str, float] = {}
    gpu: GpuRecord | None = None


class _Stored(BaseModel):
    subjects: dict[str, SubjectBench]


def bench(
    subjects: Sequence[Subject], settings: BenchSettings, folder: Path, advance: Callable[[str], None]
) -> dict[str, SubjectBench]:
    """Bench all subjects side by side, by label; figures already stored for the same subjects and settings are kept."""
    described = {
        "subjects": [
            [subject.label, subject.bundle.digest, subject.identity("image"), subject.threads, subject.graphs]
            for subject in subjects
        ],
        "settings": vars(settings),
        "environment": environment(),
        # Raised when a figure is measured in another way, so that none of the old way is kept.
        "method": 3,
    }
    path = folder / f"{sha256_bytes(json.dumps(described, sort_keys=True).encode())[:32]}.json"
    if path.is_file():
        try:
            return _Stored.model_validate_json(path.read_bytes()).subjects
        except ValidationError:
            path.unlink()
    largest = max(settings.batches)
    before = read_gpu_state()
    latencies = time_subjects(subjects, TOWERS, settings, advance)
    after = read_gpu_state()
    gpu = GpuRecord(before=vars(before), after=vars(after)) if before and after else None
    benches = {}
    for subject in subjects:
        advance(f"kernels and memory of {subject.label}")
        census: list[CensusRecord] = []
        memory: dict[str, int] = {}
        on_gpu: dict[str, int] = {}
        energy: dict[str, float] = {}
        for tower in TOWERS:
            feed = plausible_feed(subject.bundle, tower, largest)
            census.append(subject_census(subject, tower, feed))
            (name, array), *_ = feed.items()
            if subject.runtime != "ort-cpu":
                on_gpu[tower] = gpu_memory(subject.bundle.path, tower, subject.runtime, largest).peak
                with subject.open(tower) as engine:
                    joules = joules_per_run(partial(engine.run, feed))
                if joules is not None:
                    energy[tower] = joules / largest
                continue
            memory[tower] = peak_memory(
                subject.bundle.tower_path(tower),
                name,
                str(array.dtype),
                array.shape,
                threads=subject.threads,
                simulated=subject.simulated,
            )
        benches[subject.label] = SubjectBench(
            latency=tuple(latencies[subject.label]),
            census=tuple(census),
            peak_rss_bytes=memory,
            gpu_bytes=on_gpu,
            joules_per_sample=energy,
            gpu=gpu if subject.runtime != "ort-cpu" else None,
        )
    write_atomic(path, _Stored(subjects=benches).model_dump_json())
    return benches


def time_subjects(
    subjects: Sequence[Subject],
    towers: Sequence[TowerName],
    settings: BenchSettings,
    advance: Callable[[str], None] = lambda what: None,
) -> dict[str, list[LatencyRecord]]:
    """Latency of every subject, side by side, by label."""
    latencies: dict[str, list[LatencyRecord]] = {subject.label: [] for subject in subjects}
    for tower in towers:
        feeds = [plausible_feed(subjects[0].bundle, tower, batch) for batch in settings.batches]
        engines = {subject.label: subject.open(tower) for subject in subjects}
        try:
            timed = measure_latency(engines, feeds, warmup=settings.warmup, repeats=settings.repeats)
        finally:
            for engine in engines.values():
                engine.close()
        for label, rows in timed.items():
            latencies[label] += [
                LatencyRecord(
                    tower=tower,
                    batch=row.batch,
                    milliseconds=row.milliseconds,
                    device_milliseconds=row.device_milliseconds,
                )
                for row in rows
            ]
        advance(f"latency of the {tower} towers")
    return latencies


def seconds_per_sample(engine: Engine, bundle: Bundle, tower: TowerName, batch: int) -> float:
    """A quick estimate of an engine's seconds per sample at a batch size, from three batches."""
    feed = plausible_feed(bundle, tower, batch)
    # Two at once must fit, as they do in an evaluation.
    for _ in engine.run_ahead([feed, feed]):
        pass
    (latency,) = measure_latency({"one": engine}, [feed], warmup=1, repeats=3)["one"]
    return 1 / latency.throughput


def subject_census(subject: Subject, tower: TowerName, feed: dict[str, Array]) -> CensusRecord:
    """Which kernels ran in one tower of a subject, by the proof its runtime offers."""
    recipe = subject.bundle.manifest.tower(tower).recipe
    if subject.bundle.built_for is not None:
        # The library's profiler sees no layers inside a CUDA graph.
        with replace(subject, graphs=False).open(tower) as engine:
            assert isinstance(engine, TensorRtEngine)
            return census_record(take_layers_census(engine, tower, feed), recipe)
    runtime, path = cast("OrtRuntime", subject.runtime), subject.bundle.tower_path(tower)
    untraced = ""
    if runtime != "ort-cpu":
        with subject.open(tower) as engine:
            assert isinstance(engine, OrtEngine)
            try:
                return census_record(take_kernel_census(engine, tower, feed), recipe)
            except RuntimeUnavailable as error:
                untraced = f"; no kernel names: {error}"
        if runtime != "ort-cuda":
            return census_record(unknown_census(tower, f"{runtime} runs the tower as one node{untraced}"), recipe)
    taken = take_census(
        path,
        tower,
        feed,
        runtime=runtime,
        threads=subject.threads,
        simulated=subject.simulated,
    )
    return census_record(replace(taken, evidence=taken.evidence + untraced), recipe)


def census_record(census: Census, recipe: str) -> CensusRecord:
    """A census as it is stored."""
    return CensusRecord(
        tower=census.tower,
        recipe=recipe,
        verdict=census.verdict,
        integer_share=census.integer_share,
        integer_time_share=census.integer_time_share,
        matmul_time_share=census.matmul_time_share,
        reformat_share=census.reformat_share,
        precision_time_shares=census.precision_time_shares,
        kernels=tuple(KernelRecord(**vars(group)) for group in census.groups),
        other_milliseconds=census.other_milliseconds,
        evidence=census.evidence,
    )


def breaks_promise(census: CensusRecord, made: Recipe | BundleRecord, *, simulated: bool) -> bool:
    """Whether a tower whose recipe says integers did not do most of its matrix multiplication in them."""
    promised = made.scheme.arithmetic == "integer" and census.tower in made.towers
    return not simulated and promised and census.verdict != "unknown" and census.integer_share < 0.5


def bench_measurements(
    subject: Subject, benches: dict[str, SubjectBench], reference: Subject | None
) -> list[Measurement]:
    """A subject's rows of latency, throughput, size, memory and integer share."""
    mine = benches[subject.label]
    other = None if reference is None or reference.label == subject.label else benches[reference.label]
    label = reference.label if reference is not None and other is not None else ""

    row = subject.columns.row
    rows = []
    timed = [
        (metric, getattr(latency, field), latency, getattr(other.latency[index], field) if other else ())
        for index, latency in enumerate(mine.latency)
        for metric, field in (("latency_ms", "milliseconds"), ("device_latency_ms", "device_milliseconds"))
        if getattr(latency, field)
    ]
    for metric, times, latency, others in timed:
        place = {"view": f"tower:{latency.tower}", "group": f"batch={latency.batch}", "n": len(times)}
        for q in PERCENTILES:
            draws = percentile_draws(times, q)
            low, high = draws.percentile_interval()
            delta: dict[str, Any] = {}
            if others:
                difference = draws - percentile_draws(others, q, seed=1)
                bounds = difference.percentile_interval()
                delta = {
                    "reference": label, "delta": difference.value, "delta_low": bounds[0], "delta_high": bounds[1],
                    "p_value": difference.p_value(),
                }  # fmt: skip
            rows.append(
                row(
                    metric=f"{metric}.p{q}",
                    unit="ms",
                    value=draws.value,
                    low=low,
                    high=high,
                    **place,
                    **delta,
                )
            )
            if q == 50 and metric == "latency_ms":
                scale = 1e3 * latency.batch
                rows.append(
                    row(
                        metric="throughput", unit="samples/s", value=scale / draws.value,
                        low=scale / high, high=scale / low, **place,
                    )
                )  # fmt: skip
    manifest = subject.bundle.manifest
    for tower in TOWERS:
        rows.append(
            row(view=f"tower:{tower}", metric="file_bytes", unit="bytes", value=manifest.tower(tower).bytes, n=1)
        )
        for metric, unit, taken in (
            ("peak_rss_bytes", "bytes", mine.peak_rss_bytes),
            ("gpu_bytes", "bytes", mine.gpu_bytes),
            ("joules_per_sample", "J", mine.joules_per_sample),
        ):
            if tower in taken:
                rows.append(row(view=f"tower:{tower}", metric=metric, unit=unit, value=taken[tower], n=1))
    for census in mine.census:
        rows.append(
            row(view=f"tower:{census.tower}", metric="integer_share", unit="fraction", value=census.integer_share, n=1)
        )
        if subject.bundle.built_for is not None:
            share = census.reformat_share
            rows.append(row(view=f"tower:{census.tower}", metric="reformat_share", unit="fraction", value=share, n=1))
    total = sum(manifest.tower(tower).bytes for tower in TOWERS)
    rows.append(row(view="", metric="file_bytes", unit="bytes", value=total, n=1))
    return rows


def plausible_feed(bundle: Bundle, tower: TowerName, batch: int) -> dict[str, Array]:
    """A batch of plausible inputs: smooth random pixels, and prompts. Kernel times do not depend on the values."""
    entry = bundle.manifest.tower(tower)
    if tower == "image":
        shape = (batch, 3, *bundle.manifest.preprocess.image_size)
        return {entry.input_name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    prompts = bundle.prompts.templates["imagenet-80"]
    names = next(iter(bundle.prompts.class_names.values()))
    texts = [prompts[index % len(prompts)].replace("{}", names[index % len(names)]) for index in range(batch)]
    return {entry.input_name: TextTokenizer(bundle)(texts)}
