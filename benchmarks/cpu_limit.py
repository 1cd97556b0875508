"""INT8 image towers against this CPU's own limit: which part of a batch's time the 8-bit products alone would take.

    clipq-export run ViT-B-32 --pretrained random --towers image -o E --calibration-set calib_data/demo \\
        --recipe int8-static --recipe int8-static:activations=symmetric --recipe int8-static:attention=true \\
        --recipe int8-dynamic
    python -m benchmarks.cpu_limit E/int8-static-minmax E/* -o FILE.json

The first bundle gives the shapes (M, K, N) of its integer linears, from the profile of a real batch. Every distinct
shape is timed alone: ONNX Runtime's ``MatMulInteger`` and ``MatMulIntegerToFloat`` (uint8 × constant int8) and, where
torch is there, oneDNN through ``torch._int_mm`` and ``onednn::qlinear_pointwise``. Three limits come of it:

* products: the times of ONNX Runtime's bare ``MatMulInteger``, each shape as often as the tower has it;
* best products: the same with the fastest kernel of each shape;
* roofline: the sum of max(work ÷ highest rate seen, bytes ÷ memory bandwidth) over the linears.

A share is limit ÷ time of the tower, medians of rounds in which towers and products take turns; [] is its spread over
the rounds. Shares of operators are of the runtime's own profile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clipq.bundle import open_bundle
from clipq.engines.base import Array
from clipq.engines.census import CONVOLUTIONS, INTEGER_KERNELS
from clipq.engines.ort import OrtEngine, trace_kernels
from clipq.environment import environment
from clipq.evaluate.bench.bench import plausible_feed

Shape = tuple[int, int, int]
GOAL = 0.7
PROFILED_RUNS = 10
SQUARE: Shape = (2048, 2048, 2048)
BANDWIDTH_BYTES = 256 * 2**20
# Settings of a session that might help on a CPU; the runtime's own choice is beside them.
SETTINGS: dict[str, dict[str, str]] = {
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
    "no spinning": {"session.intra_op.allow_spinning": "0"},
    "dynamic blocks": {"session.dynamic_block_base": "4"},
    "no prepacking": {"session.disable_prepacking": "1"},
}
BARE, TO_FLOAT = "ORT MatMulInteger", "ORT MatMulIntegerToFloat"


def integer_linears(events: Iterable[Mapping[str, Any]]) -> Counter[Shape]:
    """How often each (M, K, N) is multiplied in integers in one batch, convolutions left out."""
    seen: dict[str, Shape] = {}
    for event in events:
        if event["op"] in INTEGER_KERNELS - CONVOLUTIONS:
            *rows, inner = event["inputs"][0][1]
            seen[event["name"]] = (int(np.prod(rows)), inner, event["outputs"][0][1][-1])
    return Counter(seen.values())


def product_session(shape: Shape, op: str, threads: int) -> Any:
    """A session of one uint8 × constant int8 product, alone."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = shape
    weight = np.random.default_rng(0).integers(-127, 128, (inner, columns), dtype=np.int8)
    constants = {"b": weight, "a_zero": np.array(128, np.uint8), "b_zero": np.zeros(columns, np.int8)}
    inputs, domain, output = ["a", "b", "a_zero"], "", TensorProto.INT32
    if op == "MatMulIntegerToFloat":
        constants |= {"a_scale": np.array(0.02, np.float32), "b_scale": np.full(columns, 0.01, np.float32)}
        inputs, domain, output = (
            ["a", "b", "a_scale", "b_scale", "a_zero", "b_zero"],
            "com.microsoft",
            TensorProto.FLOAT,
        )
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain)],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("y", output, [rows, columns])],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in inputs],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=onnx.IR_VERSION_2023_5_5)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ort_product(shape: Shape, op: str, threads: int) -> Callable[[], object]:
    session = product_session(shape, op, threads)
    feed = {"a": np.random.default_rng(1).integers(0, 256, shape[:2], dtype=np.uint8)}
    return lambda: session.run(None, feed)


def torch_products(shape: Shape, threads: int) -> dict[str, Callable[[], object]]:
    """oneDNN's integer products through torch; none where torch is not there."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    rows, inner, columns = shape
    weight = torch.randint(-127, 128, (columns, inner), dtype=torch.int8)
    signed = torch.randint(-127, 128, (rows, inner), dtype=torch.int8)
    unsigned = torch.randint(0, 256, (rows, inner), dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inner])
    scales, zeros = torch.full((columns,), 0.01), torch.zeros(columns, dtype=torch.long)
    tail = (packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "none")
    return {
        "oneDNN _int_mm": lambda: torch._int_mm(signed, weight.t()),
        "oneDNN qlinear": lambda: torch.ops.onednn.qlinear_pointwise(unsigned, 0.02, 128, *tail),
    }


def products(shape: Shape, threads: int) -> dict[str, Callable[[], object]]:
    found = {
        BARE: ort_product(shape, "MatMulInteger", threads),
        TO_FLOAT: ort_product(shape, "MatMulIntegerToFloat", threads),
    }
    return found | torch_products(shape, threads)


def bandwidth(threads: int, repeats: int = 5) -> float:
    """Bytes per second, read and written, of a copy and of a sum by every thread; the better of the two."""
    size = BANDWIDTH_BYTES // 4 // threads
    source, other = [[np.ones(size, np.float32) for _ in range(threads)] for _ in range(2)]
    target = [np.zeros(size, np.float32) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for moved, kernel in (
            (2, lambda part: np.copyto(target[part], source[part])),
            (3, lambda part: np.add(source[part], other[part], out=target[part])),
        ):
            for _ in range(repeats):
                started = time.perf_counter()
                list(pool.map(kernel, range(threads)))
                best = max(best, moved * 4 * size * threads / (time.perf_counter() - started))
    return best


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call: the median of ``repeats`` runs, once per round.

    Rounds begin at different calls and each call runs thrice unmeasured, for what ran before slows the next.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        names = deque(calls)
        names.rotate(-turn * len(calls) // rounds)
        for name in names:
            call = calls[name]
            for _ in range(3):
                call()
            taken = []
            for _ in range(repeats):
                started = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - started))
            times[name].append(statistics.median(taken))
    return times


def roofline(linears: Mapping[Shape, int], rate: float, memory: float) -> float:
    """Milliseconds: every linear at the highest rate (products per second), or as its bytes come from memory."""
    total = 0.0
    for (rows, inner, columns), count in linears.items():
        moved = rows * inner + inner * columns + 4 * rows * columns
        total += count * 1e3 * max(rows * inner * columns / rate, moved / memory)
    return total


def limits(
    linears: Mapping[Shape, int], times: Mapping[tuple[Shape, str], Sequence[float]], memory: float
) -> dict[str, list[float]]:
    """Milliseconds of the three limits in every round."""
    kernels = {shape: [kernel for found, kernel in times if found == shape] for shape in linears}
    rates = [shape[0] * shape[1] * shape[2] / statistics.median(taken) * 1e3 for (shape, _), taken in times.items()]
    rounds = len(next(iter(times.values())))
    bare = [sum(count * times[shape, BARE][turn] for shape, count in linears.items()) for turn in range(rounds)]
    best = [
        sum(count * min(times[shape, kernel][turn] for kernel in kernels[shape]) for shape, count in linears.items())
        for turn in range(rounds)
    ]
    return {"products": bare, "best products": best, "roofline": [roofline(linears, max(rates), memory)] * rounds}


def operators(path: Path, feed: Mapping[str, Array], threads: int) -> list[dict[str, Any]]:
    """Time of every operator in one batch by the runtime's profile, its share, and whether it is a linear's product."""
    events, _ = trace_kernels(path, feed, runs=PROFILED_RUNS, threads=threads)
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[event["op"]] += event["microseconds"] / 1e3 / PROFILED_RUNS
    whole = sum(spent.values())
    counts = Counter(op for op, _ in {(event["op"], event["name"]) for event in events})
    return [
        {
            "kind": "operator", "tower": path.parent.name, "op": op, "milliseconds": taken, "share": taken / whole,
            "count": counts[op], "integer": op in INTEGER_KERNELS,
        }
        for op, taken in sorted(spent.items(), key=lambda item: -item[1])
    ]  # fmt: skip


def compared(name: str, tower: Sequence[float], limit_name: str, limit: Sequence[float]) -> dict[str, Any]:
    shares = [part / whole for part, whole in zip(limit, tower, strict=True)]
    return {
        "kind": "share", "tower": name, "limit": limit_name, "tower_milliseconds": statistics.median(tower),
        "limit_milliseconds": statistics.median(limit), "lowest": min(shares), "highest": max(shares),
        "share": statistics.median(limit) / statistics.median(tower), "goal": GOAL,
    }  # fmt: skip


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    bundles = {path.name: open_bundle(path) for path in dict.fromkeys(path.resolve() for path in options.bundles)}
    first, *_ = bundles
    paths = {name: bundle.tower_path("image") for name, bundle in bundles.items()}
    feed = plausible_feed(bundles[first], "image", options.batch)
    linears = integer_linears(trace_kernels(paths[first], feed, runs=1, threads=options.threads)[0])
    engines = {name: OrtEngine(path, threads=options.threads) for name, path in paths.items()}
    for setting, config in SETTINGS.items():
        engines[f"{first}, {setting}"] = OrtEngine(paths[first], threads=options.threads, config=config)
    calls: dict[str, Callable[[], object]] = {
        name: lambda engine=engine: engine.run(feed) for name, engine in engines.items()
    }
    keys: dict[str, tuple[Shape, str]] = {}
    for shape in [*linears, SQUARE]:
        for kernel, call in products(shape, options.threads).items():
            calls[f"{shape} {kernel}"] = call
            keys[f"{shape} {kernel}"] = (shape, kernel)
    memory = bandwidth(options.threads)
    times = in_turns(calls, options.rounds, options.repeats)
    of_products = {key: times[label] for label, key in keys.items()}
    rows: list[dict[str, Any]] = [{"kind": "bandwidth", "bytes_per_second": memory}]
    for (shape, kernel), taken in of_products.items():
        rate = shape[0] * shape[1] * shape[2] / statistics.median(taken) / 1e6
        row = {"kind": "product", "shape": shape, "count": linears.get(shape, 0), "kernel": kernel}
        rows.append(row | {"milliseconds": statistics.median(taken), "billion_products_per_second": rate})
    found = limits(linears, of_products, memory)
    rows += [compared(name, times[name], limit, taken) for name in engines for limit, taken in found.items()]
    for name in engines:
        ratios = [mine / theirs for mine, theirs in zip(times[name], times[first], strict=True)]
        row = {"kind": "variant", "tower": name, "milliseconds": statistics.median(times[name])}
        ratio = statistics.median(times[name]) / statistics.median(times[first])
        rows.append(row | {"ratio": ratio, "lowest": min(ratios), "highest": max(ratios)})
    for engine in engines.values():
        engine.close()
    for path in paths.values():
        rows += operators(path, feed, options.threads)
    return rows


def table(rows: Sequence[Mapping[str, Any]], first: str) -> str:
    """What was measured, as Markdown."""
    memory = next(row for row in rows if row["kind"] == "bandwidth")["bytes_per_second"]
    lines = [
        f"Memory bandwidth {memory / 1e9:.1f} GB/s.",
        "",
        "| M, K, N | in the tower | kernel | ms | 10⁹ products/s |",
    ]
    lines.append("|---|---|---|---|---|")
    for row in (row for row in rows if row["kind"] == "product"):
        shape, rate = ", ".join(map(str, row["shape"])), row["billion_products_per_second"]
        lines.append(f"| {shape} | {row['count']} | {row['kernel']} | {row['milliseconds']:.3f} | {rate:.0f} |")
    lines += ["", "| tower | ms | limit | ms | share | goal |", "|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["kind"] == "share" and row["tower"] == first):
        share = f"{row['share']:.0%} [{row['lowest']:.0%}, {row['highest']:.0%}]"
        goal = f"{row['goal']:.0%} {'met' if row['share'] >= row['goal'] else 'missed'}"
        tower, limit = f"{row['tower_milliseconds']:.1f}", f"{row['limit_milliseconds']:.1f}"
        lines.append(f"| {row['tower']} | {tower} | {row['limit']} | {limit} | {share} | {goal} |")
    lines += ["", f"| variant | ms | ÷ {first} | share of best products |", "|---|---|---|---|"]
    shares = {row["tower"]: row["share"] for row in rows if row["kind"] == "share" and row["limit"] == "best products"}
    for row in (row for row in rows if row["kind"] == "variant"):
        ratio = f"{row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}]"
        lines.append(f"| {row['tower']} | {row['milliseconds']:.1f} | {ratio} | {shares[row['tower']]:.0%} |")
    lines += ["", f"| operator of {first} | nodes | ms | share of kernel time | |", "|---|---|---|---|---|"]
    for row in (row for row in rows if row["kind"] == "operator" and row["tower"] == first and row["share"] >= 0.001):
        what = "integer product" if row["integer"] else "the rest"
        lines.append(f"| {row['op']} | {row['count']} | {row['milliseconds']:.2f} | {row['share']:.1%} | {what} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="the one that is judged first, then its variants")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15, help="runs of each call in a round")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    print(f"load average before: {os.getloadavg()[0]:.1f}; it should be near 0", flush=True)
    rows = measure(options)
    print(table(rows, options.bundles[0].resolve().name))
    if options.output:
        record = {"benchmark": "cpu_limit", "machine": environment(), "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
