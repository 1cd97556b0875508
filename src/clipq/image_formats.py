"""Which formats of images are read, and which suffixes speak of an image: a list of its own, for decoders can harm."""

from __future__ import annotations

# What is decoded: Pillow's formats that are known by their first bytes and start no other program, with their suffixes.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "QOI": (".qoi",),
}
# Images of other formats: bad ones, for a sample must not be missed in silence.
_UNREADABLE = {
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".svgz", ".eps", ".wmf", ".emf", ".psd", ".xcf", ".tga", ".pcx",
    ".dds", ".sgi", ".xbm", ".xpm", ".exr", ".hdr", ".dcm", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf", ".srw", ".pef", ".ico", ".cur", ".icns", ".icb", ".vda", ".vst", ".bw", ".rgb", ".rgba", ".ras",
    ".im", ".msp", ".pcd", ".pxr", ".dcx", ".fits", ".fit", ".blp", ".ftc", ".ftu", ".psb",
}  # fmt: skip
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes} | _UNREADABLE
