"""clipq-eval: engine to cells to metrics to record to report.

Called, it evaluates bundles and compares them with the FP32 one among them, as ``clipq-eval run`` does:
``clipq.evaluate(bundles, data="photos/test", output="results")``. On what is either ``data``, labelled images
(``"photos/test"``, ``"NAME=SOURCE"``, or a list), or ``suite``: a file, a built-in name, or a ``clipq.Suite``;
``settings`` say how. Returns the results; docs/python.md says what can be asked of them.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any

if not __name__.startswith("clipq."):
    raise ImportError("this folder installs as clipq.evaluate: pip install . and import that, not the folder")


class _CallableModule(ModuleType):
    """The package, which is also the function: importing any module below it makes it an attribute of ``clipq``."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("clipq.evaluate.api").evaluate(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        # What notebooks and editors show of it.
        return signature(import_module("clipq.evaluate.api").evaluate)


sys.modules[__name__].__class__ = _CallableModule
