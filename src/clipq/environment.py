"""The machine and the versions that a result depends on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """The machine and the versions that a result depends on."""
    packages = {}
    for package in (
        "clip-quant",
        "numpy",
        "pillow",
        "onnxruntime-gpu",
        "onnxruntime",
        "tokenizers",
        "scipy",
        "imagecorruptions-imaug",
        "tensorrt",
        "tensorrt-rtx",
        "cuda-bindings",
    ):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": packages,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
