"""What can be exported and how: checkpoints, recipes, runtimes and sources, each with its state on this machine."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from clipq.bundle import open_bundle
from clipq.cpu import cpu_level, spoken
from clipq.data.open import SCHEMES
from clipq.engines.catalog import RUNTIMES
from clipq.errors import CheckpointError
from clipq.exporters import recipes
from clipq.hints import sentences


def known_checkpoints() -> list[str]:
    """``MODEL/TAG`` of everything open_clip knows; raises CheckpointError where it is not installed."""
    if not _can_export():
        raise CheckpointError("open_clip is not installed: pip install 'clip-quant[export]'")
    import open_clip

    return [f"{model}/{tag}" for model, tag in open_clip.list_pretrained()]


def overview() -> list[dict[str, Any]]:
    """Rows ``kind, name, state, detail`` for the table of ``clipq-export list``.

    ``state`` is ``run`` or ``no``, and for runtimes that make plans here but cannot run them ``built``.
    """
    can_export = _can_export()
    missing = "needs torch and open_clip: pip install 'clip-quant[export]'"
    built_in = "the built-in bundle, for quantize alone; exporting its checkpoint needs torch and open_clip"
    forms = {
        "demo": "the built-in checkpoint",
        "MODEL/TAG": "any of open_clip's (clipq-export list --checkpoints)",
        "hf-hub:ORG/REPO": "an open_clip checkpoint on the Hugging Face hub",
        "transformers:ORG/REPO": "a checkpoint of transformers: CLIP, SigLIP and their kin",
        "local-dir:PATH": "a folder with open_clip_config.json and weights, or one that transformers saved",
    }
    rows: list[dict[str, Any]] = [
        {
            "kind": "checkpoint",
            "name": name,
            "state": "run" if can_export or name == "demo" else "no",
            "detail": detail if can_export else built_in if name == "demo" else missing,
        }
        for name, detail in forms.items()
    ]
    rows.append({"kind": "recipe", "name": "fp32", "state": "run", "detail": "the reference; always made"})
    for recipe in recipes.KINDS:
        detail = f"{recipe.summary}{_options(recipe)}"
        usable = not issubclass(recipe, recipes.ModelOpt) or find_spec("modelopt") is not None
        needs = "" if usable else "needs pip install 'clip-quant[modelopt]' in an environment of its own; "
        state = "run" if usable else "no"
        rows.append({"kind": "recipe", "name": recipe.name, "state": state, "detail": f"{needs}{detail}"})
    rows.append({"kind": "cpu", "name": cpu_level().name, "state": "run", "detail": spoken(cpu_level().name)})
    for runtime in RUNTIMES.values():
        status = runtime.status()
        rows.append(
            {
                "kind": "runtime",
                "name": runtime.name,
                "state": status.state,
                "detail": f"{runtime.summary}: {status.detail}",
            }
        )
    for scheme in SCHEMES.values():
        options = ", ".join(f"{name}={value}" for name, value in scheme.options.items())
        detail = f"{scheme.help} [{options}]" if options else scheme.help
        needs, state = (f"{scheme.missing}; ", "no") if scheme.missing else ("", "run")
        rows.append({"kind": "source", "name": scheme.form, "state": state, "detail": f"{needs}{detail}"})
    return rows


def bundle_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The same rows of bundles, one and then one for each of its hints; raises BundleError where one is none."""
    rows = []
    for bundle in map(open_bundle, paths):
        manifest = bundle.manifest
        size = manifest.size / 1e6
        detail = f"{manifest.checkpoint.name}, {manifest.recipe.name}, {manifest.recipe.scheme.widths}, {size:.1f} MB"
        state = "run" if bundle.built_for is None else bundle.built_for
        rows.append({"kind": "bundle", "name": bundle.name, "state": state, "detail": detail})
        rows += [
            {"kind": "bundle", "name": bundle.name, "state": "hint", "detail": said}
            for said in sentences(manifest.hints)
        ]
    return rows


def _can_export() -> bool:
    return find_spec("torch") is not None and find_spec("open_clip") is not None


def _options(recipe: type[recipes.Recipe]) -> str:
    parts = [f"{option}={'|'.join(values)}" for option, values in option_values(recipe).items()]
    return f" [{', '.join(parts)}]" if parts else ""


def option_values(recipe: type[recipes.Recipe]) -> dict[str, tuple[str, ...]]:
    """What each option of a recipe takes, its default first; a number's default alone."""
    types = typing.get_type_hints(recipe)
    found = {}
    for field in dataclasses.fields(recipe):
        kind = types[field.name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else (False, True) if kind is bool else ()
        found[field.name] = tuple(str(value).lower() for value in dict.fromkeys((field.default, *choices)))
    return found
