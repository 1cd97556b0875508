"""Items made while the one before is used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

_END: Any = object()


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """The items in order, each made in a thread while the one before is used; two exist at once.

    An item is begun when the one before it is handed out, so what made the second before it is free again. What making
    an item raises, is raised where it would have been handed out.

    >>> list(ahead(number * number for number in range(4)))
    [0, 1, 4, 9]
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "ahead") as maker:
        pending = maker.submit(lambda: next(source, _END))
        while (item := pending.result()) is not _END:
            pending = maker.submit(lambda: next(source, _END))
            yield item
