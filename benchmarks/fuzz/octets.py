"""Bytes made wrong."""

from __future__ import annotations

from random import Random


def flipped(data: bytes, rng: Random) -> bytes:
    """One to eight bits turned."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: Random) -> bytes:
    """The end missing, or nothing left."""
    return data[: rng.choice((0, 1, rng.randrange(len(data)), rng.randrange(len(data)), len(data) - 1))]


def hollowed(data: bytes, rng: Random) -> bytes:
    """A part missing from the middle."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 4, 512, len(data) // 4)) :]


def zeroed(data: bytes, rng: Random) -> bytes:
    """A part that a disk did not write."""
    start, length = rng.randrange(len(data)), rng.choice((1, 8, 512))
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def inserted(data: bytes, rng: Random) -> bytes:
    """Bytes that do not belong there."""
    start = rng.choice((0, rng.randrange(len(data)), len(data)))
    foreign = rng.choice(
        (b"\0", b"\xff\xfe", b"\r\n", b'"', b"\xe9", b"\0" * 512, rng.randbytes(rng.choice((1, 64, 4096))))
    )
    return data[:start] + foreign + data[start:]


def repeated(data: bytes, rng: Random) -> bytes:
    """A part twice."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((1, 16, 512, len(data))))
    return data[:stop] + data[start:stop] + data[stop:]


def overwritten(data: bytes, rng: Random) -> bytes:
    """A part of it random."""
    start = rng.randrange(len(data))
    length = min(rng.choice((1, 4, 64)), len(data) - start)
    return data[:start] + rng.randbytes(length) + data[start + length :]


ALL = (flipped, flipped, cut, cut, hollowed, zeroed, inserted, repeated, overwritten)


def broken(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Bytes made wrong in one way, and which; never the same bytes."""
    while True:
        way = rng.choice(ALL)
        changed = way(data, rng)
        if changed != data:
            return changed, way.__name__


def reencoded(text: str, rng: Random) -> tuple[bytes, str]:
    """A text in an encoding that is not UTF-8, or with a mark before it."""
    encoding = rng.choice(("utf-16", "utf-16-be", "utf-32", "cp1252", "utf-8-sig", "utf-7", "latin-1"))
    special = text.replace("a", "ä", 1) if encoding in ("cp1252", "latin-1") else text
    return special.encode(encoding, "replace"), encoding
