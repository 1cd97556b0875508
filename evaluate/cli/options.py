"""Options that several commands share, and what becomes of their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import click

from clipq.bounds import BATCH, REPEATS, THREADS, TIMED_BATCH
from clipq.console import RenamedOption
from clipq.cpu import Precision
from clipq.engines.catalog import DEFAULT_RUNTIME
from clipq.evaluate.settings import PIXEL_CACHE, PIXEL_CACHE_GB

bundles_argument = click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))


runtime_option = click.option(
    "--runtime",
    default=DEFAULT_RUNTIME,
    show_default=True,
    help="Runtime of ONNX bundles; built ones run in their own.",
)
reference_option = click.option(
    "--reference", metavar="NAME", help="Bundle the others are compared with [default: the FP32 one]."
)


threads_option = click.option(
    "--threads", default=0, show_default="all cores", type=click.IntRange(*THREADS), help="Threads of the runtime."
)


cpu_precision_option = click.option(
    "--cpu-precision", type=click.Choice(get_args(Precision)), default="as-is", show_default=True,
    help="8-bit products, which saturate on x86 without VNNI: as a session has them that nothing was told, or exact by "
    "slower kernels, which the session that ships must ask for too (docs/cpu.md).",
)  # fmt: skip


as_cpu_option = click.option(
    "--as-cpu", default="", metavar="LEVEL",
    help="Also evaluate each bundle with integer products as it would answer on a CPU without VNNI (avx2, avx512): its "
    "products are predicted to the bit, nothing of it is timed (docs/cpu.md).",
)  # fmt: skip


graphs_option = click.option(
    "--cuda-graphs", is_flag=True, help="Launch plans as CUDA graphs, one per batch size: less work between kernels."
)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


batches_option = click.option(
    "--latency-batch", "batches", multiple=True, default=(1, 8), show_default=True, type=click.IntRange(*TIMED_BATCH),
    help="Batch size of the latency measurement; repeatable.", cls=RenamedOption, formerly="--batch",
)  # fmt: skip


repeats_option = click.option(
    "--repeats", default=30, show_default=True, type=click.IntRange(*REPEATS), help="Timed batches per engine and size."
)


pixel_cache_option = click.option(
    "--pixel-cache", type=click.Path(path_type=Path), default=PIXEL_CACHE, show_default=True,
    envvar="CLIPQ_PIXEL_CACHE", show_envvar=True, metavar="FOLDER",
    help="Where decoded and corrupted images are kept for the next engine, run and process.",
)  # fmt: skip


pixel_cache_size_option = click.option(
    "--pixel-cache-gb", default=PIXEL_CACHE_GB, show_default=True, type=float,
    envvar="CLIPQ_PIXEL_CACHE_GB", show_envvar=True, help="The most it may hold, in GB; 0 keeps nothing.",
)  # fmt: skip


def as_batch_size(context: click.Context, parameter: click.Parameter, value: str) -> int | Literal["measure"]:
    """A whole number that a batch can be, or ``measure``."""
    return "measure" if value == "measure" else click.IntRange(*BATCH)(value, parameter, context)


ray_option = click.option(
    "--ray", metavar="ADDRESS|local",
    help="Fill cells on a Ray cluster: `auto` (the one of this machine), HOST:PORT, or `local` for one just for this.",
)  # fmt: skip


def jsonable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Options as given, as a record holds them; bundles are recorded apart."""
    return {key: json.loads(json.dumps(value, default=str)) for key, value in parameters.items() if key != "bundles"}
