"""Command lines in processes of their own, forked from one that has imported what they need.

Importing takes a command 1 s of computing, 5 s where it exports (open_clip), and the tests give some 250. A forked
process is a user's apart from that and from its hash seed, which it shares with the others: its own streams, folder,
random state and end. What must not depend on the hash seed is tested by giving ``env``, which starts a fresh process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

# What the commands import late, or through others' hands. Not onnxruntime: it starts a thread on import, and a process
# that was forked without that thread waits for it at its end.
HEAVY = {
    "clipq.evaluate.cli": ("scipy.optimize", "scipy.stats", "imagecorruptions", "jinja2"),
    "clipq.exporters.cli": (
        "open_clip", "torch.export._trace", "torch.onnx._internal.exporter._compat", "onnxscript.function_libs.torch_lib.ops",
        "sympy", "onnx_ir",
    ),
}  # fmt: skip


class Commands:
    """Runs a module's ``main`` again and again."""

    def __init__(self, module: str) -> None:
        self.environment = _environment()
        self._turn = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, __file__, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        # It ends with its requests.
        atexit.register(self._server.communicate)

    def run(self, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """The command's exit code and what it printed; a signal that ended it is a negative code."""
        with self._turn, tempfile.TemporaryDirectory() as streams:
            paths = [Path(streams) / name for name in ("stdout", "stderr")]
            request = {"arguments": arguments, "folder": str(folder), "streams": [str(path) for path in paths]}
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            stdout, stderr = (path.read_text(encoding="utf-8") for path in paths)
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)


_started: dict[str, Commands] = {}


def commands(module: str) -> Commands | None:
    """What runs a module's command line in this environment; None where processes cannot be forked."""
    if sys.platform != "linux" or module not in HEAVY:
        return None
    # Some variables are read on import, so that another environment wants another process to fork from.
    if module not in _started or _started[module].environment != _environment():
        _started[module] = Commands(module)
    return _started[module]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _import(module: str) -> None:
    package = importlib.import_module(module.rpartition(".")[0])
    names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in (*HEAVY[module], *names):
        # An extra that is not installed: the command says so itself.
        with contextlib.suppress(ImportError):
            if not name.endswith("__main__"):
                importlib.import_module(name)


def _serve(module: str) -> None:
    """Fork a process for each request and answer with its exit code."""
    _import(module)
    # Else collecting garbage would copy every page of what was imported.
    gc.freeze()
    # Of the libraries' threads, which see to forks themselves.
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _run(module, **json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    os._exit(0)


def _run(module: str, arguments: list[str], folder: str, streams: list[str]) -> NoReturn:
    for number, path in enumerate((os.devnull, *streams)):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    # As a process that begins draws its own.
    sys.modules["numpy"].random.seed()
    sys.argv = [module, *arguments]
    code = 1
    try:
        sys.modules[module].main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    # An interpreter's end but for taking torch apart, which takes a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
