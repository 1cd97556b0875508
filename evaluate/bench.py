"""Latency, memory and kernels of subjects: measured once for a set of subjects and settings, then kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from clipq.bundle import TOWERS, Bundle, TowerName
from clipq.engines.base import Array
from clipq.engines.census import Census, take_census
from clipq.engines.latency import measure_latency
from clipq.engines.memory import peak_memory
from clipq.evaluate.statistics import percentile_draws
from clipq.evaluate.subjects import Subject
from clipq.files import sha256_bytes, write_atomic
from clipq.record import CensusRecord, KernelRecord, LatencyRecord, Measurement, environment
from clipq.tokenizer import TextTokenizer

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class BenchSettings:
    """Batch sizes, warm-up and repeats of the latency measurement."""

    batches: tuple[int, ...] = (1, 8)
    warmup: int = 3
    repeats: int = 30


class SubjectBench(BaseModel):
    """What was measured of one subject."""

    latency: tuple[LatencyRecord, ...]
    census: tuple[CensusRecord, ...]
    peak_rss_bytes: dict[str, int]


class _Stored(BaseModel):
    subjects: dict[str, SubjectBench]


def bench(
    subjects: Sequence[Subject], settings: BenchSettings, folder: Path, advance: Callable[[str], None]
) -> dict[str, SubjectBench]:
    """Bench all subjects side by side, by label; figures already stored for the same subjects and settings are kept."""
    described = {
        "subjects": [
            [subject.label, subject.bundle.digest, subject.identity("image"), subject.threads] for subject in subjects
        ],
        "settings": vars(settings),
        "environment": environment(),
    }
    path = folder / f"{sha256_bytes(json.dumps(described, sort_keys=True).encode())[:32]}.json"
    if path.is_file():
        try:
            return _Stored.model_validate_json(path.read_bytes()).subjects
        except ValidationError:
            path.unlink()
    largest = max(settings.batches)
    latencies = time_subjects(subjects, TOWERS, settings, advance)
    benches = {}
    for subject in subjects:
        advance(f"kernels and memory of {subject.label}")
        census: list[CensusRecord] = []
        memory: dict[str, int] = {}
        for tower in TOWERS:
            feed = plausible_feed(subject.bundle, tower, largest)
            path_of_tower = subject.bundle.tower_path(tower)
            taken = take_census(path_of_tower, tower, feed, threads=subject.threads, simulated=subject.simulated)
            census.append(census_record(taken, subject.bundle.manifest.tower(tower).recipe))
            (name, array), *_ = feed.items()
            memory[tower] = peak_memory(
                path_of_tower, name, str(array.dtype), array.shape, threads=subject.threads, simulated=subject.simulated
            )
        benches[subject.label] = SubjectBench(
            latency=tuple(latencies[subject.label]), census=tuple(census), peak_rss_bytes=memory
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
                LatencyRecord(tower=tower, batch=row.batch, milliseconds=row.milliseconds) for row in rows
            ]
        advance(f"latency of the {tower} towers")
    return latencies


def census_record(census: Census, recipe: str) -> CensusRecord:
    """A census as it is stored."""
    return CensusRecord(
        tower=census.tower,
        recipe=recipe,
        verdict=census.verdict,
        integer_share=census.integer_share,
        integer_time_share=census.integer_time_share,
        matmul_time_share=census.matmul_time_share,
        kernels=tuple(KernelRecord(**vars(group)) for group in census.groups),
        other_milliseconds=census.other_milliseconds,
        evidence=census.evidence,
    )


def breaks_promise(census: CensusRecord, *, simulated: bool) -> bool:
    """Whether a tower whose recipe says integers did not do most of its matrix multiplication in them."""
    return not simulated and census.recipe in ("int8-static", "int8-dynamic") and census.integer_share < 0.5


def bench_measurements(
    subject: Subject, benches: dict[str, SubjectBench], reference: Subject | None
) -> list[Measurement]:
    """A subject's rows of latency, throughput, size, memory and integer share."""
    mine = benches[subject.label]
    other = None if reference is None or reference.label == subject.label else benches[reference.label]
    label = reference.label if reference is not None and other is not None else ""

    def row(**values: Any) -> Measurement:
        return Measurement(**vars(subject.columns), **values)

    rows = []
    for index, latency in enumerate(mine.latency):
        place = {"view": f"tower:{latency.tower}", "group": f"batch={latency.batch}", "n": len(latency.milliseconds)}
        for q in PERCENTILES:
            draws = percentile_draws(latency.milliseconds, q)
            low, high = draws.percentile_interval()
            delta: dict[str, Any] = {}
            if other is not None:
                difference = draws - percentile_draws(other.latency[index].milliseconds, q, seed=1)
                bounds = difference.percentile_interval()
                delta = {
                    "reference": label, "delta": difference.value, "delta_low": bounds[0], "delta_high": bounds[1],
                    "p_value": difference.p_value(),
                }  # fmt: skip
            rows.append(
                row(
                    metric=f"latency_ms.p{q}",
                    unit="ms",
                    value=draws.value,
                    low=low,
                    high=high,
                    **place,
                    **delta,
                )
            )
            if q == 50:
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
        rows.append(
            row(view=f"tower:{tower}", metric="peak_rss_bytes", unit="bytes", value=mine.peak_rss_bytes[tower], n=1)
        )
    for census in mine.census:
        rows.append(
            row(view=f"tower:{census.tower}", metric="integer_share", unit="fraction", value=census.integer_share, n=1)
        )
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
