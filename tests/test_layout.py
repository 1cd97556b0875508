"""The architecture's rules, read off the source by ast and off fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

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
TORCH_MODULES = {
    "checkpoints",
    "towers",
    "graph",
    "tokenizer_file",
    "onnx_bundle",
    "train_demo",
    "cli",
    "catalog",
    "attacks",
}
RUNTIME_PACKAGES = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "cupti", "pynvml", "modelopt"}
CLICK_MODULES = {"cli", "console"}


def part_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and f"clipq.{parts[1]}" in FOLDERS else "clipq"


def sources():
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            yield package, path


def imports(path):
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
            assert path.stem in CLICK_MODULES, f"{path} imports click"


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
