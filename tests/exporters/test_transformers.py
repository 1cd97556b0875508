"""Checkpoints of transformers: a bundle gives the features of the model itself, through its own processor."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial

import numpy as np
import onnx
import pytest
from odd_texts import strings
from PIL import Image
from support import CALIBRATION, DEMO_BUNDLE, assert_refused, export

from clipq.bundle import open_bundle
from clipq.engines.ort import OrtEngine
from clipq.errors import CheckpointError
from clipq.exporters.checkpoints import load_checkpoint, parse_checkpoint
from clipq.preprocess import preprocess
from clipq.tokenizer import TextTokenizer

pytest.importorskip("open_clip", reason="needs the export extra")
transformers = pytest.importorskip("transformers", "5", reason="needs the export extra")

from foreign import demo_for_transformers  # noqa: E402
from transformers_families import FAMILIES, SIZE, saved  # noqa: E402

MASKED = {"model_input_names": ["input_ids", "attention_mask"]}
# What is exported: each family, and SigLIP with tokenizers that its authors did not publish.
EXPORTED = {
    **{family: partial(saved, family) for family in FAMILIES},
    "siglip with a mask": partial(saved, "siglip", **MASKED),
    "siglip 2 padded on the left": partial(saved, "siglip 2", padding_side="left"),
}


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """A family's name, its checkpoint, and the bundle of it."""
    folder = tmp_path_factory.mktemp("family")
    EXPORTED[request.param](folder / "mine")
    done = export("onnx", f"local-dir:{folder / 'mine'}", "-o", str(folder / "fp32"))
    assert done.returncode == 0, done.stderr
    return request.param, folder / "mine", open_bundle(folder / "fp32")


def images(count):
    """Of several shapes and colour modes."""
    rng = np.random.default_rng(0)
    shapes = [(40, 60), (64, 48), (33, 33), (20, 90), (SIZE, SIZE), (50, 35), (100, 100)]
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "LA", "RGB"]
    made = [Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]
    return [image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
            for image, mode in zip(made, modes, strict=True)][:count]  # fmt: skip


def unit(features):
    features = np.asarray(features, np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def embedded(bundle, tower, feed):
    with OrtEngine(bundle.tower_path(tower)) as engine:
        return unit(engine.run({tower: feed})[f"{tower}_features"])


def own(checkpoint):
    """The model itself, its processor's texts and its processor's pixels."""
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return model, tokenizer, transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")


@pytest.mark.parametrize("batch", [1, 7])
def test_features_are_the_models_own(exported, batch):
    import torch

    _, checkpoint, bundle = exported
    model, tokenizer, processor = own(checkpoint)
    length, preparation = bundle.manifest.tokenizer.context_length, bundle.manifest.preprocess
    photos, texts = images(batch), [text for text in strings()[-120:] if text.strip()][:batch]
    given = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(photos, return_tensors="pt")["pixel_values"]
        expected = {
            "image": model.get_image_features(pixel_values=pixels).pooler_output,
            "text": model.get_text_features(**given).pooler_output,
        }
    feeds = {
        "image": np.stack([preprocess(photo, preparation) for photo in photos]),
        "text": TextTokenizer(bundle)(texts),
    }
    assert np.abs(feeds["image"] - pixels.numpy()).max() < 1e-6
    for tower, feed in feeds.items():
        features = embedded(bundle, tower, feed)
        assert (features * unit(expected[tower])).sum(1).min() > 0.99999, tower
        # They tell rows apart, so that one for all would be seen.
        assert batch == 1 or (features[0] * features[1]).sum() < 0.999


def test_ids_are_the_tokenizers_own(exported):
    _, checkpoint, bundle = exported
    tokenizer, length = transformers.AutoTokenizer.from_pretrained(checkpoint), bundle.manifest.tokenizer.context_length
    texts = strings()
    expected = np.array(tokenizer(texts, padding="max_length", truncation=True, max_length=length)["input_ids"])
    actual = TextTokenizer(bundle)(texts)
    wrong = [text[:60] for text, mine, theirs in zip(texts, actual, expected, strict=True) if (mine != theirs).any()]
    assert not wrong, wrong[:5]
    assert len({tuple(row) for row in actual}) > 500


def test_manifest(exported):
    name, _, bundle = exported
    manifest = bundle.manifest
    assert manifest.checkpoint.name == "local-dir:mine" and manifest.checkpoint.weights_sha256
    assert manifest.logit_scale == pytest.approx(np.exp(3))
    assert (manifest.logit_bias is not None) == name.startswith("siglip")
    assert manifest.tokenizer.context_length == 16 and manifest.tokenizer.cleaning == "none"
    assert manifest.preprocess.resize_mode == ("squash" if "sig" in name or "chinese" in name else "shortest")
    assert manifest.environment["transformers"] == transformers.__version__
    for tower in (manifest.image, manifest.text):
        assert [parity.batch for parity in tower.parity] == [1, 7]
    assert "IsNaN" not in {node.op_type for node in onnx.load(bundle.tower_path("image")).graph.node}


@pytest.mark.parametrize("family", ["altclip", "chinese clip", "siglip with a mask"])
def test_padding_would_be_seen_without_the_mask(family, tmp_path):
    """Else the comparisons above would prove nothing of it."""
    import torch

    model, tokenizer, _ = own(EXPORTED[family](tmp_path))
    given = tokenizer(["a cat"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        masked = model.get_text_features(given["input_ids"], attention_mask=given["attention_mask"]).pooler_output
        seen = model.get_text_features(given["input_ids"]).pooler_output
    assert torch.cosine_similarity(masked, seen).item() < 0.9999


def linears(path):
    """Multiplications by a constant."""
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]


def test_recipes_quantize_every_linear(exported):
    name, _checkpoint, bundle = exported
    done = export(
        "quantize", str(bundle.path), "--recipe", "int8-static", "--recipe", "int4-weight-only:block_size=16",
        "--calibration-set", str(CALIBRATION), "-o", str(bundle.path.parent),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layers, extra = 2, {"image": 0, "text": 0}
    if "siglip" in name:
        # The head: queries, keys, values, output and two of its MLP; and the text tower's last.
        extra = {"image": 6, "text": 1}
    elif name == "altclip":
        extra = {"image": 1, "text": 2}
    else:
        extra = {"image": 1, "text": 1}
    for tower, more in extra.items():
        assert len(linears(bundle.tower_path(tower))) == 6 * layers + more, tower
        int8, int4 = (
            onnx.load(next(bundle.path.parent.glob(f"{recipe}*")) / f"{tower}.onnx").graph.node
            for recipe in ("int8-static", "int4-weight-only")
        )
        quantized = sum(node.op_type == "QuantizeLinear" for node in int8)
        assert quantized >= 6 * layers, tower
        assert sum(node.op_type == "MatMulNBits" for node in int4) == 6 * layers + more, tower


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved("clip", tmp_path_factory.mktemp("clip") / "mine")


@pytest.fixture
def changed(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "mine")


def refused(folder, *words, form="local-dir:"):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(parse_checkpoint(f"{form}{folder}", None))
    said = str(caught.value)
    print(said)
    assert all(word in said for word in words) and "\n" not in said and len(said) < 500, said


def edit(folder, file, **values):
    path = folder / file
    config = json.loads(path.read_text())
    for name, value in values.items():
        part = config
        *parents, last = name.split("__")
        for parent in parents:
            part = part[parent]
        part[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        (["model.safetensors"], "weights"),
        (["tokenizer.json"], "tokenizer"),
        (["preprocessor_config.json"], "image processor"),
    ],
)
@pytest.mark.parametrize("form", ["local-dir:", "transformers:"])
def test_a_missing_part(changed, missing, part, form):
    for name in missing:
        (changed / name).unlink()
    refused(changed, f"{form}mine", f"no {part}", missing[0].split(".")[0], "save_pretrained", form=form)


def test_a_missing_configuration(changed):
    (changed / "config.json").unlink()
    refused(changed, "open_clip_config.json", "config.json")
    refused(changed, "no configuration", form="transformers:")


def test_the_command_says_it_in_one_line(changed):
    (changed / "model.safetensors").unlink()
    assert_refused(export("onnx", f"local-dir:{changed}", "-o", str(changed.parent / "fp32")), "no weights")
    assert [path.name for path in changed.parent.iterdir()] == ["mine"]


CONFIGURATIONS = {
    "NaFlex": ({"model_type": "siglip2"}, ["NaFlex", "fixed resolution"]),
    "another model": ({"model_type": "blip"}, ["'blip'", "clip, metaclip_2, siglip, altclip, chinese_clip"]),
    "half of a pair": ({"model_type": "clip_vision_model"}, ["'clip_vision_model'"]),
    "no model": ({"model_type": None}, ["None"]),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantized already"]),
    "more layers than weights": ({"vision_config__num_hidden_layers": 3}, ["two models", "missing", "layers.2"]),
    "fewer layers than weights": ({"text_config__num_hidden_layers": 1}, ["two models", "unexpected", "layers.1"]),
    "a small table": ({"text_config__vocab_size": 800}, ["two models", "mismatched", "token_embedding"]),
    "no such end": ({"text_config__eos_token_id": 7}, ["token 7", "eos_token_id"]),
}


@pytest.mark.parametrize("change", CONFIGURATIONS)
def test_configuration(changed, change):
    values, words = CONFIGURATIONS[change]
    edit(changed, "config.json", **values)
    refused(changed, "local-dir:mine", *words)


PROCESSORS = {
    "another size": ({"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}, ["48x48", "32x32"]),
    "a border": ({"size": {"shortest_edge": 36}}, ["shortest_edge", "36", "crops 32x32"]),
    "no crop": ({"do_center_crop": False}, ["crops nothing"]),
    "no resize": ({"do_resize": False}, ["resizes to nothing"]),
    "a long side": ({"size": {"longest_edge": 32}}, ["longest_edge"]),
    "Lanczos": ({"resample": 1}, ["resample=1", "3 bicubic"]),
    "no division": ({"do_rescale": False}, ["255"]),
    "another divisor": ({"rescale_factor": 1 / 127.5}, ["255"]),
    "padding": ({"do_pad": True, "pad_size": {"height": 40, "width": 40}}, ["pads"]),
    "std of nothing": ({"image_std": [0, 0, 0]}, ["std"]),
    "mean of bytes": ({"image_mean": [123.7, 116.3, 103.5]}, ["mean"]),
    "half a mean": ({"image_mean": [0.5]}, ["mean"]),
}


@pytest.mark.parametrize("change", PROCESSORS)
def test_image_processor(changed, change):
    values, words = PROCESSORS[change]
    edit(changed, "preprocessor_config.json", **values)
    refused(changed, "local-dir:mine", "image processor", *words)


TOKENIZERS = {
    "padded on the left": ({"padding_side": "left"}, ["left", "padding_side"]),
    "no padding": ({"pad_token": None}, ["no padding token"]),
}


@pytest.mark.parametrize("change", TOKENIZERS)
def test_tokenizer(changed, change):
    values, words = TOKENIZERS[change]
    edit(changed, "tokenizer_config.json", **values)
    refused(changed, "local-dir:mine", *words)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file(changed, file):
    (changed / file).write_text("{")
    refused(changed)


def test_without_normalization(changed):
    """Pixels between 0 and 1, as MobileCLIP's."""
    edit(changed, "preprocessor_config.json", do_normalize=False)
    done = export("onnx", f"transformers:{changed}", "-o", str(changed.parent / "fp32"))
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(changed.parent / "fp32").manifest
    assert manifest.preprocess.mean == (0, 0, 0) and manifest.preprocess.std == (1, 1, 1)
    assert manifest.checkpoint.name == "transformers:mine"


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ("openai/clip-vit-base-patch32", ["transformers:openai/clip-vit-base-patch32", "hf-hub:"]),
        ("google/siglip-base-patch16-224", ["transformers:google/siglip-base-patch16-224"]),
        ("ViT-B33/openai", ["did you mean", "ViT-B-32"]),
        ("transformers:no/such/folder", ["no folder", "ORG/REPO"]),
    ],
)
def test_what_was_meant(tmp_path, checkpoint, words):
    assert_refused(export("onnx", checkpoint, "-o", str(tmp_path / "fp32")), checkpoint, *words)


def test_a_folder_without_its_schema(checkpoint, tmp_path):
    done = export("onnx", str(checkpoint), "-o", str(tmp_path / "fp32"))
    assert_refused(done, f"local-dir:{checkpoint}")


def test_hub_out_of_reach(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = export("onnx", "transformers:openai/clip-vit-base-patch32", "-o", str(tmp_path / "fp32"), env=environment)
    assert_refused(done, "hub cannot be reached", "local-dir:")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return demo_for_transformers(tmp_path_factory.mktemp("demo") / "demo")


def test_the_built_in_checkpoint_by_way_of_transformers(demo, tmp_path):
    """The embeddings of the bundle that ships, whose checkpoint open_clip loads."""
    from clipq.demo import world

    done = export("run", f"local-dir:{demo}", "-o", str(tmp_path), "--recipe", "int8-dynamic")
    assert done.returncode == 0, done.stderr
    bundle, shipped = open_bundle(tmp_path / "fp32"), open_bundle(DEMO_BUNDLE)
    assert bundle.manifest.logit_scale == pytest.approx(shipped.manifest.logit_scale)
    scenes = [world.sample("calibration", index) for index in range(20)]
    enlarged = [Image.fromarray(pixels).resize((70, 60)) for _, pixels in scenes]
    captions = [scene.caption() for scene, _ in scenes]
    for tower in ("image", "text"):
        found = []
        for one in (bundle, shipped):
            feed = (
                np.stack([preprocess(image, one.manifest.preprocess) for image in enlarged])
                if tower == "image"
                else TextTokenizer(one)(captions)
            )
            found.append(embedded(one, tower, feed))
        assert (found[0] * found[1]).sum(1).min() >= 0.99999, tower


def test_attack(demo, tmp_path):
    from clipq.data.attack import open_attack

    done = export(
        "attack", f"transformers:{demo}", "--data", "demo:test", "--samples", "40", "--method", "fgsm",
        "--epsilon", "4", "-o", str(tmp_path / "attack"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert open_attack(tmp_path / "attack")


def test_from_python(demo, tmp_path):
    import clipq

    folder = clipq.export(f"local-dir:{demo}", tmp_path / "fp32", opset=17)
    assert open_bundle(folder).manifest.environment["opset"] == "17"
