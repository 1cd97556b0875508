"""Our INT8 image towers against the INT8 that other tools make by default, on this CPU: latency and what it costs.

    python3.11 -m venv /tmp/peers-quant && /tmp/peers-quant/bin/pip install optimum-onnx olive-ai onnxruntime
    PEERS="--python /tmp/peers-quant/bin/python"
    python -m benchmarks.int8_peers make local-dir:lite0-lit W/lite0 --calibration-set PHOTOS $PEERS
    python -m benchmarks.int8_peers make random:ViT-B-32 W/vit --calibration-set PHOTOS $PEERS
    python -m benchmarks.int8_peers measure W/vit W/lite0 --photos imagenet-1000 --photos cifar10/test -o FILE.json

``make`` exports a checkpoint and quantizes its image tower by three recipes of ours and six of other tools, each in its
defaults, all from the same FP32 file and, where they calibrate, the same photos:

* ONNX Runtime: ``quantize_dynamic`` and ``quantize_static`` in their defaults, after ``quant_pre_process``; the stored
  shapes are taken out of the file first, on which ``quantize_dynamic`` stumbles ("Inferred shape and existing shape
  differ");
* Hugging Face Optimum: ``ORTQuantizer`` with ``AutoQuantizationConfig.avx512_vnni``, dynamic and static (minmax);
* Microsoft Olive: the passes ``OnnxDynamicQuantization`` and ``OnnxStaticQuantization``.

Optimum and Olive run in the Python of ``--python``; a tool that fails is a row with its words. ``measure`` runs every
file in the same ONNX Runtime with the same options, in turns; latencies are medians of rounds, ratios to FP32 with
their spread over the rounds in []. Quality: cosine of the embeddings to FP32's on the photos; for trained checkpoints
top-1 with the FP32 text tower for all, so that the image tower alone differs, as a paired difference with its 95 %
bootstrap interval.

Its top level needs numpy alone, for the other tools' Python runs ``recipe`` of this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("int8-static", "int8-static:activations=symmetric", "int8-dynamic")
BATCH = 32
RESAMPLES = 2000
FP32 = "FP32"


class Reader:
    """Calibration batches of one photo, as ONNX Runtime's quantizers ask for them."""

    def __init__(self, model: Path, photos: Path):
        import onnx

        self._name = onnx.load(str(model), load_external_data=False).graph.input[0].name
        self._photos = np.load(photos)
        self._next = 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if self._next == len(self._photos):
            return None
        self._next += 1
        return {self._name: self._photos[self._next - 1 : self._next]}

    def rewind(self) -> None:
        self._next = 0


def ort_dynamic(model: Path, photos: Path, output: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(preprocessed(model, output.parent), output)


def ort_static(model: Path, photos: Path, output: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    CalibrationDataReader.register(Reader)
    quantize_static(preprocessed(model, output.parent), output, Reader(model, photos))


def preprocessed(model: Path, folder: Path) -> Path:
    """Shapes inferred and constants folded, as ONNX Runtime asks for before quantizing."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / f"{model.stem}-prepared.onnx"
    # Symbolic shape inference crashes on towers that torch.export made.
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    loaded = onnx.load(prepared)
    # torch.export writes the shapes of weights too, and quantize_dynamic refuses them where it has turned a weight.
    del loaded.graph.value_info[:]
    onnx.save(loaded, prepared)
    return prepared


def optimum_dynamic(model: Path, photos: Path, output: Path) -> None:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(str(model.parent), file_name=model.name)
    quantizer.quantize(AutoQuantizationConfig.avx512_vnni(is_static=False), save_dir=output.parent)
    (output.parent / f"{model.stem}_quantized.onnx").rename(output)


def optimum_static(model: Path, photos: Path, output: Path) -> None:
    import onnx
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    name = onnx.load(str(model)).graph.input[0].name
    # Its reader wants rows with a name per input; it batches them itself.
    dataset = Rows([{name: photo} for photo in np.load(photos)])
    quantizer = ORTQuantizer.from_pretrained(str(model.parent), file_name=model.name)
    config = AutoQuantizationConfig.avx512_vnni(is_static=True)
    ranges = quantizer.fit(
        dataset,
        AutoCalibrationConfig.minmax(dataset),
        onnx_augmented_model_name=output.parent / "augmented.onnx",
        operators_to_quantize=config.operators_to_quantize,
    )
    quantizer.quantize(config, save_dir=output.parent, calibration_tensors_range=ranges)
    (output.parent / f"{model.stem}_quantized.onnx").rename(output)


class Rows(list[dict[str, Any]]):
    """Rows that also carry what Optimum writes about a Hugging Face data set."""

    info = type("Info", (), {"builder_name": "photos", "dataset_name": "photos", "config_name": "photos"})
    config_name, split, num_rows = "photos", "train", 0


def olive_dynamic(model: Path, photos: Path, output: Path) -> None:
    from olive.passes.onnx.quantization import OnnxDynamicQuantization

    run_olive(OnnxDynamicQuantization, {}, model, output)


def olive_static(model: Path, photos: Path, output: Path) -> None:
    import onnx
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    name = onnx.load(str(model)).graph.input[0].name
    # Pairs of inputs and a label that nothing reads; Olive's own loader makes batches of one of them.
    Registry.register_dataset("clipq_photos")(lambda: [({name: photo}, 0) for photo in np.load(photos)])
    data = DataConfig(name="photos", load_dataset_config=DataComponentConfig(type="clipq_photos"))
    run_olive(OnnxStaticQuantization, {"data_config": data}, model, output)


def run_olive(kind: Any, config: dict[str, Any], model: Path, output: Path) -> None:
    import onnx
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict

    made = create_pass_from_dict(kind, config, disable_search=True)
    result = made.run(ONNXModelHandler(str(model)), str(output.parent / "olive"))
    onnx.save(onnx.load(result.model_path), output)


PEERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "ort-dynamic": ort_dynamic, "ort-static": ort_static, "optimum-dynamic": optimum_dynamic,
    "optimum-static": optimum_static, "olive-dynamic": olive_dynamic, "olive-static": olive_static,
}  # fmt: skip


def make(options: argparse.Namespace) -> None:
    """Fill the folder: ``fp32``, ``ours/``, ``peers/*.onnx`` and ``made.json``."""
    from clipq.bundle import open_bundle
    from clipq.data.open import open_view
    from clipq.preprocess import normalize

    target = options.target
    calibration = target / "calibration"
    shutil.rmtree(target, ignore_errors=True)
    (target / "peers").mkdir(parents=True)
    random = options.checkpoint.startswith("random:")
    name = options.checkpoint.removeprefix("random:")
    clipq("onnx", name, *(["--pretrained", "random"] if random else []), "-o", str(target / "fp32"))
    view = open_view(str(options.calibration_set), want="images")
    chosen = np.random.default_rng(0).permutation(len(view.samples))[: options.count]
    bundle = open_bundle(target / "fp32")
    pixels = np.stack([view.cropped(int(index), bundle.manifest.preprocess) for index in chosen])
    np.save(target / "calibration.npy", normalize(pixels, bundle.manifest.preprocess))
    (calibration / "photos").mkdir(parents=True)
    for index in chosen:
        (calibration / "photos" / f"{index:06d}.png").symlink_to(
            options.calibration_set.resolve() / view.samples[index].id
        )
    recipes = [flag for recipe in RECIPES for flag in ("--recipe", recipe)]
    arguments = ["--towers", "image", "--calibration-set", str(calibration), "-o", str(target / "ours")]
    clipq("quantize", str(target / "fp32"), *recipes, *arguments)
    failures = {peer: reason for peer in PEERS if (reason := run_recipe(peer, options.python, target))}
    made = {"checkpoint": options.checkpoint, "trained": not random, "failures": failures, "calibration": len(chosen)}
    (target / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))


def clipq(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "clipq.exporters.cli", *arguments], check=True)


def run_recipe(peer: str, python: str, target: Path) -> str | None:
    """Make one peer's file; the reason where that fails. ONNX Runtime's own recipes run in this Python."""
    interpreter = sys.executable if peer.startswith("ort-") else python
    with tempfile.TemporaryDirectory() as folder:
        copy, output = Path(folder) / "image.onnx", Path(folder) / "out" / f"{peer}.onnx"
        shutil.copy(target / "fp32" / "image.onnx", copy)
        output.parent.mkdir()
        recipe = ["recipe", peer, str(copy), str((target / "calibration.npy").resolve()), str(output)]
        started = time.perf_counter()
        done = subprocess.run(
            [interpreter, str(Path(__file__).resolve()), *recipe],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        print(f"{peer}: {time.perf_counter() - started:.0f} s, {'failed' if done.returncode else 'made'}", flush=True)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        shutil.move(output, target / "peers" / output.name)
    return None


@dataclass
class Made:
    """What ``make`` left in a folder: the FP32 bundle, files by name, and what failed."""

    folder: Path
    checkpoint: str
    trained: bool
    files: dict[str, Path]
    failures: dict[str, str] = field(default_factory=dict)


def open_made(folder: Path, extra: Sequence[str]) -> Made:
    made = json.loads((folder / "made.json").read_text())
    files = {FP32: folder / "fp32" / "image.onnx"}
    files |= {f"clipq {path.parent.name}": path for path in sorted((folder / "ours").glob("*/image.onnx"))}
    files |= {path.stem: path for path in sorted((folder / "peers").glob("*.onnx"))}
    files |= {name: Path(path) for name, _, path in (one.partition("=") for one in extra)}
    return Made(folder, made["checkpoint"], made["trained"], files, made["failures"])


def open_towers(made: Made, threads: int) -> dict[str, Any]:
    """Sessions by name; a file that ONNX Runtime refuses joins the failures."""
    from clipq.engines.ort import OrtEngine
    from clipq.errors import ClipqError

    towers = {}
    for name, path in made.files.items():
        try:
            towers[name] = OrtEngine(path, threads=threads)
        except ClipqError as error:
            made.failures[name] = str(error)
    return towers


def latency(made: Made, towers: Mapping[str, Any], batch: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of every tower: the median of some runs in every round, towers in turns."""
    from clipq.bundle import open_bundle
    from clipq.evaluate.bench.bench import plausible_feed

    feed = plausible_feed(open_bundle(made.folder / "fp32"), "image", batch)
    times: dict[str, list[float]] = {name: [] for name in towers}
    for turn in range(rounds):
        for name in list(towers)[:: 1 if turn % 2 == 0 else -1]:
            towers[name].run(feed)
            taken = []
            for _ in range(repeats):
                started = time.perf_counter()
                towers[name].run(feed)
                taken.append(1e3 * (time.perf_counter() - started))
            times[name].append(statistics.median(taken))
    rows = []
    for name, found in times.items():
        ratios = [mine / full for mine, full in zip(found, times[FP32], strict=True)]
        rows.append({
            "kind": "latency", "checkpoint": made.checkpoint, "tower": name, "batch": batch,
            "milliseconds": statistics.median(found), "lowest": min(ratios), "highest": max(ratios),
            "ratio": statistics.median(found) / statistics.median(times[FP32]),
            "bytes": made.files[name].stat().st_size,
        })  # fmt: skip
    return rows


def embeddings(
    made: Made, towers: Mapping[str, Any], view: Any, chosen: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    """Unit embeddings of the photos by every tower; each batch is decoded once."""
    from clipq.bundle import open_bundle
    from clipq.preprocess import normalize

    bundle = open_bundle(made.folder / "fp32")
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in towers}
    for start in range(0, len(chosen), BATCH):
        config = bundle.manifest.preprocess
        pixels = np.stack([view.cropped(index, config) for index in chosen[start : start + BATCH]])
        batch = normalize(pixels, config)
        for name, tower in towers.items():
            (output,) = tower.run({tower.inputs[0].name: batch}).values()
            found[name].append(output / np.linalg.norm(output, axis=1, keepdims=True))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def class_embeddings(made: Made, view: Any, threads: int) -> NDArray[np.float32]:
    """The FP32 text tower's classes: the mean of the unit embeddings of the simple templates, class by class."""
    from clipq.bundle import open_bundle
    from clipq.engines.ort import OrtEngine
    from clipq.tokenizer import TextTokenizer

    bundle = open_bundle(made.folder / "fp32")
    templates = bundle.prompts.templates["simple-7"]
    tokenizer, classes = TextTokenizer(bundle), []
    with OrtEngine(bundle.tower_path("text"), threads=threads) as tower:
        for name in view.classes.names:
            tokens = tokenizer([template.replace("{}", name) for template in templates])
            (texts,) = tower.run({tower.inputs[0].name: tokens}).values()
            mean = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).mean(axis=0)
            classes.append(mean / np.linalg.norm(mean))
    return np.stack(classes)


def quality(
    made: Made, towers: Mapping[str, Any], source: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Cosines to FP32 on a photo set and, for a trained checkpoint, top-1 with its paired difference to FP32."""
    from clipq.data.open import open_view

    view = open_view(source)
    seen = listed(options.leave_out) if made.trained else frozenset()
    root = Path(source.partition("=")[2] or source).resolve()
    left = [index for index, sample in enumerate(view.samples) if not is_listed(root / sample.id, seen)]
    count = options.images if made.trained else options.random_images
    chosen = sorted(np.random.default_rng(0).permutation(left)[:count].tolist())
    found = embeddings(made, towers, view, chosen)
    labels = np.array([view.samples[index].label for index in chosen])
    classes = class_embeddings(made, view, options.threads) if made.trained else None
    correct = (
        {} if classes is None else {name: (one @ classes.T).argmax(axis=1) == labels for name, one in found.items()}
    )
    draws = np.random.default_rng(0).integers(0, len(chosen), (RESAMPLES, len(chosen)))
    for name, one in found.items():
        cosines = (one * found[FP32]).sum(axis=1)
        row = {
            "kind": "quality", "checkpoint": made.checkpoint, "tower": name, "photos": view.name, "n": len(chosen),
            "left_out": len(view.samples) - len(left), "mean_cosine": float(cosines.mean()),
            "smallest_cosine": float(cosines.min()),
        }  # fmt: skip
        if correct:
            difference = correct[name].astype(float) - correct[FP32]
            low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
            row |= {"top1": float(correct[name].mean()), "delta": float(difference.mean())}
            row |= {"delta_low": float(low), "delta_high": float(high)}
        yield row


def listed(path: Path | None) -> frozenset[str]:
    """The files of a JSON of lists, by name of the set."""
    if path is None:
        return frozenset()
    return frozenset(name for names in json.loads(path.read_text()).values() for name in names)


def is_listed(path: Path, names: frozenset[str]) -> bool:
    return any("/".join(path.parts[-count:]) in names for count in range(1, min(6, len(path.parts))))


def measure(options: argparse.Namespace) -> None:
    from clipq.environment import environment

    print(f"load average before: {os.getloadavg()[0]:.1f}; it should be near 0", flush=True)
    rows: list[dict[str, Any]] = []
    for folder in options.made:
        made = open_made(folder, options.peer)
        towers = open_towers(made, options.threads)
        for batch in options.batch or [1, 8]:
            rows += latency(made, towers, batch, options.rounds, options.repeats)
        for source in options.photos:
            rows += quality(made, towers, source, options)
        for name, reason in made.failures.items():
            rows.append({"kind": "failure", "checkpoint": made.checkpoint, "tower": name, "error": reason})
        for tower in towers.values():
            tower.close()
    print(table(rows))
    if options.output:
        record = {"benchmark": "int8_peers", "machine": environment(), "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Latency, then quality, then failures, as Markdown."""
    lines = ["| checkpoint | tower | MB | batch | ms | ÷ FP32 |", "|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["kind"] == "latency"):
        ratio = f"{row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}]"
        what = f"{row['checkpoint']} | {row['tower']} | {row['bytes'] / 1e6:.1f} | {row['batch']}"
        lines.append(f"| {what} | {row['milliseconds']:.2f} | {ratio} |")
    lines += ["", "| checkpoint | tower | photos | n | cosine mean, smallest | top-1 % | Δ points |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in (row for row in rows if row["kind"] == "quality"):
        what = f"{row['checkpoint']} | {row['tower']} | {row['photos']} | {row['n']}"
        cosines, top, delta = f"{row['mean_cosine']:.4f}, {row['smallest_cosine']:.4f}", "", ""
        if "top1" in row:
            top = f"{100 * row['top1']:.1f}"
            delta = f"{100 * row['delta']:+.1f} [{100 * row['delta_low']:+.1f}, {100 * row['delta_high']:+.1f}]"
        lines.append(f"| {what} | {cosines} | {top} | {delta} |")
    failed = [row for row in rows if row["kind"] == "failure"]
    lines += [""] + [f"- {row['checkpoint']}, {row['tower']} failed: `{row['error']}`" for row in failed]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    maker = steps.add_parser("make", help="export a checkpoint and quantize it by every tool")
    maker.add_argument("checkpoint", help="as clipq-export names it, or random:MODEL for random weights")
    maker.add_argument("target", type=Path, help="folder that is made anew")
    maker.add_argument("--calibration-set", type=Path, required=True, help="folder of photos")
    maker.add_argument("--count", type=int, default=64, help="photos that ranges are measured on")
    maker.add_argument("--python", default=sys.executable, help="Python with Optimum and Olive")
    recipe = steps.add_parser("recipe", help="one tool's recipe, in this Python (make calls it)")
    recipe.add_argument("name", choices=PEERS)
    for argument in ("model", "photos", "result"):
        recipe.add_argument(argument, type=Path)
    measurer = steps.add_parser("measure", help="latency and quality of what make left")
    measurer.add_argument("made", type=Path, nargs="+", help="folders of make")
    measurer.add_argument(
        "--peer", action="append", default=[], metavar="NAME=FILE", help="another tower, with one folder"
    )
    measurer.add_argument(
        "--photos", action="append", default=[], metavar="[NAME=]FOLDER", help="ImageFolder; repeatable"
    )
    measurer.add_argument(
        "--leave-out", type=Path, metavar="JSON", help="lists of files that the checkpoint was trained on"
    )
    measurer.add_argument("--images", type=int, default=10_000, help="photos of each set, trained checkpoints")
    measurer.add_argument("--random-images", type=int, default=128, help="photos of each set, random weights")
    measurer.add_argument("--batch", type=int, action="append", help="repeatable; default: 1, 8")
    measurer.add_argument("--threads", type=int, default=2)
    measurer.add_argument("--rounds", type=int, default=5)
    measurer.add_argument("--repeats", type=int, default=10, help="runs of each tower in a round")
    measurer.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    if options.step == "make":
        make(options)
    elif options.step == "recipe":
        PEERS[options.name](options.model, options.photos, options.result)
    elif options.peer and len(options.made) > 1:
        parser.error("--peer goes with one folder")
    else:
        measure(options)


if __name__ == "__main__":
    main()
