"""Bundles made wrong: the manifest, and the files that it names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.fuzz import octets, trees
from benchmarks.fuzz.case import Case, Fault
from benchmarks.fuzz.engine import sign
from benchmarks.fuzz.rewrite import rewrite

# What a run's numbers are made of, apart from the files.
READ = ("logit_scale", "logit_bias", "preprocess", "tokenizer.cleaning", "recipe", "embed_dim")
DIGESTS = ("image.sha256", "text.sha256", "tokenizer.sha256", "prompts.sha256")


def manifests(case: Case) -> None:
    """``clipq.json`` with one place or its bytes changed, read by ``inspect``, ``run`` or ``quantize``.

    Accepted, a run gives the valid numbers unless what was changed is what numbers are made of. Senseless numbers, wrong
    digests and keys that come twice are refused.
    """
    bundle = case.copy("engines/fp32")
    path = bundle / "clipq.json"
    tree = json.loads(path.read_text())
    way = case.rng.choice(("tree",) * 8 + ("octets", "twice", "same", "encoding"))
    place = rewrite(case, path, way)
    found = _use(case, bundle)
    if way == "same":
        if case.refused:
            raise Fault("silent", f"the same manifest in another form was refused: {case.commands[-1]}")
        case.equal(found, "photos")
    elif found is not None and way in ("tree", "octets"):
        # Bytes may change any value, which a tree tells.
        where = ".".join(map(str, place))
        now = json.loads(path.read_text("utf-8-sig"))
        if senseless(now):
            raise Fault("silent", f"accepted with {senseless(now)}")
        if [_at(now, one) for one in DIGESTS] != [_at(tree, one) for one in DIGESTS]:
            raise Fault("silent", "accepted with another digest than its files'")
        if way == "tree" and not where.startswith(READ):
            case.equal(found, "photos")


def _use(case: Case, bundle: Path) -> Any:
    """Give a bundle to a command; the numbers of a run, None of others."""
    way = case.rng.choice(("run", "run", "run", "inspect", "quantize"))
    case.mutation += f"; {way}"
    if way == "inspect":
        case.command("clipq-eval", "inspect", bundle, "--threads", "1", "--batch", "2")
    elif way == "quantize":
        recipe = case.rng.choice(("int8-dynamic", "int8-weight-only", "int4-weight-only", "fp16"))
        case.command("clipq-export", "quantize", bundle, "--recipe", recipe, "-o", case.output)
    else:
        return case.evaluate("--data", f"x={case.world.valid / 'photos'}", engine=bundle)
    return None


def senseless(manifest: dict[str, Any]) -> str:
    """A number in a manifest that no engine can have, or nothing."""
    geometry = manifest["preprocess"]
    wrong = {
        "std": any(not 0 < one < math.inf for one in geometry["std"]),
        "mean": not all(map(math.isfinite, geometry["mean"])),
        "image_size": any(one < 1 for one in geometry["image_size"]),
        "logit_scale": not 0 < manifest["logit_scale"] < math.inf,
        "logit_bias": manifest.get("logit_bias") is not None and not math.isfinite(manifest["logit_bias"]),
        "embed_dim": manifest["embed_dim"] != 16,
    }
    return ", ".join(f"{name} {manifest.get(name, geometry.get(name))}" for name, found in wrong.items() if found)


def _at(tree: Any, where: str) -> Any:
    return trees.at(tree, tuple(where.split(".")))


def files(case: Case) -> None:
    """A file of a bundle with its bytes changed: towers, tokenizer, prompts; a tower's may be missing, a link, a folder.

    With the manifest as it was it is refused. With the manifest signed anew it may be refused or used, for the engine is
    what its author says it is.
    """
    bundle = case.copy("engines/fp32")
    name = case.rng.choice(("image.onnx", "image.onnx", "text.onnx", "tokenizer.json", "prompts.json"))
    path = bundle / name
    signed = case.rng.random() < 0.8
    if name.endswith(".json") and case.rng.random() < 0.7:
        mutated, _, done = trees.changed(json.loads(path.read_text()), case.rng)
        path.write_text(trees.as_json(mutated))
    elif case.rng.random() < 0.1:
        done = case.rng.choice(("missing", "folder", "dangling"))
        path.unlink()
        signed = False
        if done == "folder":
            path.mkdir()
        elif done == "dangling":
            path.symlink_to("nowhere")
    elif name == "image.onnx" and case.rng.random() < 0.4:
        done = _graph(path, case)
    else:
        content, done = octets.broken(path.read_bytes(), case.rng)
        path.write_bytes(content)
    if signed:
        sign(bundle, name)
    case.mutation = f"{name}: {done}{', signed' if signed else ''}"
    _use(case, bundle)
    if not signed and not case.refused:
        raise Fault("silent", f"used a bundle whose {name} is another than its manifest says")


def _graph(path: Path, case: Case) -> str:
    """An ONNX graph that is well formed and senseless."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph, rng = model.graph, case.rng
    way = rng.choice(
        ("nan", "inf", "huge", "zero", "type", "cycle", "op", "input", "outputs", "empty", "shape", "external")
    )
    weight = rng.choice([one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT])
    values = numpy_helper.to_array(weight).copy()
    if way in ("nan", "inf", "huge", "zero"):
        values.reshape(-1)[rng.randrange(values.size)] = {"nan": np.nan, "inf": np.inf, "huge": 3e38, "zero": 0}[way]
        weight.CopyFrom(numpy_helper.from_array(values * (way != "zero"), weight.name))
    elif way == "type":
        weight.CopyFrom(numpy_helper.from_array(values.astype(rng.choice(("float16", "float64", "int8"))), weight.name))
    elif way == "cycle":
        graph.node[0].input[0] = graph.node[-1].output[0]
    elif way == "op":
        rng.choice(graph.node).op_type = rng.choice(("Nothing", "Loop", "Softmax", ""))
    elif way == "input":
        graph.input[0].name = rng.choice(("", "other", "patch"))
    elif way == "outputs":
        graph.output.add().CopyFrom(graph.output[0])
    elif way == "empty":
        del graph.node[:]
    elif way == "shape":
        weight.dims[0] = rng.choice((0, -1, 2**40, weight.dims[0] + 1))
    else:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=rng.choice(("../letter.txt", "/etc/hostname", "missing.data")))
    path.write_bytes(model.SerializeToString())
    return f"graph {way} {weight.name}"
