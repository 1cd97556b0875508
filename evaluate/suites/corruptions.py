"""Corrupted views: the 19 corruptions of ImageNet-C and two occlusions, drawn from a seed at the size the tower sees.

ImageNet-C's come from ``imagecorruptions`` (Hendrycks and Dietterich, 2019; Michaelis et al., 2019). An image's
corruption depends on the seed, the corruption, the severity and the sample's id alone, so every engine sees the same
pixels, and another machine with the same library versions draws them again.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipq.data.views import DrawnView, View
from clipq.environment import DRAWING, OPENCV
from clipq.errors import DataError
from clipq.evaluate.results.key import condition_group, corrupted_view
from clipq.files import sha256_bytes

STANDARD = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
OCCLUSIONS = ("occlusion_random", "occlusion_centre")
NAMED_SETS = {
    "all": STANDARD + EXTRA + OCCLUSIONS,
    "imagenet-c": STANDARD,
    "extra": EXTRA,
    "occlusion": OCCLUSIONS,
}
SEVERITIES = (1, 2, 3, 4, 5)

# Side of the occluding square as a part of the image's, by severity: 4 to 36 % of the pixels.
_OCCLUDED_SIDE = (0.2, 0.3, 0.4, 0.5, 0.6)
_SMALLEST = 32


@dataclass(frozen=True)
class CorruptedView(DrawnView):
    """A view whose pixels are corrupted after resize and crop, as ImageNet-C's images were."""

    corruption: str
    severity: int
    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 over the base view's digest and what determines the corruption."""
        # Not remembered: it would travel to another machine, whose libraries may draw other pixels.
        made = {
            "base": self.base.digest,
            "corruption": [self.corruption, self.severity, self.seed],
            "versions": drawing_versions(),
        }
        return sha256_bytes(json.dumps(made, sort_keys=True).encode())

    def draw(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The corrupted pixels."""
        sample = f"{self.seed}/{self.corruption}/{self.severity}/{self.samples[index].id}"
        return corrupt(pixels, self.corruption, self.severity, zlib.crc32(sample.encode()))


@cache
def drawing_versions() -> dict[str, str]:
    """Of everything that draws: another version of one may draw other pixels."""
    found = {}
    for name in DRAWING:
        with contextlib.suppress(PackageNotFoundError):
            found["opencv" if name in OPENCV else name] = version(name)
    return found


def corrupted_views(base: View, corruption: str, severities: tuple[int, ...], seed: int) -> list[CorruptedView]:
    """One corruption of a view at each severity; raises DataError for an unknown name."""
    if corruption not in NAMED_SETS["all"]:
        raise DataError(f"unknown corruption {corruption!r}; known: {', '.join((*NAMED_SETS, *NAMED_SETS['all']))}")
    if corruption not in OCCLUSIONS:
        _imagenet_c()
    return [
        CorruptedView(
            f"{corrupted_view(base.name)}/{condition_group(corruption, severity)}", base.source, base.samples,
            base.classes, base, corruption, severity, seed,
        )
        for severity in severities
    ]  # fmt: skip


def corrupt(pixels: NDArray[np.uint8], corruption: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """One corrupted image (uint8, H × W × 3, at least 32 × 32), the same for a seed."""
    height, width, _ = pixels.shape
    if corruption in OCCLUSIONS:
        return _occlude(pixels, corruption, severity, np.random.default_rng(seed))
    if min(height, width) < _SMALLEST:
        raise DataError(
            f"ImageNet-C's corruptions need images of {_SMALLEST} pixels or more, these have {width}x{height}"
        )
    # These two draw from generators of their own.
    own_seed = {"seed": seed} if corruption in ("glass_blur", "impulse_noise") else {}
    draw = _imagenet_c()
    with _global_seed(seed):
        return np.asarray(draw(pixels, severity=severity, corruption_name=corruption, **own_seed), np.uint8)


def _imagenet_c() -> Callable[..., Any]:
    try:
        from imagecorruptions import corrupt as draw
    except ImportError as error:
        # OpenCV's wheel wants libGL, which slim containers do not have.
        raise DataError(
            f"corruptions need OpenCV, which does not load here ({error}); install libgl1 and libglib2.0-0, "
            "or: pip install --force-reinstall --no-deps opencv-python-headless"
        ) from error
    function: Callable[..., Any] = draw
    return function


def _occlude(pixels: NDArray[np.uint8], corruption: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A grey square at a random place or in the centre."""
    height, width, _ = pixels.shape
    side = max(1, round(_OCCLUDED_SIDE[severity - 1] * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    if corruption == "occlusion_random":
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    occluded = pixels.copy()
    occluded[top : top + side, left : left + side] = 128
    return occluded


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the library draws from, and put its state back."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
