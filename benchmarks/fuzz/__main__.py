"""Valid inputs of every kind made wrong, given to the commands in processes with limits of memory and time.

    python -m benchmarks.fuzz --cases 5000 --seed 1        every kind in turn, a table at the end
    python -m benchmarks.fuzz --seed 1 --case 4711         one of them again, with what the command said
    python -m benchmarks.fuzz --cases 200 --kind tar       one kind

A mutated input is accepted and gives what it should, or is refused in one line with exit code 2. All else fails: a
traceback or a signal, a hang, more memory than a valid input needs several times over, a file outside the output or a
temporary one left behind, and a silent difference: other numbers than the valid input's where the mutation does not say
so. What each kind promises is in its function's docstring (``benchmarks/fuzz/kinds.py`` names them).

Failures are printed with their number, and their inputs kept. Exit code 1 where there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.case import FAULTS, Outcome
from benchmarks.fuzz.kinds import KINDS, kind_of
from benchmarks.fuzz.sandbox import discard
from benchmarks.fuzz.table import written
from benchmarks.fuzz.worker import tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=_number(1), default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=_number(0), action="append", help="repeatable: this one alone")
    parser.add_argument("--kind", choices=KINDS, action="append", help="repeatable; default: all")
    parser.add_argument("--jobs", type=_number(1), default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="where the inputs of failures are kept"
    )
    given = parser.parse_args()
    asked = given.case or [
        number for number in range(given.cases) if given.kind is None or kind_of(number) in given.kind
    ]
    if not asked:
        parser.error(f"none of {given.cases} cases is of the kind {' or '.join(given.kind)}; give more --cases")
    started = time.monotonic()
    # Read when numpy is imported: threads do not survive a fork.
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    root = Path(tempfile.mkdtemp(prefix="fuzz", dir="/tmp"))
    # Commands that end at once leave locks of theirs, which are cleaned up.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    outcomes: list[Outcome] = []
    try:
        context = multiprocessing.get_context("spawn")
        jobs = min(given.jobs, len(asked))
        with context.Pool(jobs) as pool:
            tasks = [(given.seed, number, root, given.keep.resolve()) for number in asked]
            for outcome in pool.imap_unordered(tried, tasks):
                outcomes.append(outcome)
                _tell(outcome, given.seed, given.case is not None, len(outcomes), len(tasks))
    finally:
        discard(root)
    failed = [one for one in outcomes if one.ended in FAULTS]
    print(written(outcomes))
    print(f"\nseed {given.seed}, {len(outcomes)} cases in {time.monotonic() - started:.0f} s, {len(failed)} failures")
    if failed:
        print(f"inputs are kept in {given.keep}; again: python -m benchmarks.fuzz --seed {given.seed} --case NUMBER")
    sys.exit(1 if failed else 0)


def _number(least: int) -> Callable[[str], int]:
    """What takes a whole number from ``least`` on."""

    def taken(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {least} on")
        return int(text)

    return taken


def _tell(outcome: Outcome, seed: int, at_length: bool, done: int, of: int) -> None:
    if at_length:
        print(f"case {outcome.number}, {outcome.kind}: {outcome.ended}: {outcome.mutation}\n{outcome.seen}", flush=True)
    elif outcome.ended in FAULTS:
        last = (outcome.seen.strip().splitlines() or [""])[-1]
        print(
            f"--seed {seed} --case {outcome.number}: {outcome.kind}, {outcome.ended}: {outcome.mutation[:120]!r}: {last[:160]}",
            flush=True,
        )
    if done % 50 == 0:
        print(f"{done} of {of}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
