"""Command lines made wrong: options, numbers, and paths of outputs and bundles."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz.case import Case
from benchmarks.fuzz.world import NO_BENCH

NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "2000000000",
    "99999999999999999999",
    "0x10",
    "٣",
    "",
    " 5",
    "1_000",
    "0.5",
    "text",
)
NAMES = (
    "",
    " ",
    ".",
    "..",
    "é",
    "x" * 225,
    "x" * 300,
    "a\nb",
    "\udcff",
    "--help",
    "-",
    "=1+1",
    "@x",
    "\x1b[31m",
    "a/b",
    "%s",
    "{}",
    "demo",
    "fp32",
    "*",
    "nul",
    "a:b",
)

OPTIONS = {
    "run": ("--ece-bins", "--seed", "--batch-size", "--threads", "--pixel-cache-gb", "--repeats", "--latency-batch", "--templates", "--reference", "--runtime",
            "--on-bad-image", "--suite", "--pixel-cache"),
    "inspect": ("--batch", "--threads", "--runtime"),
    "gate": ("--policy", "--junit", "--summary", "--json"),
    "compare": ("--margin", "--markdown"),
    "report": ("--format", "-o"),
    "card": ("--bundle", "-o"),
}  # fmt: skip


def options(case: Case) -> None:
    """An option with a value that it was not made for: taken, or refused; nothing is written beside the output."""
    world, rng = case.world, case.rng
    name = rng.choice(list(OPTIONS))
    option = rng.choice(OPTIONS[name])
    value = rng.choice(NUMBERS if rng.random() < 0.7 else NAMES).replace("\0", "")
    if option == "-o" or option in ("--markdown", "--pixel-cache", "--junit", "--summary"):
        value = str(
            case.sandbox.path("output")
            / rng.choice(("report.x", "a/b/c", ".", "", "x" * 225, "x" * 300, "é", "\udcff"))
        )
    results = world.valid / "results"
    given = {
        "run": ("run", world.engine, "--data", f"x={world.valid / 'photos'}", "-o", case.output, *NO_BENCH),
        "inspect": ("inspect", world.engine),
        "gate": ("gate", results, "--policy", world.valid / "policy.toml"),
        "compare": ("compare", results, world.valid / "again"),
        "report": ("report", results, "-o", case.sandbox.path("output") / "report.html"),
        "card": ("card", results, "-o", case.sandbox.path("output") / "card.md"),
    }[name]
    case.mutation = f"{name} {option} {value!r}"[:200]
    # Whoever gives a size asks for the cache, which lies there.
    cache = (str(case.sandbox.path("home") / ".cache" / "clipq"),) if option == "--pixel-cache-gb" else ()
    done = case.command("clipq-eval", *given, option, value, may=cache)
    if done.accepted and name == "run" and "--help" not in value:
        from benchmarks.fuzz.world import numbers

        # On other threads the last digits may be others.
        changing = option in ("--ece-bins", "--seed", "--templates", "--suite", "--batch-size", "--threads")
        if not changing:
            case.equal(numbers(case.output), "photos")


def outputs(case: Case) -> None:
    """An output that cannot be written, is something else, or has an odd name; bundles with odd names.

    Refused, or written; what was there before stays.
    """
    world, rng = case.world, case.rng
    below = case.sandbox.path("output")
    way = rng.choice(("name", "name", "bundle", "bundle", "file", "full", "foreign", "link", "proc", "missing"))
    output = case.output
    bundle = world.engine
    name = rng.choice([one for one in NAMES if one not in ("", ".", "..", "a/b")])
    if way == "name":
        output = below / name
    elif way == "bundle":
        bundle = case.folder / name
        try:
            bundle.symlink_to(world.engine)
        except OSError:
            bundle = world.engine
    elif way == "file":
        output = case.folder / "letter.txt"
    elif way == "full":
        output = Path("/dev/full")
    elif way == "foreign":
        output = case.folder / "mine"
        output.mkdir()
        (output / "thesis.tex").write_text("mine")
    elif way == "link":
        output = below / "link"
        output.symlink_to(case.folder / "nowhere")
    elif way == "proc":
        output = Path(rng.choice(("/proc/x", "/dev/null/x", "/sys/x", "/proc/self/fd")))
    else:
        bundle = case.folder / "missing"
    command = rng.choice(("run", "quantize", "sweep", "demo" if way != "name" else "run"))
    case.mutation = f"{command}, {way}: {str(output if way != 'bundle' else bundle)[-60:]!r}"
    allowed = str(output)
    if command == "quantize":
        if way == "foreign":
            # A parent of bundles may hold other things.
            output = output / "thesis.tex"
        case.command("clipq-export", "quantize", bundle, "--recipe", "int8-weight-only", "-o", output)
    elif command == "sweep":
        from benchmarks.fuzz.trees import as_toml

        grid = case.folder / "grid.toml"
        named = str(bundle).encode("utf-8", "replace").decode()
        grid.write_text(as_toml({"suite": "suite.toml", "bundles": [named], "threads": 1}))
        (case.folder / "suite.toml").write_text(
            as_toml({"view": [{"name": "x", "source": str(world.valid / "photos")}]})
        )
        case.command(
            "clipq-eval",
            "sweep",
            grid,
            "-o",
            output,
            "--pixel-cache-gb",
            "0",
            may=(allowed,) if way == "foreign" else (),
        )
    elif command == "demo" and way in ("file", "full", "proc"):
        case.command("clipq-eval", "demo", "-o", output, "--samples", "96")
    else:
        data = f"x={world.valid / 'photos'}"
        case.command(
            "clipq-eval",
            "run",
            bundle,
            "--data",
            data,
            "-o",
            output,
            *NO_BENCH,
            may=(allowed,) if way == "foreign" else (),
        )
