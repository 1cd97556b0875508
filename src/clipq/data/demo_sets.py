"""Sets of the built-in world (``demo:SET``), drawn when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipq.bounds import DEMO_SAMPLES
from clipq.data.source import Source, Want
from clipq.data.views import Classes, Sample, View
from clipq.demo import world
from clipq.errors import DataError
from clipq.files import sha256_bytes


@dataclass(frozen=True)
class DemoView(View):
    """Images of the demo world, drawn when they are asked for."""

    set_name: str

    def image(self, index: int) -> Image.Image:
        """Draw one image."""
        return Image.fromarray(world.sample(self.set_name, index)[1])

    def image_digest(self, index: int) -> str:
        """SHA-256 of the drawn pixels."""
        return sha256_bytes(world.sample(self.set_name, index)[1].tobytes())


def open_demo(source: Source, want: Want, cache: Path | None) -> View:
    """Open a set by its name; ``n`` takes the first so many."""
    set_name, limit = source.place, source.options["n"]
    roles = (
        ("in-distribution", "shifted") if want != "images" else ("in-distribution", "shifted", "near-ood", "far-ood")
    )
    fitting = [key for key, value in world.SETS.items() if value.role in roles]
    if set_name not in fitting:
        raise DataError(f"{source.where}: unknown set of the demo world; fitting ones: {', '.join(fitting)}")
    least, most = DEMO_SAMPLES
    if limit and not (limit.isascii() and limit.isdecimal() and least <= int(limit[:20]) <= most):
        raise DataError(f"{source.where}: n={limit!r} is not a number from {least} to {most}")
    count = int(limit or world.SETS[set_name].count)
    if want == "labels" and count < len(world.CLASS_NAMES):
        # Unlike photos, which may be all that there are, more can be drawn.
        raise DataError(f"{source.where}: n={count} is fewer than its {len(world.CLASS_NAMES)} classes; draw more")
    samples = []
    for index in range(count):
        scene, _ = world.sample(set_name, index)
        label = world.CLASS_NAMES.index(scene.shape) if scene.shape in world.CLASS_NAMES else -1
        groups = {"light": scene.light, "size": scene.size}
        samples.append(Sample(f"{set_name}/{index:05d}", label, groups, (scene.caption(),)))
    classes = Classes.plain(world.CLASS_NAMES) if want == "labels" else None
    return DemoView(source.name, source.path, tuple(samples), classes, set_name)
