"""List the names in TensorRT's published Python bindings, without TensorRT and without a GPU.

    pip download --no-deps --only-binary :all: tensorrt-cu13-bindings==11.4.0.106
    python tests/engines/list_tensorrt_api.py WHEEL... (writes tests/engines/tensorrt_api/<version>.json)

The wheels hold the bindings alone; the libraries they link come from elsewhere. Importing a binding needs only that
its libraries can be found, so empty ones of the same names are compiled (gcc, nm and readelf from binutils).
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "tensorrt_api"
CLASSES = re.compile(
    r"^(Builder|BuilderFlag|ComputeCapability|DataType|EngineInspector|I?Logger|I?(Builder|Network|Optimization|Cuda|"
    r"Execution|Int8|Progress|Profiler|Tensor|Layer|Timing|Host).*|LayerInformationFormat|LayerType|Network.*|"
    r"OnnxParser|ParserError|ProfilingVerbosity|Runtime|TensorIOMode|ILogger|ITensor|ILayer|IProfiler)$"
)


def output(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def stand_in_libraries(binding: Path, folder: Path) -> None:
    """Load empty libraries of the names the binding links, with the functions it calls while it is imported."""
    needed = [line.split("[")[1].rstrip("]") for line in output("readelf", "-d", str(binding)) if "NEEDED" in line]
    undefined = [line.split()[-1].split("@")[0] for line in output("nm", "-D", "--undefined-only", str(binding))]
    functions = [
        name
        for name in undefined
        if re.match(r"(get|create|initLib).*(Infer|Nv|Plugin|Builder|Registry)", name)
        or (name.startswith("_ZN") and "parser" in name.lower())
    ]
    code = "static char zero[4096];\n" + "".join(f"void *{name}(void) {{ return zero; }}\n" for name in functions)
    (folder / "functions.c").write_text(code)
    (folder / "empty.c").write_text("")
    source = "functions.c"
    for name in (name for name in needed if name.startswith("libnv")):
        command = ["gcc", "-w", "-shared", "-fPIC", "-o", str(folder / name), f"-Wl,-soname,{name}"]
        subprocess.run([*command, str(folder / source)], check=True)
        source = "empty.c"
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def list_names(binding: Path, initializer: Path) -> dict[str, list[str]]:
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("tensorrt", binding)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = {
        name: sorted(member for member in dir(getattr(module, name)) if not member.startswith("_"))
        for name in dir(module)
        if isinstance(getattr(module, name), type) and CLASSES.match(name)
    }
    functions = [node.name for node in ast.parse(initializer.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {**classes, "": sorted(functions)}


def main(wheels: list[str]) -> None:
    if len(wheels) > 1:
        # Two bindings cannot live in one process.
        for wheel in wheels:
            subprocess.run([sys.executable, __file__, wheel], check=True)
        return
    version = Path(wheels[0]).name.split("-")[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zipfile.ZipFile(wheels[0]).extractall(folder)
        stand_in_libraries(folder / "tensorrt_bindings" / "tensorrt.so", folder)
        found = list_names(folder / "tensorrt_bindings" / "tensorrt.so", folder / "tensorrt_bindings" / "__init__.py")
    path = FOLDER / f"{version}.json"
    path.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
