"""Webdataset tars made wrong."""

from __future__ import annotations

import tarfile
from pathlib import Path
from random import Random

from benchmarks.fuzz import octets
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.world import COUNT, Member, shards, write_tar

# Forms in which samples have other names, and the metrics whose halves are drawn by name.
RENAMING = ("folder", "dotted folder", "dot slash", "suffix")
DRAWN_BY_NAME = ("ece_tuned", "ece_untuned", "logit_scale_tuned")


def archives(case: Case) -> None:
    """A shard with other members, in another form, or with its bytes changed; ``nshards.txt`` and ``classnames.txt`` too.

    The same members in another form give the valid numbers. Of others, accepted, the images used, skipped or left out
    are as many as were put in; of a shard without its end fewer are, only if it is said that this cannot be told.
    """
    root = case.copy("shards")
    way = case.rng.choice(("same",) * 3 + ("members",) * 6 + ("octets",) * 6 + ("side",) * 2)
    path = root / "test" / "0.tar"
    expected = COUNT
    if way == "same":
        case.mutation = _same(path, shards()[0], case.rng)
    elif way == "members":
        case.mutation, expected = _members(path, shards()[0], case.rng)
    elif way == "octets":
        content, case.mutation = octets.broken(path.read_bytes(), case.rng)
        path.write_bytes(content)
    else:
        case.mutation = _side(root, case.rng)
    found = case.evaluate("--data", f"x=wds:{root}")
    if way == "same":
        if found is None:
            raise Fault("silent", f"the same members in another form were refused: {case.commands[-1]}")
        case.equal(found, "shards", DRAWN_BY_NAME if case.mutation in RENAMING else ())
    elif way in ("members", "octets") and found is not None and not case.is_unsure():
        case.counts(found, expected)


def _same(path: Path, members: list[Member], rng: Random) -> str:
    way = rng.choice(
        (
            "pax",
            "gnu",
            "ustar",
            "folder",
            "dotted folder",
            "dot slash",
            "directories",
            "suffix",
            "padding",
            "more files",
        )
    )
    forms = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
    folder = {"folder": "a/b/", "dotted folder": "set1.0/", "dot slash": "./"}.get(way, "")
    suffix = ".PNG" if way == "suffix" else ".png"
    written = [(folder + name.replace(".png", suffix), content) for name, content in members]
    if way == "more files":
        written += [("README", b"read me"), ("s00.json", b"{}"), ("notes.md", b"#")]
    write_tar(path, written, format=forms.get(way, tarfile.GNU_FORMAT))
    if way == "directories":
        header = tarfile.TarInfo("images")
        header.type = tarfile.DIRTYPE
        write_tar(path, [(header, b""), *written])
    elif way == "padding":
        path.write_bytes(path.read_bytes() + bytes(10240))
    return way


def _members(path: Path, members: list[Member], rng: Random) -> tuple[str, int]:
    """Write a shard whose members are others; what they are, and how many images there are in all."""
    number = rng.randrange(0, len(members), 2)
    (name, picture), (label, index) = members[number : number + 2]
    key = name.removesuffix(".png")
    way = rng.choice(
        ("class", "class", "no class", "no image", "twice", "two images", "dotted keys", "link", "hard link", "device", "outside", "name", "empty",
         "packed", "large", "sparse", "no members", "text", "case")
    )  # fmt: skip
    expected = COUNT
    written: list[tuple[str | tarfile.TarInfo, bytes]] = list(members)
    mode = "w"
    if way == "class":
        said = rng.choice(
            (
                b"",
                b" ",
                b"-1",
                b"1.5",
                b"cat",
                b"99",
                b"9" * 5000,
                b"\xff",
                b"\xd9\xa1",
                b"0\n1",
                b"1e0",
                b"\xc2\xb2",
                b"x" * 2**20,
            )
        )
        written[number + 1] = (label, said)
        way = f"class {said[:20]!r}"
    elif way == "no class":
        del written[number + 1]
    elif way == "no image":
        del written[number]
        expected -= 1
    elif way == "twice":
        written += [(name, members[number - 2][1]), (label, index)]
        expected += 1
    elif way == "two images":
        written.append((f"{key}.{rng.choice(('jpg', 'webp', 'PNG'))}", picture))
        expected += 1
    elif way == "dotted keys":
        # webdataset's key ends at the first dot of the base name: both are img_0.
        written[number : number + 2] = [("img_0.5.png", picture), ("img_0.5.cls", index)]
    elif way in ("link", "hard link", "device"):
        header = tarfile.TarInfo(name)
        header.type = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}[way]
        header.linkname = rng.choice((members[0][0], "/etc/hostname", "../../letter.txt", "nowhere"))
        written[number] = (header, b"")
    elif way == "outside":
        written[number] = (rng.choice(("/tmp/x.png", "../x.png", "a/../../x.png", "..", "C:\\x.png")), picture)
        expected -= 0
    elif way == "name":
        new = rng.choice(("é", "x" * 300, "a\nb", "\udcff", "a b", "-o", "\x1b[31m", ".hidden", " "))
        written[number : number + 2] = [(f"{new}.png", picture), (f"{new}.cls", index)]
        way = f"name {new[:20]!r}"
    elif way == "empty":
        written[number] = (name, b"")
    elif way == "packed":
        mode = rng.choice(("w:gz", "w:bz2", "w:xz"))
    elif way == "no members":
        written = []
        expected -= len(members) // 2
    elif way == "text":
        written[number] = (f"{key}.txt", b"a caption")
        expected -= 1
    elif way == "case":
        written[number + 1] = (f"{key}.CLS", index)
    write_tar(path, written, mode, errors="surrogateescape")
    if way in ("large", "sparse"):
        header = tarfile.TarInfo("big.png")
        header.size = rng.choice((3_400_000_000, 2**40, 2**62))
        if way == "sparse":
            header.type, header.size = tarfile.GNUTYPE_SPARSE, 0
        block = header.tobuf(tarfile.GNU_FORMAT)
        if way == "sparse":
            # An old GNU sparse header: one hole of 5 GB.
            parts = bytearray(block)
            parts[386:398], parts[398:410] = b"%011o\0" % 5_000_000_000, b"%011o\0" % 0
            parts[483:495] = b"%011o\0" % 5_000_000_000
            parts[148:156] = b" " * 8
            parts[148:156] = b"%06o\0 " % sum(parts)
            block = bytes(parts)
        end = path.read_bytes().rstrip(b"\0")
        end += bytes(-len(end) % 512)
        path.write_bytes(end + block + bytes(1024))
        expected += 1
    return f"{way} {name}", expected


def _side(root: Path, rng: Random) -> str:
    name = rng.choice(("test/nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt"))
    path = root / name
    said: bytes
    if name.startswith("test"):
        said = rng.choice(
            (
                b"",
                b"3",
                b"-1",
                b"1e1",
                b"\xd9\xa2",
                b"2\n2",
                b"99999999",
                b"9" * 5000,
                b"0",
                b"\xff",
                b"2.0",
                b"two",
                b"\xc2\xb2",
            )
        )
    elif name.startswith("class"):
        said = rng.choice((b"", b"cat\n", b"cat\ndog\ncat\nhouse\n", b"\xff\xfec\0", b"cat\n\n\ndog\ntree\nhouse", b"{}\na\nb\nc\n", b"x" * 2**20,
                           b"a\x1b[31m\nb\nc\nd", b"\0\n\1\n\2\n\3\n", "cät\ndog\ntree\nhouse".encode("cp1252"), b"cat\n" * 100_000))  # fmt: skip
    else:
        said = rng.choice(
            (b"", b"no braces", b"{} {}", b"{0}", b"{c}", b"\xff", b"{}" * 1000, b"{c} {}", b"a {}\n\nb {}")
        )
    path.write_bytes(said)
    return f"{name} {said[:40]!r}"
