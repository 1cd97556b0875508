"""Draw the demo's calibration set: ``python -m clipq.demo.write_calibration_set DIR``."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from PIL import Image

from clipq.demo import world
from clipq.files import sha256_file

COUNT = 128


def main(folder: Path) -> None:
    """Write ``images/``, ``captions.csv`` and ``manifest.json`` (sha256 and size of every file) below a folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(COUNT):
        scene, pixels = world.sample("calibration", index)
        file = f"images/{index:04d}.png"
        Image.fromarray(pixels).save(folder / file, optimize=True)
        rows.append((file, scene.caption()))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "caption"))
        writer.writerows(rows)
    files = ["captions.csv", *(file for file, _ in rows)]
    manifest = {file: {"sha256": sha256_file(folder / file), "bytes": (folder / file).stat().st_size} for file in files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
