"""A record's lines as one JSON document and one page of Markdown."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = dict[str, Any]


def write_pages(lines: list[Line], stem: Path) -> Path:
    """Write ``stem.json`` and ``stem.md``; returns the latter."""
    record = gathered(lines)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(page(record))
    return stem.with_suffix(".md")


def measured_on(machines: list[Line]) -> Line:
    """The first machine that says its GPU: steps that need none do not say which one is there."""
    return next((machine for machine in machines if machine["gpu"]), machines[0])


def gathered(lines: list[Line]) -> dict[str, Any]:
    """Lines by kind; what was found of one engine joined, a later finding in place of an earlier one."""
    kinds: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line["kind"]].append({key: value for key, value in line.items() if key != "kind"})
    proofs: dict[tuple[str, str, str], Line] = defaultdict(dict)
    for proof in kinds["proof"]:
        proofs[proof["model"], proof["runtime"], proof["recipe"]] |= proof
    speed = {(row["model"], row["runtime"], row["recipe"], row["batch"]): row for row in kinds["speed"]}
    reliability = {(row["runtime"], row["recipe"], row["metric"], row.get("with")): row for row in kinds["reliability"]}
    return {
        "machines": kinds["machine"],
        "checks": list({check["name"]: check for check in kinds["check"]}.values()),
        "speed": list(speed.values()),
        "engines": list(proofs.values()),
        "reliability": list(reliability.values()),
        "states": kinds["state"],
        "failures": kinds["failure"],
    }


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    parts = [
        _machines(record),
        _checks(record),
        _speed(record),
        _kernels(record),
        _reliability(record),
        _failures(record),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _machines(record: dict[str, Any]) -> list[str]:
    first = measured_on(record["machines"])
    gpu = first["gpu"]
    lines = [f"# {gpu['name'] if gpu else 'No GPU'}, {first['created'][:10]}", ""]
    if gpu:
        lines += [
            f"{gpu['capability']}, {gpu['memory'] / 2**30:.0f} GiB, driver for CUDA {gpu['driver_cuda']}.",
            "",
        ]
    told = set()
    for machine in record["machines"]:
        environment = machine["environment"]
        packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        line = f"{environment['cpu']}, {environment['cores']} cores; Python {environment['python']}; {packages}."
        if line not in told:
            told.add(line)
            lines += [line, ""]
    runtimes = {
        name: state
        for machine in record["machines"]
        for name, state in machine["runtimes"].items()
        if state["state"] != "no"
    }
    missing = {
        name: state
        # Where several Pythons measured, the first one's reason: the others lack more on purpose.
        for machine in reversed(record["machines"])
        for name, state in machine["runtimes"].items()
        if name not in runtimes
    }
    states = [(name, state["state"], state["detail"]) for name, state in (runtimes | missing).items()]
    return [*lines, "## Runtimes", "", *_table("runtime | state | detail", states), ""]


def _checks(record: dict[str, Any]) -> list[str]:
    if not record["checks"]:
        return []
    rows = []
    for check in record["checks"]:
        said = check["said"] if isinstance(check["said"], str) else json.dumps(check["said"], ensure_ascii=False)
        told = " ".join(said.split()).replace("|", "\\|")
        told = told if check["passed"] else told[-300:]
        rows.append((check["name"], "yes" if check["passed"] else "**no**", f"{check['seconds']:.1f}", told[:400]))
    return ["## Checks", "", *_table("check | passed | s | what it says", rows), ""]


def _speed(record: dict[str, Any]) -> list[str]:
    if not record["speed"]:
        return []
    lines = [
        "## Speed", "",
        "Image towers with random weights (the demo's are real). Times are medians; ratios are to FP16 of the same runtime,",
        "median [5 %, 95 %] of pairs taken in turns (below 1 is faster). *Device* is between events around the engine alone,",
        "*wall* with copies to and from the device.", "",
    ]  # fmt: skip
    rows = [
        (
            row["model"], row["runtime"], row["recipe"], row["batch"], _median(row["device_ms"]),
            _ratio(row.get("device_milliseconds_to_fp16")), _median(row["wall_ms"]), _ratio(row.get("milliseconds_to_fp16")),
        )
        for row in record["speed"]
    ]  # fmt: skip
    columns = "model | runtime | recipe | batch | device ms | device ÷ FP16 | wall ms | wall ÷ FP16"
    return [*lines, *_table(columns, rows), ""]


def _kernels(record: dict[str, Any]) -> list[str]:
    if not record["engines"]:
        return []
    lines = [
        "## Kernels, memory, energy", "",
        "Kernels, energy and copying ahead at batch 32. *Kernels ms* is the time of all kernels of a batch, by the driver's trace,",
        "without the gaps between them, averaged over ten runs. Shares are of the time of kernels that multiply, by precision; *products* is",
        "their part of all kernel time. GPU MB is what loading and one batch of the largest size took; the first engine of a model",
        "took the process's context too. *Ahead* is batches copied while the one before runs, to each by itself.", "",
    ]  # fmt: skip
    rows = []
    for one in record["engines"]:
        census = one.get("census") or {}
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in census.get("precision_time_shares", {}).items())
        joules = one.get("joules_per_image")
        rows.append((
            one["model"], one["runtime"], one["recipe"], _mega(one.get("bytes")), _mega(one.get("gpu_bytes")),
            "" if joules is None else f"{joules * 1e3:.2f}", _ratio(one.get("ahead_to_one_by_one")),
            f"{census['milliseconds']:.3f}" if census else "", census.get("verdict", ""), shares,
            f"{census['matmul_time_share']:.0%}" if census else "", f"{census['reformat_share']:.1%}" if census else "",
        ))  # fmt: skip
    columns = "model | runtime | recipe | file MB | GPU MB | mJ an image | ahead | kernels ms | verdict | precision | products | reformat"
    lines += [*_table(columns, rows), "", "What took the time at batch 32, in ms a batch:", ""]
    for one in record["engines"]:
        if census := one.get("census"):
            lines.append(f"- **{one['model']}, {one['runtime']}, {one['recipe']}**: {_longest(census)}")
    return [*lines, ""]


def _longest(census: dict[str, Any], most: int = 6) -> str:
    rows = [
        (group["milliseconds"], f"{group['op']} in {group['precision'] or 'unknown'} ({_short(group['kernels'])})")
        for group in census["groups"]
    ]
    rows += [(time, name) for name, time in census["other_milliseconds"].items()]
    return "; ".join(f"{time:.3f} {name}" for time, name in sorted(rows, reverse=True)[:most])


def _short(kernels: list[str]) -> str:
    names = [f"`{name[:90]}`" for name in kernels[:2]]
    return ", ".join(names) + (f" and {len(kernels) - 2} more" if len(kernels) > 2 else "")


def _reliability(record: dict[str, Any]) -> list[str]:
    rows = record["reliability"]
    if not rows:
        return []
    n = rows[0]["n"]
    lines = [
        "## Reliability of the demo checkpoint", "",
        f"About the demo and its drawn world, {n} images; it says nothing about CLIP. Differences are paired, with 95 % intervals.",
        "*To the CPU* is to the same bundle in ONNX Runtime's CPU provider of this machine.", "",
    ]  # fmt: skip
    metrics = [
        (
            row["runtime"], row["recipe"], row["metric"], f"{row['value']:.4f}",
            _difference(row["differences"].get(f"fp32 on {row['runtime']}")),
            _difference(row["differences"].get(f"{row['recipe']} on ort-cpu")),
        )
        for row in rows if row["differences"]
    ]  # fmt: skip
    pairs: dict[tuple[str, str, str], Line] = defaultdict(dict)
    for row in rows:
        if "with" in row:
            pairs[row["runtime"], row["recipe"], row["with"]][row["metric"]] = row
    agreements = [
        (*pair, _bounded(found["agreement"], 4), _bounded(found["cosine"], 6)) for pair, found in pairs.items()
    ]
    lines += [*_table("runtime | recipe | metric | value | to FP32 of this runtime | to the CPU", metrics), ""]
    return [*lines, *_table("runtime | recipe | agrees with | same answers | cosine", agreements), ""]


def _failures(record: dict[str, Any]) -> list[str]:
    lines = ["## Failures", ""]
    lines += [f"- {one['what']}: `{' '.join(one['error'].split())}`" for one in record["failures"]] or ["None."]
    return lines


def _table(columns: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """A table's lines: ``columns`` as they stand between its bars, a cell to each of them."""
    rule = "|---" * (columns.count(" | ") + 1) + "|"
    return [f"| {columns} |", rule, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def _bounded(row: Line, digits: int) -> str:
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _median(times: list[float]) -> str:
    return f"{np.median(times):.3f}" if times else ""


def _ratio(found: list[float] | None) -> str:
    return "" if not found else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _mega(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def _difference(found: list[float] | None) -> str:
    return "" if not found else f"{found[0]:+.5f} [{found[1]:+.5f}, {found[2]:+.5f}]"
