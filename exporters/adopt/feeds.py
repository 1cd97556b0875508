"""How samples become what a tower takes, as fields: a mistake in preparing them is another value of a field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from typing_extensions import Self

from clipq.bundle import Bundle, Preprocess
from clipq.engines.base import Array
from clipq.errors import BundleError
from clipq.exporters.adopt.samples import Samples
from clipq.preprocess import normalize
from clipq.text_files import read_json
from clipq.tokenizer import TextTokenizer, clean

Triple = tuple[float, float, float]
# Numbers of samples, or all of them.
Rows = NDArray[np.int64] | slice
ALL = slice(None)


@dataclass(frozen=True)
class PixelFeed:
    """Images as a tower takes them: the manifest's preprocessing, and the order of the channels.

    ``reversed``: blue first, ``before`` normalization or ``after`` it.
    """

    config: Preprocess
    reversed: str = ""

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """As a bundle's manifest says."""
        return cls(bundle.manifest.preprocess)

    def change(self, **fields: Any) -> Self:
        """With other preprocessing. Not validated: what mistakes make of mean and std need not be a manifest's."""
        return replace(self, config=self.config.model_copy(update=fields))

    def arrays(self, samples: Samples, rows: Rows = ALL) -> Array:
        """float32 ``(images, 3, height, width)``; of some rows alone."""
        pixels = samples.crops(self.config)[rows]
        if self.reversed == "before":
            pixels = pixels[..., ::-1]
        values = normalize(pixels, self.config)
        return np.ascontiguousarray(values[:, ::-1]) if self.reversed == "after" else values


class Words:
    """A bundle's tokenizer without what it puts around a text and cuts off: cleaning, normalizing, vocabulary."""

    def __init__(self, bundle: Bundle):
        entry = bundle.manifest.tokenizer
        # Read by the class that refuses what is no tokenizer, in one line.
        TextTokenizer(bundle)
        state = read_json(bundle.path / entry.file, BundleError, "make the bundle again")
        self.padding, self.truncation = state["padding"] or {}, state["truncation"] or {}
        self._cleaning = entry.cleaning
        self._tokenizer = Tokenizer.from_str(json.dumps({**state, "padding": None, "truncation": None}))

    def ids(self, texts: Sequence[str], *, around: bool = False) -> list[list[int]]:
        """Ids of each text, as long as it is; with ``around``, the tokens put around it."""
        cleaned = [clean(text, self._cleaning) for text in texts]
        return [one.ids for one in self._tokenizer.encode_batch(cleaned, add_special_tokens=around)]


@dataclass(frozen=True)
class TextFeed:
    """Texts as a tower takes them.

    ``words`` give the ids of a text; ``start`` and ``end`` are put around it, ``longest`` tokens are kept (the last
    ones if ``cut_left``), and the tower's ``context`` is filled with ``pad`` (in front if ``pad_left``).
    """

    words: Words
    context: int
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    pad: int = 0
    pad_left: bool = False
    longest: int = 0
    cut_left: bool = False
    dtype: Any = np.int64

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """As a bundle's tokenizer does it, read off its file and off what it puts around a word."""
        words, context = Words(bundle), bundle.manifest.tokenizer.context_length
        ((inner,), (outer,)) = words.ids(["a"]), words.ids(["a"], around=True)
        at = next((i for i in range(len(outer)) if outer[i : i + len(inner)] == inner), 0)
        return cls(
            words,
            context,
            start=tuple(outer[:at]),
            end=tuple(outer[at + len(inner) :]),
            pad=int(words.padding.get("pad_id", 0)),
            pad_left=words.padding.get("direction") == "Left",
            longest=min(int(words.truncation.get("max_length", context)), context),
            cut_left=words.truncation.get("direction") == "Left",
            dtype=np.dtype(bundle.manifest.text.input_dtype),
        )

    def arrays(self, samples: Samples, rows: Rows = ALL) -> Array:
        """Ids ``(texts, context)``; of some rows alone."""
        texts: list[str] = np.array(samples.texts, object)[rows].tolist()
        array = np.full((len(texts), self.context), self.pad, self.dtype)
        room = max(min(self.longest, self.context) - len(self.start) - len(self.end), 0)
        for row, inner in zip(array, self.words.ids(texts), strict=True):
            kept = inner[max(len(inner) - room, 0) :] if self.cut_left else inner[:room]
            ids = (*self.start, *kept, *self.end)[: self.context]
            row[self.context - len(ids) if self.pad_left else 0 :][: len(ids)] = ids
        return array


@dataclass(frozen=True, eq=False)
class IdFeed:
    """Ids as a tokenizer gives them that does it in another way than ``TextFeed`` says."""

    ids: NDArray[Any]
    end: tuple[int, ...] = ()

    def arrays(self, samples: Samples, rows: Rows = ALL) -> Array:
        """Ids ``(texts, context)``; of some rows alone."""
        return self.ids[rows]
