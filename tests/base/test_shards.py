"""A tar's headers: whatever is cut, damaged or hostile is one line, and nothing of it is large in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import re
import tarfile
import tracemalloc

import pytest

from clipq.data.shards import BLOCK, read_shard
from clipq.errors import DataError

FILES = {"s0.jpg": b"x" * 700, "s0.cls": b"0", "s1.jpg": b"y" * 512, "s1.cls": b"1"}


def made(files=FILES, form=tarfile.GNU_FORMAT, **attributes):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def header(name="s0.jpg", size=0, kind=tarfile.REGTYPE, **attributes):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(data):
    return data + bytes(-len(data) % BLOCK)


def signed(block):
    """A header with the checksum that belongs to it."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def read(path, data):
    path.write_bytes(data)
    return read_shard(path, "test/0.tar")


def refused(path, data):
    with pytest.raises(DataError) as raised:
        read(path, data)
    message = str(raised.value)
    assert message.startswith("test/0.tar: ") and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_says(tmp_path, form):
    files = {f"{'folder é/' * 9}{index}.jpg": bytes([index]) * index * 100 for index in range(12)}
    if form == tarfile.USTAR_FORMAT:
        files = {f"set1.0/{index}.jpg": b"." * index for index in range(12)}
    shard = read(tmp_path / "0.tar", made(files, form))
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert [(m.name, m.offset, m.size) for m in shard.members] == [(m.name, m.offset_data, m.size) for m in tar]
    assert shard.is_marked


def test_every_cut_is_an_error_or_seen(tmp_path):
    path, whole = tmp_path / "0.tar", made()
    boundaries = {1536: 1, 2560: 2, 3584: 3, 4608: 4}
    assert not any(whole[4608:])
    path.write_bytes(whole[: 4608 + 2 * BLOCK + 9])
    for length in reversed(range(4608 + 2 * BLOCK + 9)):
        os.truncate(path, length)
        try:
            shard = read_shard(path, "")
        except DataError as error:
            assert re.search("is truncated inside|it is empty", str(error))
            assert length < 4608 + 2 * BLOCK and length not in {*boundaries, 4608 + BLOCK}
        else:
            assert shard.is_marked == (length >= 4608 + 2 * BLOCK)
            assert len(shard.members) == boundaries[min(length, 4608)]


def test_any_flipped_bit_of_a_header_is_an_error(tmp_path):
    whole = made()
    rng = random.Random(3)
    for _ in range(300):
        at = rng.choice([0, 1536, 2560, 3584]) + rng.randrange(BLOCK)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        # The checksum's own field may end in a space or in a NUL.
        if not 148 <= at % BLOCK < 156:
            assert "(bad checksum)" in refused(tmp_path / "0.tar", bytes(flipped))


def test_what_follows_the_end_is_no_part_of_it(tmp_path):
    path, whole = tmp_path / "0.tar", made()
    assert "several tars in one file" in refused(path, whole + whole)
    assert "several tars in one file" in refused(path, whole + b"\n")
    # A hole that a download left: from a header on, or all the rest of a file whose size was reserved.
    assert "follow after its last member" in refused(path, whole[:2560] + bytes(512) + whole[3072:])
    assert "follow after its last member" in refused(path, whole[:2560] + bytes(5 * 2**20))
    assert not read(path, whole[:2560] + bytes(100_000)).is_marked
    assert "without any file" in refused(path, bytes(10240))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_ones_are_not_opened(tmp_path, compress):
    assert "it is compressed (" in refused(tmp_path / "0.tar", compress(made()))


@pytest.mark.parametrize("size", [-1, -(2**40), 2**40, 2**62])
def test_sizes_below_zero_and_beyond_the_file(tmp_path, size):
    data = header(size=size) + made()
    assert ("below 0" if size < 0 else "truncated inside s0.jpg") in refused(tmp_path / "0.tar", data)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a hard link"), (tarfile.SYMTYPE, "a symbolic link"), (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"), (tarfile.FIFOTYPE, "a pipe"), (tarfile.GNUTYPE_SPARSE, "stored with holes"),
        (b"M", "of an unknown kind"), (b"\xff", "of an unknown kind"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_refused(tmp_path, kind, what):
    data = signed(header(size=0)[:156] + kind + header(size=0)[157:])
    assert f"member s0.jpg is {what}" in refused(tmp_path / "0.tar", data + made())


def pax(*records, kind=tarfile.XHDTYPE, size=None):
    content = b""
    for record in records:
        length = len(record) + 2
        while length != len(b"%d " % length + record) + 1:
            length = len(b"%d " % length + record) + 1
        content += b"%d " % length + record + b"\n"
    return header("x", len(content) if size is None else size, kind) + padded(content)


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        (pax(size=3 * 2**30), "an extended header of 3221225472 bytes"),
        (header("x", 3 * 2**30, tarfile.GNUTYPE_LONGNAME), "an extended header of 3221225472 bytes"),
        (header("x", 600, tarfile.XHDTYPE) + padded(b"0 path=x\n"), "an extended header that cannot be read"),
        (
            header("x", 600, tarfile.XHDTYPE) + padded(b"99999999999999999999 path=x\n"),
            "an extended header that cannot",
        ),
        (header("x", 9, tarfile.XHDTYPE) + padded(b"3 path=x\n"), "an extended header that cannot be read"),
        (pax(b"size=-5"), "a size that is no number"),
        (pax(b"size=99999999999"), "is truncated inside s0.jpg"),
        (pax(b"path=../../x"), "points outside"),
        (pax(b"path=/etc/passwd"), "points outside"),
        (pax(b"path=a\xff.jpg"), "that is not UTF-8"),
        (pax(b"path=a\nb.jpg"), "a name that cannot be printed"),
        (pax(b"path=" + b"a" * 9999), "or of over 1024 letters"),
        (pax(b"path="), "a name that cannot be printed"),
        (pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0"), "stored with holes"),
        (pax(b"path=x", kind=tarfile.XGLTYPE), "one name or size for all members"),
    ],
)
def test_hostile_extended_headers(tmp_path, prefix, what):
    assert what in refused(tmp_path / "0.tar", prefix + made() + bytes(1200))


def test_harmless_extended_headers_are_read(tmp_path):
    data = pax(b"comment=of git", kind=tarfile.XGLTYPE) + pax(b"LIBARCHIVE.xattr.user=YQ==", b"mtime=1.5") + made()
    assert [member.name for member in read(tmp_path / "0.tar", data).members] == list(FILES)
    assert "an extended header without a member" in refused(tmp_path / "0.tar", pax(b"path=x") + bytes(1024))


def test_names_that_are_not_utf8(tmp_path):
    latin = header("caf?.jpg").replace(b"caf?", b"caf\xe9")
    assert "that is not UTF-8" in refused(tmp_path / "0.tar", signed(latin) + made())


def test_little_memory_for_a_large_member(tmp_path):
    with (tmp_path / "0.tar").open("wb") as stream:
        stream.write(header("large.npy", 5 * 2**30))
        stream.seek(5 * 2**30, 1)
        stream.write(made())
    tracemalloc.start()
    shard = read_shard(tmp_path / "0.tar", "")
    assert len(shard.members) == 5 and shard.is_marked and tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
