"""What clipq itself stored, made wrong: records, what pairs them, cells, pixels, a sweep's state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from benchmarks.fuzz import octets, trees
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.rewrite import rewrite
from benchmarks.fuzz.world import NO_BENCH, ON_THIS_CPU, numbers

# Of a record, what says nothing about an engine's numbers.
UNREAD = (
    "created",
    "arguments_given",
    "environment",
    "latency",
    "census",
    "gpu",
    "attacks",
    "deployed_minus_simulated",
)
READ_METRICS = ("acc1", "ece", "agreement")


def records(case: Case) -> None:
    """A record with one place or its bytes changed, read by ``gate``, ``compare``, ``report`` or ``card``.

    What the gate's rules do not read does not change its verdict. A delta is not judged between views of other data, and
    what is no number passes no rule.
    """
    results = case.copy("results")
    path = (
        results
        / "records"
        / case.rng.choice(
            (f"fp32__{ON_THIS_CPU}.json", f"int8-dynamic__{ON_THIS_CPU}.json", f"int8-dynamic__{ON_THIS_CPU}.json")
        )
    )
    tree = json.loads(path.read_text())
    way = case.rng.choice(("tree",) * 8 + ("octets", "octets", "twice", "same", "stray"))
    place: trees.Path = ()
    if way == "stray":
        case.mutation = _stray(path, case.rng)
    else:
        place = rewrite(case, path, way)
    name = case.rng.choice(("gate", "gate", "gate", "compare", "report", "page", "card"))
    case.mutation = f"{path.name}: {case.mutation}; {name}"
    done = case.command("clipq-eval", *case.world.judging(results)[name])
    before = case.world.answers[name]
    if way == "same" and (done.code, done.stdout) != (before.code, before.stdout):
        raise Fault("silent", f"another form of the same record was judged otherwise: {done}\n{done.stdout}")
    if name != "gate" or not done.accepted or way != "tree":
        return
    if done.code != before.code and not _is_read(tree, json.loads(path.read_text()), place):
        raise Fault("silent", f"the verdict went from {before.code} to {done.code}: {done.stdout}")
    if done.code == 0 and place[0] == "views" and place[-1] in ("digest", "classes", "templates"):
        raise Fault("silent", f"passed by a delta between views that differ in {place[-1]}")
    row = trees.at(json.loads(path.read_text()), place[:2]) if place[0] == "measurements" and len(place) == 3 else {}
    judged = isinstance(row, dict) and row.get("metric") in READ_METRICS and "int8" in path.name
    if done.code == 0 and judged and row.get("metric") == "ece" and not abs(row.get("value") or 0) < 1e300:
        raise Fault("silent", f"passed with a value that is no number: {row}")


def _is_read(before: dict, after: dict, place: trees.Path) -> bool:  # type: ignore[type-arg]
    """Whether the gate's rules may look at a place of a record."""
    if place[0] in UNREAD:
        return False
    if place[0] != "measurements" or len(place) < 2:
        return True
    rows = [trees.at(one, place[:2]) for one in (before, after) if len(one["measurements"]) > place[1]]  # type: ignore[operator]
    # A row that was dropped moves the ones behind it: what came in its place says nothing.
    return any(isinstance(row, dict) and row.get("metric") in READ_METRICS for row in rows) or len(place) == 2


def _stray(path: Path, rng: Random) -> str:
    """Files beside the records."""
    way = rng.choice(("empty", "folder", "foreign", "copy", "hidden"))
    other = path.with_name(f"other__{ON_THIS_CPU}.json" if way != "hidden" else f"._fp32__{ON_THIS_CPU}.json")
    if way == "folder":
        other.mkdir()
    elif way == "copy":
        shutil.copy(path, other)
    else:
        other.write_text({"empty": "", "foreign": "[1, 2]", "hidden": "\0\5\x16\7"}[way])
    return f"{way} file beside it"


def pairings(case: Case) -> None:
    """The answers and draws that pair records, with their bytes changed, read by ``compare`` or ``report``.

    They are damaged, or what is said is what the valid ones say.
    """
    results = case.copy("results")
    path = (
        results
        / "pairing"
        / case.rng.choice((f"fp32__{ON_THIS_CPU}.safetensors", f"int8-dynamic__{ON_THIS_CPU}.safetensors"))
    )
    content, case.mutation = octets.broken(path.read_bytes(), case.rng)
    path.write_bytes(content)
    name = case.rng.choice(("compare", "compare", "report"))
    case.mutation = f"{path.name}: {case.mutation}; {name}"
    done = case.command("clipq-eval", *case.world.judging(results)[name])
    before = case.world.answers[name]
    said = done.stdout.replace(str(results), str(case.world.valid / "results"))
    if done.accepted and (done.code, said) != (before.code, before.stdout):
        raise Fault("silent", f"said otherwise: {done}\n{done.stdout[:2000]}")


def cells(case: Case) -> None:
    """A stored embedding or what stands beside it with its bytes changed, exchanged or missing, found by the same run again.

    Refused, or made again: the numbers are the valid ones.
    """
    shutil.copytree(case.world.valid / "results", case.output)
    paths = sorted((case.output / "cells").glob("*/*"))
    case.mutation = _damage(case.rng.choice(paths), paths, case.rng)
    engines = case.world.valid / "engines"
    bundles = (engines / "fp32", engines / "int8-dynamic")
    photos = case.world.valid / "photos"
    done = case.command("clipq-eval", "run", *bundles, "--data", f"x={photos}", "-o", case.output, *NO_BENCH)
    if done.accepted:
        case.equal(numbers(case.output), "results")


def pixels(case: Case) -> None:
    """A chunk of the pixel cache with its bytes changed, exchanged or missing, found by a run into an empty folder.

    Made again, or left aside: a cache refuses nothing, and the numbers are the valid ones.
    """
    cache = case.sandbox.path("output") / "pixels"
    shutil.copytree(case.world.valid / "pixels", cache)
    paths = sorted(cache.glob("*/*.safetensors"))
    case.mutation = _damage(case.rng.choice(paths), paths, case.rng)
    photos = case.world.valid / "photos"
    found = case.evaluate("--data", f"x={photos}", "--pixel-cache", cache, "--pixel-cache-gb", "1")
    if found is None:
        raise Fault("silent", f"refused for what can be made again: {case.commands[-1]}")
    case.equal(found, "photos")


def _damage(path: Path, others: list[Path], rng: Random) -> str:
    way = rng.choice(("octets",) * 6 + ("tensor",) * 4 + ("exchanged", "missing", "folder", "link"))
    other = rng.choice(others)
    if way == "octets" or (way == "tensor" and path.suffix != ".safetensors"):
        content, done = octets.broken(path.read_bytes(), rng)
        path.write_bytes(content)
        return f"{path.name}: {done}"
    if way == "tensor":
        return f"{path.name}: {_other_tensor(path, rng)}"
    content = other.read_bytes()
    path.unlink()
    if way == "exchanged":
        path.write_bytes(content)
    elif way == "folder":
        path.mkdir()
    elif way == "link":
        path.symlink_to("nowhere")
    return f"{path.name}: {way}"


def _other_tensor(path: Path, rng: Random) -> str:
    """A well-formed file with other tensors or texts in it."""
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, "np") as stored:
        metadata = dict(stored.metadata() or {})
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    name = rng.choice(list(arrays))
    array = arrays[name]
    way = rng.choice(("type", "shape", "fewer", "value", "missing", "nan", "metadata", "order"))
    if way == "type":
        arrays[name] = array.astype(rng.choice(("float16", "float64", "int32", "uint8")))
    elif way == "shape":
        arrays[name] = array.reshape(-1)
    elif way == "fewer":
        arrays[name] = array[:-1]
    elif way == "value":
        array.reshape(-1)[rng.randrange(array.size)] += 1
    elif way == "missing":
        del arrays[name]
    elif way == "nan" and array.dtype == np.float32:
        array.reshape(-1)[0] = np.nan
    elif way == "order":
        arrays[name] = array[::-1]
    elif metadata:
        key = rng.choice(list(metadata))
        metadata[key] = rng.choice(("", "{}", "[]", "nan", "{", '{"a": 1}', "[" * 3000, "null"))
        name = key
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path, metadata or None)
    return f"{way} of {name}"


def sweeps(case: Case) -> None:
    """What a sweep remembers, its plan or a failure, with one place or its bytes changed, read by ``status`` and the sweep.

    ``status`` refuses it or counts the cells; the sweep, given again, gives the numbers from before.
    """
    shutil.copytree(case.world.valid / "swept", case.output)
    path = case.output / "sweep.json"
    if case.rng.random() < 0.2:
        path = case.output / "failures" / "x.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(
                {"group": "bundles", "engine": "fp32", "what": "images", "reason": "no", "cell": "0" * 32, "node": ""}
            )
        )
    if case.rng.random() < 0.7:
        mutated, _, case.mutation = trees.changed(json.loads(path.read_text()), case.rng)
        path.write_text(trees.as_json(mutated))
    else:
        content, case.mutation = octets.broken(path.read_bytes(), case.rng)
        path.write_bytes(content)
    case.mutation = f"{path.name}: {case.mutation}"
    case.command("clipq-eval", "sweep", "status", case.output, *(("--json",) if case.rng.random() < 0.5 else ()))
    if case.rng.random() < 0.3:
        grid = case.world.valid / "grid.toml"
        done = case.command("clipq-eval", "sweep", grid, "-o", case.output, "--pixel-cache-gb", "0")
        if done.accepted:
            case.equal(numbers(case.world.swept(case.output)), "swept")
