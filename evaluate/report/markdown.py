"""Untrusted text in Markdown."""

from __future__ import annotations

from clipq.errors import one_line


def plain(text: str) -> str:
    """Text that is no markup in Markdown or HTML and stays in its line: names come from folders and data sets.

    >>> plain("a|<b>")
    'a\\\\|\\\\<b\\\\>'
    """
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#&" else char for char in " ".join(one_line(text).split()))
