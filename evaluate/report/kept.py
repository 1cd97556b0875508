"""What takes a while to make and is the same for a version of its makers, kept between processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clipq.errors import ResultsError
from clipq.files import write_atomic

FOLDER = Path("~/.cache/clipq")


def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; bundling them takes seconds.

    Raises ResultsError where the package that bundles them is missing.
    """

    def bundle() -> str:
        import vl_convert

        # The stub calls the snippet mandatory; without one the bundle is the three libraries themselves.
        script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
        return script

    return _kept(f"vega-{_version('vl-convert-python')}.js", bundle, whole=bool)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ResultsError(
            f"the page's charts need the package {package}: pip install {package}; then clipq-eval report RESULTS "
            "writes the page of results that are there"
        ) from error


def _kept(name: str, make: Callable[[], str], whole: Callable[[str], bool]) -> str:
    path = FOLDER.expanduser() / name
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = path.read_text("utf-8")
        # A power cut can leave an empty file behind.
        if whole(text):
            return text
    text = make()
    with contextlib.suppress(OSError):
        write_atomic(path, text)
    return text
