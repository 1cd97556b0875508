"""Levels of CPUs: which this one is, what they are called, and whether ONNX Runtime's products do what a level says."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import DEMO_BUNDLE, ROOT

from clipq.bundle import open_bundle
from clipq.cpu import LEVELS, arithmetic, check_known, cpu_features, cpu_level, is_of, known_arithmetics, spoken
from clipq.engines.ort import EXACT_PRODUCTS, OrtEngine
from clipq.errors import ClipqError
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.settings import Settings

# qemu emulates no AVX-512, so what these machines lack of it is not theirs.
EMULATED = {"Haswell": "avx2", "EPYC-Milan": "avx2", "SandyBridge": "avx"}

PROBE = """
import sys
import numpy, onnxruntime
from clipq.cpu import cpu_level
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for entry in sys.argv[2:]:
    options.add_session_config_entry(*entry.split("="))
session = onnxruntime.InferenceSession(sys.argv[1], options)
print(cpu_level().name, session.run(None, {"x": numpy.full((4, 64), 255, numpy.uint8)})[0].ravel()[0])
"""
EXACT, SATURATED = 64 * 255 * 127, 32 * 32767


@pytest.fixture
def product(tmp_path):
    """u8 × s8 of the largest values: any two products leave 16 bits."""
    weights = numpy_helper.from_array(np.full((64, 8), 127, np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    given = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 64])
    made = helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 8])
    graph = helper.make_graph([node], "product", [given], [made], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "p.onnx")
    return tmp_path / "p.onnx"


def test_products_here_are_what_the_level_says(product):
    level = cpu_level()
    assert level.saturates is not None, f"{level.name}: look what its products do, and write it into LEVELS"
    done = subprocess.run([sys.executable, "-c", PROBE, str(product)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [level.name, str(SATURATED if level.saturates else EXACT)]


@pytest.mark.parametrize("cpu", EMULATED)
def test_products_of_an_emulated_cpu_are_what_its_level_says_or_kept_exact(product, cpu):
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("no qemu-x86_64 here (Debian: apt-get install qemu-user)")
    emulated = ["qemu-x86_64", "-cpu", cpu, sys.executable, "-c", PROBE, str(product)]
    settings = [f"{name}={value}" for name, value in EXACT_PRODUCTS.items()]
    as_is = SATURATED if LEVELS[EMULATED[cpu]].saturates else EXACT
    for config, expected in (([], as_is), (settings, EXACT)):
        done = subprocess.run([*emulated, *config], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [EMULATED[cpu], str(expected)]


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("x86_64", {"avx2", "fma"}, "avx2"),
        ("AMD64", {"avx2", "avx_vnni"}, "avx2-vnni"),
        ("x86_64", {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"}, "avx512"),
        # Knights Landing has AVX-512 of another kind, which ONNX Runtime does not use.
        ("x86_64", {"avx2", "avx512f", "avx512cd"}, "avx2"),
        ("x86_64", {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}, "avx512-vnni"),
        ("x86_64", {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "amx_int8"}, "avx512-amx"),
        ("x86_64", {"sse4_2", "avx"}, "avx"),
        ("x86_64", {"sse4_2"}, "x86_64"),
        ("arm64", {"asimddp", "i8mm"}, "neon-i8mm"),
        ("aarch64", {"asimddp"}, "neon-dotprod"),
        ("aarch64", {"asimd"}, "neon"),
        ("riscv64", set(), "riscv64"),
    ],
)
def test_the_level_of_a_machine(monkeypatch, machine, features, name):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("clipq.cpu.cpu_features", lambda: frozenset(features))
    found = cpu_level.__wrapped__()
    assert found.name == name and (found.saturates is None) == (name not in LEVELS)


def test_a_level_needs_more_than_those_after_it():
    """Else none of those would ever be found."""
    ordered = list(LEVELS.values())
    for index, level in enumerate(ordered):
        assert not any(one.machine == level.machine and one.needs <= level.needs for one in ordered[:index])


def test_the_page_has_every_level():
    page = (ROOT / "docs" / "cpu.md").read_text()
    for level in LEVELS.values():
        assert f"| `{level.name}` | {level.summary} | {'**saturate**' if level.saturates else 'exact'} |\n" in page


def test_names():
    assert is_of("avx512-vnni", ["vnni"]) and is_of("avx2-vnni", ["vnni"]) and is_of("avx512-vnni", ["avx512-vnni"])
    for called, asked in (("avx512-amx", "vnni"), ("avx512-vnni", "avx512"), ("avx2-exact", "avx2"), ("", "vnni")):
        assert not is_of(called, [asked])
    assert {arithmetic("exact", level) for level in LEVELS.values()} <= set(known_arithmetics())
    assert spoken("avx2-exact").endswith("kept exact") and "nobody" in spoken("riscv64")
    check_known(known_arithmetics())
    with pytest.raises(ClipqError, match="no CPU level 'vnn'; did you mean vnni"):
        check_known(["vnn"])


def test_the_level_and_the_precision_are_part_of_what_determines_numbers(monkeypatch):
    bundle = open_bundle(DEMO_BUNDLE)
    keys = []
    for name in ("avx2", "avx512-vnni", "neon"):
        monkeypatch.setattr("clipq.cpu.cpu_level", lambda name=name: LEVELS[name])
        for precision in ("as-is", "exact"):
            subject = Subject(bundle, "ort-cpu", 1, precision=precision)
            keys.append(subject.identity("image")["cpu"])
            assert subject.load("image").exact == (precision == "exact" and name != "neon")
    # The kernels are others where products are exact too, and take more time.
    assert keys == ["avx2", "avx2-exact", "avx512-vnni", "avx512-vnni-exact", "neon", "neon"]


def test_exact_products_are_asked_of_the_session(monkeypatch):
    asked = []
    monkeypatch.setattr("clipq.cpu.cpu_level", lambda: LEVELS["avx2"])
    monkeypatch.setattr(OrtEngine, "__init__", lambda self, path, runtime, **options: asked.append(options["config"]))
    for precision in ("as-is", "exact"):
        with pytest.raises(AttributeError):
            Subject(open_bundle(DEMO_BUNDLE), "ort-cpu", 1, precision=precision).open("image")
    assert asked == [{}, EXACT_PRODUCTS]


def test_another_precision_is_refused():
    with pytest.raises(ClipqError, match="cpu_precision 'fast': give as-is or exact"):
        Settings(cpu_precision="fast")


def test_features_are_those_the_system_lets_use():
    assert cpu_features() and cpu_level().needs <= cpu_features()


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        ("import platform; platform.machine = lambda: 'riscv64'", "riscv64"),
        ("import platform; platform.machine = lambda: ''", "unknown"),
        ("import archspec.cpu.detect as d; d.INFO_FACTORY['Linux'][:] = [lambda: 1 / 0]", None),
    ],
)
def test_a_machine_that_tells_nothing_is_said_to_be_unknown_without_a_word(lines, level):
    code = f"{lines}\nfrom clipq.cpu import cpu_level\nprint(cpu_level().name, cpu_level().saturates)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert level is None or done.stdout.split() == [level, "None"]
