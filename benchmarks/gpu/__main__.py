"""One record of a GPU: every recipe on every runtime that works here, in speed, memory, kernels and reliability.

    python -m benchmarks.gpu prepare WORK      (torch, no GPU: checkpoints with random weights, carried without them)
    python -m benchmarks.gpu measure WORK      (a GPU, no torch: all of what follows, into docs/gpu)

or, where the GPU is lent for minutes, step by step; every line is on the disk as soon as it is known:

    python -m benchmarks.gpu smoke WORK                     half a minute: what works
    python -m benchmarks.gpu speed WORK --model ViT-B-32    a model
    python -m benchmarks.gpu inputs|embed|score WORK        the demo's reliability, in three steps
    python -m benchmarks.gpu page WORK                      the page of WORK/*.jsonl

Ratios are to FP16 of the same runtime, measured in turns with it. What fails is in the record with its text.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu.models import FAMILIES, MODELS, ROOT, prepare
from benchmarks.gpu.record import Record, read_lines
from clipq.engines.catalog import RUNTIMES, require_runtime
from clipq.engines.cuda import current_gpu
from clipq.environment import environment
from clipq.errors import ClipqError, DataError, ResultsError, RuntimeUnavailable

STEPS = ("prepare", "measure", "smoke", "speed", "inputs", "embed", "score", "page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "gpu", help="where the page goes")
    parser.add_argument("--name", help="of the page; default: the GPU's and the day")
    parser.add_argument("--model", action="append", help=f"repeatable; prepare's default: {', '.join(MODELS)}")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="repeatable, of prepare and inputs")
    parser.add_argument("--runtime", action="append", help="repeatable; default: every GPU runtime that works")
    parser.add_argument("--batch", action="append", type=positive, help="repeatable; default: 1, 8, 32, 128")
    parser.add_argument("--recipe", action="append", help="repeatable: what names of engines begin with; default: all")
    parser.add_argument("--repeats", type=positive, default=30)
    options = parser.parse_args()
    if options.step == "prepare":
        # One that no GPU runtime takes is for trying the program where there is none.
        prepare(
            options.work,
            options.model or list(MODELS),
            options.family or [name for name in FAMILIES if name != "ort-cpu"],
        )
        return
    if options.step == "page":
        write_page(options)
        return
    # These two run no engine.
    idle = options.step == "score" or (options.step == "inputs" and options.family)
    options.runtime = options.runtime or [
        name for name, one in RUNTIMES.items() if one.device == "cuda" and one.status().works
    ]
    if not options.runtime and not idle:
        details = "; ".join(f"{name}: {one.status().detail}" for name, one in RUNTIMES.items() if one.device == "cuda")
        raise RuntimeUnavailable(f"no GPU runtime works here ({details})")
    for name in () if idle else options.runtime:
        require_runtime(name)
    prepared = [path.name for path in sorted((options.work / "stripped").glob("*"))]
    for model in options.model or ():
        if model not in (*prepared, "demo"):
            raise DataError(
                f"--model {model}: not prepared; {options.work} has {', '.join(prepared) or 'none'}, and demo"
            )
    options.model = options.model or prepared
    given = options.work / "reliability" / ("embedded" if options.step == "score" else "inputs.npz")
    if options.step in ("embed", "score") and not given.exists():
        before = "embed" if options.step == "score" else "inputs"
        raise DataError(f"{given} is missing; python -m benchmarks.gpu {before} {options.work} makes it")
    record = Record(options.work / f"{'-'.join([options.step, *options.runtime])}.jsonl")
    if options.step not in ("inputs", "score"):
        _describe(record, options.runtime)
    ready = True
    if options.step in ("measure", "smoke") and "ort-cuda" in options.runtime:
        from benchmarks.gpu.smoke import smoke

        ready = smoke(record)
    if options.step in ("measure", "speed"):
        _speed(record, options)
    if options.step in ("measure", "inputs", "embed", "score"):
        _reliability(record, options)
    if options.step == "measure":
        write_page(options)
    sys.exit(0 if ready else 1)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse, which names the option where it is none."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return number


def _describe(record: Record, runtimes: list[str]) -> None:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    gpu = None if runtimes == ["ort-cpu"] else current_gpu()
    states = {name: runtime.status() for name, runtime in RUNTIMES.items()}
    record.add("machine", created=created, gpu=gpu, environment=environment(), runtimes=states)


def _speed(record: Record, options: argparse.Namespace) -> None:
    from benchmarks.gpu.speed import measure_speed

    for runtime in options.runtime:
        for model in options.model:
            batches = options.batch or [1, 8, 32, 128]
            measure_speed(record, options.work, model, runtime, batches, options.repeats, options.recipe)


def _reliability(record: Record, options: argparse.Namespace) -> None:
    from benchmarks.gpu.reliability import embed, families, score, write_inputs

    folder = options.work / "reliability"
    if options.step in ("measure", "inputs"):
        record.attempt("inputs", lambda: write_inputs(folder, options.family or families(options.runtime)))
    if options.step in ("measure", "embed"):
        # The same files on the CPU are what the others are compared with.
        for runtime in dict.fromkeys((*(() if options.step == "embed" else ("ort-cpu",)), *options.runtime)):
            record.attempt(f"embed, {runtime}", lambda r=runtime: embed(record, folder, r))
    if options.step in ("measure", "score"):
        record.attempt("score", lambda: score(record, folder))


def write_page(options: argparse.Namespace) -> None:
    """Write the page of all lines below WORK; named after the GPU and the day."""
    from benchmarks.gpu.page import measured_on, write_pages

    paths = sorted(options.work.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = read_lines(paths)
    machines = [line for line in lines if line["kind"] == "machine"]
    if not machines:
        raise ResultsError(f"{options.work}: no lines of a measurement in it; the other steps write them")
    machine = measured_on(machines)
    gpu = (machine["gpu"] or {"name": "no-gpu"})["name"].replace("NVIDIA ", "").replace(" ", "-").lower()
    print(write_pages(lines, options.output / (options.name or f"{gpu}-{machine['created'][:10]}")))


if __name__ == "__main__":
    try:
        main()
    except ClipqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
