from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import CALIBRATION, DEMO_BUNDLE, RECIPES, SHARED, export

# Files of a minute and more. They start first, the longest before the others, so that both workers end together.
LONG = (
    "test_tutorial.py", "test_families.py", "test_demo_report.py", "test_axes.py", "test_run.py", "test_readme.py", "test_benchmarks.py",
    "test_build.py", "test_diagnosis.py", "test_adopt.py", "test_attacks.py", "test_calibrators.py", "test_sweep.py", "test_report.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    # Else pytest-xdist starts files with many tests first, and the longest have few.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def pixel_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands of a test run share a pixel cache, and leave the user's alone."""
    os.environ["CLIPQ_PIXEL_CACHE"] = str(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint by every recipe, made through the command line."""
    folder = tmp_path_factory.mktemp("bundles")
    shutil.copytree(DEMO_BUNDLE, folder / "fp32")
    flags = [flag for recipe in RECIPES.values() for flag in ("--recipe", recipe)]
    done = export("quantize", str(folder / "fp32"), "--calibration-set", str(CALIBRATION), *flags)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine (photos and a model for trials)")
    return SHARED
