"""Where the members of a tar lie, by its headers alone; what is cut, damaged or hostile is one line's error.

``tarfile`` itself ends without a word at a header that is cut or damaged, and reads extended headers of any size into
memory. So blocks are walked here, and it only takes a header apart.
"""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from clipq.errors import DataError

BLOCK = tarfile.BLOCKSIZE
# Of what stands before a member's own header: a long name, and what macOS and backup programs add to it.
MOST_HEADER = 2**20
MOST_NAME = 1024
# Of zeros after the last member; writers fill a record of 10 kB, some of them a larger one.
MOST_TAIL = 2**20

_LONG_NAME = tarfile.GNUTYPE_LONGNAME
_LONG_LINK = tarfile.GNUTYPE_LONGLINK
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_GLOBAL = tarfile.XGLTYPE
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_OTHERS = {
    tarfile.LNKTYPE: "is a hard link",
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
    tarfile.GNUTYPE_SPARSE: "is stored with holes",
}
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RECORD = re.compile(rb"([1-9][0-9]{0,9}) ([^=]+)=")


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Shard:
    """A tar's files in their order; ``is_marked`` says that it ends in an end marker, so that it was not cut."""

    path: Path
    members: tuple[Member, ...]
    is_marked: bool


def read_shard(path: Path, where: object) -> Shard:
    """Index an uncompressed tar; raises DataError, with ``where`` for its name, for one that is not whole or odd."""
    members = []
    with path.open("rb") as stream:
        walk = _Walk(stream, where, os.fstat(stream.fileno()).st_size)
        while (member := walk.next()) is not None:
            members.append(member)
    if not members:
        raise DataError(f"{where}: is a tar without any file in it; fetch or copy it again")
    return Shard(path, tuple(members), walk.is_marked)


class _Walk:
    """A walk over the headers of a tar of ``size`` bytes."""

    def __init__(self, stream: BinaryIO, where: object, size: int):
        self._stream, self._where, self._size = stream, where, size
        self._position = 0
        self.is_marked = False

    def next(self) -> Member | None:
        """The next file, None at the end."""
        extended: dict[str, bytes] = {}
        while True:
            header = self._header()
            if header is None:
                if extended:
                    self._damaged("an extended header without a member")
                return None
            if header.type == _LONG_NAME:
                extended["path"] = self._content(header).partition(b"\0")[0]
            elif header.type == _LONG_LINK:
                self._content(header)
            elif header.type in _EXTENDED:
                extended |= self._records(self._content(header))
            elif header.type == _GLOBAL:
                if self._records(self._content(header)).keys() & {"path", "size"}:
                    self._damaged("one name or size for all members")
            elif header.type == tarfile.DIRTYPE:
                extended = {}
            else:
                return self._member(header, extended)

    def _member(self, header: tarfile.TarInfo, extended: dict[str, bytes]) -> Member:
        name = extended["path"].decode("utf-8", "surrogateescape") if "path" in extended else header.name
        self._check_name(name)
        if any(key.startswith("GNU.sparse") for key in extended):
            header.type = tarfile.GNUTYPE_SPARSE
        if header.type not in _FILES:
            what = _OTHERS.get(header.type, f"is of an unknown kind ({header.type!r})")
            raise DataError(
                f"{self._where}: member {name} {what}; make the tar of plain files (tar --dereference "
                "--hard-dereference, without --sparse)"
            )
        if "size" in extended:
            if not re.fullmatch(rb"[0-9]{1,19}", extended["size"]):
                self._damaged("a size that is no number")
            header.size = int(extended["size"])
        return Member(name, self._skip(header.size, name), header.size)

    def _header(self) -> tarfile.TarInfo | None:
        self._stream.seek(self._position)
        block = self._stream.read(BLOCK)
        if not block and self._position:
            return None
        if self._position == 0:
            self._check_kind(block)
        if len(block) < BLOCK:
            raise DataError(f"{self._where}: is truncated inside a header; fetch or copy it again")
        if not any(block):
            self._check_tail()
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            self._damaged(str(error))
        if header.size < 0:
            self._damaged("a size below 0")
        self._position += BLOCK
        return header

    def _content(self, header: tarfile.TarInfo) -> bytes:
        """The content of an extended header."""
        if header.size > MOST_HEADER:
            self._damaged(f"an extended header of {header.size} bytes")
        offset = self._skip(header.size, "an extended header")
        self._stream.seek(offset)
        return self._stream.read(header.size)

    def _skip(self, size: int, name: str) -> int:
        """Go behind a content, which must be there with its padding, and say where it begins."""
        offset = self._position
        self._position = offset + -(-size // BLOCK) * BLOCK
        if self._position > self._size:
            raise DataError(f"{self._where}: is truncated inside {name}; fetch or copy it again")
        return offset

    def _records(self, content: bytes) -> dict[str, bytes]:
        """Keywords and values of an extended header: ``LENGTH KEYWORD=VALUE`` and a line feed each."""
        records, start = {}, 0
        while start < len(content):
            found = _RECORD.match(content, start)
            end = start + int(found[1]) if found else 0
            if found is None or not found.end() < end <= len(content) or content[end - 1 : end] != b"\n":
                self._damaged("an extended header that cannot be read")
            records[found[2].decode("utf-8", "replace")] = content[found.end() : end - 1]
            start = end
        return records

    def _check_kind(self, block: bytes) -> None:
        for magic, compression in _COMPRESSIONS.items():
            if block.startswith(magic):
                raise DataError(
                    f"{self._where}: is no readable tar file: it is compressed ({compression}), and shards are read in "
                    "place; decompress it"
                )
        if not block:
            raise DataError(f"{self._where}: is no readable tar file: it is empty; fetch or copy it again")

    def _check_name(self, name: str) -> None:
        wrong = f"{self._where}: member {name[:80]!r}"
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{wrong} points outside the archive; do not trust this file")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{wrong} has a name that is not UTF-8; rename it") from error
        if not 0 < len(name) <= MOST_NAME or _CONTROL.search(name):
            raise DataError(f"{wrong} has a name that cannot be printed, or of over {MOST_NAME} letters; rename it")

    def _check_tail(self) -> None:
        """See that nothing but zeros follows, as many as writers put there."""
        rest = self._size - self._position
        self._stream.seek(self._position)
        if rest > MOST_TAIL or any(self._stream.read(rest)):
            raise DataError(
                f"{self._where}: {rest} bytes follow after its last member: a copy that was cut, or several tars in "
                "one file (join them by tar --concatenate); fetch or make it again"
            )
        if rest < 2 * BLOCK and rest % BLOCK:
            raise DataError(f"{self._where}: is truncated inside its end marker; fetch or copy it again")
        # More zeros than a writer fills its last record with may be what a download had reserved and not fetched.
        self.is_marked = 2 * BLOCK <= rest < 2 * BLOCK + tarfile.RECORDSIZE

    def _damaged(self, reason: str) -> NoReturn:
        what = "no readable tar file" if self._position < 2 * BLOCK else f"damaged at byte {self._position}"
        raise DataError(f"{self._where}: is {what} ({reason}); fetch or copy it again")
