"""A tower over 2 GB, the whole way: ViT-H-14 with random weights. 25 minutes on two cores, 12 GB of memory and disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import SHARED

from clipq.bundle import open_bundle

# A step's peak, of the size of what it has to do with; the export has the whole model in torch beside it.
MOST = 2.5

_MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, done.stdout, done.stderr, kilobytes * 1024]))
"""


def measured(module: str, *arguments: object) -> tuple[str, int]:
    """What a command prints, and its peak memory in bytes, in a process that has no other."""
    command = [sys.executable, "-c", _MEASURED, sys.executable, "-m", module, *map(str, arguments)]
    code, stdout, stderr, peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert code == 0, stderr
    return stdout, peak


@pytest.mark.slow
@pytest.mark.shared
def test_vit_h_goes_the_whole_way(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="needs the export extra")
    fp32, photos, calibration = (tmp_path / name for name in ("fp32", "photos", "calibration"))
    measured("clipq.exporters.cli", "onnx", "ViT-H-14", "--pretrained", "random", "-o", fp32)
    source = open_bundle(fp32).manifest
    assert [entry.file for entry in source.image.data] == ["image.onnx.data"] and source.image.size > 2**31
    for folder in sorted((SHARED / "photos" / "cifar10" / "test").iterdir()):
        images = sorted(folder.iterdir())
        for target, chosen in ((photos, images[:7]), (calibration, images[7:8])):
            (target / folder.name).mkdir(parents=True)
            for image in chosen:
                (target / folder.name / image.name).write_bytes(image.read_bytes())
    for recipe in ("fp16", "int8-dynamic"):
        _, peak = measured("clipq.exporters.cli", "quantize", fp32, "--recipe", recipe)
        assert peak < MOST * source.image.size, recipe
        shutil.rmtree(tmp_path / recipe)
    bundles = [fp32]
    for recipe, name in (("int8-static", "int8-static-minmax"), ("int4-weight-only", "int4-weight-only-rtn")):
        given = ("--recipe", recipe, "--calibration-set", calibration)
        _, peak = measured("clipq.exporters.cli", "quantize", fp32, *given)
        assert peak < MOST * source.image.size, recipe
        bundles.append(tmp_path / name)
        # A quarter and an eighth of it fit a file.
        assert open_bundle(bundles[-1]).manifest.image.data == ()
    for path, verdict in zip(bundles, ("float", "integer", None), strict=True):
        shown, peak = measured("clipq.evaluate.cli", "inspect", path, "--json")
        assert peak < MOST * source.image.size, path
        assert verdict in (None, json.loads(shown)[0]["verdict"])
    given = ("--data", photos, "--templates", "simple-7", "--no-bench", "-o", tmp_path / "out")
    _, peak = measured("clipq.evaluate.cli", "run", *bundles, *given)
    # All of a run's engines are in memory together.
    manifests = [open_bundle(path).manifest for path in bundles]
    assert peak < MOST * sum(manifest.image.size + manifest.text.size for manifest in manifests)
    assert len(list((tmp_path / "out" / "records").iterdir())) == 3
