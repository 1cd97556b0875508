"""Adversarial images from an FP32 checkpoint's gradients, stored in pixel space for every engine to be tried on.

An integer engine has no useful gradient; what is measured on it is how well attacks on the reference transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipq.data.attack import Pixels, write_attack
from clipq.data.pixels import PixelReader
from clipq.data.views import View
from clipq.errors import DataError
from clipq.exporters.loaded_checkpoint import LoadedCheckpoint
from clipq.exporters.prompts import shipped_prompts
from clipq.given import hint, without_folders
from clipq.making import directory_in_making
from clipq.progress import Progress

BATCH = 32

Method = Literal["fgsm", "pgd"]


@dataclass(frozen=True)
class AttackSettings:
    """How to attack: L∞ strengths in 255ths; steps and random restarts are PGD's (Madry et al., 2018).

    FGSM (Goodfellow et al., 2015) is one step of the whole strength from the image itself.
    """

    method: Method
    epsilons: tuple[int, ...]
    steps: int = 10
    restarts: int = 1
    seed: int = 0
    templates: str | None = None

    def options(self) -> dict[str, Any]:
        """What goes into the manifest."""
        if self.method == "fgsm":
            return {}
        return {"steps": self.steps, "restarts": self.restarts, "seed": self.seed, "step_size": "2.5 * epsilon / steps"}


def attack(loaded: LoadedCheckpoint, view: View, settings: AttackSettings, target: Path, progress: Progress) -> None:
    """Attack a checkpoint on a labelled view and store clean and adversarial images at ``target``.

    Raises DataError where an image cannot be decoded.
    """
    import torch

    assert view.classes is not None
    if view.classes.label_of_class != tuple(range(len(view.classes.names))):
        raise DataError(f"{view.source}: joins classes in labels; attacks need one class per label")
    name, templates = _templates(view, settings.templates, shipped_prompts()["templates"])
    classes = _class_embeddings(loaded, view.classes.names, templates, progress)
    n = len(view.samples)
    clean = PixelReader(loaded.preprocess).read(view, 0, n).pixels
    labels = np.array([sample.label for sample in view.samples])
    adversarial: dict[int, Pixels] = {0: clean}
    fooled: dict[str, tuple[bool, ...]] = {}
    for epsilon in settings.epsilons:
        progress.start(f"{settings.method}, ε = {epsilon}/255", n)
        images, wrong = [], []
        for start in range(0, n, BATCH):
            torch.manual_seed(settings.seed + 1000 * epsilon + start)
            part = np.s_[start : start + BATCH]
            victim = _Victim(loaded, classes, torch.from_numpy(labels[part]))
            found, turned = _attack_batch(victim, clean[part], epsilon, settings)
            images.append(found)
            wrong += turned
            progress.advance(len(found))
        adversarial[epsilon] = np.concatenate(images)
        fooled[str(epsilon)] = tuple(wrong)
    with directory_in_making(target) as making:
        write_attack(
            making,
            {
                "method": settings.method,
                "options": settings.options(),
                "epsilons": settings.epsilons,
                "checkpoint": loaded.name,
                "preprocess": loaded.preprocess,
                "source": without_folders(view.source),
                "ids": tuple(sample.id for sample in view.samples),
                "labels": tuple(labels.tolist()),
                "class_names": view.classes.names,
                "class_keys": view.classes.keys,
                "templates_name": name,
                "templates": templates,
                "fooled": fooled,
            },
            adversarial,
        )


@dataclass(frozen=True)
class _Victim:
    """The checkpoint as the attack sees it: pixels (float, 0 to 255, N × 3 × H × W) to class logits."""

    loaded: LoadedCheckpoint
    classes: Any
    labels: Any

    def logits(self, pixels: Any) -> Any:
        import torch

        config = self.loaded.preprocess
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (config.mean, config.std))
        features = self.loaded.model.encode_image((pixels / 255 - mean) / std, normalize=True)
        return self.loaded.model.logit_scale.exp() * features @ self.classes.T

    def gradient(self, pixels: Any) -> Any:
        """Gradient of the label's cross-entropy in the pixels."""
        import torch

        pixels = pixels.detach().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(self.logits(pixels), self.labels, reduction="sum")
        return torch.autograd.grad(loss, pixels)[0]

    def is_wrong(self, pixels: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.logits(pixels).argmax(1) != self.labels


def _attack_batch(victim: _Victim, clean: Pixels, epsilon: int, settings: AttackSettings) -> tuple[Pixels, list[bool]]:
    """The strongest of the restarts for each image, in whole 255ths, and whether it fools the checkpoint."""
    import torch

    image = torch.from_numpy(np.moveaxis(clean, -1, 1).astype(np.float32))
    best, wrong = image.clone(), torch.zeros(len(clean), dtype=torch.bool)

    def inside(pixels: Any) -> Any:
        return torch.minimum(torch.maximum(pixels, image - epsilon), image + epsilon).clamp(0, 255)

    for _ in range(settings.restarts if settings.method == "pgd" else 1):
        if settings.method == "fgsm":
            found = inside(image + epsilon * victim.gradient(image).sign())
        else:
            found = inside(image + torch.empty_like(image).uniform_(-epsilon, epsilon))
            for _ in range(settings.steps):
                found = inside(found + 2.5 * epsilon / settings.steps * victim.gradient(found).sign())
        # Bounds are whole numbers, so rounding stays inside them: ε is exact in the 8-bit image.
        found = found.round()
        fools = victim.is_wrong(found)
        take = ~wrong
        best[take], wrong = found[take], wrong | fools
    pixels = np.ascontiguousarray(np.moveaxis(best.numpy(), 1, -1)).astype(np.uint8)
    return pixels, [bool(value) for value in wrong]


def _templates(view: View, asked: str | None, known: dict[str, list[str]]) -> tuple[str, tuple[str, ...]]:
    """As in evaluation: the set asked for, else the data set's own, else open_clip's 80 for ImageNet."""
    assert view.classes is not None
    if asked is not None and asked not in known:
        raise DataError(f"--templates {asked!r}: there are {', '.join(known)}{hint(asked, known)}")
    if asked is None and view.classes.templates is not None:
        return "data set's own", view.classes.templates
    name = asked or "imagenet-80"
    return name, tuple(known[name])


def _class_embeddings(
    loaded: LoadedCheckpoint, names: Sequence[str], templates: Sequence[str], progress: Progress
) -> Any:
    import torch

    progress.start("class prompts", len(names))
    rows = []
    encode: Callable[..., Any] = loaded.model.encode_text
    with torch.no_grad():
        for name in names:
            tokens = loaded.tokenizer([template.replace("{}", name) for template in templates])
            mean = encode(tokens, normalize=True).mean(0)
            rows.append(mean / mean.norm())
            progress.advance(1)
    return torch.stack(rows)
