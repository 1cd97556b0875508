"""What a runtime is: where it runs, what it takes, and how it loads, proves and measures a tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from clipq.bundle import Bundle, TowerName
    from clipq.engines.base import Array, Engine
    from clipq.engines.census import Census
    from clipq.engines.saturation import Saturation

# Elsewhere: on a machine that clipq does not see, so that nothing of it can be measured.
Device = Literal["cpu", "cuda", "elsewhere"]
# A bundle's ONNX files, plans built for one runtime, or answers of an engine that ran elsewhere.
Takes = Literal["onnx", "plan", "answers"]
Feed: TypeAlias = "Mapping[str, Array]"


@dataclass(frozen=True)
class Status:
    """Whether a runtime works here, and what was found or what is missing.

    ``state`` is ``run`` (engines run here), ``built`` (plans can be built here, not run) or ``no``.
    """

    state: Literal["run", "built", "no"]
    detail: str

    @property
    def works(self) -> bool:
        """Whether engines run here."""
        return self.state == "run"


@dataclass(frozen=True)
class Load:
    """A tower that a runtime is to load, and how.

    ``threads`` 0 leaves their number to the runtime; ``simulated`` runs Q/DQ nodes as they are written, around
    floating-point kernels; ``graphs`` launches plans as CUDA graphs; ``exact`` keeps 8-bit products from saturating
    on a CPU where they would; ``saturating`` gives them as such a CPU would, on any of its family.
    """

    bundle: Bundle
    tower: TowerName
    threads: int = 0
    simulated: bool = False
    graphs: bool = False
    exact: bool = False
    saturating: bool = False

    @property
    def path(self) -> Path:
        """The tower's file."""
        return self.bundle.tower_path(self.tower)

    def fed(self, feed: Feed) -> Feed:
        """What the file itself takes, for what clipq feeds."""
        from clipq.engines.interface import Interface

        return Interface(self.bundle, self.tower).first(feed)


@dataclass(frozen=True)
class Runtime:
    """What is known of a runtime; a row of the catalog.

    ``device``: where it runs; on ``cuda`` results name the GPU. ``takes``: a bundle's ONNX files, or plans or
    answers of it alone. ``version``: package and version. ``open`` loads a tower. ``census``: which kernels ran in a
    tower for a batch, by the proof that this runtime offers. ``memory``: bytes of the device's memory that a tower and
    a batch take in a process of their own; None where nobody measures it. ``can_simulate``: it runs a Q/DQ file as it
    is written. ``saturation``: what a CPU without VNNI would lose of a tower's integer products on a batch; None
    where they depend on no CPU. Where it is known, the tower's outputs there can be predicted (``Load.saturating``).
    """

    name: str
    summary: str
    device: Device
    takes: Takes
    status: Callable[[], Status]
    version: Callable[[], str | None]
    open: Callable[[Load], Engine]
    census: Callable[[Load, Feed], Census]
    memory: Callable[[Load, Feed], int] | None = None
    can_simulate: bool = False
    saturation: Callable[[Load, Feed], Saturation | None] | None = None
