"""What every loader makes of a checkpoint, and what it says where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clipq.bundle import Preprocess


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory: the torch model (eval mode, float32, CPU), its tokenizer and its transform."""

    name: str
    model: Any
    tokenizer: Any
    preprocess: Preprocess
    transform: Any
    weights_sha256: str | None
    packages: tuple[str, ...] = ("torch", "open_clip_torch", "timm", "onnx", "onnxscript")


def reason_of(error: Exception) -> str:
    """What a library's error says, in one line; where it came of a hub that cannot be reached, the way out."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " | ".join(type(link).__name__ + ": " + (str(link).strip().splitlines() or [""])[0] for link in chain)
    offline = (
        "LocalEntryNotFound",
        "ConnectionError",
        "ConnectError",
        "Name or service",
        "ProxyError",
        "MaxRetry",
        "OfflineMode",
    )
    if any(word in text for word in offline):
        return "the model hub cannot be reached; get the weights elsewhere, give local-dir:FOLDER or --pretrained FILE"
    return (" ".join(str(error).split()) or type(error).__name__)[:400]
