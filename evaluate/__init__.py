"""clipq-eval: engine to cells to metrics to record to report; called, it is ``clipq.evaluate.api.evaluate``."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

if not __name__.startswith("clipq."):
    raise ImportError("this folder installs as clipq.evaluate: pip install . and import that, not the folder")


class _CallableModule(ModuleType):
    """The package, which is also the function: importing any module below it makes it an attribute of ``clipq``."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("clipq.evaluate.api").evaluate(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
