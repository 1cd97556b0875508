"""Texts on which tokenizers differ, and ordinary ones."""

from __future__ import annotations

import random

import pytest

HARD = [
    "", " ", "a", "\n\t", "Café naïve Zürich ÅÉ", "日本語のテキスト", "한국어 문장", "Привет, мир!", "عربي נסיון",
    "😀 emoji 🐶🐱 👨‍👩‍👧‍👦 🇫🇷", "&lt;b&gt; &amp;amp; &eacute; &#128512;", "it's we're they'll I'D YOU'VE don't", "<start_of_text> x <end_of_text>",
    "<|endoftext|>", "<START_OF_TEXT>", "1234567890 3.14 1,000 ½ ² Ⅷ", "a" * 10_000, "word " * 2_000, "tab\tnew\nline\r\nend", "...!!!???---___",
    "schön â€™ mojibake Ã©", "\u200bzero\u200dwidth\u00a0space", "ﬁ ligature Ǆ ß İ ı", "C++ & C# <html> {}[]", "\u0301combining e\u0301", "'s 'S 'ſ", "ſ",
]  # fmt: skip


def strings():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    rng = random.Random(0)
    texts = list(HARD)
    while len(texts) < 1900:
        texts.append(rng.choice(metadata.OPENAI_IMAGENET_TEMPLATES)(rng.choice(metadata.IMAGENET_CLASSNAMES)))
    alphabet = [chr(c) for c in range(32, 127)] + list("éüñçßÆøλЖשم日本語ก🎉½²€—“”…")
    while len(texts) < 2000:
        texts.append("".join(rng.choices(alphabet, k=rng.randint(1, 120))))
    return texts
