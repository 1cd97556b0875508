"""Jobs done by a Ray cluster: Ray places them, moves their parts, and does them again where a worker or node dies.

A worker process keeps its engines and the sweep's views between jobs. Pixels are decoded once per node, for its
workers share a cache folder (``CLIPQ_PIXEL_CACHE`` in a node's environment moves it).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from clipq.data.pixels import PixelCache
from clipq.engines.catalog import RUNTIMES
from clipq.errors import ClipqError, RuntimeUnavailable
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan
from clipq.evaluate.suites.schema import Suite
from clipq.evaluate.sweep.groups import Group, Measured, measure_group
from clipq.evaluate.sweep.jobs import Job, Outcome, Target, do_job, open_embeddings
from clipq.evaluate.sweep.nodes import refusal, software
from clipq.evaluate.sweep.shipping import fetched
from clipq.progress import Progress

# How often Ray does a job again whose worker or node died; a job that kills its workers is given up after that.
RETRIES = 4
# Ray is told of this many jobs per CPU ahead, so that a plan of a million does not lie in the head's memory.
AHEAD = 8


@dataclass(frozen=True)
class Cluster:
    """A connection to a Ray cluster, for cells of so many CPUs and GPUs."""

    cpus: int
    gpus: float

    def slots(self) -> int:
        """How many cells can run at once."""
        import ray

        have = ray.cluster_resources()
        slots = have.get("CPU", 0) // self.cpus
        if self.gpus:
            slots = min(slots, have.get("GPU", 0) / self.gpus)
        return int(slots)

    def require_same_software(self, runtimes: Sequence[str]) -> None:
        """Raise RuntimeUnavailable where a node that can take cells would give other numbers than this process."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = ray.remote(num_cpus=0)(software)
        planned = software(runtimes)
        answers = {}
        for node in ray.nodes():
            have = node["Resources"]
            if node["Alive"] and have.get("CPU", 0) >= self.cpus and have.get("GPU", 0) >= self.gpus:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ref = asked.options(scheduling_strategy=there).remote(runtimes)
                answers[ref] = f"Ray node {node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        for ref, name in answers.items():
            try:
                refused = refusal(planned, ray.get(ref), name)
            except ray.exceptions.RayTaskError as error:
                refused = f"{name} has another clipq ({_first_line(error)}); install there what the command has"
            except ray.exceptions.RayError:
                # It is lost: Ray gives it no cells either.
                continue
            if refused:
                raise RuntimeUnavailable(refused)

    def run(
        self, jobs: Sequence[Job], targets: Sequence[Target], settings: Settings, suite: Suite
    ) -> Iterator[Outcome]:
        """Do the jobs; each outcome as it comes, in no order.

        Raises RuntimeUnavailable where the cluster has no node with what a cell needs, or its head is lost.
        """
        import ray

        if not self.slots():
            have = ray.cluster_resources()
            raise RuntimeUnavailable(
                f"the Ray cluster has no place for a cell of {self.cpus} CPUs and {self.gpus:g} GPUs "
                f"(it has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs)"
            )
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(do_on_worker)
        shared = ray.put((settings, suite, tuple(targets), software({job.subject.runtime for job in jobs})))
        # Attacks wait for their classes, wherever those are made.
        refs: dict[str, Any] = {}
        pending: dict[Any, Job] = {}
        waiting = iter(jobs)
        ahead = AHEAD * self.slots()
        exhausted = False
        while pending or not exhausted:
            while not exhausted and len(pending) < ahead:
                job = next(waiting, None)
                if job is None:
                    exhausted = True
                    break
                # In a list: Ray would otherwise unpack it for every job.
                ref = remote.options(name=f"{job.kind} {job.view} {job.subject.label}").remote(
                    job, [shared], refs.get(job.after or "")
                )
                pending[ref] = job
                if job.kind == "classes":
                    refs[job.cell] = ref
            if not pending:
                break
            for ref in ray.wait(list(pending), num_returns=1)[0]:
                job = pending.pop(ref)
                try:
                    yield ray.get(ref)
                except ray.exceptions.RayError as error:
                    yield Outcome(job, _first_line(error))

    def measure(
        self, groups: Sequence[Group], plan: Plan, settings: Settings, given: dict[str, Any]
    ) -> Iterator[Measured]:
        """Measure groups, each on a worker; each as it comes, in no order."""
        import ray

        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(measure_on_worker)
        shared = ray.put((plan, settings, given))
        pending = {
            remote.options(name=f"metrics of {group.name}").remote(group, group.identities(), shared): group
            for group in groups
        }
        while pending:
            for ref in ray.wait(list(pending), num_returns=1)[0]:
                group = pending.pop(ref)
                try:
                    yield Measured(group, *ray.get(ref))
                except ray.exceptions.RayError as error:
                    yield Measured(group, _first_line(error), {})


def connect(address: str, cpus: int, gpus: float) -> Cluster:
    """Connect to a running cluster, or start one on this machine for ``local``.

    Raises RuntimeUnavailable where Ray is not installed or nobody answers.
    """
    # A measuring tool does not phone home.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise RuntimeUnavailable("--ray needs the package ray: pip install '.[ray]' in clipq's folder") from error
    _require_answer(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            **({"include_dashboard": False} if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise RuntimeUnavailable(f"--ray {address}: {_first_line(error)}") from error
    return Cluster(cpus, gpus)


def _require_answer(address: str) -> None:
    """Raise RuntimeUnavailable where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RuntimeUnavailable(f"--ray {address}: nobody answers there ({error})") from error


def disconnect() -> None:
    """Leave the cluster; one that was started for this process ends."""
    import ray

    ray.shutdown()


# What a worker process keeps from job to job, of one sweep.
_kept: dict[str, tuple[Embeddings, tuple[Target, ...], str]] = {}


def do_on_worker(job: Job, shared: list[Any], after: Outcome | None) -> Outcome:
    """Do one job in a Ray worker."""
    import ray

    started = perf_counter()
    node = ray.get_runtime_context().get_node_id()
    if after is not None and after.failure:
        return Outcome(job, f"its classes failed: {after.failure}", node=node)
    (ref,) = shared
    key = ref.hex()
    if key not in _kept:
        for embeddings, *_ in _kept.values():
            embeddings.__exit__()
        _kept.clear()
        settings, suite, targets, planned = ray.get(ref)
        # It may have joined after the others were asked.
        refused = refusal(planned, software({name for name in planned if name in RUNTIMES}))
        _kept[key] = open_embeddings(_at_this_node(settings), suite), targets, refused
    embeddings, targets, refused = _kept[key]
    if refused:
        return Outcome(job, refused, perf_counter() - started, node)
    try:
        local = replace(job, subject=fetched(job.subject, embeddings.storage))
    except ClipqError as error:
        return Outcome(job, str(error), perf_counter() - started, node)
    return Outcome(job, do_job(local, targets, embeddings), perf_counter() - started, node)


def measure_on_worker(
    group: Group, identities: list[dict[str, Any]], shared: tuple[Plan, Settings, dict[str, Any]]
) -> tuple[str, dict[str, bytes]]:
    """Measure one group in a Ray worker: why that failed, or nothing, and what it wrote."""
    plan, settings, given = shared
    storage = Storage(settings.cells)
    with TemporaryDirectory() as folder:
        results = Path(folder)
        try:
            for theirs, mine in zip(identities, group.identities(), strict=True):
                if refused := refusal(theirs, mine):
                    return refused, {}
            cohort = group.cohort
            subjects = {subject.label: fetched(subject, storage) for subject in cohort.subjects}
            reference = None if cohort.reference is None else subjects[cohort.reference.label]
            local = replace(group, cohort=replace(cohort, subjects=tuple(subjects.values()), reference=reference))
            reason = measure_group(local, plan, results, _at_this_node(settings), given, Progress())
        except ClipqError as error:
            return str(error), {}
        except Exception as error:  # one group's surprise must not end the others
            return f"{type(error).__name__}: {error}", {}
        files = [path for path in results.rglob("*") if path.is_file()]
        return reason, {path.relative_to(results).as_posix(): path.read_bytes() for path in files}


def _at_this_node(settings: Settings) -> Settings:
    """The settings with the node's own folder for pixels, and its own clock for which of them are used."""
    if settings.pixels is None:
        return settings
    folder = Path(os.environ.get("CLIPQ_PIXEL_CACHE") or settings.pixels.folder).expanduser()
    return replace(settings, pixels=PixelCache(folder, settings.pixels.capacity))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or ['no message'])[0][:400]}"
