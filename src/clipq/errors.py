"""Errors a user can act on. The command line prints their message as one line and exits with ``exit_code``.

::

    ClipqError
    ├── BundleError        a bundle is missing, damaged, or of a newer schema
    ├── CheckpointError    a checkpoint is unknown, unreachable, or cannot be exported
    ├── ParityError        an exported tower does not match the checkpoint
    ├── RecipeError        a quantization recipe cannot be applied as asked
    ├── BuildError         a runtime cannot make an engine of a bundle
    ├── RuntimeUnavailable a runtime is not installed or does not work on this machine
    ├── EngineError        an engine was fed wrongly or failed
    │   ├── OutOfMemory    the GPU has too little memory for this batch
    │   └── NotAnswered    an engine that ran elsewhere was not asked this, and cannot be now
    ├── DataError          images, labels, class names or captions cannot be used
    │   └── DataChanged    a file of them changed while it was read
    ├── ResultsError       a results folder is missing, damaged, or of a newer schema
    │   └── NotInResults   an engine, view, group or metric is not in these results (a KeyError too)
    └── PolicyError        a gate's policy cannot be read, or nothing can be judged by it
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Ends of lines, letters that steer a terminal, and letters that turn the order of what follows.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def spelled_out(text: str) -> str:
    """Text as it can be written: what is no UTF-8 in names of files, byte by byte."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """Text as it can be printed, in one line: names come from files, folders and data sets.

    >>> one_line("a\\x1b[2Jb")
    'a [2Jb'
    """
    return CONTROL.sub(" ", spelled_out(text))


class ClipqError(Exception):
    """What is wrong, which value, and the way out, in one line."""

    exit_code = 2

    def __init__(self, message: str):
        # Libraries' reasons, and names of files, may have several lines, letters that steer a terminal, and bytes that
        # are no letters.
        super().__init__(one_line(message).strip())


class BundleError(ClipqError):
    """A bundle is missing, damaged, or of a newer schema."""


class CheckpointError(ClipqError):
    """A checkpoint is unknown, unreachable, or cannot be exported."""


class ParityError(ClipqError):
    """An exported tower does not match the checkpoint."""


class RecipeError(ClipqError):
    """A quantization recipe cannot be applied as asked."""


class BuildError(ClipqError):
    """A runtime cannot make an engine of a bundle."""


class RuntimeUnavailable(ClipqError):
    """A runtime is not installed or does not work on this machine."""


class EngineError(ClipqError):
    """An engine was fed wrongly or failed."""


class OutOfMemory(EngineError):
    """The GPU has too little memory for this batch."""


class NotAnswered(EngineError):
    """An engine that ran elsewhere was not asked this, and cannot be now: it is absent from what is measured."""


class DataError(ClipqError):
    """Images, labels, class names or captions cannot be used."""


class DataChanged(DataError):
    """A file of images is not, or no longer, what its digest was taken of; leaving it out would be no way out."""


class ResultsError(ClipqError):
    """A results folder is missing, damaged, or of a newer schema."""


class NotInResults(ResultsError, KeyError):
    """An engine, view, group or metric is not in these results."""

    # A KeyError shows its message in quotes.
    __str__ = Exception.__str__


class PolicyError(ClipqError):
    """A gate's policy cannot be read, or nothing can be judged by it."""


def raise_together(errors: Sequence[ClipqError]) -> None:
    """Raise all that is wrong in one line, as the first one's class; nothing where there are no errors."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise type(errors[0])("; ".join(dict.fromkeys(map(str, errors))))
