"""Small photos of the built-in world, as files and bytes."""

from __future__ import annotations

import io

from PIL import Image

from clipq.demo import world


def png(index):
    stream = io.BytesIO()
    Image.fromarray(world.sample("test", index)[1]).save(stream, "PNG")
    return stream.getvalue()


def image_folder(root, classes=("circle", "ring", "star"), each=3):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            Image.fromarray(world.sample("test", 24 * index + number)[1]).save(root / name / f"{index}.png")
    return root
