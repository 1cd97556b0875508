"""The prompt templates and class names of every bundle: open_clip's, as ``prompts.json`` has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any


def shipped_prompts() -> dict[str, Any]:
    """Templates by set (``{}`` stands for the class name) and class names by data set, as a bundle's file has them."""
    found: dict[str, Any] = json.loads(files("clipq.exporters").joinpath("prompts.json").read_text("utf-8"))
    return found


def write_prompts(target: Path, class_names: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write a bundle's file; with ``class_names``, those in place of ImageNet's."""
    prompts = shipped_prompts() | ({} if class_names is None else {"class_names": class_names})
    target.write_text(json.dumps(prompts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
