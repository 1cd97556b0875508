"""Bundle to engine plans: one build for TensorRT 8.6, 10, 11 and TensorRT-RTX.

On a strongly typed network (10 and later, RTX) every type comes from the ONNX file, so the recipe alone decides the
precision and no precision flag is set. On 8.6, which has no such networks, flags allow what the file asks for. With a
calibrator (implicit INT8, up to 10.16) the network is weakly typed too: the library places the integers itself.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from clipq.bounds import TIMED_BATCH
from clipq.bundle import (
    TOWERS,
    Bundle,
    Plan,
    StoredFile,
    Tower,
    TowerName,
    open_bundle,
    stored_file,
    write_manifest,
)
from clipq.engines.base import Array
from clipq.engines.cuda import Gpu, current_gpu
from clipq.engines.tensorrt_library import TensorRtLibrary, TensorRtRuntime, open_library
from clipq.errors import BuildError, RuntimeUnavailable
from clipq.exporters.calibration_set import BATCH, CalibrationSet
from clipq.exporters.int8_calibrator import Calibrator, check_cache, make_calibrator
from clipq.exporters.opset import readable
from clipq.files import write_atomic
from clipq.making import directory_in_making
from clipq.onnx_graph import read_graph
from clipq.progress import Progress
from clipq.scheme import Scheme

logger = logging.getLogger(__name__)

TIMING_CACHES = Path("~/.cache/clipq/timing")


@dataclass(frozen=True)
class BuildSettings:
    """What to build for: the smallest, best and largest batch; the target (``sm_89``) where no GPU is here.

    ``calibrator`` lets the library choose integers and ranges (implicit INT8); ``calibration_cache`` gives it ranges
    found before. ``tf32`` lets float32 products round their factors to 10 bits.
    """

    runtime: TensorRtRuntime
    batch: tuple[int, int, int] = (1, 8, 32)
    target: str | None = None
    tf32: bool = False
    calibrator: Calibrator | None = None
    calibration_cache: Path | None = None

    def slug(self, capability: str) -> str:
        """What a built bundle's name ends in, e.g. ``tensorrt-rtx-sm_89``."""
        parts = [self.runtime, capability]
        if self.calibrator:
            parts.append(f"int8-{self.calibrator}")
        if self.tf32:
            parts.append("tf32")
        return "-".join(parts)


@dataclass(frozen=True)
class Toolchain:
    """What to build, and the library and GPU found for it; ``gpu`` is None where that GPU is not here."""

    settings: BuildSettings
    library: TensorRtLibrary
    capability: str
    gpu: Gpu | None


def open_toolchain(settings: BuildSettings) -> Toolchain:
    """Find the library and the target, and refuse what cannot be built, before any work is done.

    Raises RuntimeUnavailable where the library or the GPU is missing, BuildError where the settings do not go together.
    """
    low, best, high = settings.batch
    if not TIMED_BATCH.least <= low <= best <= high <= TIMED_BATCH.most:
        span = f"from {TIMED_BATCH.least} to {TIMED_BATCH.most}"
        raise BuildError(f"--batch {low},{best},{high}: must rise, {span} (smallest, best, largest batch)")
    library = open_library(settings.runtime)
    if settings.calibrator and not library.features.calibrators:
        raise BuildError(
            f"--calibrator {settings.calibrator}: {library.name} has no calibrators (TensorRT has them up to 10.16); "
            "build a bundle of the recipe int8-static:ranges=entropy,floats=fp16, or of modelopt-int8, instead"
        )
    targets = library.targets
    if not targets:
        gpu = current_gpu()
        if settings.target not in (None, gpu.capability):
            raise BuildError(
                f"--target {settings.target}: {library.name} builds for the GPU that is here, {gpu.name} "
                f"({gpu.capability}); run it on the target, or build with tensorrt-rtx"
            )
        return Toolchain(settings, library, gpu.capability, gpu)
    here: Gpu | None = None
    try:
        here = current_gpu()
    except RuntimeUnavailable as error:
        if settings.target is None:
            raise BuildError(f"{error}; say which one the plans are for: --target {'|'.join(targets)}") from error
    target = settings.target or (here.capability if here else "")
    if target not in targets:
        # TensorRT-RTX is made for RTX cards; data-centre parts of Hopper (sm_90) are left to TensorRT.
        raise BuildError(f"{library.name} does not build for {target}, only for {', '.join(targets)}; use tensorrt")
    return Toolchain(settings, library, target, here if here and here.capability == target else None)


def build_bundle(
    source: Bundle,
    toolchain: Toolchain,
    target: Path,
    *,
    calibration: CalibrationSet | None,
    progress: Progress,
) -> Bundle:
    """Write a bundle whose towers are engine plans; raises BuildError where the library refuses one.

    Nothing is left at ``target`` on failure.
    """
    settings = toolchain.settings
    if source.built_for is not None:
        raise BuildError(f"{source.path} is built already, for {source.built_for}; build the ONNX bundle it came from")
    for name in TOWERS:
        if not source.manifest.tower(name).is_plain:
            raise BuildError(
                f"{source.path}: its {name} tower takes or gives more than pixels or ids and embeddings; build it with "
                "trtexec, and adopt the plan"
            )
    if settings.calibrator and not source.manifest.recipe.scheme.is_fp32:
        raise BuildError(
            f"--calibrator chooses integers in an FP32 bundle; {source.path} was made by "
            f"{source.manifest.recipe.name!r}"
        )
    if settings.calibrator and calibration is None and settings.calibration_cache is None:
        raise BuildError("--calibrator measures activation ranges: give --calibration-set DIR or --calibration-cache")
    with directory_in_making(target) as making, source.unchanged():
        source.copy((source.manifest.tokenizer, source.manifest.prompts), making)
        towers: dict[str, Tower] = {
            name: _built_tower(source, name, toolchain, calibration, making, progress) for name in TOWERS
        }
        recipe = source.manifest.recipe
        if settings.calibrator:
            scheme = Scheme(
                weight_bits=8, activation_bits=8, arithmetic="integer", method=f"tensorrt {settings.calibrator}"
            )
            options = {"calibrator": settings.calibrator}
            recipe = recipe.model_copy(update={"name": "tensorrt-int8", "scheme": scheme, "options": options})
        write_manifest(
            making,
            source.manifest.model_copy(
                update={
                    "recipe": recipe.model_copy(update={"source_digest": source.digest}),
                    **towers,
                    # They are about the ONNX files.
                    "hints": (),
                    "environment": {**source.manifest.environment, "builder": toolchain.library.name},
                }
            ),
        )
    return open_bundle(target)


def _built_tower(
    source: Bundle,
    name: TowerName,
    toolchain: Toolchain,
    calibration: CalibrationSet | None,
    making: Path,
    progress: Progress,
) -> Tower:
    settings, entry = toolchain.settings, source.manifest.tower(name)
    cache_file = making / f"{name}.calibration_cache"
    if settings.calibration_cache is not None:
        check_cache(settings.calibration_cache / cache_file.name, source.tower_path(name))
        shutil.copyfile(settings.calibration_cache / cache_file.name, cache_file)
    feeds: Callable[[], Iterator[dict[str, Array]]] | None = None
    if calibration is not None:

        def feeds() -> Iterator[dict[str, Array]]:
            return calibration.feeds(source, name, progress.advance)

    logger.info("building the %s tower of %s with %s", name, source.name, toolchain.library.name)
    progress.start(f"building the {name} tower", 0)
    built = build_plan(source.tower_path(name), toolchain, cache=cache_file, feeds=feeds, progress=progress)
    file = f"{name}.plan"
    (making / file).write_bytes(built.plan)
    gpu = toolchain.gpu
    cache = StoredFile(**stored_file(making, cache_file.name)) if cache_file.is_file() else None
    return entry.model_copy(
        update={
            **stored_file(making, file),
            "data": (),
            "recipe": "tensorrt-int8" if settings.calibrator else entry.recipe,
            "parity": (),
            "plan": Plan(
                runtime=settings.runtime,
                library=toolchain.library.name,
                capability=toolchain.capability,
                gpu=gpu.name if gpu else None,
                driver_cuda=gpu.driver_cuda if gpu else None,
                batch=settings.batch,
                flags=built.flags,
                strongly_typed=built.strongly_typed,
                layers=built.layers,
                source_sha256=entry.digest,
                calibrator=settings.calibrator,
                calibration_cache=cache,
            ),
        }
    )


@dataclass(frozen=True)
class BuiltPlan:
    """A plan, and what the network was when it was built."""

    plan: bytes
    flags: tuple[str, ...]
    strongly_typed: bool
    layers: dict[str, int]


def build_plan(
    path: Path,
    toolchain: Toolchain,
    *,
    cache: Path,
    feeds: Callable[[], Iterator[dict[str, Array]]] | None = None,
    progress: Progress,
) -> BuiltPlan:
    """Build the plan of one ONNX file; ``cache`` is where a calibrator keeps its ranges.

    Raises BuildError with the parser's or the builder's own words.
    """
    settings, library = toolchain.settings, toolchain.library
    trt = library.trt
    builder = library.make(trt.Builder)
    network, strongly_typed = create_network(library, builder, weakly=settings.calibrator is not None)
    parser = trt.OnnxParser(network, library.logger)
    with readable(path, library) as file:
        if not parser.parse_from_file(str(file)):
            said = first_parser_error(library, parser)
            # What recipes for a CPU make is no file for it.
            way_out = f"; quantize for it: --runtime {settings.runtime}"
            raise BuildError(f"{library.name} cannot parse {path.name}: {said}{way_out}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = _set_flags(trt, config, path, settings, strongly_typed)
    if library.features.compute_capability_target:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, toolchain.capability.upper().replace("_", "")), 0)
    config.add_optimization_profile(_profile(builder, network, settings.batch))
    calibrator = None
    if settings.calibrator is not None:
        # The library calibrates at this profile's best batch, which must be the size of the batches it is fed.
        config.set_calibration_profile(_profile(builder, network, (BATCH, BATCH, BATCH)))
        calibrator = make_calibrator(trt, settings.calibrator, cache, feeds, BATCH)
        config.int8_calibrator = calibrator
    if library.features.progress_monitor:
        config.progress_monitor = _progress_monitor(trt, progress)
    timing, loaded = _load_timing_cache(config, library, toolchain.capability)
    # What was said of earlier builds, and of what this one got over, is no reason why it fails.
    library.log.take_errors()
    plan = builder.build_serialized_network(network, config)
    said = library.log.take_errors() if plan is None else ""
    if loaded and "timing cache" in said.lower():
        # Timings of one build can end the next: 8.6.0 on an H200, "Myelin error from unknown graph".
        logger.warning("building again without earlier builds' timings: %s", said)
        config.set_timing_cache(config.create_timing_cache(b""), False)
        plan = builder.build_serialized_network(network, config)
        said = library.log.take_errors()
    if calibrator is not None and calibrator.error is not None:
        raise calibrator.error
    if plan is None:
        raise BuildError(f"{library.name} cannot build {path.name}: {said or 'no reason given'}")
    _store_timing_cache(config, timing)
    return BuiltPlan(bytes(plan), flags, strongly_typed, count_layers(network))


def create_network(library: TensorRtLibrary, builder: Any, *, weakly: bool = False) -> tuple[Any, bool]:
    """An empty network, strongly typed where the library knows that and ``weakly`` does not forbid it."""
    creation = library.trt.NetworkDefinitionCreationFlag
    flags = 0
    strongly_typed = library.features.strongly_typed and not weakly
    if strongly_typed:
        flags |= 1 << int(creation.STRONGLY_TYPED)
    elif library.features.explicit_batch_flag:
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    if network is None:
        raise BuildError(f"{library.name} makes no network: {library.log.take_errors()}")
    return network, strongly_typed


def _set_flags(trt: Any, config: Any, path: Path, settings: BuildSettings, strongly_typed: bool) -> tuple[str, ...]:
    """Set precision flags; returns the names of those set."""
    flags = []
    # On by default in every version; then a float32 engine would not be one.
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
        flags.append("TF32")
    if not strongly_typed:
        model = read_graph(path)
        quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        halves = any(value.data_type == onnx.TensorProto.FLOAT16 for value in model.graph.initializer)
        if quantized or settings.calibrator:
            config.set_flag(trt.BuilderFlag.INT8)
            flags.append("INT8")
        # What stays floating point around integers runs in half precision, as it does in the baseline.
        if quantized or settings.calibrator or halves:
            config.set_flag(trt.BuilderFlag.FP16)
            flags.append("FP16")
    return tuple(flags)


def _profile(builder: Any, network: Any, batch: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [[size if dimension == -1 else dimension for dimension in tensor.shape] for size in batch]
        profile.set_shape(tensor.name, *shapes)
    return profile


def count_layers(network: Any) -> dict[str, int]:
    """How many layers quantize, dequantize, multiply or convolve, by the type they do it in: ``QUANTIZE INT8``.

    ``CONSTANT INT4`` and ``CONSTANT INT8`` count the weights stored in those types. Read off the parsed network.
    """
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        if kind in ("MATRIX_MULTIPLY", "CONVOLUTION", "QUANTIZE", "CONSTANT"):
            dtype = layer.get_output(0).dtype.name
        elif kind == "DEQUANTIZE":
            dtype = layer.get_input(0).dtype.name
        else:
            continue
        if kind != "CONSTANT" or dtype in ("INT4", "INT8", "FP8", "FP4"):
            found[f"{kind} {dtype}"] += 1
    return dict(sorted(found.items()))


def first_parser_error(library: TensorRtLibrary, parser: Any) -> str:
    """The parser's first error, with the node it met, in a line."""
    if parser.num_errors == 0:
        return library.log.take_errors() or "no reason given"
    error = parser.get_error(0)
    where = f"node {error.node()}"
    if library.features.parser_names_nodes:
        where = f"{error.node_operator() or 'node'} {error.node_name()!r}"
    return f"{where}: {' '.join(error.desc().split())[:400]}"


def _progress_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Shows the outermost phases; the library nests them deeply."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._shown: set[str] = set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._shown.add(phase_name)
                progress.start(f"building: {phase_name}", num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self._shown.discard(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._shown:
                progress.advance(1)
            return True

    return Monitor()


def _load_timing_cache(config: Any, library: TensorRtLibrary, capability: str) -> tuple[Path, bool]:
    """Give the builder the tactic timings of earlier builds with the same library for the same GPU; whether it has any.

    One that the library cannot read is left out, and written anew.
    """
    path = TIMING_CACHES.expanduser() / f"{library.name.replace(' ', '-')}-{capability}.timing"
    timings = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    loaded = timings is not None and config.set_timing_cache(timings, False)
    if not loaded:
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path, loaded


def _store_timing_cache(config: Any, path: Path) -> None:
    timings = config.get_timing_cache()
    if timings is not None:
        write_atomic(path, bytes(timings.serialize()))


def describe_plan(bundle: Bundle, tower: TowerName) -> str:
    """One line on a built tower: size, and what its network quantizes and multiplies."""
    entry = bundle.manifest.tower(tower)
    assert entry.plan is not None
    layers = ", ".join(f"{count} {kind}" for kind, count in entry.plan.layers.items())
    return f"{tower} tower: {entry.bytes / 1e6:.1f} MB for {entry.plan.capability}; {layers}"
