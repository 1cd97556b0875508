"""Servers that misbehave, and sources written so that what they send would go elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import time

from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.server import WAYS, Behaviour, serving
from benchmarks.fuzz.world import COUNT, record

FILES = ("test/nshards.txt", "test/0.tar", "test/1.tar", "classnames.txt", "templates.txt", "")


def downloads(case: Case) -> None:
    """A data set from a server that breaks off, lies about lengths, redirects, sends other things, or does not end.

    Accepted, the numbers are the valid ones, or it is said of a shard that a cut could not be told. What a bad answer left
    in the cache is no harm: from an honest server at the same address they are again. Nobody can see that a body was
    changed on the way, or that a text ended early which said no length or a shorter one: then only images are counted.
    Pauses between attempts are a hundredth of what they are, limits of time a tenth.
    """
    way = case.rng.choice(WAYS)
    always = 10**6 if way in ("endless", "slow") else case.rng.choice((1, 2, 10**6, 10**6))
    behaviour = Behaviour(way, case.rng.choice(FILES), always, case.rng.randrange(2**32))
    case.mutation = str(behaviour)
    unseen = way == "changed" or (way in ("no length", "too short") and not behaviour.file.endswith(".tar"))
    with serving(case.world.valid / "shards", behaviour) as port:
        found = _fetch(case, port)
    if unseen:
        # A shard that ends between two members is said to be unverified.
        if found is None or not case.is_unsure():
            case.counts(found, COUNT)
        return
    if found is None or not case.is_unsure():
        case.equal(found, "shards")
    first = case.commands[0].refused
    with serving(case.world.valid / "shards", Behaviour(), port) as port:
        found = _fetch(case, port)
    if found is None:
        raise Fault("silent", f"what a bad answer left behind is refused from an honest server: {case.commands[-1]}")
    if not case.is_unsure():
        case.equal(found, "shards")
    case.refused = first


def _fetch(case: Case, port: int, tail: str = "") -> object:
    cache = case.sandbox.path("output") / "fetched"
    source = f"x=wds:http://127.0.0.1:{port}{tail}"
    return case.evaluate("--data", source, "--fetch", cache, prepare=_hurry)


def _hurry() -> None:
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds / 100)
    import clipq.data.archives as module

    with contextlib.suppress(ImportError):
        module = importlib.import_module("clipq.data.downloads")

    module.TIMEOUT /= 10


def sources(case: Case) -> None:
    """Sources whose place or options are paths: nothing is written outside the cache, whatever they say."""
    rng = case.rng
    odd = ("../../../home/x", "/tmp/x", str(case.sandbox.path("home") / "x"), "..", ".", "", "a/../../x", "~", "test/../../..", "\0", "x" * 300, "te st", "%2e%2e", "é",
           "test?x", "test#x", "C:x", "*")  # fmt: skip
    with serving(case.world.valid / "shards", Behaviour("changed", "never")) as port:
        address = f"wds:http://127.0.0.1:{port}"
        folder = f"wds:{case.world.valid / 'shards'}"
        one = rng.choice(odd)
        source = rng.choice(
            (f"{address}:split={one}", f"{address}/{one}", f"{folder}:split={one}", f"{one}={address}", f"wds:{one}", f"hf:{one}", f"utkface:{one}", f"demo:{one}",
             f"{one}:label={one}", f"wds:ftp://127.0.0.1:{port}", f"wds:file://{case.world.valid / 'shards'}", f"{address}:split=test,split={one}", f"{address}@{one}",
             f"wds:http://user:pass@127.0.0.1:{port}", f"wds:http://127.0.0.1:{one}/x", f"demo:test:n={one}", f"wds:s3://{one}/x")
        )  # fmt: skip
        source = source.replace("\0", "\\0")
        case.mutation = source[:150]
        cache = case.sandbox.path("output") / "fetched"
        found = case.evaluate("--data", source, "--fetch", cache, prepare=_hurry)
    if found is not None and source.startswith((address, folder)):
        (view,) = record(case.output)["views"]
        if view["n"] != COUNT:
            raise Fault("silent", f"{view['n']} samples of {COUNT}")
