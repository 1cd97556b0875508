"""What a CPU's instruction set does to an engine's numbers, and which this one is.

x86 without VNNI multiplies u8 by s8 through ``vpmaddubsw``, which adds two products in 16 bits and saturates: the same
INT8 file is another engine there. In floating point, wider registers end sums in other last digits. So a level is what
decides arithmetic, and engines of two levels are two engines.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

from clipq.errors import ClipqError
from clipq.given import hint

# What a user asks of 8-bit products on a CPU whose own would saturate: ``exact`` has the runtime take slower ones.
Precision = Literal["as-is", "exact"]
_EXACT = "-exact"
# What an engine would answer on a CPU of this level, found out on another.
_PREDICTED = "-predicted"
# Two products of such weights and bytes fit into 16 bits: 255 · 64 · 2.
MOST_SAFE_BITS = 7
# What such numbers are worth nothing without.
SETTING = "the session that ships needs session.x64quantprecision=1 for these numbers and times"


@dataclass(frozen=True)
class Level:
    """Instruction sets that decide arithmetic, of one family of CPUs; ``summary`` says which CPUs are such.

    ``saturates``: whether 8-bit products lose what 16 bits do not hold; None where nobody has looked.
    """

    name: str
    machine: str
    needs: frozenset[str]
    saturates: bool | None
    summary: str


_AVX512 = {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"}

# By machine the most able first. Where ONNX Runtime's kernels draw the lines: MLAS, platform.cpp.
LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("avx512-amx", "x86_64", frozenset({*_AVX512, "avx512_vnni", "amx_int8"}), False,
              "Intel Xeon from Sapphire Rapids (2023) on"),
        Level("avx512-vnni", "x86_64", frozenset({*_AVX512, "avx512_vnni"}), False,
              "Intel Xeon Cascade Lake to Ice Lake (2019), Core Ice to Rocket Lake; AMD from Zen 4 on (EPYC Genoa)"),
        Level("avx2-vnni", "x86_64", frozenset({"avx2", "avx_vnni"}), False,
              "Intel Core from Alder Lake (2021) on, Xeon E-cores (Sierra Forest)"),
        Level("avx512", "x86_64", frozenset(_AVX512), True, "Intel Xeon Skylake (2017)"),
        Level("avx2", "x86_64", frozenset({"avx2"}), True,
              "Intel Haswell, Broadwell, Core Skylake to Comet Lake; AMD Zen 1 to 3 (EPYC Naples, Rome, Milan)"),
        # Its products are multiplied in 16 bits, and added in 32.
        Level("avx", "x86_64", frozenset({"avx"}), False, "Intel Sandy Bridge and Ivy Bridge, AMD Bulldozer"),
        Level("neon-i8mm", "aarch64", frozenset({"asimddp", "i8mm"}), False,
              "AWS Graviton 3 and 4, Apple M2 on, Ampere AmpereOne"),
        Level("neon-dotprod", "aarch64", frozenset({"asimddp"}), False, "AWS Graviton 2, Apple M1, Ampere Altra"),
        Level("neon", "aarch64", frozenset(), False, "AWS Graviton 1, Raspberry Pi 4"),
    )
}  # fmt: skip

# What is recorded beside the level: bfloat16 is computed in where an engine asks for it.
DECISIVE = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "bf16",
)  # fmt: skip

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@cache
def cpu_features() -> frozenset[str]:
    """The instruction sets of this CPU that a process may use, as Linux names them."""
    from archspec.cpu import detect

    if _machine() == "aarch64":
        # Apple tells the name of a chip, and the library what such chips have.
        return frozenset(detect.host().features if platform.system() == "Darwin" else detect.detected_info().features)
    with warnings.catch_warnings():
        # Where nothing can be read nothing is known, which the level says.
        warnings.simplefilter("ignore")
        said = frozenset(detect.detected_info().features)
    if _machine() != "x86_64":
        return said
    with suppress(Exception):  # where no code of one's own may be run, the system's word is all there is
        able = frozenset(detect.CpuidInfoCollector().features)
        # Linux leaves out what it keeps a process from using; an emulated CPU has less than the system says.
        return able & said if platform.system() == "Linux" else able
    return said


@cache
def cpu_level() -> Level:
    """The level of this CPU."""
    machine = _machine()
    for level in LEVELS.values():
        if level.machine == machine and level.needs <= cpu_features():
            return level
    return Level(machine, machine, frozenset(), None, "not looked at")


def arithmetic(precision: Precision, level: Level | None = None) -> str:
    """What tables and keys call this CPU's arithmetic: its level, and whether 8-bit products are kept from saturating.

    >>> [arithmetic("exact", LEVELS[name]) for name in ("avx2", "avx2-vnni", "neon")]
    ['avx2-exact', 'avx2-vnni-exact', 'neon']
    """
    level = level or cpu_level()
    return f"{level.name}{_EXACT}" if is_kept_exact(precision, level) else level.name


def is_kept_exact(precision: Precision, level: Level | None = None) -> bool:
    """Whether ``exact`` changes the kernels: on x86 all of them, the numbers where these saturate, times everywhere."""
    return precision == "exact" and (level or cpu_level()).machine == "x86_64"


def saturates(called: str) -> bool:
    """Whether 8-bit products saturate in an arithmetic, by its name; of an unknown one nothing is said."""
    return called in LEVELS and LEVELS[called].saturates is True


def check_predictable(asked: str) -> None:
    """Raise ClipqError for what no CPU level is called, or one where 8-bit products are exact or nobody has looked."""
    check_known([asked])
    able = [name for name in LEVELS if saturates(name)]
    if asked not in able:
        raise ClipqError(f"CPU level {asked!r} is not predicted: products saturate on {' and '.join(able)}")


def predicted(asked: str) -> str:
    """What tables and keys call the arithmetic of a level that was predicted on this CPU.

    >>> predicted("avx2"), predicted_for(predicted("avx2")), predicted_for("avx2"), saturates(predicted("avx2"))
    ('avx2-predicted', 'avx2', '', False)
    """
    return f"{asked}{_PREDICTED}"


def predicted_for(called: str) -> str:
    """The level that an arithmetic is a prediction for; empty where engines ran on it."""
    return called.removesuffix(_PREDICTED) if called.endswith(_PREDICTED) else ""


def is_exact_by_choice(called: str) -> bool:
    """Whether products of an arithmetic were kept from saturating, where they would and where not."""
    return called.endswith(_EXACT)


def spoken(called: str) -> str:
    """An arithmetic in words.

    >>> spoken("avx512-vnni")
    'AVX512, VNNI, no AMX: 8-bit products are exact'
    >>> spoken("avx2")
    'AVX2, no VNNI: 8-bit products saturate'
    """
    name = called.removesuffix(_EXACT)
    if name not in LEVELS:
        return f"{called}: nobody has looked whether 8-bit products are exact"
    level = LEVELS[name]
    parts = [part.upper() for part in name.split("-")]
    if level.machine == "x86_64":
        parts[1:] = {"amx": ["VNNI", "AMX"], "vnni": ["VNNI", "no AMX"]}.get(name.partition("-")[2], ["no VNNI"])
    how = "saturate" if level.saturates else "are exact"
    how = "are kept exact" if called != name else how
    return f"{', '.join(parts)}: 8-bit products {how}"


def known_arithmetics() -> list[str]:
    """Every name that an arithmetic can have, and the families that several share: ``vnni``."""
    exact = [arithmetic("exact", level) for level in LEVELS.values() if is_kept_exact("exact", level)]
    names = [*LEVELS, *exact]
    return [*names, *dict.fromkeys(name.rpartition("-")[2] for name in names if "-" in name)]


def is_of(called: str, asked: Iterable[str]) -> bool:
    """Whether an arithmetic is one that is asked for: by its name, or by the last part of it.

    >>> is_of("avx512-vnni", ["vnni"]), is_of("avx512-amx", ["vnni"]), is_of("avx2-exact", ["avx2"])
    (True, False, False)
    """
    return bool({called, called.rpartition("-")[2]} & set(asked)) if called else False


def check_known(asked: Collection[str]) -> None:
    """Raise ClipqError for a name that no arithmetic has."""
    known = known_arithmetics()
    for one in asked:
        if one not in known:
            raise ClipqError(f"there is no CPU level {one!r}{hint(one, known)}; there is {', '.join(known)}")


def _machine() -> str:
    """The family of this CPU as Linux calls it, also for an x86 Python on an Apple chip."""
    machine = platform.machine().lower() or "unknown"
    return _MACHINES.get(machine, machine)
