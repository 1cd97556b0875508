"""docs/external.md, command by command, in one folder, as a reader would."""

from __future__ import annotations

import csv
import re
import shutil

import numpy as np
from support import DEMO_BUNDLE, ROOT, export
from test_readme import shell

DOCUMENT = (ROOT / "docs" / "external.md").read_text()
SUITE = """
[[view]]
name = "test"
source = "demo:test"
samples = 48
[[square]]
of = "test"
queries = 5
samples = 4
"""
# Somebody's engine, of which the loop knows two functions.
ENGINE = """
import onnxruntime

class ENGINE:
    def run(name, rows):
        session = onnxruntime.InferenceSession(f"theirs/int8-dynamic/{name}.onnx")
        return session.run(None, {session.get_inputs()[0].name: rows})[0]
    image = lambda rows: ENGINE.run("image", rows)
    text = lambda rows: ENGINE.run("text", rows)
"""


def blocks(language):
    found = re.findall(rf"^( *)```{language}\n(.*?)```", DOCUMENT, flags=re.S | re.M)
    return ["\n".join(line.removeprefix(indent) for line in block.splitlines()) for indent, block in found]


def test_the_commands_do_what_the_text_says(tmp_path):
    shutil.copytree(DEMO_BUNDLE, tmp_path / "engines" / "fp32")
    done = export("quantize", str(DEMO_BUNDLE), "--recipe", "int8-dynamic", "-o", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    for name, text in (("suite.toml", SUITE), ("engine.py", ENGINE), ("loop.py", *blocks("python"))):
        (tmp_path / name).write_text(text)
    first, second, third = blocks("bash")
    for script in (first, "python loop.py", second):
        done = shell(script, tmp_path)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
    assert {path.name for path in (tmp_path / "work").iterdir()} >= set(re.findall(r"^ *\| `(\S+)` \|", DOCUMENT, re.M))
    labels = [row["row"] for row in csv.DictReader((tmp_path / "work" / "images.csv").open())]
    names = re.search(r'"labels": \[(.*?)\]', (tmp_path / "work" / "clipq-work.json").read_text(), re.S)[1]
    names = [one.strip().strip('"') for one in names.split(",")]
    with (tmp_path / "test.csv").open("w") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(np.full((len(labels), len(names)), 1 / len(names)).tolist())
    done = shell(third, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "results" / "results.csv").open()))
    assert {row["bundle"] for row in rows} == {"fp32", "phone", "server"}
    assert not [
        row for row in rows if row["bundle"] != "fp32" and ("square" in row["group"] or "latency" in row["metric"])
    ]
