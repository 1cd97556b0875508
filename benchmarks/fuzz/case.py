"""One case: a seed's number, a kind, and how its commands ended."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.command import Ended, run
from benchmarks.fuzz.sandbox import Sandbox, changed, discard, leftovers, snapshot
from benchmarks.fuzz.world import NO_BENCH, Numbers, World, numbers, record

# Of a shard that may be a part of a longer one.
UNSURE = ("verif", "end marker", "truncated")
FAULTS = ("traceback", "hang", "memory", "outside", "silent", "fuzzer")


class Fault(Exception):
    """What a command must not do; ``kind`` is one of FAULTS."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``accepted``, ``refused`` or a fault, what was mutated, and what was seen."""

    number: int
    kind: str
    ended: str
    mutation: str
    seen: str = ""


@dataclass
class Case:
    """What a kind is given: random numbers, the valid world, folders for its inputs and the output, and commands."""

    rng: Random
    world: World
    sandbox: Sandbox
    mutation: str = ""
    refused: bool = False
    commands: list[Ended] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder that commands are called in and mutated inputs lie in."""
        return self.sandbox.path("cwd")

    @property
    def output(self) -> Path:
        """What commands may write to."""
        return self.sandbox.path("output") / "out"

    def copy(self, name: str) -> Path:
        """A copy of a valid input to mutate; a file's or folder's path below the world's valid ones."""
        source, target = self.world.valid / name, self.folder / Path(name).name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        return target

    def command(
        self,
        *arguments: Any,
        prepare: Callable[[], None] = lambda: None,
        writes: bool = True,
        may: tuple[str, ...] = (),
    ) -> Ended:
        """Run a command; raises Fault for what none may do. ``writes``: below the output; ``may``: below these too."""
        given = tuple(os.fsdecode(os.fspath(one)) if isinstance(one, Path) else str(one) for one in arguments)
        before = snapshot(self.world.root)
        done = run(given, self.folder, self.sandbox.environment(), prepare)
        self.commands.append(done)
        if done.fault:
            raise Fault(done.fault, str(done))
        below = [str(self.sandbox.path("output"))] if writes else []
        allowed = (*may, *below, *map(str, self.sandbox.of_onnx_runtime()))
        outside = [path for path in changed(before, snapshot(self.world.root)) if not path.startswith(allowed)]
        if outside or (outside := leftovers(self.sandbox.path("output"))):
            raise Fault("outside", f"{done}\nwritten: {', '.join(outside[:5])}")
        self.refused |= done.refused
        return done

    def evaluate(self, *arguments: Any, engine: Path | None = None, **options: Any) -> Numbers | None:
        """``clipq-eval run`` of an engine into the output; its numbers, or None where it was refused."""
        bundle = engine or self.world.engine
        done = self.command("clipq-eval", "run", bundle, *arguments, "-o", self.output, *NO_BENCH, **options)
        if done.refused:
            return None
        found = numbers(self.output)
        for key, (value, *_) in found.items():
            if value in ("inf", "-inf"):
                raise Fault("silent", f"{key} is {value}")
        return found

    def equal(self, found: Numbers | None, expected: str | Numbers, without: tuple[str, ...] = ()) -> None:
        """Raise Fault where numbers are not those of a valid input; ``without`` some metrics."""
        wanted = self.world.numbers[expected] if isinstance(expected, str) else expected
        if found is None or found == wanted:
            return
        keys = [key for key in found.keys() | wanted.keys() if key[-1] not in without]
        different = [key for key in keys if found.get(key) != wanted.get(key)]
        if not different:
            return
        key = min(different)
        raise Fault("silent", f"{len(different)} numbers differ: {key} {found.get(key)}, was {wanted.get(key)}")

    def counts(self, found: Numbers | None, expected: int) -> None:
        """Raise Fault where fewer samples of an accepted source are used, skipped or left out than expected, or more used."""
        if found is None:
            return
        (view,) = record(self.output)["views"]
        known = view["n"] + len(view["skipped"])
        # Files that are no images are left out, too.
        told = known + view.get("left_out_count", len(view.get("left_out", ())))
        if not known <= expected <= told:
            raise Fault("silent", f"{view['n']} samples used, {told} accounted for, {expected} were there")

    def is_unsure(self) -> bool:
        """Whether the record or a warning says that a shard may be a part of a longer one."""
        told = f"{json.dumps(record(self.output))} {self.commands[-1].stderr}"
        return any(word in told for word in UNSURE)


Kind = Callable[[Case], None]


def attempt(number: int, seed: int, name: str, kind: Kind, world: World, kept: Path) -> Outcome:
    """Try one case; where it fails its inputs and what was seen are kept in a folder."""
    case = Case(Random(f"{seed}/{number}"), world, world.sandbox)
    case.sandbox.make()
    try:
        kind(case)
    except Fault as fault:
        outcome = Outcome(number, name, fault.kind, case.mutation, str(fault))
    except Exception:
        outcome = Outcome(number, name, "fuzzer", case.mutation, traceback.format_exc(limit=-4))
    else:
        return Outcome(number, name, "refused" if case.refused else "accepted", case.mutation)
    target = kept / f"{name}-{number}"
    discard(target)
    shutil.copytree(case.sandbox.root, target, symlinks=True, ignore_dangling_symlinks=True, ignore=_special)
    calls = [f"{one}\n" for one in case.commands]
    told = {
        "seed": seed,
        "case": number,
        "mutation": case.mutation,
        "ended": outcome.ended,
        "seen": outcome.seen,
        "calls": calls,
    }
    (target / "failure.json").write_text(json.dumps(told, indent=1))
    return outcome


def _special(folder: str, names: list[str]) -> list[str]:
    """Pipes and devices, which cannot be copied."""
    paths = [(name, Path(folder) / name) for name in names]
    return [name for name, path in paths if not (path.is_file() or path.is_dir() or path.is_symlink())]
