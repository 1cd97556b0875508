"""What a machine's numbers depend on beside inputs and GPU, and in what another machine differs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipq import __version__
from clipq.cpu import cpu_level
from clipq.engines.catalog import known_runtime
from clipq.errors import RuntimeUnavailable
from clipq.evaluate.suites.corruptions import drawing_versions
from clipq.made_by import makers


def software(runtimes: Collection[str]) -> dict[str, Any]:
    """What makes numbers on this machine, by name: clipq itself, libraries, and the runtimes that are asked for."""
    found = {"clipq": f"{__version__} (code {source_digest()[:8]})", **drawing_versions()}
    for runtime in runtimes:
        try:
            found[runtime] = str(known_runtime(runtime).version())
        except RuntimeUnavailable as error:
            found[runtime] = f"nothing ({error})"
    on_cpu = any(known_runtime(runtime).device == "cpu" for runtime in runtimes)
    return {**found, **({"cpu": cpu_level().name} if on_cpu else {}), **makers("image"), **makers("text")}


@cache
def source_digest() -> str:
    """SHA-256 of clipq's own code as it is imported here, installed or from a checkout."""
    state = hashlib.sha256()
    sources: dict[str, bytes] = {}
    for package in ("clipq", "clipq.engines", "clipq.evaluate"):
        found = find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            for path in Path(folder).rglob("*.py"):
                sources[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    for name in sorted(sources):
        # Of a wheel these lie below clipq, of a checkout elsewhere; they fill no cells.
        if not name.startswith("clipq/exporters/"):
            state.update(f"{name}\0{hashlib.sha256(sources[name]).hexdigest()}\n".encode())
    return state.hexdigest()


def refusal(planned: Mapping[str, Any], here: Mapping[str, Any], who: str = "this machine") -> str:
    """Why a machine must not fill cells that were planned with something else; nothing where it has the same."""
    other = [
        f"{name} {here.get(name, 'nothing')} in place of {planned.get(name, 'nothing')}"
        for name in sorted({*planned, *here})
        if planned.get(name) != here.get(name)
    ]
    if not other:
        return ""
    way_out = "give only machines of one CPU level" if planned.get("cpu") != here.get("cpu") else ""
    way_out = way_out or "install there what the command has"
    return f"{who} would give other numbers than planned, with {', '.join(other)}; {way_out}"
