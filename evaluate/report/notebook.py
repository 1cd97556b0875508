"""What a notebook shows: rows as a data frame, verdicts as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from clipq.errors import ClipqError

if TYPE_CHECKING:
    import pandas as pd


def data_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a data frame; raises ClipqError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ClipqError("to_pandas needs pandas: pip install 'clip-quant[pandas]' (rows() needs nothing)") from error
    return pd.DataFrame(rows)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """A table whose first column is a heading; all text is escaped, for names come from folders and data sets."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{said}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
