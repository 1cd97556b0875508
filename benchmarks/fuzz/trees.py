"""Trees of JSON and TOML made wrong: one place of them, or the text that they are written as."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

Path = tuple[str | int, ...]

NUMBERS = (
    0, -1, 1, 2, -(2**31), 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf,
)  # fmt: skip
TEXTS = (
    "", " ", ".", "..", "../../letter.txt", "/etc/hostname", "/dev/zero", "/proc/self/mem", "a\nb", "a\0b", "a\x1b[31mb", "x" * 300,
    "x" * 100_000, "é", "\u202eabc", "=1+1", "-o", "*", "[", "{}", "{0.__class__}", "%s", "nan", "None", "C:\\x", "a/b", "\ud800",
    "file:///etc/passwd", "http://127.0.0.1:9/x", "~", "$HOME",
)  # fmt: skip


def places(tree: Any, here: Path = ()) -> Iterator[Path]:
    """Every place in a tree below its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from places(value, (*here, key))


def at(tree: Any, place: Path) -> Any:
    """What stands at a place."""
    for key in place:
        tree = tree[key]
    return tree


def changed(tree: Any, rng: Random, *, json_only: bool = True) -> tuple[Any, Path, str]:
    """A copy with one place changed, the place, and what was done there; never an equal copy."""
    while True:
        copy = deepcopy(tree)
        # A tree of many numbers has few places of other kinds: choose the depth first.
        depths: dict[int, list[Path]] = {}
        for one in places(copy):
            depths.setdefault(len(one), []).append(one)
        place = rng.choice(depths[rng.choice(list(depths))])
        done = _change(copy, place, rng)
        if done and as_json(copy) != as_json(tree):
            return copy, place, done


def _change(tree: Any, place: Path, rng: Random) -> str:
    holder, key = at(tree, place[:-1]), place[-1]
    value = holder[key]
    way = rng.choice(("drop", "retype", "retype", "value", "value", "value", "nest", "add", "swap"))
    if way == "drop":
        del holder[key]
    elif way == "retype":
        holder[key] = rng.choice((None, True, 0, "text", [], {}, [value], {"a": value}, str(value), [[[]]]))
    elif way == "value" and isinstance(value, bool):
        holder[key] = not value
    elif way == "value" and isinstance(value, (int, float)):
        holder[key] = rng.choice((*NUMBERS, value + 1, -value, value * 1e6))
    elif way == "value" and isinstance(value, str):
        holder[key] = rng.choice((*TEXTS, value + "x", value[:-1], value.upper(), value * 2, f"../{value}"))
    elif way == "value" and isinstance(value, list) and value:
        holder[key] = rng.choice((value[:-1], value * 2, value[::-1], value * 1000))
    elif way == "nest":
        deep = rng.choice((3, 50, 2000))
        holder[key] = nested(deep)
    elif way == "add" and isinstance(value, dict):
        value[rng.choice((*TEXTS[:8], "unknown", "name "))] = rng.choice((None, 1, "x"))
    elif way == "swap":
        other = rng.choice(
            [one for one in places(tree) if one[: len(place)] != place and place[: len(one)] != one] or [place]
        )
        holder[key] = deepcopy(at(tree, other))
    else:
        return ""
    shown = repr(holder[key])[:60] if way not in ("drop", "add", "nest") else ""
    return f"{way} {'.'.join(map(str, place))} {shown}".strip()


def nested(depth: int) -> Any:
    """Lists in lists."""
    tree: Any = []
    for _ in range(depth):
        tree = [tree]
    return tree


def neutral(tree: Any, rng: Random) -> tuple[str, str]:
    """JSON that says the same in another form, and which."""
    way = rng.choice(("indent", "compact", "order", "escapes"))
    if way == "order":
        return json.dumps(shuffled(tree, rng)), way
    return json.dumps(tree, indent=7 if way == "indent" else None, ensure_ascii=way != "escapes"), way


def shuffled(tree: Any, rng: Random) -> Any:
    """The same tree with its keys in another order."""
    if isinstance(tree, dict):
        return {key: shuffled(tree[key], rng) for key in rng.sample(list(tree), len(tree))}
    return [shuffled(one, rng) for one in tree] if isinstance(tree, list) else tree


def as_json(tree: Any) -> str:
    """JSON of any depth, which the library's own writer is not."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {as_json(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return _as_list(tree, as_json)
    return json.dumps(tree)


def _as_list(values: list[Any], write: Callable[[Any], str]) -> str:
    """A list in brackets, those in it that hold one thing each without a call for each."""
    depth, inner = 0, values
    while isinstance(inner, list) and len(inner) == 1:
        depth, inner = depth + 1, inner[0]
    if depth:
        return "[" * depth + write(inner) + "]" * depth
    return "[" + ", ".join(map(write, values)) + "]"


def with_twice(text: str, rng: Random) -> str:
    """JSON with one of its keys twice, the second time null."""
    keys = [start for start, letter in enumerate(text) if letter == "{"]
    start = rng.choice(keys) + 1
    inside = text[start:].lstrip()
    if not inside.startswith('"'):
        return "{" + text
    key = inside[: inside.index(":")]
    return f"{text[:start]}{key}: null, {text[start:]}"


def as_toml(tree: dict[str, Any]) -> str:
    """TOML of a tree: tables, lists of tables, inline values; what TOML cannot say is left out."""
    lines = []
    tables = []
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            tables += [f"[[{_key(key)}]]\n" + _body(one) for one in value]
        elif isinstance(value, dict):
            tables.append(f"[{_key(key)}]\n" + _body(value))
        elif value is not None:
            lines.append(f"{_key(key)} = {_inline(value)}\n")
    return "".join(lines) + "\n".join(tables)


def _body(table: dict[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_inline(value)}\n" for key, value in table.items() if value is not None)


def _key(key: Any) -> str:
    text = str(key)
    return text if text.isidentifier() and text.isascii() else _inline(text)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_inline(one)}" for key, one in value.items() if one is not None) + "}"
    if isinstance(value, list):
        return _as_list(value if len(value) == 1 else [one for one in value if one is not None], _inline)
    if isinstance(value, str):
        # TOML's strings forbid what JSON's escape as well, but for a lone surrogate and \u007f.
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
