"""Preprocessing without torch gives the pixels of open_clip's own transform, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipq.bundle import Preprocess
from clipq.errors import DataError
from clipq.preprocess import open_image, preprocess

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)


def config(size=(64, 64), mode="shortest", interpolation="bicubic", fill=0):
    return Preprocess(
        image_size=size, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=mode, fill_color=fill
    )


def transformers_config(size, mode, interpolation):
    return Preprocess(
        image_size=size, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=mode, library="transformers"
    )


def transformers_processor(size, mode, interpolation, backend="pil"):
    """CLIP's processor of transformers, on Pillow or torchvision."""
    clip = pytest.importorskip("transformers.models.clip", reason="needs the export extra")
    kind = clip.image_processing_pil_clip.CLIPImageProcessorPil if backend == "pil" else clip.CLIPImageProcessor
    height, width = size
    return kind(
        size={"shortest_edge": height} if mode == "shortest" else {"height": height, "width": width},
        crop_size={"height": height, "width": width},
        resample={"bilinear": 2, "bicubic": 3}[interpolation],
        image_mean=MEAN,
        image_std=STD,
    )


def processed(processor, image):
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def photo(width, height, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(np.clip(base, 0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("shape", [(100, 100), (200, 77), (77, 200), (30, 20), (64, 64), (65, 64), (1000, 20)])
def test_equals_open_clip(resize_mode, interpolation, size, shape):
    transform = pytest.importorskip("open_clip.transform", reason="needs the export extra")
    image = photo(*shape)
    expected = transform.image_transform(
        size if size[0] != size[1] else size[0],
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode=resize_mode,
        interpolation=interpolation,
        fill_color=7,
    )(image).numpy()
    actual = preprocess(image, config(size, resize_mode, interpolation, 7))
    assert actual.dtype == np.float32 and (actual == expected).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_modes_equal_open_clip(mode, resize_mode):
    transform = pytest.importorskip("open_clip.transform", reason="needs the export extra")
    image = photo(150, 90, "RGB" if mode == "LA" else mode)
    if mode == "LA":
        image = image.convert("L").convert("LA")
    expected = transform.image_transform(64, is_train=False, mean=MEAN, std=STD, resize_mode=resize_mode)(image).numpy()
    assert (preprocess(image, config(mode=resize_mode)) == expected).all()


SHAPES = [(100, 100), (200, 77), (77, 200), (30, 20), (64, 64), (65, 64), (64, 67), (70, 64), (1000, 20)]


@pytest.mark.parametrize(("resize_mode", "size"), [("shortest", (64, 64)), ("squash", (64, 64)), ("squash", (48, 80))])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_transformers(resize_mode, size, interpolation):
    """Its processor on Pillow: the pixels, then the same arithmetic in another order."""
    own, config = (of(size, resize_mode, interpolation) for of in (transformers_processor, transformers_config))
    for shape in SHAPES:
        image = photo(*shape)
        expected, actual = processed(own, image), preprocess(image, config)
        assert actual.shape == expected.shape and np.abs(actual - expected).max() < 1e-6, shape


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "PA", "CMYK", "1", "YCbCr"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_modes_equal_transformers(mode, resize_mode):
    base = photo(150, 91)
    image = base.convert({"LA": "L", "PA": "P"}.get(mode, mode)).convert(mode)
    if "A" in mode:
        image.putalpha(photo(150, 91, "L", seed=1))
    own, config = (of((64, 64), resize_mode, "bicubic") for of in (transformers_processor, transformers_config))
    assert np.abs(preprocess(image, config) - processed(own, image)).max() < 1e-6


def test_a_transparent_colour_of_a_palette_equals_transformers():
    image = photo(150, 91, "P")
    image.info["transparency"] = 3
    own, config = (of((64, 64), "squash", "bicubic") for of in (transformers_processor, transformers_config))
    assert np.abs(preprocess(image, config) - processed(own, image)).max() < 1e-6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_transformers_on_torchvision_gives_other_pixels(interpolation):
    """Why one of its two processors has to be chosen: they differ by 1 to 3 levels of 255, on few pixels mostly."""
    levels = []
    for shape in SHAPES:
        image = photo(*shape)
        slow, fast = (
            processed(transformers_processor((64, 64), "shortest", interpolation, backend), image)
            for backend in ("pil", "torchvision")
        )
        levels.append(np.abs(slow - fast) * np.array(STD)[:, None, None] * 255)
    assert 0.5 < max(level.max() for level in levels) < 3.5
    assert np.median([(level > 0.5).mean() for level in levels]) < 0.01


@pytest.mark.shared
def test_equals_open_clip_on_photos(shared):
    transform = pytest.importorskip("open_clip.transform", reason="needs the export extra")
    paths = (
        sorted((shared / "photos" / "flickr8k" / "images").iterdir())[:20]
        + sorted((shared / "photos" / "cifar10" / "test").rglob("*.jpg"))[:10]
    )
    own = transform.image_transform(224, is_train=False, mean=MEAN, std=STD)
    for path in paths:
        assert (preprocess(open_image(path), config((224, 224))) == own(Image.open(path)).numpy()).all(), path


def test_exif_rotation_and_animation_are_as_in_the_transform(tmp_path):
    image = photo(40, 80)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.png", exif=exif)
    assert open_image(tmp_path / "rotated.png").size == (40, 80)
    frames = [photo(40, 40, seed=k) for k in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").size == (40, 40)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.jpg", b"", "empty"),
        ("text.png", b"this is text", "not an image"),
        ("cut.jpg", None, "cannot be decoded"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, word):
    path = tmp_path / name
    if content is None:
        photo(200, 200).save(tmp_path / "whole.jpg")
        content = (tmp_path / "whole.jpg").read_bytes()[:3000]
    path.write_bytes(content)
    with pytest.raises(DataError, match=word):
        open_image(path)


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="16 or 32 bits"):
        open_image(tmp_path / "deep.png")


def test_extreme_shapes():
    assert preprocess(photo(10_000, 20), config((224, 224))).shape == (3, 224, 224)
    with pytest.raises(DataError, match="less extreme"):
        preprocess(photo(60_000, 1), config((224, 224)))


def test_images_keep_the_keys_that_they_had_before_libraries():
    """What was embedded and decoded then is the same still; another library is another key."""
    own = config()
    assert list(own.identity()) == ["image_size", "mean", "std", "interpolation", "resize_mode", "fill_color"]
    assert list(own.geometry()) == ["image_size", "interpolation", "resize_mode", "fill_color"]
    other = own.model_copy(update={"library": "transformers"})
    assert other.identity() != own.identity()
    assert other.geometry() != own.geometry()
