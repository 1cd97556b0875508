"""Folders of images made wrong, and the images in them."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz import octets
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.engine import CLASSES
from benchmarks.fuzz.world import COUNT, record

LEFTOVERS = ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "notes.txt", "0.png.tmp", "0.json")
SYSTEM = ("@eaDir", "__pycache__", "__MACOSX", "lost+found", ".ipynb_checkpoints", ".git", "$RECYCLE.BIN")


def folders(case: Case) -> None:
    """An ImageFolder with leftovers, other suffixes, links, empty folders, odd names, pipes.

    With what an operating system leaves behind the numbers are the valid ones. Otherwise, accepted, as many images are
    used, skipped or left out as there are; an empty class folder is refused.
    """
    root = case.copy("photos")
    rng = case.rng
    expected = COUNT
    one = root / rng.choice(CLASSES) / "1.png"
    way = rng.choice(
        (
            "leftover",
            "leftover",
            "system",
            "suffix",
            "suffix",
            "link",
            "class",
            "name",
            "folder name",
            "loop",
            "pipe",
            "rights",
            "deep",
            "root",
        )
    )
    same = way in ("leftover", "system")
    if way == "leftover":
        name = rng.choice(LEFTOVERS)
        folder = rng.choice((root, one.parent))
        (folder / name).write_bytes(b"left over")
        case.mutation = f"leftover {name} in {folder.name}"
    elif way == "system":
        name = rng.choice(SYSTEM)
        (root / name).mkdir()
        if rng.random() < 0.5:
            (root / name / "thumb.txt").write_bytes(b"x")
        case.mutation = f"system {name}"
    elif way == "suffix":
        suffix = rng.choice(
            (
                ".webp",
                ".avif",
                ".jfif",
                ".JPG",
                ".jp2",
                ".bmp",
                ".gif",
                ".TIFF",
                ".ppm",
                ".tga",
                ".heic",
                ".ico",
                ".png.bak",
            )
        )
        target = one.with_suffix(suffix)
        try:
            Image.open(one).save(target, None if suffix != ".png.bak" else "png")
        except (ValueError, OSError, KeyError):
            target.write_bytes(one.read_bytes())
        one.unlink()
        # No image by name, and so not counted as one.
        expected -= suffix == ".png.bak"
        case.mutation = f"suffix {suffix}"
    elif way == "link":
        target = rng.choice(
            ("nowhere", str(root / CLASSES[0] / "0.png"), "/etc/hostname", "/dev/zero", "/dev/null", str(root))
        )
        one.unlink()
        one.symlink_to(target)
        case.mutation = f"link to {target}"
    elif way == "class":
        (root / rng.choice(("cow", "zebra", "cat ", "CAT"))).mkdir()
        case.mutation = "an empty class folder"
    elif way in ("name", "folder name"):
        name = rng.choice(
            (
                "é",
                "x" * 225,
                "a\nb",
                "\udcff",
                "-o",
                "=1+1",
                "\x1b[31m",
                "a,b",
                'a"b',
                " ",
                "%s",
                "{}",
                "a:b=c",
                "\u202eab",
            )
        )
        if way == "name":
            one.rename(one.with_name(f"{name}.png"))
        else:
            one.parent.rename(root / name)
        case.mutation = f"{way} {name!r}"
    elif way == "loop":
        (one.parent / "again").symlink_to(root)
        case.mutation = way
    elif way == "pipe":
        one.unlink()
        os.mkfifo(one)
        case.mutation = way
    elif way == "rights":
        one.unlink()
        one.mkdir()
        case.mutation = "a folder called 1.png"
        expected -= 1
    elif way == "deep":
        folder = one.parent.joinpath(*["a" * 50] * 20)
        folder.mkdir(parents=True)
        shutil.copy(one, folder / "2.png")
        expected += 1
        case.mutation = way
    else:
        shutil.copy(one, root / "stray.png")
        expected += 1
        case.mutation = "an image beside the class folders"
    skip = ("--on-bad-image", "skip") if rng.random() < 0.3 else ()
    found = case.evaluate("--data", f"x={root}", *skip)
    if same:
        if found is None:
            raise Fault("silent", f"refused for a leftover: {case.commands[-1]}")
        case.equal(found, "photos")
    elif way == "class":
        if found is not None:
            raise Fault("silent", "an empty folder became a class")
    elif way not in ("loop", "link", "pipe"):
        case.counts(found, expected)
    elif found is not None and record(case.output)["views"][0]["n"] > expected:
        raise Fault("silent", "more samples than images")


def images(case: Case) -> None:
    """One image in another format, form or size, cut or changed.

    The same pixels in another lossless format give the valid numbers. What an independent decoder refuses is refused, or
    skipped where that is asked for; as many images are used or skipped as there are. No foreign program is started.
    """
    root = case.copy("photos")
    rng = case.rng
    path = root / rng.choice(CLASSES) / "2.png"
    skip = rng.random() < 0.5
    way = rng.choice(("same",) * 2 + ("mode",) * 3 + ("octets",) * 4 + ("foreign",) * 4 + ("bomb",))
    original = Image.open(path)
    if way == "same":
        form, options = rng.choice((("bmp", {}), ("tiff", {}), ("ppm", {}), ("webp", {"lossless": True}), ("png", {"compress_level": 0}),
                                    ("tiff", {"compression": "tiff_lzw"}), ("png", {"dpi": (300, 300)})))  # fmt: skip
        original.save(path, form, **options)
        case.mutation = f"same pixels as {form} {options}"
    elif way == "mode":
        mode = rng.choice(("L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"))
        converted = Image.fromarray(np.full((20, 24), 40000, np.uint16)) if mode == "I;16" else original.convert(mode)
        form = "png" if mode in ("L", "1", "P", "LA", "RGBA", "I;16") else "tiff"
        converted.save(path, form)
        case.mutation = f"mode {mode} as {form}"
    elif way == "octets":
        stream = io.BytesIO()
        form = rng.choice(("png", "jpeg", "webp", "gif", "tiff", "bmp"))
        original.save(stream, form)
        content, done = octets.broken(stream.getvalue(), rng)
        path.write_bytes(content)
        case.mutation = f"{form} {done}"
    elif way == "foreign":
        case.mutation = _foreign(path, case)
    else:
        case.mutation = _bomb(path, case)
    decodes = _decodes(path)
    found = case.evaluate("--data", f"x={root}", *(("--on-bad-image", "skip") if skip else ()))
    case.mutation += "; skip" if skip else ""
    if way == "same":
        if found is None:
            raise Fault("silent", f"the same pixels were refused: {case.commands[-1]}")
        case.equal(found, "photos")
        return
    case.counts(found, COUNT)
    if found is not None and not decodes and record(case.output)["views"][0]["n"] == COUNT:
        raise Fault("silent", "used an image that cannot be decoded whole")
    if skip and found is None and way == "octets":
        raise Fault("silent", f"asked to skip bad images, refused: {case.commands[-1]}")


def _decodes(path: Path) -> bool:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with Image.open(
            path, formats=("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "TGA", "MPO")
        ) as image:
            image.load()
    except Exception:
        return False
    return True


def _foreign(path: Path, case: Case) -> str:
    content = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n%%Page: 1 1\n0 0 moveto\nshowpage\n%%EOF\n",
        "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n", "html": b"<html><body>Please log in</body></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='20' height='20'/>", "empty": b"", "text": b"no image",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n",
        "fli": b"\x80\0\0\0\x12\xaf\1\0\x14\0\x14\0\x08\0\0\0" + bytes(200), "zip": b"PK\3\4" + bytes(60), "gzip": b"\x1f\x8b\x08" + bytes(60),
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60), "mpeg": b"\0\0\1\xb3" + bytes(60), "pcd": b"PCD_IPI" + bytes(4000), "npy": b"\x93NUMPY\1\0" + bytes(80),
    }  # fmt: skip
    name = case.rng.choice(list(content))
    path.write_bytes(content[name])
    return f"{name} called .png"


def _bomb(path: Path, case: Case) -> str:
    """A small file of many pixels, or of a size that cannot be."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    width, height = case.rng.choice(
        ((30_000, 30_000), (100_000, 100_000), (2**31 - 1, 1), (0, 0), (1, 1), (60_000, 1), (12_000, 12_000))
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)) if case.rng.random() < 0.2 else b""
    body = chunk(b"IDAT", zlib.compress(bytes(min((width + 1) * height, 2**20))))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + text + body + chunk(b"IEND", b""))
    return f"{width} x {height} pixels{', long text' if text else ''}"
