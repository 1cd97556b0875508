"""Engines kept open from one view to the next."""

from __future__ import annotations

import json
from collections import OrderedDict

from clipq.bundle import TowerName
from clipq.engines.base import Engine
from clipq.evaluate.cells.subjects import Subject


class OpenEngines:
    """Loads an engine when it is first asked for and keeps it; a file that several subjects share is loaded once.

    With ``most``, that many stay open and the one that was not used for longest is closed for the next.
    """

    def __init__(self, most: int | None = None):
        self._most = most
        self._engines: OrderedDict[str, Engine] = OrderedDict()

    def get(self, subject: Subject, tower: TowerName) -> Engine:
        """A subject's tower; raises EngineError where it cannot be loaded."""
        key = json.dumps([subject.identity(tower), tower, subject.threads, subject.graphs], sort_keys=True)
        if key not in self._engines:
            while self._most is not None and len(self._engines) >= self._most:
                self._engines.popitem(last=False)[1].close()
            self._engines[key] = subject.open(tower)
        self._engines.move_to_end(key)
        return self._engines[key]

    def close(self) -> None:
        """Free them all."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
