"""The installed TensorRT library, and everything in which its versions differ: 8.6, 10, 11 and TensorRT-RTX.

What differs is asked of the library (has it the name?), never derived from a version number. Each question stands in
``Features`` with its reason; the code that builds, runs and inspects plans asks nothing else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Literal

from clipq.errors import RuntimeUnavailable

logger = logging.getLogger(__name__)

TensorRtRuntime = Literal["tensorrt", "tensorrt-rtx"]
PACKAGES: dict[TensorRtRuntime, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[TensorRtRuntime, str] = {
    "tensorrt": "pip install tensorrt --extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}


@dataclass(frozen=True)
class Features:
    """What a version of the library can do; ``trt`` is its module."""

    trt: Any

    @property
    def strongly_typed(self) -> bool:
        """Tensor types come from the ONNX file (10 and later, RTX); 8.6 chooses among those its flags allow."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def explicit_batch_flag(self) -> bool:
        """8.6 must be told that the batch is a dimension; 11 and RTX know nothing else and dropped the flag."""
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")

    @property
    def calibrators(self) -> bool:
        """Implicit INT8: the library measures ranges itself. Deprecated from 10.1 on, gone in 11 and RTX."""
        return hasattr(self.trt, "IInt8EntropyCalibrator2")

    @property
    def int4(self) -> bool:
        """4-bit weights (10 and later)."""
        return hasattr(self.trt.DataType, "INT4")

    @property
    def int64(self) -> bool:
        """64-bit inputs (10 and later): 8.6 reads token ids as 32-bit."""
        return hasattr(self.trt.DataType, "INT64")

    @property
    def recent_opsets(self) -> bool:
        """The parser reads what came after ONNX opset 17, Gelu for one (10 and later, as 64-bit tensors)."""
        return self.int64

    @property
    def progress_monitor(self) -> bool:
        """Builds can report their progress (10 and later)."""
        return hasattr(self.trt, "IProgressMonitor")

    @property
    def compute_capability_target(self) -> bool:
        """Plans for a GPU that is not here (RTX alone)."""
        return hasattr(self.trt, "ComputeCapability")

    @property
    def parser_names_nodes(self) -> bool:
        """Parser errors name the node (10 and later); before they gave its number."""
        return hasattr(self.trt.ParserError, "node_name")

    def device_memory(self, engine: Any) -> int:
        """Bytes of activations a context of this engine needs: ``device_memory_size`` was renamed in 10, gone in 11."""
        if hasattr(self.trt.ICudaEngine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)


@dataclass(frozen=True)
class TensorRtLibrary:
    """One of the two TensorRT libraries, imported."""

    runtime: TensorRtRuntime
    trt: Any
    log: Log = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Package and version, as the library says it."""
        return named(self.runtime, self.trt.__version__)

    @cached_property
    def features(self) -> Features:
        """What this version can do."""
        return Features(self.trt)

    @cached_property
    def logger(self) -> Any:
        """The logger that every builder, parser and runtime of this library is given.

        The library keeps one logger at a time, that of the first of them, and warns about any other.
        """
        return _make_logger(self)

    def make(self, kind: Any) -> Any:
        """A builder or runtime of the library; raises RuntimeUnavailable where it finds no GPU or driver it can use."""
        try:
            return kind(self.logger)
        except TypeError as error:
            # The bindings' word for it is "factory function returned nullptr".
            raise RuntimeUnavailable(
                f"{self.name} does not work without a GPU and a driver for it ({self.log.take_errors() or error})"
            ) from error

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities it builds for without having the GPU: ``sm_89``; empty where it needs the GPU."""
        if not self.features.compute_capability_target:
            return ()
        names = (name for name in dir(self.trt.ComputeCapability) if name.startswith("SM"))
        return tuple(f"sm_{number}" for number in sorted(int(name.removeprefix("SM")) for name in names))


class Log:
    """What the library said while it worked: its errors, so that a failure can say why."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def take_errors(self) -> str:
        """The errors since the last call, in a line: the first, where it began, and the last two, what ended it."""
        said, self.errors[:] = list(dict.fromkeys(" ".join(line.split())[:300] for line in self.errors)), []
        return "; ".join(said if len(said) <= 3 else [said[0], "…", *said[-2:]])


@cache
def named(runtime: TensorRtRuntime, version: str) -> str:
    """A version of a library, as records have it: package and number.

    >>> named("tensorrt-rtx", "1.2.0")
    'tensorrt_rtx 1.2.0'
    """
    return f"{PACKAGES[runtime]} {version}"


def open_library(runtime: TensorRtRuntime) -> TensorRtLibrary:
    """Import TensorRT or TensorRT-RTX; raises RuntimeUnavailable where it is not installed or does not load."""
    package = PACKAGES[runtime]
    try:
        trt = import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = f"needs the package {package}: {INSTALL[runtime]}" if missing else f"does not load: {error}"
        raise RuntimeUnavailable(f"runtime {runtime!r} {reason}") from error
    except RuntimeError as error:
        # tensorrt_rtx's loader raises RuntimeError where its shared libraries are missing.
        raise RuntimeUnavailable(f"runtime {runtime!r} does not load: {error}") from error
    if not hasattr(trt, "Builder"):
        raise RuntimeUnavailable(f"runtime {runtime!r}: the package {package} is there but has no library in it")
    return TensorRtLibrary(runtime, trt, Log())


def _make_logger(library: TensorRtLibrary) -> Any:
    """A logger that keeps errors in ``library.log`` and hands the rest to ``logging``."""
    trt = library.trt
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.INFO,
        trt.ILogger.Severity.INFO: logging.DEBUG,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                library.log.errors.append(message)
            logger.log(min(level, logging.INFO), "%s: %s", library.runtime, message)

    return Logger()
