"""Suites, grids and policies made wrong: TOML that says what is asked."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

import tomli

from benchmarks.fuzz import octets, trees
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.world import GRID, NO_BENCH, POLICY, SUITE, numbers, record

BESIDE = ("photos", "labels.csv", "shards", "engines")


def _write(case: Case, name: str, tree: dict[str, Any], *, same: bool = True) -> tuple[str, trees.Path]:
    """Write a mutated tree in the case's folder, beside what it names; how, and the place."""
    for one in BESIDE:
        (case.folder / one).symlink_to(case.world.valid / one)
    path = case.folder / name
    text = trees.as_toml(tree)
    way = case.rng.choice(("tree",) * 8 + ("octets", "octets", "encoding") + ("same",) * same)
    place: trees.Path = ()
    if way == "tree":
        mutated, place, case.mutation = trees.changed(tree, case.rng)
        path.write_text(trees.as_toml(mutated), "utf-8")
    elif way == "octets":
        content, case.mutation = octets.broken(text.encode(), case.rng)
        path.write_bytes(content)
    elif way == "encoding":
        content, case.mutation = octets.reencoded(text, case.rng)
        path.write_bytes(content)
    else:
        case.mutation, text = _same(text, tree, case.rng)
        path.write_text(text, "utf-8")
    case.mutation = f"{way}: {case.mutation}"
    return way, place


def _same(text: str, tree: dict[str, Any], rng: Random) -> tuple[str, str]:
    """TOML that says the same in another form, and which."""
    way = rng.choice(("comments", "crlf", "order"))
    if way == "order":
        return way, trees.as_toml(trees.shuffled(deepcopy(tree), rng))
    return way, text.replace("\n", " # said\n" if way == "comments" else "\r\n")


def suites(case: Case) -> None:
    """A suite with one place or its bytes changed, read by ``suite check`` and ``show``, and by ``run`` where they take it.

    A suite in another form gives the valid numbers. Every view that an accepted one asks for is in the record, with no
    more samples than asked; a view whose entry and baseline stayed as they were keeps its accuracy.
    """
    way, place = _write(case, "suite.toml", SUITE)
    path = case.folder / "suite.toml"
    if not case.command("clipq-eval", "suite", "check", path).accepted:
        if way == "same":
            raise Fault("silent", f"refused in another form: {case.commands[-1]}")
        return
    case.command("clipq-eval", "suite", "show", path)
    done = case.command("clipq-eval", "run", case.world.engine, "--suite", path, "-o", case.output, *NO_BENCH)
    if not done.accepted:
        return
    found = numbers(case.output)
    if way == "same":
        case.equal(found, "suite")
        return
    asked = tomli.loads(path.read_text("utf-8-sig"))
    views = {view["name"]: view for view in record(case.output)["views"]}
    for entry in asked.get("view", ()):
        if "name" in entry and entry["name"] not in views:
            raise Fault("silent", f"asked for view {entry['name']!r}, the record has {', '.join(views)}")
        if "samples" in entry and "name" in entry and views[entry["name"]]["n"] > entry["samples"]:
            raise Fault(
                "silent",
                f"{entry['samples']} samples of {entry['name']} were asked for, {views[entry['name']]['n']} taken",
            )
    if way == "tree" and place[0] in ("view", "corruptions"):
        whole = case.world.numbers["suite"]
        for entry in SUITE["view"]:
            key = ("fp32", entry["name"], "", "acc1")
            if entry in asked.get("view", ()) and key in found and key in whole and found[key][0] != whole[key][0]:
                raise Fault("silent", f"{key}: {found[key]}, was {whole[key]}")


def grids(case: Case) -> None:
    """A grid with one place or its bytes changed, read by ``sweep --dry-run``: it writes nothing.

    Where engines, runtimes and suite are as they were, it plans as many cells as the valid one.
    """
    way, _ = _write(case, "grid.toml", GRID)
    (case.folder / "suite.toml").write_text(trees.as_toml(SUITE))
    path = case.folder / "grid.toml"
    done = case.command("clipq-eval", "sweep", path, "-o", case.output, "--dry-run", writes=False)
    if way == "same" and not done.accepted:
        raise Fault("silent", f"refused in another form: {done}")
    if not done.accepted or way not in ("same", "tree"):
        return
    asked = tomli.loads(path.read_bytes().decode())
    if all(asked.get(key) == GRID[key] for key in ("suite", "bundles", "runtimes")):
        planned, wanted = (one.stdout.partition(" cells ")[0] for one in (done, case.world.answers["grid"]))
        if planned != wanted:
            raise Fault("silent", f"{planned} cells planned, not {wanted}")


def policies(case: Case) -> None:
    """A policy with one place or its bytes changed, read by ``gate``.

    In another form it judges the same. Accepted, a policy whose rules are as they were judges the same by them; where one
    limit is another, it passes if and only if the interval in ``results.csv`` lies within.
    """
    way, place = _write(case, "policy.toml", POLICY)
    path = case.folder / "policy.toml"
    done = case.command("clipq-eval", "gate", case.world.valid / "results", "--policy", path, writes=False)
    before = case.world.answers["gate"]
    if way == "same" and (done.code, done.stdout) != (before.code, before.stdout):
        raise Fault("silent", f"judged otherwise: {done}\n{done.stdout}")
    if not done.accepted or way != "tree" or place[:1] != ("rule",):
        return
    asked = tomli.loads(path.read_text("utf-8"))
    rules = asked.get("rule")
    if not isinstance(rules, list) or len(rules) != len(POLICY["rule"]) or len(place) < 2:
        return
    was, now = (trees.at(one, place[:2]) for one in (POLICY, asked))
    if was.keys() == now.keys() and place[-1] in ("max", "min_delta"):
        limit, key = now[place[-1]], ("int8-dynamic", "x", "", now["metric"])
        row = case.world.numbers["results"][key]
        column = 0 if place[-1] == "max" else 4
        value = float(row[column])
        fine = value <= limit if place[-1] == "max" else value >= limit
        if done.code == 0 and not fine:
            raise Fault("silent", f"passed with {key} {value} and {place[-1]} {limit}")
        # The whole interval has to be beyond a limit to fail by it.
        low, high = float(row[column + 1]), float(row[column + 2])
        if (
            before.code == 0
            and done.code == 1
            and (low if place[-1] == "max" else -high) <= (limit if place[-1] == "max" else -limit)
        ):
            raise Fault("silent", f"failed with {key} from {low} to {high} and {place[-1]} {limit}")
