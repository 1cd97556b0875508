"""The machine and the versions that a result depends on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipq.cpu import DECISIVE, cpu_features, cpu_level
from clipq.made_by import makers

# Distributions of one library, of which one is installed.
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
# What draws corruptions.
DRAWING = ("imagecorruptions-imaug", "numpy", "pillow", "scipy", "scikit-image", "numba", *OPENCV)
PACKAGES = (
    "clip-quant", *DRAWING, "tokenizers", "ftfy", "tensorrt", "tensorrt-rtx", "cuda-bindings", "cupti-python",
)  # fmt: skip
# NVIDIA's libraries come as packages of their own, named with CUDA's version up to 12: nvidia-cublas-cu12.
_NVIDIA = re.compile(r"nvidia-(cublas|cudnn|cuda-cupti|cuda-runtime)(-cu\d+)?")


def environment() -> dict[str, Any]:
    """CPU, cores, system, Python, and the versions of the packages that compute; names as pip knows them.

    ``made_by`` is what is part of every cell's key.
    """
    packages = _versions((*PACKAGES, *_nvidia_packages()))
    if found := onnxruntime_package():
        packages[found[0]] = found[1]
    return {
        "cpu": _cpu_name(),
        "cpu_level": cpu_level().name,
        "cpu_features": [name for name in DECISIVE if name in cpu_features()],
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": packages,
        "made_by": {**makers("image"), **makers("text")},
    }


def gpu_libraries() -> dict[str, str]:
    """The versions of the libraries whose kernels compute on a GPU."""
    kernels = [name for name in _nvidia_packages() if "cublas" in name or "cudnn" in name]
    return _versions(("tensorrt", "tensorrt-rtx", *kernels))


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def onnxruntime_package() -> tuple[str, str] | None:
    """Package and version of the ONNX Runtime that is imported, or None.

    ``onnxruntime`` and ``onnxruntime-gpu`` install into one folder: where both are listed, only that folder's own file
    says which it is; it is read, not imported.
    """
    found = find_spec("onnxruntime")
    for folder in (found.submodule_search_locations or ()) if found else ():
        with suppress(OSError):
            text = (Path(folder) / "capi" / "build_and_package_info.py").read_text()
            said = dict(re.findall(r"^(package_name|__version__) = ['\"](.+)['\"]", text, re.M))
            if len(said) == 2:
                return said["package_name"], said["__version__"]
    return None


@cache
def _nvidia_packages() -> list[str]:
    names = {found.metadata["Name"] or "" for found in distributions()}
    return sorted(name for name in names if _NVIDIA.fullmatch(name))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
