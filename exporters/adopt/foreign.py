"""An engine that others made, as a user names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipq.bundle import TowerName
from clipq.errors import BundleError
from clipq.given import as_path


@dataclass(frozen=True)
class ForeignEngine:
    """Where an engine's files are, and what they do not say themselves.

    ``folder``, or ``image`` and ``text``; ``variant``: of several in the folder. ``like``: a bundle whose
    preprocessing, tokenizer, logit scale and prompts are taken where the files say nothing. ``image_output`` and
    ``text_output``: the embeddings among what the towers give. ``checkpoint``: what the engine is said to be made of.
    """

    folder: Path | None = None
    image: Path | None = None
    text: Path | None = None
    variant: str | None = None
    like: Path | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    image_output: str | None = None
    text_output: str | None = None
    context_length: int | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("folder", "image", "text", "like"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_path(value, name))
        if self.folder is None and (self.image is None or self.text is None):
            lacks = "--text FILE" if self.image is not None else "--image FILE" if self.text is not None else ""
            raise BundleError(f"give FOLDER, or both towers: {lacks or '--image FILE --text FILE'}")
        if self.folder is not None and (self.image is not None or self.text is not None):
            raise BundleError(f"give FOLDER {self.folder}, or --image and --text, not both")
        if self.folder is None and self.variant is not None:
            raise BundleError(f"--variant {self.variant} is of FOLDER; --image and --text name their files")
        for path in (self.folder, self.image, self.text, self.like):
            if path is not None and not path.exists():
                raise BundleError(f"{path}: no such file or folder")

    def output(self, tower: TowerName) -> str | None:
        """The name that was given of a tower's output."""
        return self.image_output if tower == "image" else self.text_output
