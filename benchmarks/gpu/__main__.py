"""One record of a GPU: every recipe on every runtime that works here, in speed, memory, kernels and reliability.

    python -m benchmarks.gpu prepare WORK            (torch, no GPU: checkpoints with random weights, stripped)
    python -m benchmarks.gpu measure WORK -o docs/gpu      (a GPU, no torch)

Figures are ratios to FP16 of the same runtime, measured in turns with it. Everything that fails is in the record with
its text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.skeleton import fill, strip
from clipq.bundle import Bundle, open_bundle
from clipq.engines.base import Array, Engine
from clipq.engines.catalog import RUNTIMES, open_engine
from clipq.engines.cuda import current_gpu
from clipq.engines.gpu_state import read_gpu_state
from clipq.engines.latency import Latency, measure_latency
from clipq.engines.memory import gpu_memory
from clipq.engines.ort import OrtEngine
from clipq.engines.tensorrt_library import PACKAGES
from clipq.environment import environment
from clipq.errors import ClipqError
from clipq.evaluate.bench import plausible_feed, subject_census
from clipq.evaluate.subjects import Subject, runtime_of

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50")
# By the name of the runtime's family: the forms that its kernels take.
RECIPES = {
    "ort-cpu": ("fp16", "int8-static", "int4-weight-only"),
    "ort-cuda": ("fp16", "int8-static", "int8-static:form=qdq", "int4-weight-only"),
    "tensorrt": ("fp16", "int8-static", "int4-weight-only"),
}
MIXED_GEMM = {"ep.cuda.fpa_intb_gemm": "1"}
ROOT = Path(__file__).resolve().parents[2]


def family(runtime: str) -> str:
    return "tensorrt" if "tensorrt" in runtime else runtime


def command(module: str, *arguments: object) -> str:
    """Run one of clipq's commands; its output, or a ClipqError with its last line of errors."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClipqError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return done.stdout


def prepare(work: Path, models: list[str]) -> None:
    """Make stripped bundles of every model, by the recipes of every family."""
    for model in models:
        full = work / "full" / model
        source = ("demo",) if model == "demo" else (model, "--pretrained", "random")
        command("clipq.exporters.cli", "onnx", *source, "-o", full / "fp32")
        for runtime, recipes in RECIPES.items():
            flags = [flag for recipe in recipes for flag in ("--recipe", recipe)]
            calibration = ("--calibration-set", ROOT / "calib_data" / "demo")
            command("clipq.exporters.cli", "quantize", full / "fp32", *flags, "--runtime", runtime, "-o", full / runtime, *calibration)  # fmt: skip
        for bundle in sorted(path.parent for path in full.rglob("clipq.json")):
            target = work / "stripped" / model / bundle.relative_to(full)
            target.parent.mkdir(parents=True, exist_ok=True)
            strip(bundle, target)
        shutil.rmtree(full)
        print(f"{model}: prepared", flush=True)


def attempt(failures: list[dict[str, str]], what: str, function: Callable[[], Any]) -> Any:
    """What a function gives; None where it fails, with its words among the failures."""
    try:
        return function()
    except (ClipqError, RuntimeError, OSError) as error:
        failures.append({"what": what, "error": f"{type(error).__name__}: {str(error)[:500]}"})
        print(f"FAILED {what}: {error}", flush=True)
        return None


def bundles_for(folder: Path, runtime: str, failures: list[dict[str, str]]) -> Iterator[tuple[str, Bundle]]:
    """The bundles of a model in a runtime's form, built where it takes plans."""
    sources = {"fp32": folder / "fp32"} | {path.name: path for path in sorted((folder / family(runtime)).iterdir())}
    for name, path in sources.items():
        builds: dict[str, tuple[str, ...]] = {name: ()}
        if name == "fp32" and runtime in PACKAGES:
            builds["tf32"] = ("--tf32",)
            if runtime == "tensorrt":
                calibration = ("--calibration-set", str(ROOT / "calib_data" / "demo"))
                for calibrator in ("entropy2", "minmax", "legacy"):
                    builds[f"int8-{calibrator}"] = ("--calibrator", calibrator, *calibration)
        for label, options in builds.items():
            what = f"{folder.name}, {runtime}, {label}"
            if runtime not in PACKAGES:
                made = path
            else:
                arguments = (
                    "build",
                    path,
                    "--runtime",
                    runtime,
                    "--batch",
                    "1,8,128",
                    *options,
                    "-o",
                    folder / f"built-{runtime}",
                )
                output = attempt(failures, what, lambda arguments=arguments: command("clipq.exporters.cli", *arguments))
                if output is None:
                    continue
                made = Path(output.split()[-1])
            yield label, open_bundle(made)


def measure_model(
    folder: Path, runtime: str, batches: list[int], repeats: int, failures: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Rows of one model in one runtime: image tower, every recipe, every batch."""
    bundles = dict(bundles_for(folder, runtime, failures))
    engines = {}
    for label, bundle in bundles.items():
        what = f"{folder.name}, {runtime}, {label}"
        engine = attempt(
            failures, what, lambda bundle=bundle: open_engine(bundle, "image", runtime_of(bundle, runtime))
        )
        if engine is not None:
            engines[label] = engine
        if runtime == "ort-cuda" and label.startswith("int4"):
            # Off by default: half-precision activations times 4-bit weights in one CUTLASS kernel.
            mixed = attempt(
                failures,
                f"{what}, mixed GEMM",
                lambda bundle=bundle: OrtEngine(bundle.tower_path("image"), runtime, config=MIXED_GEMM),
            )
            if mixed is not None:
                engines[f"{label}, mixed GEMM"] = mixed
    rows: list[dict[str, Any]] = []
    try:
        for batch in batches:
            if not engines:
                break
            feed = plausible_feed(next(iter(bundles.values())), "image", batch)
            what = f"{folder.name}, {runtime}, batch {batch}"
            timed = attempt(failures, what, lambda feed=feed: measure_latency(engines, [feed], repeats=repeats))
            if timed is not None:
                rows += [row(folder.name, runtime, label, timed, batch) for label in engines]
            for one in rows:
                if one["batch"] == batch == max(batches):
                    engine = engines[one["recipe"]]
                    one["ahead_to_one_by_one"] = attempt(
                        failures, f"{what}, ahead", lambda engine=engine, feed=feed: ahead_to_one_by_one(engine, feed)
                    )
    finally:
        for engine in engines.values():
            engine.close()
    for label in engines.keys() & bundles.keys():
        subject = Subject(bundles[label], runtime_of(bundles[label], runtime), 0)
        extra = attempt(
            failures, f"{folder.name}, {runtime}, {label}: kernels", lambda s=subject: proof(s, max(batches))
        )
        for one in rows:
            if one["recipe"] == label and extra is not None:
                one |= extra
    return rows


def row(model: str, runtime: str, label: str, timed: dict[str, list[Latency]], batch: int) -> dict[str, Any]:
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


def ahead_to_one_by_one(engine: Engine, feed: Mapping[str, Array], batches: int = 8, rounds: int = 5) -> list[float]:
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


def proof(subject: Subject, batch: int) -> dict[str, Any]:
    census = subject_census(subject, "image", plausible_feed(subject.bundle, "image", batch))
    found: dict[str, Any] = {"census": census.model_dump(), "bytes": subject.bundle.manifest.image.bytes}
    if subject.runtime != "ort-cpu":
        found["gpu_memory"] = dataclasses.asdict(gpu_memory(subject.bundle.path, "image", subject.runtime, batch))
    return found


def reliability(work: Path, runtime: str) -> list[dict[str, Any]]:
    """The demo checkpoint's suite on the engines of a runtime, against their own FP32."""
    import clipq.demo

    folder = work / "demo" / runtime
    flags = [flag for recipe in RECIPES[family(runtime)] for flag in ("--recipe", recipe)]
    calibration = ("--calibration-set", ROOT / "calib_data" / "demo")
    fp32 = folder / "fp32"
    shutil.copytree(Path(clipq.demo.__file__).parent / "bundle", fp32, dirs_exist_ok=True)
    made = command("clipq.exporters.cli", "quantize", fp32, *flags, "--runtime", runtime, "-o", folder, *calibration)
    paths = [str(fp32), *made.split()]
    if runtime in PACKAGES:
        paths = [command("clipq.exporters.cli", "build", path, "--runtime", runtime, "-o", folder).split()[-1] for path in paths]  # fmt: skip
    output = command(
        "clipq.evaluate.cli", "run", *paths, "--data", "demo:test", "--runtime", runtime, "--json", "--no-bench",
        "-o", folder / "results",
    )  # fmt: skip
    wanted = ("acc1", "ece", "nll", "agreement")
    return [one for one in json.loads(output) if one["metric"] in wanted and not one["group"]]


def measure(work: Path, output: Path, options: argparse.Namespace) -> Path:
    """Measure everything that works here; writes ``<gpu>-<date>.json`` and ``.md``, returns the latter."""
    failures: list[dict[str, str]] = []
    gpu = None if options.runtime == ["ort-cpu"] else current_gpu()
    record: dict[str, Any] = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": dataclasses.asdict(gpu) if gpu else None,
        "environment": environment(),
        "runtimes": {name: dataclasses.asdict(runtime.status()) for name, runtime in RUNTIMES.items()},
        "rows": [], "reliability": [], "failures": failures,
    }  # fmt: skip
    before = read_gpu_state()
    for folder in sorted((work / "stripped").iterdir()):
        filled = work / "filled" / folder.name
        shutil.rmtree(filled, ignore_errors=True)
        shutil.copytree(folder, filled)
        for bundle in sorted(path.parent for path in filled.rglob("clipq.json")):
            fill(bundle)
        for runtime in options.runtime:
            if not RUNTIMES[runtime].status().works:
                continue
            record["rows"] += measure_model(filled, runtime, options.batch, options.repeats, failures)
        shutil.rmtree(filled)
    for runtime in options.runtime:
        if RUNTIMES[runtime].status().works:
            found = attempt(failures, f"reliability, {runtime}", lambda runtime=runtime: reliability(work, runtime))
            record["reliability"] += found or []
    after = read_gpu_state()
    record["gpu_state"] = [dataclasses.asdict(state) for state in (before, after) if state]
    name = (gpu.name if gpu else "no-gpu").replace("NVIDIA ", "").replace(" ", "-").lower()
    stem = output / f"{name}-{datetime.now(timezone.utc):%Y-%m-%d}"
    output.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page(record))
    return stem.with_suffix(".md")


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    gpu = record["gpu"]
    lines = [f"# {gpu['name'] if gpu else 'No GPU'}, {record['created'][:10]}", ""]
    if gpu:
        lines += [f"{gpu['capability']}, {gpu['memory'] / 2**30:.0f} GiB, driver for CUDA {gpu['driver_cuda']}.", ""]
    packages = ", ".join(f"{name} {version}" for name, version in record["environment"]["packages"].items())
    lines += [f"{record['environment']['cpu']}; Python {record['environment']['python']}; {packages}.", ""]
    lines += ["## Runtimes", "", "| runtime | state | detail |", "|---|---|---|"]
    lines += [f"| {name} | {state['state']} | {state['detail']} |" for name, state in record["runtimes"].items()]
    lines += [
        "",
        "## Speed and kernels",
        "",
        "Image towers with random weights. Ratios are to FP16 of the same runtime",
    ]
    lines += [
        '(median [5 %, 95 %] of pairs taken in turns; below 1 is faster); "ahead" is a batch copied while the one before',
        "runs, to each by itself; shares are of matrix-multiply time.",
        "",
    ]
    lines += [
        "| model | runtime | recipe | batch | device ÷ FP16 | wall ÷ FP16 | ahead ÷ alone | MB | GPU MB | verdict | precision | reformat |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for one in record["rows"]:
        census = one.get("census", {})
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in census.get("precision_time_shares", {}).items())
        memory = one.get("gpu_memory", {}).get("peak")
        cells = [
            one["model"], one["runtime"], one["recipe"], one["batch"], ratio(one.get("device_milliseconds_to_fp16")),
            ratio(one.get("milliseconds_to_fp16")), ratio(one.get("ahead_to_one_by_one")), f"{one['bytes'] / 1e6:.0f}" if "bytes" in one else "",
            f"{memory / 1e6:.0f}" if memory else "", census.get("verdict", ""), shares,
            f"{census.get('reformat_share', 0):.1%}" if census else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Reliability of the demo checkpoint", "", "About the demo and its drawn world; it says nothing about CLIP.", ""]  # fmt: skip
    lines += ["| runtime | bundle | metric | value | difference to FP32 |", "|---|---|---|---|---|"]
    for one in record["reliability"]:
        delta = (
            "" if one["delta"] is None else f"{one['delta']:+.4f} [{one['delta_low']:+.4f}, {one['delta_high']:+.4f}]"
        )
        lines.append(f"| {one['runtime']} | {one['bundle']} | {one['metric']} | {one['value']:.4f} | {delta} |")
    lines += ["", "## Failures", ""]
    lines += [f"- {one['what']}: `{one['error']}`" for one in record["failures"]] or ["None."]
    return "\n".join(lines) + "\n"


def ratio(found: list[float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "measure"])
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "gpu")
    parser.add_argument("--model", action="append", help=f"repeatable; default: {', '.join(MODELS)}")
    parser.add_argument("--runtime", action="append", help="repeatable; default: every GPU runtime")
    parser.add_argument("--batch", action="append", type=int, help="repeatable; default: 1, 8, 32, 128")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.work, options.model or list(MODELS))
        return
    options.runtime = options.runtime or [name for name in RUNTIMES if name != "ort-cpu"]
    options.batch = options.batch or [1, 8, 32, 128]
    print(measure(options.work, options.output, options))


if __name__ == "__main__":
    main()
