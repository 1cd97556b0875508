"""The architecture's rules, read off the source by ast and off fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import tomllib

from clipq.engines.catalog import DEFAULT_RUNTIME, RUNTIMES

ROOT = Path(__file__).resolve().parent.parent

FOLDERS = {
    "clipq": ROOT / "src" / "clipq",
    "clipq.engines": ROOT / "engines",
    "clipq.exporters": ROOT / "exporters",
    "clipq.evaluate": ROOT / "evaluate",
}
MAY_IMPORT = {
    "clipq": {"clipq"},
    "clipq.engines": {"clipq", "clipq.engines"},
    "clipq.exporters": {"clipq", "clipq.engines", "clipq.exporters"},
    "clipq.evaluate": {"clipq", "clipq.engines", "clipq.evaluate"},
}
# A folder or file of evaluate/ and which others it may import: the order in which data go through them.
ROOMS = {
    "settings": set(),
    "metrics": set(),
    "published": set(),
    "results": {"metrics"},
    "suites": {"metrics", "published", "results"},
    "cells": {"metrics", "results", "suites", "settings"},
    "axes": {"metrics", "results", "suites", "cells"},
    "bench": {"metrics", "results", "cells"},
    "verdicts": {"metrics", "published", "results"},
    "report": {"metrics", "published", "results", "suites", "verdicts"},
    "recording": {"results", "suites", "cells", "axes", "bench", "settings"},
    "run": {"results", "suites", "cells", "axes", "bench", "settings", "recording"},
    "demo": {"suites"},
    "sweep": {"results", "suites", "cells", "bench", "settings", "run"},
    "api": {"results", "suites", "cells", "verdicts", "report", "settings", "run"},
    "arrays": {"metrics", "results", "axes", "verdicts", "report"},
    "cli": {"results", "suites", "cells", "bench", "verdicts", "report", "settings", "api", "demo", "sweep"},
}
MOST_PARAMETERS, MOST_LINES = 6, 60
# They hand on what lies above them, by name and when it is asked for; what they import is for type checkers.
DOORS = {ROOT / "src" / "clipq" / "__init__.py", ROOT / "src" / "clipq" / "metrics.py"}
TORCH_MODULES = {
    "api",
    "checkpoints",
    "towers",
    "graph",
    "tokenizer_file",
    "transformers_checkpoints",
    "transformers_model",
    "onnx_bundle",
    "train_demo",
    "catalog",
    "attacks",
}
RUNTIME_PACKAGES = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "cupti", "pynvml", "modelopt"}
CLICK_FILES = {
    ROOT / "exporters" / "cli.py",
    ROOT / "src" / "clipq" / "console.py",
    *(ROOT / "evaluate" / "cli").glob("*.py"),
}


def part_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and f"clipq.{parts[1]}" in FOLDERS else "clipq"


def sources():
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            yield package, path


def imports(path):
    if path in DOORS:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node


@pytest.mark.parametrize(("package", "path"), list(sources()), ids=lambda value: str(getattr(value, "name", value)))
def test_import_direction(package, path):
    for module, _ in imports(path):
        top = module.split(".")[0]
        if top == "clipq":
            assert part_of(module) in MAY_IMPORT[package], f"{path} imports {module}"
        if top in ("torch", "open_clip", "timm"):
            assert path.stem in TORCH_MODULES and package == "clipq.exporters", f"{path} imports {module}"
        if top == "click":
            assert path in CLICK_FILES, f"{path} imports click"


def room_of(module: str) -> str:
    """The folder or file of evaluate/ that a module is in: ``clipq.evaluate.axes.ood`` is in ``axes``."""
    return (module + "...").split(".")[2]


@pytest.mark.parametrize("path", sorted((ROOT / "evaluate").rglob("*.py")), ids=lambda path: str(path.name))
def test_import_direction_within_evaluate(path):
    room = path.relative_to(ROOT / "evaluate").parts[0].removesuffix(".py")
    for module, node in imports(path):
        if module.startswith("clipq.evaluate"):
            # `from clipq.evaluate import x` names the room by what it imports.
            names = [room_of(module)] if room_of(module) else [alias.name for alias in node.names]
            for name in names:
                assert name == room or name in ROOMS[room], f"{path} imports {module}"


def test_every_room_has_its_row():
    here = {path.name.removesuffix(".py") for path in (ROOT / "evaluate").iterdir() if path.suffix in (".py", "")}
    assert here - {"__init__", "__pycache__"} == set(ROOMS)


def test_files_of_the_command_are_short():
    for path in (ROOT / "evaluate" / "cli").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path


def functions(node, within=""):
    """Every function and method below a node, with its name within the file."""
    for child in ast.iter_child_nodes(node):
        name = within
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{within}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield name, child
        yield from functions(child, name)


def test_functions_are_short():
    """Outside the command line, whose options are parameters."""
    for _, path in sources():
        if path not in CLICK_FILES:
            for name, function in functions(ast.parse(path.read_text())):
                given = function.args
                names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                assert len([one for one in names if one not in ("self", "cls")]) <= MOST_PARAMETERS, f"{path}: {name}"
                assert function.end_lineno - function.lineno < MOST_LINES, f"{path}: {name}"


@pytest.mark.parametrize(("package", "path"), list(sources()), ids=lambda value: str(getattr(value, "name", value)))
def test_runtimes_are_imported_inside_functions(package, path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.split(".")[0] in RUNTIME_PACKAGES for name in names), path


@pytest.mark.parametrize("command", ["clipq.evaluate.cli", "clipq.exporters.cli"])
def test_help_loads_nothing_heavy(command):
    code = f"import sys; from {command} import main; main(['--help'], standalone_mode=False)\n"
    heavy = (
        "[m for m in ('torch', 'onnxruntime', 'onnx', 'tensorrt', 'numpy', 'scipy', 'open_clip') if m in sys.modules]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + f"print('HEAVY', {heavy})"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("HEAVY []"), done.stdout


def compared_strings(tree):
    """Strings that are compared with or matched against, alone or in a tuple, list, set or dict written out there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue):
            yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))


@pytest.mark.parametrize(
    ("package", "path"),
    [(package, path) for package, path in sources() if package != "clipq.engines"],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_nobody_asks_for_a_runtimes_name(package, path):
    """What is wanted of a runtime is asked of its row: device, takes, can_simulate, … And its default is named once."""
    tree = ast.parse(path.read_text())
    assert not set(compared_strings(tree)) & set(RUNTIMES), f"{path} compares with a runtime's name"
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert DEFAULT_RUNTIME not in constants, f"{path} names the default runtime itself"
    tables = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name)} & {"PROVIDERS", "PACKAGES"}
    assert not tables or path.name == "environment.py", f"{path} asks {tables}, which are the engines' own"


@pytest.mark.parametrize(
    "code", ["x == 'ort-cpu'", "x in ('a', 'tensorrt')", "'ort-cuda' != x", "match x:\n case 'tensorrt-rtx': pass"]
)
def test_a_runtimes_name_is_seen_however_it_is_compared(code):
    assert set(compared_strings(ast.parse(code))) & set(RUNTIMES)


def test_packages_are_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for package, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(folder).parts]))
    assert listed - {"clipq.calib_data"} == found


@pytest.mark.parametrize("folder", ["engines", "exporters", "evaluate"])
def test_root_folders_say_what_to_import(folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); import {folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"installs as clipq.{folder}" in done.stderr


def test_no_module_shadows_a_package():
    third_party = {"onnxruntime", "onnx", "torch", "tokenizers", "safetensors", "rich", "click", "datasets", "tensorrt"}
    names = {path.stem for _, path in sources()}
    assert not names & third_party


def test_no_modules_import_each_other_in_a_circle():
    modules = {}
    for package, path in sources():
        parts = [package, *path.relative_to(FOLDERS[package]).with_suffix("").parts]
        modules[".".join(parts).removesuffix(".__init__")] = path
    graph = {}
    for module, path in modules.items():
        imported = set()
        for name, node in imports(path):
            submodules = {f"{name}.{alias.name}" for alias in node.names} & set(modules)
            imported |= submodules or ({name} & set(modules))
        graph[module] = imported - {module}
    list(TopologicalSorter(graph).static_order())


def test_views_and_groups_of_results_are_written_and_read_in_one_file():
    """Who writes or takes apart ``tower:image``, ``batch=8`` or ``NAME-c`` asks results/key.py; a table may explain them."""
    allowed = {ROOT / "evaluate" / "results" / "key.py", ROOT / "evaluate" / "metrics" / "table.py"}
    for path in set((ROOT / "evaluate").rglob("*.py")) - allowed:
        tree = ast.parse(path.read_text())
        said = {node.body[0].value for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said:
                found = [one for one in ("tower:", "batch=") if node.value.startswith(one)] + ["-c"] * (
                    node.value == "-c"
                )
                assert not found, f"{path}:{node.lineno} has {found}"
