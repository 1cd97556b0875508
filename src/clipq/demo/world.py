"""The demo world: small coloured objects drawn from a seed, so that every question of the suite has a known answer.

An image shows one shape (its class) in a colour, a texture, a size, on a background, by day or by night. The sets:

* ``test`` is drawn as the training images were; ``calibration`` too, from other seeds, for range calibration.
* ``outline``, ``palette``, ``background`` are *shifted*: same classes, another drawing style, unseen colours, unseen
  backgrounds.
* ``unseen-shapes`` is *near* out-of-distribution (objects of no known class), ``textures`` is *far* (no object at all).

``light`` is an attribute with two groups of unequal difficulty: at night the contrast is low and the noise high.
Image *i* of a set depends on the world's seed, the set and *i* alone, so any part of a set can be drawn anywhere.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

IMAGE_SIZE = 48
SEED = 2025

_SUPERSAMPLE = 4

Polygon = list[tuple[float, float]]
Part = tuple[Literal["add", "cut"], Polygon]
Pixels = NDArray[np.uint8]


def _ellipse(cx: float, cy: float, rx: float, ry: float | None = None, n: int = 40) -> Polygon:
    ry = rx if ry is None else ry
    return [(cx + rx * np.cos(t), cy + ry * np.sin(t)) for t in np.linspace(0, 2 * np.pi, n, endpoint=False)]


def _regular(n: int, radius: float = 1.0, phase: float = -np.pi / 2) -> Polygon:
    return [(radius * np.cos(phase + 2 * np.pi * k / n), radius * np.sin(phase + 2 * np.pi * k / n)) for k in range(n)]


def _spiked(spikes: int, inner: float) -> Polygon:
    radius = [1.0 if k % 2 == 0 else inner for k in range(2 * spikes)]
    angle = [-np.pi / 2 + np.pi * k / spikes for k in range(2 * spikes)]
    return [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radius, angle, strict=True)]


def _gear() -> Polygon:
    points = []
    for k in range(8):
        for offset, radius in ((-0.2, 0.72), (-0.12, 1.0), (0.12, 1.0), (0.2, 0.72)):
            angle = 2 * np.pi * (k / 8) + offset * np.pi / 2
            points.append((radius * np.cos(angle), radius * np.sin(angle)))
    return points


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(a / 17, -(b + 2) / 16) for a, b in zip(x, y, strict=True)]


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _add(*polygons: Polygon) -> list[Part]:
    return [("add", polygon) for polygon in polygons]


# Each shape lies in the square [-1, 1] x [-1, 1], y downwards; parts are painted in order.
SHAPES: dict[str, list[Part]] = {
    "arrow": _add([(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)]),
    "bolt": _add([(0.2, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.25, 1), (0.6, -0.25), (0.05, -0.25), (0.55, -1)]),
    "circle": _add(_ellipse(0, 0, 0.95)),
    "crescent": [("add", _ellipse(0, 0, 0.95)), ("cut", _ellipse(0.45, -0.1, 0.75))],
    "cross": _add(_box(-0.3, -1, 0.3, 1), _box(-1, -0.3, 1, 0.3)),
    "diamond": _add([(0, -1), (0.65, 0), (0, 1), (-0.65, 0)]),
    "drop": _add(_ellipse(0, 0.35, 0.62), [(0, -1), (0.58, 0.15), (-0.58, 0.15)]),
    "fish": _add(_ellipse(-0.2, 0, 0.75, 0.5), [(0.3, 0), (1, -0.6), (1, 0.6)]),
    "flower": _add(*[_ellipse(0.55 * np.cos(a), 0.55 * np.sin(a), 0.42) for a in np.arange(5) * 2 * np.pi / 5 - 0.3]),
    "gear": [("add", _gear()), ("cut", _ellipse(0, 0, 0.3))],
    "heart": _add(_heart()),
    "hexagon": _add(_regular(6)),
    "house": _add(_box(-0.7, -0.1, 0.7, 0.95), [(-1, -0.1), (0, -1), (1, -0.1)]),
    "key": [
        ("add", _ellipse(-0.55, 0, 0.45)),
        ("cut", _ellipse(-0.55, 0, 0.2)),
        *_add(_box(-0.15, -0.13, 1, 0.13), _box(0.5, 0.1, 0.66, 0.5), _box(0.8, 0.1, 0.96, 0.45)),
    ],
    "leaf": _add([(-0.9, 0.9), (-0.7, -0.1), (0.0, -0.75), (0.95, -0.95), (0.75, 0.0), (0.1, 0.7)]),
    "mug": [
        ("add", _ellipse(0.5, 0, 0.5)),
        ("cut", _ellipse(0.5, 0, 0.27)),
        ("add", _box(-0.8, -0.8, 0.4, 0.85)),
    ],
    "octagon": _add(_regular(8, phase=np.pi / 8)),
    "pentagon": _add(_regular(5)),
    "ring": [("add", _ellipse(0, 0, 0.95)), ("cut", _ellipse(0, 0, 0.5))],
    "square": _add(_box(-0.8, -0.8, 0.8, 0.8)),
    "star": _add(_spiked(5, 0.42)),
    "tree": _add([(0, -1), (0.8, 0.45), (-0.8, 0.45)], _box(-0.18, 0.4, 0.18, 1)),
    "triangle": _add([(0, -0.9), (0.95, 0.75), (-0.95, 0.75)]),
    "umbrella": [
        ("add", _ellipse(0, 0, 0.98)),
        ("cut", _box(-1.1, 0, 1.1, 1.1)),
        *_add(_box(-0.07, -0.1, 0.07, 0.9), _box(-0.35, 0.78, 0.07, 0.92)),
    ],
}

UNSEEN_SHAPES: dict[str, list[Part]] = {
    "anchor": _add(
        _box(-0.1, -0.7, 0.1, 0.8),
        _box(-0.45, -0.45, 0.45, -0.27),
        _ellipse(0, -0.8, 0.2),
        [(-0.95, 0.2), (-0.7, 0.55), (0, 0.75), (0.7, 0.55), (0.95, 0.2), (0.75, 0.95), (-0.75, 0.95)],
    ),
    "bell": _add(
        _ellipse(0, -0.25, 0.55, 0.7),
        _box(-0.55, -0.25, 0.55, 0.5),
        _box(-0.9, 0.45, 0.9, 0.65),
        _ellipse(0, 0.75, 0.2),
    ),
    "butterfly": _add(
        _ellipse(-0.5, -0.4, 0.45),
        _ellipse(0.5, -0.4, 0.45),
        _ellipse(-0.4, 0.45, 0.33),
        _ellipse(0.4, 0.45, 0.33),
        _box(-0.08, -0.7, 0.08, 0.8),
    ),
    "crown": _add([(-1, 0.7), (-1, -0.6), (-0.5, 0.05), (0, -0.8), (0.5, 0.05), (1, -0.6), (1, 0.7)]),
    "hourglass": _add([(-0.75, -0.95), (0.75, -0.95), (0.08, 0), (0.75, 0.95), (-0.75, 0.95), (-0.08, 0)]),
    "mushroom": [
        ("add", _ellipse(0, -0.1, 0.95, 0.8)),
        ("cut", _box(-1.1, 0, 1.1, 1.1)),
        *_add(_box(-0.3, -0.05, 0.3, 0.9)),
    ],
    "rocket": _add(
        [(0, -1), (0.35, -0.4), (0.35, 0.5), (-0.35, 0.5), (-0.35, -0.4)],
        [(-0.35, 0.1), (-0.8, 0.8), (0.8, 0.8), (0.35, 0.1)],
    ),
    "sailboat": _add(
        [(-0.95, 0.4), (0.95, 0.4), (0.6, 0.9), (-0.6, 0.9)],
        [(-0.05, -1), (-0.05, 0.25), (-0.75, 0.25)],
        [(0.08, -0.8), (0.7, 0.25), (0.08, 0.25)],
    ),
}

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (208, 40, 36), "orange": (236, 132, 28), "yellow": (240, 212, 52), "green": (52, 150, 62),
    "blue": (40, 84, 196), "purple": (128, 56, 164), "pink": (238, 134, 176), "white": (240, 240, 240),
    "brown": (124, 78, 44), "black": (28, 28, 32),
}  # fmt: skip
UNSEEN_COLOURS: dict[str, Colour] = {
    "teal": (20, 132, 128), "lime": (168, 220, 44), "maroon": (104, 16, 40), "navy": (20, 28, 92),
    "beige": (222, 204, 164), "lavender": (182, 164, 230), "olive": (120, 120, 36), "grey": (128, 128, 128),
}  # fmt: skip

TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("plain", "shaded", "speckled", "cluttered")
UNSEEN_BACKGROUNDS = ("brick", "wavy", "tiled")
SIZES = ("small", "large")
LIGHTS = ("day", "night")

CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)


@dataclass(frozen=True)
class Scene:
    """What an image shows: the ground truth of every question asked about it."""

    shape: str | None
    colour: str
    texture: str
    background: str
    background_colour: str
    size: str
    light: str
    outline: bool = False

    def caption(self) -> str:
        """The scene in words, e.g. ``a small red striped star on a plain blue background at night``."""
        texture = "" if self.texture == "plain" else f"{self.texture} "
        outline = "outline of a " if self.outline else ""
        light = " at night" if self.light == "night" else ""
        what = (
            f"{outline}{self.size} {self.colour} {texture}{self.shape}"
            if self.shape
            else f"{self.colour} {texture}pattern"
        )
        text = f"{what} on a {self.background} {self.background_colour} background{light}"
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


@dataclass(frozen=True)
class SetDefinition:
    """How one set of the world differs from the training images, and what role it plays."""

    role: Literal["training", "in-distribution", "shifted", "near-ood", "far-ood"]
    count: int
    shapes: tuple[str, ...] = CLASS_NAMES
    colours: tuple[str, ...] = tuple(COLOURS)
    backgrounds: tuple[str, ...] = BACKGROUNDS
    outline: bool = False


SETS: dict[str, SetDefinition] = {
    "train": SetDefinition("training", 72_000),
    "calibration": SetDefinition("training", 256),
    "test": SetDefinition("in-distribution", 960),
    "outline": SetDefinition("shifted", 480, outline=True),
    "palette": SetDefinition("shifted", 480, colours=tuple(UNSEEN_COLOURS)),
    "background": SetDefinition("shifted", 480, backgrounds=UNSEEN_BACKGROUNDS),
    "unseen-shapes": SetDefinition("near-ood", 480, shapes=tuple(UNSEEN_SHAPES)),
    "textures": SetDefinition("far-ood", 480, shapes=()),
}


def generator(set_name: str, index: int) -> np.random.Generator:
    """The random stream of image ``index`` of a set; independent of every other image."""
    return np.random.default_rng([SEED, zlib.crc32(set_name.encode()), index])


def sample(set_name: str, index: int) -> tuple[Scene, Pixels]:
    """Image ``index`` of a set: its scene and its pixels (uint8, 48 x 48 x 3, RGB).

    Classes take turns, so that every prefix of a set is balanced.
    """
    scene, pixels, _ = sample_with_silhouette(set_name, index)
    return scene, pixels


def sample_with_silhouette(set_name: str, index: int) -> tuple[Scene, Pixels, NDArray[np.float64]]:
    """Scene, pixels and the object's coverage of each pixel (48 x 48, 0 to 1), which helps training."""
    rng = generator(set_name, index)
    definition = SETS[set_name]
    shapes = definition.shapes
    colour, background_colour = rng.choice(definition.colours, size=2, replace=False)
    scene = Scene(
        shape=shapes[index % len(shapes)] if shapes else None,
        colour=str(colour),
        texture=str(rng.choice(TEXTURES)),
        background=str(rng.choice(definition.backgrounds)),
        background_colour=str(background_colour),
        size=str(rng.choice(SIZES)),
        light=str(rng.choice(LIGHTS, p=[0.6, 0.4])),
        outline=definition.outline,
    )
    return scene, *_render(scene, rng)


def _render(scene: Scene, rng: np.random.Generator) -> tuple[Pixels, NDArray[np.float64]]:
    """Draw background and object with its texture, then light and sensor noise."""
    image = _background(scene, rng)
    mask = np.ones((IMAGE_SIZE, IMAGE_SIZE)) if scene.shape is None else _object_mask(scene, rng)
    surface = _surface(scene, rng)
    image = image * (1 - mask[..., None]) + surface * mask[..., None]
    if scene.light == "night":
        image = image * rng.uniform(0.33, 0.52) + np.array([4.0, 6.0, 16.0])
        noise = rng.uniform(6, 13)
    else:
        image = image * rng.uniform(0.8, 1.1)
        noise = rng.uniform(3, 11)
    image = image + rng.normal(0, noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def _rgb(name: str) -> NDArray[np.float64]:
    return np.array({**COLOURS, **UNSEEN_COLOURS}[name], dtype=np.float64)


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float64)
    return x, y


def _background(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    x, y = _grid()
    base = np.broadcast_to(_rgb(scene.background_colour), (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    dark, light = base * 0.7, base * 0.75 + 60
    kind = scene.background
    if kind == "shaded":
        angle = rng.uniform(0, 2 * np.pi)
        ramp = ((x - 24) * np.cos(angle) + (y - 24) * np.sin(angle)) / 48
        return base * (1 + 0.7 * ramp[..., None])
    if kind == "speckled":
        return base + rng.normal(0, 28, (IMAGE_SIZE, IMAGE_SIZE, 1))
    if kind == "cluttered":
        canvas = Image.fromarray(base.astype(np.uint8))
        brush = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(5, 10)):
            cx, cy = rng.uniform(0, IMAGE_SIZE, 2)
            r = rng.uniform(1.5, 4.5)
            tone = tuple(int(v) for v in np.clip(base[0, 0] * rng.uniform(0.4, 1.6) + rng.uniform(-30, 50), 0, 255))
            if rng.random() < 0.5:
                brush.ellipse((cx - r, cy - r, cx + r, cy + r), fill=tone)
            else:
                brush.line((cx - 2 * r, cy, cx + 2 * r, cy + rng.uniform(-6, 6)), fill=tone, width=2)
        return np.asarray(canvas, dtype=np.float64)
    if kind == "brick":
        row = np.floor(y / 8)
        joint = (y % 8 < 1.5) | ((x + 6 * (row % 2)) % 12 < 1.5)
        return np.where(joint[..., None], light, dark)
    if kind == "wavy":
        wave = np.sin((y + 4 * np.sin(x / 5 + rng.uniform(0, 6))) / 2.2)
        return base + 38 * wave[..., None]
    if kind == "tiled":
        even = (np.floor(x / 8) + np.floor(y / 8)) % 2 == 0
        return np.where(even[..., None], light, dark)
    return base


def _surface(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    x, y = _grid()
    base = np.broadcast_to(_rgb(scene.colour), (IMAGE_SIZE, IMAGE_SIZE, 3))
    other = np.where(base.mean() > 110, base * 0.55, base * 0.6 + 95)
    phase = rng.uniform(0, 6, 2)
    if scene.texture == "striped":
        pattern = ((x + y + phase[0]) % 7) < 2.6
    elif scene.texture == "dotted":
        pattern = ((x + phase[0]) % 6 - 3) ** 2 + ((y + phase[1]) % 6 - 3) ** 2 < 3.2
    elif scene.texture == "checked":
        pattern = (np.floor((x + phase[0]) / 3.5) + np.floor((y + phase[1]) / 3.5)) % 2 == 0
    else:
        return base.astype(np.float64)
    return np.where(pattern[..., None], other, base)


def _object_mask(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """Coverage of each pixel by the object, 0 to 1 (anti-aliased)."""
    assert scene.shape is not None
    radius = rng.uniform(10.0, 12.5) if scene.size == "small" else rng.uniform(15.0, 18.5)
    cx, cy = IMAGE_SIZE / 2 + rng.uniform(-0.4, 0.4, 2) * (IMAGE_SIZE / 2 - radius)
    angle = rng.normal(0, 0.16)
    stretch = rng.uniform(0.88, 1.14)
    c, s = np.cos(angle), np.sin(angle)
    size = IMAGE_SIZE * _SUPERSAMPLE

    def place(polygon: Polygon, scale: float = 1.0) -> list[tuple[float, float]]:
        points = []
        for px, py in polygon:
            px, py = px * stretch * scale, py / stretch * scale
            points.append(
                ((cx + radius * (c * px - s * py)) * _SUPERSAMPLE, (cy + radius * (s * px + c * py)) * _SUPERSAMPLE)
            )
        return points

    canvas = Image.new("L", (size, size), 0)
    brush = ImageDraw.Draw(canvas)
    for kind, polygon in {**SHAPES, **UNSEEN_SHAPES}[scene.shape]:
        brush.polygon(place(polygon), fill=255 if kind == "add" else 0)
    mask = (
        np.asarray(canvas, dtype=np.float64).reshape(IMAGE_SIZE, _SUPERSAMPLE, IMAGE_SIZE, _SUPERSAMPLE).mean((1, 3))
        / 255
    )
    if scene.outline:
        mask = _outline(np.asarray(canvas) > 0, width=max(2, int(radius * _SUPERSAMPLE * 0.32)))
    return mask


def _outline(solid: NDArray[np.bool_], width: int) -> NDArray[np.float64]:
    """The band of the given width (in supersampled pixels) just inside a solid's border."""
    inner = solid.copy()
    for _ in range(width):
        shrunk = inner.copy()
        shrunk[1:] &= inner[:-1]
        shrunk[:-1] &= inner[1:]
        shrunk[:, 1:] &= inner[:, :-1]
        shrunk[:, :-1] &= inner[:, 1:]
        inner = shrunk
    band = (solid & ~inner).astype(np.float64)
    return band.reshape(IMAGE_SIZE, _SUPERSAMPLE, IMAGE_SIZE, _SUPERSAMPLE).mean((1, 3))
