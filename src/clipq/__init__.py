"""clipq: what quantization changed in a CLIP engine, measured on the engine that ships.

What ``__all__`` names is for users, and loaded when it is first asked for; everything else may change without notice.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipq import metrics
    from clipq.bundle import open_bundle
    from clipq.errors import ClipqError
    from clipq.evaluate.api import compare, evaluate, export_cells, gate, import_cells, read_results
    from clipq.evaluate.arrays import compare_predictions
    from clipq.evaluate.settings import Settings
    from clipq.evaluate.suites.schema import CorruptionsEntry as Corruptions
    from clipq.evaluate.suites.schema import Suite
    from clipq.evaluate.suites.schema import ViewEntry as View
    from clipq.exporters.adopt.foreign import ForeignEngine
    from clipq.exporters.api import adopt, export, quantize

__version__ = "0.1.0"

__all__ = [
    "ClipqError", "Corruptions", "ForeignEngine", "Settings", "Suite", "View", "__version__", "adopt", "compare",
    "compare_predictions", "evaluate", "export", "export_cells", "gate", "import_cells", "metrics", "open_bundle",
    "quantize", "read_results",
]  # fmt: skip

# By name, for the base imports none of its parts. ``evaluate`` is the package, which can be called.
_FROM = {
    "ClipqError": "clipq.errors:ClipqError",
    "Corruptions": "clipq.evaluate.suites.schema:CorruptionsEntry",
    "ForeignEngine": "clipq.exporters.adopt.foreign:ForeignEngine",
    "Settings": "clipq.evaluate.settings:Settings",
    "Suite": "clipq.evaluate.suites.schema:Suite",
    "View": "clipq.evaluate.suites.schema:ViewEntry",
    "adopt": "clipq.exporters.api:adopt",
    "compare": "clipq.evaluate.api:compare",
    "compare_predictions": "clipq.evaluate.arrays:compare_predictions",
    "evaluate": "clipq.evaluate:",
    "export": "clipq.exporters.api:export",
    "export_cells": "clipq.evaluate.api:export_cells",
    "gate": "clipq.evaluate.api:gate",
    "import_cells": "clipq.evaluate.api:import_cells",
    "metrics": "clipq.metrics:",
    "open_bundle": "clipq.bundle:open_bundle",
    "quantize": "clipq.exporters.api:quantize",
    "read_results": "clipq.evaluate.api:read_results",
}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"clipq has no {name!r}")
    module, _, attribute = _FROM[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return __all__
