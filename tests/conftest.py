from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import CALIBRATION, DEMO_BUNDLE, RECIPES, SHARED, export


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
