"""The prompts that every bundle is given are open_clip's, and need no open_clip."""

from __future__ import annotations

from importlib.resources import files

import pytest

from clipq.exporters.prompts import shipped_prompts, write_prompts


def test_prompts_are_open_clips():
    ours = pytest.importorskip("open_clip.zero_shot_metadata", reason="needs the export extra")
    assert shipped_prompts() == {
        "templates": {
            "imagenet-80": [template("{}") for template in ours.OPENAI_IMAGENET_TEMPLATES],
            "simple-7": [template("{}") for template in ours.SIMPLE_IMAGENET_TEMPLATES],
        },
        "class_names": {"imagenet-1k": list(ours.IMAGENET_CLASSNAMES)},
    }


def test_a_bundles_file_is_the_shipped_one_or_has_other_class_names(tmp_path):
    """Byte by byte: bundles are told apart by its digest."""
    write_prompts(tmp_path / "prompts.json")
    shipped = files("clipq.exporters").joinpath("prompts.json").read_bytes()
    assert (tmp_path / "prompts.json").read_bytes() == shipped
    write_prompts(tmp_path / "prompts.json", {"demo": ["é"]})
    assert '"class_names": {\n  "demo": [\n   "é"\n  ]\n }\n}\n' in (tmp_path / "prompts.json").read_text("utf-8")
