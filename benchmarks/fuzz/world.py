"""Valid inputs of every kind, small, and the numbers that they give: what mutated ones are made of and held against."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz.command import Ended, run
from benchmarks.fuzz.engine import CLASSES, write_engine
from benchmarks.fuzz.sandbox import Sandbox
from clipq.cpu import cpu_level
from clipq.evaluate.api import read_results

ROOT = Path(__file__).resolve().parent.parent.parent
# Images of each class, in each of two shards half of them.
EACH = 4
COUNT = EACH * len(CLASSES)
NO_BENCH = ("--no-bench", "--no-images", "--threads", "1")

SUITE: dict[str, Any] = {
    "seed": 0,
    "view": [
        {"name": "x", "source": "photos"},
        {"name": "y", "source": "labels.csv", "role": "groups", "groups": ["light"], "smallest_group": 2},
        {"name": "z", "source": "wds:shards", "role": "shifted", "baseline": "x", "samples": 8},
    ],
    "corruptions": [{"of": "x", "names": ["occlusion_random"], "severities": [3], "samples": 4}],
}
GRID: dict[str, Any] = {
    "suite": "suite.toml",
    "bundles": ["engines/*"],
    "runtimes": ["ort-cpu"],
    "threads": 1,
    "batch_size": 32,
}
POLICY: dict[str, Any] = {
    "confidence": 0.9,
    "required": ["x"],
    "rule": [
        {"metric": "acc1", "view": "x", "min_delta": -0.9},
        {"metric": "ece", "view": "x", "bundle": "int8*", "max": 0.99},
        {"metric": "agreement", "view": "x", "min": 0.01, "optional": True},
    ],
}

Numbers = dict[tuple[str, ...], tuple[str, ...]]


@dataclass
class World:
    """Where everything lies, and what it gives.

    ``root/valid`` has engines, photos, ``labels.csv``, shards, a suite, a grid, a policy, results with cells, a pixel
    cache. ``numbers`` are results.csv by the name of what was read.
    """

    root: Path
    numbers: dict[str, Numbers] = field(default_factory=dict)
    answers: dict[str, Ended] = field(default_factory=dict)

    @property
    def valid(self) -> Path:
        """The folder of valid inputs."""
        return self.root / "valid"

    @property
    def sandbox(self) -> Sandbox:
        """The folders of the case that is tried."""
        return Sandbox(self.root / "case")

    @property
    def engine(self) -> Path:
        """The FP32 bundle."""
        return self.valid / "engines" / "fp32"

    def make(self) -> World:
        """Write it all, and run what later runs are compared with; raises AssertionError where a valid input fails."""
        self.valid.mkdir(parents=True)
        write_engine(self.engine)
        for number, name, picture in pictures():
            path = self.valid / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
        write_table(self.valid / "labels.csv", table())
        for number, members in enumerate(shards()):
            write_tar(self.valid / "shards" / "test" / f"{number}.tar", members)
        (self.valid / "shards" / "test" / "nshards.txt").write_text("2\n")
        (self.valid / "shards" / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        from benchmarks.fuzz.trees import as_toml

        for name, tree in (("suite", SUITE), ("grid", GRID), ("policy", POLICY)):
            (self.valid / f"{name}.toml").write_text(as_toml(tree))
        # In a process of its own, for it starts threads.
        program = (
            "import sys, pathlib; from benchmarks.fuzz.hub import write_tables; write_tables(pathlib.Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", program, self.valid / "hub"], check=True, cwd=ROOT)
        self._run_valid()
        return self

    def _run_valid(self) -> None:
        engines = self.valid / "engines"
        self.command("clipq-export", "quantize", self.engine, "--recipe", "int8-dynamic", "-o", engines)
        bundles = (self.engine, engines / "int8-dynamic")
        kept = ("--pixel-cache", self.valid / "pixels", "--pixel-cache-gb", "1")
        results = self.valid / "results"
        self.command(
            "clipq-eval", "run", *bundles, "--data", f"x={self.valid / 'photos'}", "-o", results, *NO_BENCH, *kept
        )
        self.numbers["results"] = numbers(results)
        for name, source in (("photos", "photos"), ("labels.csv", "labels.csv"), ("shards", "wds:shards")):
            output = self.sandbox.path("output") / name
            place = source.replace(name, str(self.valid / name))
            self.command("clipq-eval", "run", self.engine, "--data", f"x={place}", "-o", output, *NO_BENCH)
            self.numbers[name] = numbers(output)
        output = self.sandbox.path("output") / "suite"
        self.command("clipq-eval", "run", self.engine, "--suite", self.valid / "suite.toml", "-o", output, *NO_BENCH)
        self.numbers["suite"] = numbers(output)
        self.command(
            "clipq-eval", "sweep", self.valid / "grid.toml", "-o", self.valid / "swept", "--pixel-cache-gb", "0"
        )
        self.numbers["swept"] = numbers(self.swept(self.valid / "swept"))
        # Here, so that the page's template is compiled.
        read_results(results).report(output / "report.html")
        assert "onnxruntime" not in sys.modules, "it started threads, which a fork loses"
        shutil.copytree(results, self.valid / "again", ignore=shutil.ignore_patterns("cells"))
        grid = self.valid / "grid.toml"
        self.answers["grid"] = self.command("clipq-eval", "sweep", grid, "-o", output.with_name("swept"), "--dry-run")
        for name, arguments in self.judging(results).items():
            self.answers[name] = self.command("clipq-eval", *arguments)

    def swept(self, folder: Path) -> Path:
        """The results folder of a sweep's one group of engines."""
        (found,) = (path.parent for path in folder.glob("**/results.csv"))
        return found

    def judging(self, results: Path) -> dict[str, tuple[Any, ...]]:
        """The commands that read results, by name."""
        output = self.sandbox.path("output")
        return {
            "gate": ("gate", results, "--policy", self.valid / "policy.toml"),
            "compare": ("compare", results, self.valid / "again", "--json"),
            "report": ("report", results, "-o", output / "report.md", "--format", "md"),
            "page": ("report", results, "-o", output / "report.html"),
            "card": ("card", results, "-o", output / "CARD.md", "--bundle", "int8-dynamic"),
        }

    def command(self, *arguments: Any) -> Ended:
        """Run a command that has to work."""
        if not self.sandbox.root.exists():
            self.sandbox.make()
        done = run(tuple(map(str, arguments)), self.sandbox.path("cwd"), self.sandbox.environment(), lambda: None)
        assert done.accepted and not done.fault, f"a valid input failed: {done}"
        return done


def pictures() -> Iterable[tuple[int, str, bytes]]:
    """Number within the class, class and PNG bytes of every image."""
    rng = np.random.default_rng(1)
    for name in CLASSES:
        for number in range(EACH):
            stream = io.BytesIO()
            pixels = rng.integers(0, 40 + 50 * number, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(stream, "png")
            yield number, name, stream.getvalue()


def table() -> list[list[str]]:
    """The rows of ``labels.csv``, the header first; they name the photos."""
    rows = [[f"photos/{name}/{number}.png", name, ("day", "night")[number % 2]] for number, name, _ in pictures()]
    return [["file", "label", "light"], *rows]


def write_table(path: Path, rows: list[list[str]], **form: Any) -> None:
    """Rows as a CSV file."""
    stream = io.StringIO()
    csv.writer(stream, **{"lineterminator": "\n", **form}).writerows(rows)
    path.write_bytes(stream.getvalue().encode())


Member = tuple[str, bytes]


def shards() -> list[list[Member]]:
    """The members of two shards: an image and its class, one after the other."""
    made: list[list[Member]] = [[], []]
    for number, name, picture in pictures():
        key = f"s{CLASSES.index(name)}{number}"
        made[number % 2] += [(f"{key}.png", picture), (f"{key}.cls", str(CLASSES.index(name)).encode())]
    return made


def write_tar(
    path: Path, members: Iterable[Member | tuple[tarfile.TarInfo, bytes]], mode: Any = "w", **form: Any
) -> None:
    """Members as a tar file; one whose header is given is written with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **form) as archive:
        for name, content in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if header.isfile():
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def numbers(results: Path) -> Numbers:
    """results.csv: value, bounds, samples and delta by engine, view, group and metric."""
    with (results / "results.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {
        (row["bundle"], row["view"], row["group"], row["metric"]): tuple(
            row[column] for column in ("value", "low", "high", "n", "delta", "delta_low", "delta_high")
        )
        for row in rows
        if row["metric"] != "file_bytes"
    }


# How the files of an engine that ran here end.
ON_THIS_CPU = f"ort-cpu__{cpu_level().name}"


def record(results: Path, stem: str = f"fp32__{ON_THIS_CPU}") -> dict[str, Any]:
    """The record of an engine."""
    return json.loads((results / "records" / f"{stem}.json").read_text("utf-8"))
