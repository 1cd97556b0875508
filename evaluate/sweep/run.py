"""A sweep from grid to reports: engines made, cells planned and filled, then measured group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from clipq.bundle import open_bundle
from clipq.engines.catalog import DEFAULT_RUNTIME, known_runtime
from clipq.errors import ClipqError, ResultsError
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import gather_cohort, has_twin
from clipq.evaluate.run import refuse_other_data, write_rows
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan, open_plan
from clipq.evaluate.suites.schema import Suite
from clipq.evaluate.suites.suite import read_suite
from clipq.evaluate.sweep.bundles import MadeBundles, make_bundles
from clipq.evaluate.sweep.cluster import Cluster, connect, disconnect
from clipq.evaluate.sweep.grid import Grid, bundle_folders, folder_name
from clipq.evaluate.sweep.groups import Group, Measured, measure_group
from clipq.evaluate.sweep.jobs import Job, Outcome, Target, plan_jobs, run_here
from clipq.evaluate.sweep.probe import Cost, probe
from clipq.evaluate.sweep.shipping import ship
from clipq.evaluate.sweep.state import Failure, SweepFolder, failure_of, whole
from clipq.files import write_atomic
from clipq.progress import Progress


@dataclass
class SweepPlan:
    """Everything that a sweep is going to do: groups of engines that are reported together, and jobs."""

    grid: Grid
    settings: Settings
    plan: Plan
    groups: list[Group]
    jobs: list[Job]
    targets: tuple[Target, ...]
    done: set[str]
    failed: set[str]
    not_made: list[str] = field(default_factory=list)
    cost: Cost | None = None
    slots: int = 1

    @property
    def unfilled(self) -> set[str]:
        """The cells that were not whole when the sweep was planned."""
        return {job.cell for job in self.jobs} - self.done

    @property
    def to_do(self) -> list[Job]:
        """The jobs whose cells are neither whole nor known to fail."""
        return [job for job in self.jobs if job.cell not in self.done and job.cell not in self.failed]


@dataclass(frozen=True)
class Swept:
    """What became of a sweep: how many cells were filled now, how long that took, and all that failed."""

    filled: int
    seconds: float
    failures: tuple[Failure, ...]
    results: tuple[Path, ...]


def plan_sweep(
    grid: Grid,
    folder: SweepFolder,
    settings: Settings,
    progress: Progress,
    *,
    cluster: Cluster | None,
    makes: bool = True,
) -> SweepPlan:
    """Make the engines that are missing (with ``makes``), and list the cells; failures are recorded in the folder.

    Threads, batch and cells are the grid's and not the settings'. Raises DataError for a suite that does not fit,
    ResultsError where there is no engine at all.
    """
    suite = read_suite(grid.suite).model_copy(update={"latency": None})
    # Before engines are made for hours.
    given, storage = bundle_folders(grid), _storage(grid, folder, cluster, makes)
    made = make_bundles(grid, folder.path, progress, makes=makes)
    not_made = []
    for name, bundles in made.items():
        steps = ["fp32", *grid.recipes]
        not_made += [f"{name}: {step}" for step in steps if step not in bundles.made and step not in bundles.failed
                     and not (step == "fp32" and bundles.made)]  # fmt: skip
    progress.start("opening and checking the data", 0)
    plan = open_plan(suite, settings.fetch)
    settings = replace(
        settings,
        # On Ray a cell has one CPU where nothing is said, whatever a node has.
        threads=grid.threads if cluster is None else max(1, grid.threads),
        cpu_precision=grid.cpu_precision,
        batch=grid.batch_size,
        cells=storage.root if storage.is_remote else str(Path(storage.root).resolve()),
    )
    groups = _groups(given, {name: bundles.paths for name, bundles in made.items()}, grid.runtimes, suite, settings)
    not_makeable = _not_makeable(made)
    if not groups and makes:
        why = f": {not_makeable[0].engine}: {not_makeable[0].reason}" if not_makeable else ""
        raise ResultsError(f"no engine could be made{why}")
    for failure in not_makeable:
        folder.record_failure(failure)
    if cluster is not None:
        runtimes = {subject.runtime for group in groups for subject in group.cohort.subjects}
        cluster.require_same_software(sorted(runtimes))
    progress.start("planning cells", 0)
    with Embeddings(settings, suite) as embeddings:
        jobs, targets = plan_jobs(plan, {group.name: group.cohort.subjects for group in groups}, embeddings)
        names = storage.tree()
        done = {job.cell for job in jobs if whole(names, job.cell, job.rows, job.chunk)}
        failed = {failure.cell for failure in folder.failures() if failure.cell}
        planned = SweepPlan(grid, settings, plan, groups, jobs, targets, done, failed, not_made)
        if makes:
            folder.keep_failures(planned.unfilled, {name: set(bundles.failed) for name, bundles in made.items()})
        planned.slots = 1 if cluster is None else cluster.slots()
        planned.cost = probe(planned.to_do, targets, embeddings, progress)
    return planned


def _storage(grid: Grid, folder: SweepFolder, cluster: Cluster | None, makes: bool) -> Storage:
    """Where the cells are; raises ResultsError where workers do not see it or (with ``makes``) nothing can be kept."""
    storage = folder.storage(grid)
    if cluster is not None and not storage.is_shared:
        raise ResultsError(f"cells {storage.root}: workers on Ray do not see this process's memory; give a store's URL")
    if makes:
        storage.require_writable()
    return storage


def _not_makeable(made: Mapping[str, MadeBundles]) -> list[Failure]:
    return [
        Failure(group=name, engine=step, what="making the engine", reason=reason)
        for name, bundles in made.items()
        for step, reason in bundles.failed.items()
    ]


@contextmanager
def connected(grid: Grid, ray: str | None) -> Iterator[Cluster | None]:
    """A connection to the Ray cluster at an address, or None where cells are filled in this process."""
    if ray is None:
        yield None
        return
    on_gpu = any(known_runtime(runtime).device == "cuda" for runtime in grid.runtimes)
    cluster = connect(ray, max(1, grid.threads), grid.gpus if on_gpu else 0.0)
    try:
        yield cluster
    finally:
        disconnect()


def fill(planned: SweepPlan, folder: SweepFolder, cluster: Cluster | None, told: Callable[[Outcome], None]) -> int:
    """Fill the cells that are missing, recording failures; how many were filled. ``told`` hears of each."""
    folder.write_plan(planned.grid, planned.jobs)
    jobs, targets, settings, suite = planned.to_do, planned.targets, planned.settings, planned.plan.suite
    if cluster is None:
        outcomes = run_here(jobs, targets, settings, suite)
    else:
        # Not by jobs alone: an engine whose cells are all another's has none, and is measured all the same.
        subjects = [subject for group in planned.groups for subject in group.cohort.subjects]
        for bundle in {subject.bundle.digest: subject.bundle for subject in subjects}.values():
            ship(bundle, Storage(settings.cells))
        outcomes = cluster.run(jobs, targets, settings, suite)
    filled = 0
    for outcome in outcomes:
        if outcome.failure:
            folder.record_failure(failure_of(outcome))
        filled += not outcome.failure
        told(outcome)
    return filled


def measure(
    planned: SweepPlan, folder: SweepFolder, cluster: Cluster | None, given: dict[str, Any], progress: Progress
) -> list[Path]:
    """Records of every group from its cells, here or each on a worker; a group without its reference has failed."""
    failures = [failure for failure in folder.failures() if failure.cell in planned.unfilled]

    def without_failed(group: Group) -> Group:
        """A group that does not try engines of which a cell failed."""
        own = [failure for failure in failures if failure.group == group.name]
        reasons = {failure.engine: f"{failure.what}: {failure.reason}" for failure in own}
        return replace(group, cohort=group.cohort.without(reasons))

    groups = [without_failed(group) for group in planned.groups]

    def here() -> Iterator[Measured]:
        for group in groups:
            reason = measure_group(group, planned.plan, folder.results(group.name), planned.settings, given, progress)
            yield Measured(group, reason, {})

    def on_workers(cluster: Cluster) -> Iterator[Measured]:
        progress.start("metrics and intervals", len(groups))
        fitting = []
        for group in groups:
            # Workers do not see the folder.
            try:
                refuse_other_data(planned.plan, group.cohort, folder.results(group.name))
                fitting.append(group)
            except ClipqError as error:
                yield Measured(group, str(error), {})
        for measured in cluster.measure(fitting, planned.plan, planned.settings, given):
            results = folder.results(measured.group.name)
            for file, data in measured.files.items():
                write_atomic(results / file, data)
            if not measured.failure:
                write_rows(measured.group.cohort, results)
            yield measured
            progress.advance(1)

    results = set()
    for measured in here() if cluster is None else on_workers(cluster):
        name = measured.group.name
        if measured.failure:
            folder.record_failure(Failure(group=name, engine="", what="measuring the group", reason=measured.failure))
        else:
            results.add(name)
    return [folder.results(group.name) for group in planned.groups if group.name in results]


def sweep(
    grid: Grid, folder: SweepFolder, settings: Settings, ray: str | None, given: dict[str, Any], heard: Listener
) -> Swept:
    """Plan, fill and measure, on the Ray cluster at an address or here.

    ``heard`` is shown the plan before anything is filled.
    """
    with connected(grid, ray) as cluster:
        planned = plan_sweep(grid, folder, settings, heard.progress, cluster=cluster)
        heard.planned(planned)
        started = perf_counter()
        heard.progress.start("cells", len(planned.to_do))
        filled = fill(planned, folder, cluster, heard.told)
        seconds = perf_counter() - started
        results = measure(planned, folder, cluster, given, heard.progress)
    return Swept(filled, seconds, tuple(folder.failures()), tuple(results))


@dataclass(frozen=True)
class Listener:
    """Who hears how a sweep goes."""

    progress: Progress
    planned: Callable[[SweepPlan], None]
    told: Callable[[Outcome], None]


def _groups(
    given: list[Path], made: dict[str, list[Path]], runtimes: Sequence[str], suite: Suite, settings: Settings
) -> list[Group]:
    """Bundles by checkpoint and the runtime of ONNX files; plans, which have a runtime of their own, join the first.

    A bundle whose checkpoint has no reference of the suite's name joins the one that has: engines that others made
    often do not say what they are made of.
    """
    families = {name: list(paths) for name, paths in made.items() if paths}
    opened = [open_bundle(path) for path in given]
    own = {bundle.path: folder_name(bundle.manifest.checkpoint.name) for bundle in opened}
    homes = [own[bundle.path] for bundle in opened if bundle.name == suite.reference]
    for path, bundle in zip(given, opened, strict=True):
        name = own[bundle.path]
        families.setdefault(homes[0] if homes and name not in homes else name, []).append(path)
    takers = [runtime for runtime in runtimes if known_runtime(runtime).takes == "onnx"] or [DEFAULT_RUNTIME]
    groups = []
    for name, paths in families.items():
        for runtime in takers:
            chosen = [path for path in paths if runtime == takers[0] or open_bundle(path).built_for is None]
            # A twin needs Q/DQ nodes; where the recipe that has them failed, the others go on.
            simulated = suite.simulated and any(has_twin(open_bundle(path)) for path in chosen)
            here = replace(settings, runtime=runtime)
            cohort = gather_cohort(chosen, here, simulated=simulated, reference=suite.reference)
            label = name if len(takers) == 1 else f"{name}--{runtime}"
            groups.append(Group(label, runtime, cohort, simulated))
    return groups
