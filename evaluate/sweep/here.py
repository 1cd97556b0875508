"""Jobs done one after the other in this process."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from time import perf_counter

from clipq.evaluate.sweep.jobs import Job, Outcome, Target, Workplace, do_job


def run_here(jobs: Sequence[Job], targets: Sequence[Target], workplace: Workplace) -> Iterator[Outcome]:
    """Do the jobs in order; each outcome as it comes."""
    with workplace.open() as embeddings:
        for job in jobs:
            started = perf_counter()
            failure = do_job(job, targets, embeddings)
            yield Outcome(job, failure, perf_counter() - started, platform.node())
