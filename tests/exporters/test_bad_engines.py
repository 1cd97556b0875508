"""Engines that cannot be adopted: one line that names what is wrong, exit code 2, and nothing written."""

from __future__ import annotations

import pytest
from bad_engines import BAD
from foreign_layouts import pair
from support import DEMO_BUNDLE, assert_refused, export


@pytest.mark.parametrize("write", BAD, ids=lambda write: write.__name__)
def test_refused(tmp_path, write):
    words = write(tmp_path / "engine")
    done = export("adopt", tmp_path / "engine", "--like", DEMO_BUNDLE, "-o", tmp_path / "bundle")
    assert_refused(done, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine"]


def test_what_no_file_says_is_asked_for(tmp_path):
    done = export("adopt", pair(tmp_path / "engine"), "-o", tmp_path / "bundle")
    assert_refused(done, "preprocessor_config.json", "--like")
