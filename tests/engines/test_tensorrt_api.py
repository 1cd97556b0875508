"""Every name of TensorRT that clipq uses is in the published bindings, or asked for before it is used."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipq.engines.tensorrt_library import Features

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    ROOT / name
    for name in (
        "engines/tensorrt_library.py", "engines/trt.py", "engines/layers.py",
        "exporters/build.py", "exporters/int8_calibrator.py", "exporters/parser_check.py",
    )
]  # fmt: skip
LISTINGS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "tensorrt_api").glob("*.json")}
assert set(LISTINGS) >= {"8.6.1", "10.16.1.11", "11.4.0.106"}

# What a variable of this name holds, wherever one of the files uses it.
HOLDS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "context": "IExecutionContext", "inspector": "EngineInspector",
    "tensor": "ITensor", "timings": "ITimingCache", "_loader": "Runtime", "layer_of_network": "ILayer",
}  # fmt: skip
# Names that some version lacks, each behind the feature that says so.
GUARDED = {
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"): "strongly_typed",
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"): "explicit_batch_flag",
    ("", "IProgressMonitor"): "progress_monitor",
    ("IBuilderConfig", "progress_monitor"): "progress_monitor",
    ("", "ComputeCapability"): "compute_capability_target",
    ("IBuilderConfig", "num_compute_capabilities"): "compute_capability_target",
    ("IBuilderConfig", "set_compute_capability"): "compute_capability_target",
    ("IBuilderConfig", "int8_calibrator"): "calibrators",
    ("IBuilderConfig", "set_calibration_profile"): "calibrators",
    ("", "IInt8EntropyCalibrator2"): "calibrators",
    ("", "IInt8MinMaxCalibrator"): "calibrators",
    ("", "IInt8LegacyCalibrator"): "calibrators",
    ("BuilderFlag", "FP16"): "calibrators",  # set on weakly typed networks alone; gone with them
    ("BuilderFlag", "INT8"): "calibrators",
    ("ParserError", "node_name"): "parser_names_nodes",
    ("ParserError", "node_operator"): "parser_names_nodes",
}  # fmt: skip


def module_of(listing):
    """A stand-in for the library's module that has the names of a version and nothing behind them."""
    classes = {name: type(name, (), dict.fromkeys(members)) for name, members in listing.items() if name}
    return SimpleNamespace(**classes)


def used_names():
    """``(class, member, file)``: of the module (class ""), of its classes, and of the objects it makes."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr == "__init__":
                continue
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else None
            if name == "trt":
                yield "", node.attr, path.name
            elif (
                isinstance(owner, ast.Attribute)
                and getattr(owner.value, "id", getattr(owner.value, "attr", "")) == "trt"
            ):
                yield owner.attr, node.attr, path.name
            elif name == "creation":
                yield "NetworkDefinitionCreationFlag", node.attr, path.name
            elif name in HOLDS:
                yield HOLDS[name], node.attr, path.name
            elif name == "engine" and isinstance(owner, ast.Attribute):
                yield "ICudaEngine", node.attr, path.name
            elif (
                name == "error"
                and path.name in ("build.py", "parser_check.py")
                and node.attr in ("node", "desc", "node_name", "node_operator")
            ):
                yield "ParserError", node.attr, path.name


USED = sorted({(kind, member) for kind, member, _ in used_names()})


def has(listing, kind, member):
    if kind:
        return member in listing.get(kind, ())
    return member in listing or member in listing[""] or member == "__version__"


def test_the_files_are_read():
    found = {f"{kind}.{member}" for kind, member in USED}
    assert found >= {
        "Builder.build_serialized_network", "IBuilderConfig.set_timing_cache", "OnnxParser.parse_from_file",
        "IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_name", "Runtime.deserialize_cuda_engine",
        "EngineInspector.get_engine_information", "BuilderFlag.TF32", "ParserError.desc", ".nptype",
    }  # fmt: skip


@pytest.mark.parametrize("version", sorted(LISTINGS))
@pytest.mark.parametrize(("kind", "member"), USED, ids=lambda value: value or "module")
def test_name_exists(version, kind, member):
    listing = LISTINGS[version]
    if (kind, member) in GUARDED:
        feature = getattr(Features(module_of(listing)), GUARDED[kind, member])
        assert has(listing, kind, member) or not feature, f"{version}: {kind}.{member} is missing and not guarded"
    else:
        assert has(listing, kind, member), f"{version}: {kind}.{member} does not exist"


@pytest.mark.parametrize(("kind", "member"), sorted(GUARDED))
def test_guards_are_needed_and_right(kind, member):
    """Some version lacks the name, some other has it, or it is TensorRT-RTX's alone."""
    states = {version: has(listing, kind, member) for version, listing in LISTINGS.items()}
    assert not all(states.values())
    assert any(states.values()) or GUARDED[kind, member] == "compute_capability_target"
    for version, listing in LISTINGS.items():
        assert getattr(Features(module_of(listing)), GUARDED[kind, member]) <= states[version]


def test_features_of_the_versions():
    features = {version: Features(module_of(listing)) for version, listing in LISTINGS.items()}
    assert [features[v].calibrators for v in ("8.6.1", "10.16.1.11", "11.4.0.106")] == [True, True, False]
    assert [features[v].strongly_typed for v in ("8.6.1", "10.0.1", "11.4.0.106")] == [False, True, True]
    assert [features[v].int64 for v in ("8.6.1", "10.0.1", "11.4.0.106")] == [False, True, True]
    assert [features[v].int4 for v in ("8.6.1", "10.0.1", "11.4.0.106")] == [False, True, True]


@pytest.mark.parametrize("version", sorted(LISTINGS))
def test_device_memory_is_read_by_the_name_the_version_has(version):
    listing = LISTINGS[version]
    names = [name for name in ("device_memory_size_v2", "device_memory_size") if name in listing["ICudaEngine"]]
    engine = SimpleNamespace(**{names[0]: 7})
    assert Features(module_of(listing)).device_memory(engine) == 7


def test_rtx_has_every_name_too():
    trt = pytest.importorskip("tensorrt_rtx")
    for kind, member in USED:
        where = trt if not kind else getattr(trt, kind, None)
        if not hasattr(where, member):
            assert (kind, member) in GUARDED, f"tensorrt_rtx lacks {kind}.{member}"
            assert not getattr(Features(trt), GUARDED[kind, member]), (kind, member)
