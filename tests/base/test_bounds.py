from __future__ import annotations

import pytest
from support import DEMO_BUNDLE, assert_refused, evaluate, export

import clipq
from clipq.errors import ClipqError
from clipq.evaluate.suites.schema import LatencyEntry, Suite
from clipq.evaluate.sweep.grid import read_grid

BUNDLE = str(DEMO_BUNDLE)
HUGE = str(2 * 10**9)


@pytest.mark.parametrize(
    "option",
    [
        ("--ece-bins", HUGE), ("--seed", str(2**32)), ("--threads", HUGE), ("--latency-batch", HUGE), ("--repeats", HUGE),
        ("--batch-size", HUGE), ("--ece-bins", "1"), ("--seed", "-1"),
    ],
)  # fmt: skip
def test_options_of_run(tmp_path, option):
    done = evaluate("run", BUNDLE, "--data", "demo:test", "-o", str(tmp_path / "out"), *option)
    assert done.returncode == 2 and "is not in the range" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["nan", "inf", "-inf", "-1", "1e300"])
def test_the_pixel_cache(tmp_path, monkeypatch, size):
    words = ["run", BUNDLE, "--data", "demo:test", "-o", str(tmp_path / "out")]
    assert_refused(evaluate(*words, "--pixel-cache-gb", size), "GB", "0 to keep none")
    monkeypatch.setenv("CLIPQ_PIXEL_CACHE_GB", size)
    with pytest.raises(ClipqError, match="GB"):
        clipq.Settings()


def test_other_commands(tmp_path):
    attack = ["attack", "demo", "--data", "demo:test", "-o", str(tmp_path / "attack")]
    for option in ("--steps", "--restarts", "--samples", "--seed", "--epsilon"):
        assert export(*attack, option, str(2**62)).returncode == 2
    build = ["build", BUNDLE, "--runtime", "tensorrt", "-o", str(tmp_path), "--batch"]
    assert_refused(export(*build, f"1,8,{HUGE}"), "4096")
    assert_refused(export(*build, "1,8,²"), "three whole numbers")
    for command, option in (("inspect", "--batch"), ("bench", "--latency-batch"), ("bench", "--batch")):
        assert evaluate(command, BUNDLE, option, HUGE).returncode == 2
    for number in (HUGE, "0", "-1", "²", "9" * 5000):
        done = evaluate("run", BUNDLE, "--data", f"demo:test:n={number}", "-o", str(tmp_path / "out"))
        assert_refused(done, "is not a number from 1 to")


@pytest.mark.parametrize(
    "text",
    [
        "ece_bins = 2000000000", "seed = 99999999999999999999999", "tune_fraction = nan", "tune_fraction = inf",
        "[latency]\nrepeats = 2000000000", "[latency]\nbatches = [2000000000]",
        '[[square]]\nof = "demo-test"\nqueries = 2000000000', '[[view]]\nsource = "demo:test"\nsamples = 0',
    ],
)  # fmt: skip
def test_suites(tmp_path, text):
    (tmp_path / "suite.toml").write_text(text)
    assert_refused(evaluate("suite", "check", str(tmp_path / "suite.toml")), "input should be")


@pytest.mark.parametrize("line", ["threads = 2000000000", "gpus = inf", "gpus = nan", "batch_size = 257"])
def test_grids(tmp_path, line):
    (tmp_path / "grid.toml").write_text(f'suite = "demo"\ncheckpoints = ["demo"]\n{line}\n')
    with pytest.raises(ClipqError, match=line.split(" ")[0]):
        read_grid(tmp_path / "grid.toml")


@pytest.mark.parametrize(
    "asked",
    [
        lambda: Suite(ece_bins=2 * 10**9), lambda: Suite(seed=2**32), lambda: LatencyEntry(repeats=10**9),
        lambda: clipq.Settings(threads=10**6), lambda: clipq.Settings(batch=257),
        lambda: clipq.metrics.ece([[0.5, 0.5]], [0], bins=2 * 10**9),
        lambda: clipq.metrics.ece([[0.5, 0.5]], [0], seed=2**32),
    ],
)  # fmt: skip
def test_from_python(asked):
    with pytest.raises(ClipqError, match=r"to|less than"):
        asked()


@pytest.mark.parametrize("margin", ["nan", "inf"])
def test_margins(tmp_path, margin):
    assert_refused(evaluate("gate", "init", "nowhere", "-o", str(tmp_path / "p.toml"), "--margin", margin), "--margin")
    assert evaluate("compare", str(tmp_path), str(tmp_path), "--margin", margin).returncode == 2
