"""Latency, memory and kernels of subjects: measured once for a set of subjects and settings, then kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from clipq.bundle import TOWERS, Bundle, TowerName
from clipq.engines.base import Array, Engine
from clipq.engines.catalog import known_runtime
from clipq.engines.census import Census
from clipq.engines.gpu_state import joules_per_run, read_gpu_state
from clipq.engines.latency import Latency, measure_latency
from clipq.engines.machine_load import load_during
from clipq.engines.saturation import Saturation
from clipq.environment import environment
from clipq.evaluate.bench.busy import busy_because
from clipq.evaluate.cells.first_batch import FirstBatch
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.results.record import (
    CensusRecord,
    GpuRecord,
    KernelRecord,
    LatencyRecord,
    LoadRecord,
    ProductRecord,
    SaturationRecord,
)
from clipq.files import sha256_bytes, write_atomic
from clipq.tokenizer import TextTokenizer

# A tower is timed so often while the machine is busy: a burst passes, and who has to share a machine waits no longer.
ATTEMPTS = 2

# What the second copy of the reference is called among the engines that are timed.
_AGAIN = ""


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

    @property
    def was_busy(self) -> bool:
        """Whether some of the times say nothing, for the machine was busy."""
        return any(one.busy for one in self.latency)


class _Stored(BaseModel):
    """What was measured of several subjects, by label, as it is stored."""

    subjects: dict[str, SubjectBench]
    sha256: str

    @classmethod
    def of(cls, subjects: dict[str, SubjectBench]) -> _Stored:
        """The subjects with the digest of what they are written as."""
        written = json.dumps({label: one.model_dump(mode="json") for label, one in subjects.items()})
        return cls(subjects=subjects, sha256=sha256_bytes(written.encode()))


def bench(
    subjects: Sequence[Subject],
    settings: BenchSettings,
    folder: Path,
    advance: Callable[[str], None],
    reference: Subject | None = None,
    real: FirstBatch | None = None,
) -> dict[str, SubjectBench]:
    """Bench all subjects side by side, by label; figures already stored for the same subjects and settings are kept.

    All are measured again where the machine was busy. Saturating sums are counted on ``real`` inputs, where there are
    such.
    """
    described = {
        "subjects": [
            [subject.label, subject.bundle.digest, subject.identity("image"), subject.threads, subject.graphs]
            for subject in subjects
        ],
        "settings": vars(settings),
        "environment": environment(),
        "real": None if real is None else real.identity,
        # Raised when a figure is measured in another way, so that none of the old way is kept.
        "method": 4,
    }
    path = folder / f"{sha256_bytes(json.dumps(described, sort_keys=True).encode())[:32]}.json"
    if path.is_file():
        stored = _read(path)
        whole = stored is not None and stored.keys() == {subject.label for subject in subjects}
        if stored is not None and whole and not any(one.was_busy for one in stored.values()):
            return stored
    before = read_gpu_state()
    latencies = time_subjects(subjects, TOWERS, settings, advance, reference)
    after = read_gpu_state()
    gpu = GpuRecord(before=vars(before), after=vars(after)) if before and after else None
    benches = {}
    for subject in subjects:
        advance(f"kernels and memory of {subject.label}")
        one = _bench_alone(subject, max(settings.batches), real)
        on_gpu = gpu if subject.device == "cuda" else None
        benches[subject.label] = one.model_copy(update={"latency": tuple(latencies[subject.label]), "gpu": on_gpu})
    write_atomic(path, _Stored.of(benches).model_dump_json())
    return benches


def _read(path: Path) -> dict[str, SubjectBench] | None:
    """What was stored, or None where it is damaged or of an earlier version, which had no checksum."""
    try:
        data = path.read_bytes()
        stored = _Stored.model_validate_json(data)
    except (OSError, ValidationError):
        return None
    again = _Stored.of(stored.subjects)
    return again.subjects if again.model_dump_json().encode() == data else None


def _bench_alone(subject: Subject, batch: int, real: FirstBatch | None) -> SubjectBench:
    """What needs no other engine beside it: kernels, memory and energy of both towers at a batch size."""
    census: list[CensusRecord] = []
    memory: dict[str, int] = {}
    energy: dict[str, float] = {}
    measure_memory, on_gpu = known_runtime(subject.runtime).memory, subject.device == "cuda"
    for tower in TOWERS:
        feed = plausible_feed(subject.bundle, tower, batch)
        census.append(subject_census(subject, tower, feed, real))
        if measure_memory is not None:
            load = subject.load(tower)
            with subject.bundle.unchanged():
                memory[tower] = measure_memory(load, load.fed(feed))
        if on_gpu:
            with subject.open(tower) as engine:
                joules = joules_per_run(partial(engine.run, feed))
            if joules is not None:
                energy[tower] = joules / batch
    return SubjectBench(
        latency=(),
        census=tuple(census),
        peak_rss_bytes={} if on_gpu else memory,
        gpu_bytes=memory if on_gpu else {},
        joules_per_sample=energy,
    )


def time_subjects(
    subjects: Sequence[Subject],
    towers: Sequence[TowerName],
    settings: BenchSettings,
    advance: Callable[[str], None] = lambda what: None,
    reference: Subject | None = None,
) -> dict[str, list[LatencyRecord]]:
    """Latency of every subject, side by side, by label.

    The reference (else the first) is timed twice: what the two differ in is not the engines'.
    """
    latencies: dict[str, list[LatencyRecord]] = {subject.label: [] for subject in subjects}
    for tower in towers:
        for label, rows in _time_tower(subjects, tower, settings, reference or subjects[0]).items():
            latencies[label] += rows
        advance(f"latency of the {tower} towers")
    return latencies


def _time_tower(
    subjects: Sequence[Subject], tower: TowerName, settings: BenchSettings, twice: Subject
) -> dict[str, list[LatencyRecord]]:
    rounds = _rounds(subjects, tower, settings.batches, twice)
    with ExitStack() as opened:
        engines = {subject.label: opened.enter_context(subject.open(tower)) for subject in subjects}
        # A copy has threads and memory of its own, as other engines have; on a GPU its memory would be missing.
        on_gpu = twice.device == "cuda"
        engines[_AGAIN] = engines[twice.label] if on_gpu else opened.enter_context(twice.open(tower))
        found: dict[str, list[LatencyRecord]] = {}
        for attempt in range(1, ATTEMPTS + 1):
            timed, load = load_during(
                lambda: measure_latency(engines, rounds, warmup=settings.warmup, repeats=settings.repeats)
            )
            found = _records(subjects, twice, timed, (tower, attempt), LoadRecord(**vars(load)) if load else None)
            if not any(one.busy for rows in found.values() for one in rows):
                break
    return found


def _rounds(
    subjects: Sequence[Subject], tower: TowerName, asked: Sequence[int], twice: Subject
) -> list[dict[str, dict[str, Array]]]:
    """What each engine is fed at every batch: those asked for, and of a file of one batch alone that one.

    What is timed twice takes part in all that it can, for the others' times are divided by its own.
    """
    own = {subject.label: subject.bundle.manifest.tower(tower).batch for subject in subjects}
    rounds = []
    for batch in dict.fromkeys((*asked, *sorted(one for one in own.values() if one is not None))):
        took = {
            one.label: one for one in subjects if own[one.label] == batch or (own[one.label] is None and batch in asked)
        }
        if own[twice.label] is None:
            took[twice.label] = twice
        feeds = {label: plausible_feed(one.bundle, tower, batch) for label, one in took.items()}
        rounds.append(feeds | ({_AGAIN: feeds[twice.label]} if twice.label in feeds else {}))
    return [feeds for feeds in rounds if feeds]


def _records(
    subjects: Sequence[Subject],
    twice: Subject,
    timed: Mapping[str, Sequence[Latency]],
    which: tuple[TowerName, int],
    load: LoadRecord | None,
) -> dict[str, list[LatencyRecord]]:
    """What was timed, with what it is worth; ``which`` are the tower and the attempt."""
    tower, attempts = which
    copies = {row.batch: row.milliseconds for row in timed[_AGAIN]}
    found = {
        subject.label: [
            LatencyRecord(
                tower=tower,
                batch=row.batch,
                milliseconds=row.milliseconds,
                device_milliseconds=row.device_milliseconds,
                again=copies[row.batch] if subject is twice else (),
                load=load,
                attempts=attempts,
            )
            for row in timed[subject.label]
        ]
        for subject in subjects
    }
    bases = {base.batch: base for base in found[twice.label]}

    def why(subject: Subject, row: LatencyRecord, base: LatencyRecord) -> str:
        # One thread keeps a GPU busy.
        return busy_because(row, base, load, 1 if subject.device == "cuda" else subject.threads)

    # What is wrong with the reference's times is wrong with every ratio to them: it may want cores that others do not.
    busy = {batch: why(twice, base, base) for batch, base in bases.items()}
    for subject in subjects:
        found[subject.label] = [
            row.model_copy(update={"busy": busy.get(row.batch) or why(subject, row, bases.get(row.batch, row))})
            for row in found[subject.label]
        ]
    return found


def seconds_per_sample(engine: Engine, bundle: Bundle, tower: TowerName, batch: int) -> float:
    """A quick estimate of an engine's seconds per sample at a batch size, from three batches."""
    feed = plausible_feed(bundle, tower, batch)
    # Two at once must fit, as they do in an evaluation.
    for _ in engine.run_ahead([feed, feed]):
        pass
    (latency,) = measure_latency({"one": engine}, [{"one": feed}], warmup=1, repeats=3)["one"]
    return 1 / latency.throughput


def subject_census(
    subject: Subject, tower: TowerName, feed: dict[str, Array], real: FirstBatch | None = None
) -> CensusRecord:
    """Which kernels ran in one tower of a subject, by the proof its runtime offers, and what saturates elsewhere.

    The second is counted on ``real`` inputs, or on the feed where there are none.
    """
    runtime, load = known_runtime(subject.runtime), subject.load(tower)
    with subject.bundle.unchanged():
        record = census_record(runtime.census(load, load.fed(feed)), subject.bundle.manifest.tower(tower).recipe)
        if runtime.saturation is None:
            return record
        given = None if real is None else real.feed(subject, tower)
        found = runtime.saturation(load, load.fed(feed if given is None else given))
    view = "" if real is None or given is None else real.view.name
    return record.model_copy(update={"saturation": found and saturation_record(found, view)})


def saturation_record(found: Saturation, view: str) -> SaturationRecord:
    """What saturates, as it is stored."""
    return SaturationRecord(
        verdict=found.verdict,
        share=found.share,
        samples=found.samples,
        view=view,
        unknown=found.unknown,
        products=tuple(ProductRecord(**vars(product)) for product in found.products),
    )


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
