"""The report in a real browser, and untrusted names in it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from PIL import Image
from support import evaluate

from clipq.demo import world

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202eright to left\u202c",
    "</script><b>bold",
    "{{ 7 * 7 }}",
    "a&b",
]


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    pytest.skip("no Chromium on this machine")


def load(page, *, profile, width=1200, dark=False, tmp_path=None):
    """The page's DOM after its scripts ran, and what the console said."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
        f"--window-size={width},2000", "--virtual-time-budget=8000", "--enable-logging=stderr", "--v=0",
    ]  # fmt: skip
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run(
        [browser(), *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(bundles, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for number in range(len(HOSTILE)):
        (root / "data" / f"c{number}").mkdir(parents=True)
        for index in range(4):
            Image.fromarray(world.sample("test", 24 * index + number)[1]).save(
                root / "data" / f"c{number}" / f"{index}.png"
            )
    (root / "data" / "c0" / "<img src=x onerror=alert(2)>.png").write_bytes(b"")
    (root / "data" / "classnames.txt").write_text("\n".join(HOSTILE))
    rows = [f"c{n}/{i}.png,{n},{HOSTILE[i % 2].replace(chr(34), '')}" for n in range(len(HOSTILE)) for i in range(4)]
    shutil.copy(root / "data" / "classnames.txt", root / "classnames.txt")
    (root / "data" / "labels.csv").write_text("\n".join(["file,label,<b>group</b>", *rows]))
    done = evaluate(
        "run", str(bundles / "fp32"), str(bundles / "int8-static-minmax"), "--data", f"folder={root / 'data'}", "--simulated",
        "--data", f"table={root / 'data' / 'labels.csv'}", "-o", str(root / "results"), "--repeats", "3", "--on-bad-image", "skip",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root / "results" / "report.html"


def test_charts_are_drawn_without_errors_or_network(page, tmp_path):
    dom, console = load(page, profile=tmp_path / "profile")
    assert not console, console
    expected = 2 * (1 + 2)  # per view: one trade-off, one reliability diagram for each engine that is no twin
    assert dom.count('class="chart') == expected == len(re.findall(r'<svg[^>]*class="marks"', dom))
    assert len(re.findall(r'aria-label="[^"]*accuracy', dom)) > expected


def test_nothing_is_fetched(page):
    text = page.read_text()
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?(?!#)""", text.split("<script>")[0])
    assert len(text) < 5_000_000


def test_hostile_names_show_as_text(page, tmp_path):
    dom, console = load(page, profile=tmp_path / "profile")
    assert not console
    head = dom.split('<script type="application/json"')[0]
    assert "<img src=x" not in head.replace("&lt;img", "") and "<b>group" not in head
    assert "&lt;b&gt;group&lt;/b&gt;=" in head and "&lt;img src=x onerror=alert(2)&gt;.png" in head


def test_dark_is_dark(page, tmp_path):
    from PIL import Image as Picture

    shots = {}
    for name, dark in (("light", False), ("dark", True)):
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
        ]
        if dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        path = tmp_path / f"{name}.png"
        subprocess.run(
            [browser(), *flags, f"--user-data-dir={tmp_path / name}", f"--screenshot={path}", "--window-size=800,600", page.as_uri()],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        shots[name] = Picture.open(path).convert("L").getpixel((3, 590))
    assert shots["light"] > 240 and shots["dark"] < 60, shots


def test_report_command_writes_the_same_page(page, tmp_path):
    done = evaluate("report", str(page.parent), "-o", str(tmp_path / "again.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.html").read_text() == page.read_text()


def test_a_bundle_that_says_int8_and_runs_in_float_is_called_out(page, tmp_path):
    import json

    copy = shutil.copytree(page.parent / "records", tmp_path / "results" / "records")
    path = copy / "int8-static-minmax__ort-cpu.json"
    record = json.loads(path.read_text())
    record["census"][0] |= {"integer_share": 0.0, "verdict": "float"}
    path.write_text(json.dumps(record))
    assert evaluate("report", str(copy.parent)).returncode == 0
    text = (copy.parent / "report.html").read_text()
    assert "says int8-static, runs in floating point" in text
    assert "runs in floating point" not in page.read_text()
