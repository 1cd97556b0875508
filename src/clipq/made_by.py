"""What numbers depend on beside their inputs: clipq's own way of making them, and the libraries that take part.

Pixels and embeddings are kept under keys that hold these, so that what another version made is made anew and never
mixed in. What belongs to one engine (its files, runtime and threads) stands in the key beside them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipq.bundle import TowerName

# Raise it when clipq itself makes other pixels, token ids, embeddings or attacks of the same inputs: whatever was kept
# is then made anew. tests/base/test_made_by.py holds what this number stands for, and fails when that changes.
NUMBERS = 1


def makers(tower: TowerName) -> dict[str, Any]:
    """What makes pixels and what becomes of them (``image``), or token ids and what becomes of them (``text``)."""
    import numpy as np

    made_by = {"numbers": NUMBERS, "numpy": np.__version__}
    return {**made_by, **(_image_makers() if tower == "image" else _text_makers())}


def _image_makers() -> dict[str, Any]:
    import PIL

    return {"pillow": PIL.__version__, "decoders": _decoders()}


@cache
def _decoders() -> str:
    """The libraries that Pillow was built with: one Pillow reads a JPEG in other ways on another system."""
    from PIL import features

    names = ("avif", "jpg", "jpg_2000", "libjpeg_turbo", "libtiff", "webp")
    return ", ".join(f"{name} {features.version(name)}" for name in names if features.version(name))


def _text_makers() -> dict[str, Any]:
    import unicodedata

    import ftfy
    import tokenizers

    # Python's own tables say what a small letter and a space are.
    return {
        "ftfy": ftfy.__version__,
        "tokenizers": tokenizers.__version__,
        "unicode": unicodedata.unidata_version,
    }
