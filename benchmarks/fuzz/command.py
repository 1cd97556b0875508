"""A command in a process forked from this one, which has imported everything: it costs 0.1 s in place of one.

It has limits of memory (``RLIMIT_DATA``, which counts what is allocated and not what is mapped), of computing and of
time, and may start no file larger than ``LARGEST_FILE``. What it left running is ended with it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.abc
import os
import pkgutil
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MODULES = ("clipq.evaluate.cli", "clipq.exporters.cli")
# What they import late. Not onnxruntime and datasets: they start threads, which a fork would lose.
LATE = ("jinja2", "onnx", "onnx_ir", "safetensors.numpy", "scipy.optimize", "scipy.stats", "tokenizers")
# What no command of these needs, and what makes a fork slow: half a gigabyte of pages.
LARGE = ("torch", "open_clip", "timm", "numba", "cv2", "skimage")

# Bytes: a valid command takes 0.3 GB at its peak.
MEMORY, PEAK, LARGEST_FILE = 3 * 2**30, 2**30, 2**28
# Seconds of computing and of time: a valid command takes less than one.
COMPUTING, TIME = 30, 60

# What JUDGED commands answer besides 0.
JUDGED = {"gate": (1, 3), "compare": (1, 3), "sweep": (3,)}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), what it printed, its peak in bytes, its seconds."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    peak: int
    seconds: float

    @property
    def accepted(self) -> bool:
        """Whether it did what it was asked."""
        return self.code == 0 or self.code in JUDGED.get(self.arguments[1], ())

    @property
    def refused(self) -> bool:
        """Whether it said in one line what is wrong."""
        errors = [line for line in self.stderr.splitlines() if re.match(r"[Ee]rror: .", line)]
        return self.code == 2 and len(errors) == 1 and self.stderr.rstrip("\n").splitlines()[-1] == errors[0]

    @property
    def fault(self) -> str:
        """``traceback``, ``hang`` or ``memory``; empty where it was accepted or refused."""
        if self.code in (-signal.SIGALRM, -signal.SIGXCPU):
            return "hang"
        if self.peak > PEAK or re.search(r"out of memory|MemoryError|bad_alloc|Cannot allocate", self.stderr):
            return "memory"
        if "Traceback" in self.stderr or not (self.accepted or self.refused):
            return "traceback"
        return ""

    def __str__(self) -> str:
        tail = "\n".join(self.stderr.strip().splitlines()[-12:])
        return f"{' '.join(self.arguments)}\nexit code {self.code}, {self.seconds:.1f} s, {self.peak >> 20} MiB\n{tail}"


class _Absent(importlib.abc.MetaPathFinder):
    """Finds that what is large is not there."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Refuse it; others are asked for what is not."""
        if fullname.partition(".")[0] in LARGE:
            raise ModuleNotFoundError(fullname, name=fullname)


def import_all() -> None:
    """Import what commands import, so that they are forked with it."""
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    for module in MODULES:
        package = importlib.import_module(module.rpartition(".")[0])
        names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        for name in (module, *names, *LATE):
            # An extra that is not installed, or a module for what is large: the command imports it itself.
            with contextlib.suppress(ImportError):
                if not name.endswith("__main__"):
                    importlib.import_module(name)
    sys.meta_path.remove(absent)
    sys.modules["clipq.environment"].environment()
    _compile_once()
    gc.freeze()
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)


def _compile_once() -> None:
    """Keep what templates were compiled to, for the processes that are forked later: half of a small run is this."""
    import jinja2

    kept: dict[Any, Any] = {}
    compiled = jinja2.Environment.compile

    def compile_once(self: Any, source: Any, *names: Any, **options: Any) -> Any:
        key = (source, names, *options.items(), self.trim_blocks, self.lstrip_blocks, self.autoescape)
        if key not in kept:
            kept[key] = compiled(self, source, *names, **options)
        return kept[key]

    jinja2.Environment.compile = compile_once  # type: ignore[method-assign]


def run(arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str], prepare: Callable[[], None]) -> Ended:
    """Run ``clipq-eval ...`` or ``clipq-export ...`` in a folder; ``prepare`` is called in its process before."""
    with tempfile.TemporaryDirectory(prefix="streams") as streams:
        paths = [Path(streams) / name for name in ("stdout", "stderr")]
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            _become(arguments, folder, environment, prepare, paths)
        _, status, used = os.wait4(process, 0)
        seconds = time.monotonic() - started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
        stdout, stderr = (path.read_text("utf-8", "replace") if path.exists() else "" for path in paths)
    return Ended(arguments, os.waitstatus_to_exitcode(status), stdout, stderr, used.ru_maxrss * 1024, seconds)


def _become(
    arguments: tuple[str, ...],
    folder: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], None],
    paths: list[Path],
) -> NoReturn:
    code = 1
    try:
        # The parent's, which wait for its own children.
        atexit._clear()
        os.setpgid(0, 0)
        for number, path in enumerate((Path(os.devnull), *paths)):
            opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(opened, number)
            os.close(opened)
        os.chdir(folder)
        os.environ.update(environment)
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CPU, (COMPUTING, COMPUTING + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Python's own handlers would wait for the call that hangs.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(TIME)
        sys.modules["numpy"].random.seed()
        prepare()
        sys.argv = list(arguments)
        module = MODULES[arguments[0] == "clipq-export"]
        sys.modules[module].main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    for end in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            end()
    os._exit(code)
