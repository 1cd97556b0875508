"""Text to token ids from the bundle's ``tokenizer.json``, without torch, with the same ids as the checkpoint's own."""

from __future__ import annotations

import html
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ftfy
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from clipq.bundle import Bundle
from clipq.errors import BundleError
from clipq.progress import quiet_stderr

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str, cleaning: str) -> str:
    """open_clip's text cleaning: mend the encoding, unescape HTML twice, fold white space; then lower or canonicalize.

    With "none" a text stays as it is: its tokenizer's file does all that is done.

    >>> clean("  Caf&eacute;  &amp;amp; BAR ", "lower")
    'café & bar'
    >>> clean("A_photo, of a CAT!", "canonicalize")
    'a photo of a cat'
    """
    if cleaning == "none":
        return text
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    if cleaning == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    text = " ".join(text.split())
    return text.lower() if cleaning == "lower" else text


class TextTokenizer:
    """A bundle's tokenizer: texts in, fixed-length rows of ids out."""

    def __init__(self, bundle: Bundle):
        self._entry = bundle.manifest.tokenizer
        self._dtype = np.dtype(bundle.manifest.text.input_dtype)
        self._path, wanted = bundle.path / self._entry.file, self._entry.context_length
        with self._refused("not a tokenizer file"), quiet_stderr():
            self._tokenizer = Tokenizer.from_file(str(self._path))
            padding = self._tokenizer.padding or {}
            lengths = {padding.get("length") or wanted, padding.get("pad_to_multiple_of") or wanted}
            # Before anything is padded: what they say might fill the memory.
            if max(lengths) <= wanted:
                lengths = {len(self._tokenizer.encode(text).ids) for text in ("a", "a " * wanted)}
            dropout = getattr(self._tokenizer.model, "dropout", None)
        if dropout:
            raise BundleError(
                f"{self._path}: leaves out merges at random (dropout {dropout:g}), as for training, so that a text has "
                "other ids every time; set its dropout to null, and make the bundle again"
            )
        if lengths != {wanted}:
            raise BundleError(
                f"{self._path}: gives {' and '.join(map(str, sorted(lengths)))} tokens, the manifest says {wanted} of "
                "every text; make the bundle again"
            )

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Ids of each text, ``(len(texts), context_length)``, padded and truncated as the file says."""
        cleaned = [clean(text, self._entry.cleaning) for text in texts]
        with self._refused("cannot tokenize what it was given"):
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch(cleaned)]
        return np.array(rows, dtype=self._dtype).reshape(len(rows), self._entry.context_length)

    def mask(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """1 where a token is one of the text and 0 where it pads, of rows of ids that this tokenizer gave.

        A text that ends in what pads, spelled out, cannot be told from one that is padded once more.
        """
        padding = self._tokenizer.padding
        if padding is None:
            return np.ones(ids.shape, np.int64)
        known = self._tokenizer.encode("a")

        def run(rows: NDArray[Any]) -> NDArray[np.int64]:
            """How many ids on the side of the padding are the one that pads."""
            outwards = rows[:, ::-1] if padding["direction"] == "right" else rows
            return np.logical_and.accumulate(outwards == padding["pad_id"], axis=1).sum(1)

        # CLIP pads with the token that ends a text: then one of those at the end of a row is no padding.
        kept = run(np.array([known.ids])) - known.attention_mask.count(0)
        pads = np.maximum(run(ids) - kept, 0)
        mask = (np.arange(ids.shape[1]) < ids.shape[1] - pads[:, None]).astype(np.int64)
        return mask if padding["direction"] == "right" else mask[:, ::-1]

    @contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            raise BundleError(f"{self._path}: {what} ({error}); make the bundle again") from error
