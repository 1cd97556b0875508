"""The demo's FP32 towers as others' tools lay them out, made of the built-in bundle by editing its graphs.

Neither torch nor the tools are needed. What the tools themselves make is in ``benchmarks/foreign``: names, types and
shapes here are theirs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from support import DEMO_BUNDLE

MANIFEST = json.loads((DEMO_BUNDLE / "clipq.json").read_text())
PREPROCESS = MANIFEST["preprocess"]
SIZE, TOKENS, WIDTH = PREPROCESS["image_size"][0], MANIFEST["tokenizer"]["context_length"], MANIFEST["embed_dim"]
LOGIT_SCALE = MANIFEST["logit_scale"]
END = "<end_of_text>"


def tower(name):
    # One of its values is called "embedding", as Immich calls its outputs.
    return onnx.compose.add_prefix(onnx.load(str(DEMO_BUNDLE / f"{name}.onnx")), "demo/")


def called(model, given, output):
    """Its input and output by other names."""
    graph = model.graph
    for value, name in ((graph.input[0], given), (graph.output[0], output)):
        _rename(graph, value.name, name)
        value.name = name
    return model


def _rename(graph, old, new):
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def stored(model, name, array):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def before(model, *nodes):
    """Nodes at its start; the last one's output is what the input's readers read."""
    graph = model.graph
    given = graph.input[0].name
    for node in graph.node:
        node.input[:] = [nodes[-1].output[0] if name == given else name for name in node.input]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return model


def behind(model, *nodes):
    """Nodes at its end, of which the first reads ``raw`` and the last gives the output."""
    graph = model.graph
    output, raw = graph.output[0].name, f"raw_{len(graph.node)}"
    _rename(graph, output, raw)
    for node in nodes:
        node.input[:] = [raw if name == "raw" else name for name in node.input]
    nodes[-1].output[0] = output
    graph.node.extend(nodes)
    return model


def shaped(value, *dims, kind=None):
    """A value's shape, numbers and names, and its type."""
    tensor = value.type.tensor_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind or tensor.elem_type, dims))


def masked(model):
    """With ``attention_mask``; where it does not cover a text up to its end token, the embedding is not finite."""
    ids = model.graph.input[0].name
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", TOKENS])
    one, axis = stored(model, "mask_one", np.int64(1)), stored(model, "mask_axis", np.array([1]))
    behind(
        model,
        helper.make_node("ReduceSum", ["attention_mask", axis], ["covered"]),
        helper.make_node("ArgMax", [ids], ["end"], axis=1),
        helper.make_node("Add", ["end", one], ["length_of_text"]),
        helper.make_node("Equal", ["covered", "length_of_text"], ["covers"]),
        helper.make_node("Cast", ["covers"], ["divisor"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["raw", "divisor"], ["?"]),
    )
    model.graph.input.append(mask)
    return model


def with_hidden_states(model, tokens):
    """With ``last_hidden_state``, of rank 3, behind the embedding."""
    output = model.graph.output[0].name
    axis, times = stored(model, "hidden_axis", np.array([1])), stored(model, "hidden_times", np.array([1, tokens, 1]))
    model.graph.node.append(helper.make_node("Unsqueeze", [output, axis], ["hidden_one"]))
    model.graph.node.append(helper.make_node("Tile", ["hidden_one", times], ["last_hidden_state"]))
    model.graph.output.append(
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", tokens, WIDTH])
    )
    return model


def of_unit_length(model):
    axis = stored(model, "unit_axis", np.array([1]))
    return behind(
        model,
        helper.make_node("ReduceL2", ["raw", axis], ["length"]),
        helper.make_node("Div", ["raw", "length"], ["?"]),
    )


def of_int32(model):
    graph = model.graph
    before(model, helper.make_node("Cast", [graph.input[0].name], ["wide"], to=TensorProto.INT64))
    shaped(graph.input[0], "batch", TOKENS, kind=TensorProto.INT32)
    return model


def of_float16(model):
    """Half precision throughout: pixels, weights and embeddings."""
    from clipq.exporters.half import as_half

    model = as_half(model)
    graph = model.graph
    if graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT:
        before(model, helper.make_node("Cast", [graph.input[0].name], ["single"], to=TensorProto.FLOAT))
        shaped(graph.input[0], "batch", 3, SIZE, SIZE, kind=TensorProto.FLOAT16)
    behind(model, helper.make_node("Cast", ["raw"], ["?"], to=TensorProto.FLOAT16))
    shaped(graph.output[0], "batch", WIDTH, kind=TensorProto.FLOAT16)
    return model


def of_nhwc(model):
    graph = model.graph
    before(model, helper.make_node("Transpose", [graph.input[0].name], ["planes"], perm=[0, 3, 1, 2]))
    shaped(graph.input[0], "batch", SIZE, SIZE, 3)
    return model


def normalizing(model):
    """With mean and standard deviation in the graph: it takes pixels from 0 to 1."""
    mean, std = (np.array(PREPROCESS[name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    return before(
        model,
        helper.make_node("Sub", [model.graph.input[0].name, stored(model, "mean", mean)], ["centred"]),
        helper.make_node("Div", ["centred", stored(model, "std", std)], ["scaled"]),
    )


def of_batch(model, size):
    """Of one batch alone."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


def of_any_shape(model):
    """With every dimension of its inputs named, as Optimum leaves them."""
    names = {4: ("batch_size", "num_channels", "height", "width"), 2: ("text_batch_size", "sequence_length")}
    for value in model.graph.input:
        shaped(value, *names[len(value.type.tensor_type.shape.dim)])
    return model


def of_both(image, text):
    """One graph of both towers with its logits, as Optimum's: ``logits_per_image`` comes first."""
    merged = onnx.compose.merge_models(
        of_unit_length(image), of_unit_length(text), io_map=[], prefix1="i/", prefix2="t/"
    )
    graph = merged.graph
    for values in (graph.input, graph.output):
        for value in values:
            old, value.name = value.name, value.name[2:]
            _rename(graph, old, value.name)
    scale = stored(merged, "scale", np.float32(LOGIT_SCALE))
    graph.node.extend(
        [
            helper.make_node("Transpose", ["image_embeds"], ["columns"], perm=[1, 0]),
            helper.make_node("MatMul", ["text_embeds", "columns"], ["cosines"]),
            helper.make_node("Mul", ["cosines", scale], ["logits_per_text"]),
            helper.make_node("Transpose", ["logits_per_text"], ["logits_per_image"], perm=[1, 0]),
        ]
    )
    embeddings = list(graph.output)
    del graph.output[:], graph.value_info[:]
    # Not one batch for both: ONNX Runtime would take one's buffers for the other.
    for value, dim in zip((*graph.input, *embeddings), ("i", "t", "t", "i", "t"), strict=True):
        value.type.tensor_type.shape.dim[0].dim_param = f"{dim}_batch_size"
    for rows, columns in (("image", "text"), ("text", "image")):
        dims = [f"{rows}_batch_size", f"{columns}_batch_size"]
        graph.output.append(helper.make_tensor_value_info(f"logits_per_{rows}", TensorProto.FLOAT, dims))
    graph.output.extend(reversed(embeddings))
    return merged


def save(model, path, *, beside=False):
    """Write a tower; ``beside``: its weights in a file next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 1024} if beside else {}
    onnx.save(model, str(path), **options)
    return path


def write_tokenizer(folder):
    """tokenizer.json and tokenizer_config.json as transformers writes them: no length, and padding by the end token."""
    state = json.loads((DEMO_BUNDLE / "tokenizer.json").read_text())
    state["truncation"] = state["padding"] = None
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    state["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    said = {"bos_token": "<start_of_text>", "eos_token": END, "pad_token": END, "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "CLIPTokenizer"}))


def write_preprocessor(folder, size=SIZE):
    said = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
        "do_center_crop": True, "crop_size": {"height": size, "width": size}, "resample": 3, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": PREPROCESS["mean"], "image_std": PREPROCESS["std"],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def write_transformers(folder):
    """What a repository of transformers has beside its weights."""
    write_tokenizer(folder)
    write_preprocessor(folder)
    said = {
        "model_type": "clip", "projection_dim": WIDTH, "logit_scale_init_value": 2.6592,
        "text_config": {"max_position_embeddings": TOKENS}, "vision_config": {"image_size": SIZE},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said))


def transformers_js(folder):
    """``onnx/{vision,text}_model.onnx``, and the same dynamically quantized."""
    from onnxruntime.quantization import quantize_dynamic

    write_transformers(folder)
    vision = of_any_shape(called(tower("image"), "pixel_values", "image_embeds"))
    text = of_any_shape(masked(called(tower("text"), "input_ids", "text_embeds")))
    for name, model in (("vision", vision), ("text", text)):
        # onnxruntime's quantizer stumbles on the shapes that are stored between the nodes.
        del model.graph.value_info[:]
        path = save(model, folder / "onnx" / f"{name}_model.onnx")
        quantize_dynamic(path, folder / "onnx" / f"{name}_model_quantized.onnx", op_types_to_quantize=["MatMul"])
    return folder


def optimum(folder):
    """One graph of both towers."""
    write_transformers(folder)
    image = called(tower("image"), "pixel_values", "image_embeds")
    text = masked(called(tower("text"), "input_ids", "text_embeds"))
    save(of_any_shape(of_both(image, text)), folder / "model.onnx")
    return folder


def immich(folder):
    """Batches of one, int32 ids, unit length, both outputs of one name."""
    write_tokenizer(folder / "textual")
    visual = of_batch(of_unit_length(called(tower("image"), "image", "embedding")), 1)
    textual = of_batch(of_int32(of_unit_length(called(tower("text"), "text", "embedding"))), 1)
    save(visual, folder / "visual" / "model.onnx")
    save(textual, folder / "textual" / "model.onnx")
    said = {"size": [SIZE, SIZE], "mode": "RGB", "fill_color": 0}
    said |= {name: PREPROCESS[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    (folder / "visual" / "preprocess_cfg.json").write_text(json.dumps(said))
    config = json.loads((DEMO_BUNDLE.parent / "checkpoint" / "open_clip_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["model_cfg"]))
    return folder


def clip_as_service(folder):
    """``visual.onnx`` and ``textual.onnx``, their weights beside them, and open_clip's configuration."""
    save(called(tower("image"), "pixel_values", "output"), folder / "visual.onnx", beside=True)
    save(called(tower("text"), "input_ids", "output"), folder / "textual.onnx", beside=True)
    shutil.copy(DEMO_BUNDLE.parent / "checkpoint" / "open_clip_config.json", folder)
    return folder


def fastembed(folder):
    """Two folders, ``clip-vision`` and ``clip-text``."""
    vision, text = folder / "clip-vision", folder / "clip-text"
    write_preprocessor(vision)
    write_tokenizer(text)
    image = with_hidden_states(called(tower("image"), "pixel_values", "image_embeds"), 37)
    save(image, vision / "model.onnx")
    save(with_hidden_states(masked(called(tower("text"), "input_ids", "text_embeds")), TOKENS), text / "model.onnx")
    return folder


def pair(folder, of_image: Callable = lambda model: model, of_text: Callable = lambda model: model):
    """``image.onnx`` and ``text.onnx``, changed as is said, with nothing beside them."""
    save(of_image(called(tower("image"), "image", "image_embedding")), folder / "image.onnx")
    save(of_text(called(tower("text"), "text", "text_embedding")), folder / "text.onnx")
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "clip-transformers-js": transformers_js,
    "clip-optimum": optimum,
    "clip-immich": immich,
    "clip-as-service": clip_as_service,
    "fastembed": fastembed,
    "clip-onnx": pair,
}
