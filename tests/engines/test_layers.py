"""Layers read from the inspector's two schemas, and what their kernels' names prove."""

from __future__ import annotations

import json

import pytest

from clipq.engines.layers import Layer, layers_census, parse_layers

# As TensorRT 8.6 and 10 print them (from NVIDIA's developer guide and public engine dumps).
TEN = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1", "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1, 3, 224, 224], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [1, 3, 224, 224], "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
            "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x00000000000003ea", "StreamId": 0, "Metadata": "",
        },
        {
            "Name": "res4_0_branch2a_1", "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Dimensions": [16, 512, 28, 28], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
            "Outputs": [{"Name": "b", "Dimensions": [16, 256, 28, 28], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
            "ParameterType": "Convolution", "Weights": {"Type": "Int8", "Count": 131072},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32_tilesize256x128x64_stage4_warpsize4x2x1_g1_tensor16x8x32_simple_t1r1s1_epifadd",
        },
        {
            "Name": "__myl_FcAdd_myl0_3", "LayerType": "gemm",
            "Inputs": [{"Name": "c", "Format/Datatype": "Half"}], "Outputs": [{"Name": "d", "Format/Datatype": "Half"}],
            "TacticName": "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize64x64x64_stage5",
        },
        {"Name": "__myl_Softmax", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Half"}], "Outputs": [], "TacticName": "__myl_MaxSubExpSum_0x1f"},
    ],
    "Bindings": ["x", "out"],
}  # fmt: skip
ELEVEN = {
    "Layers": [
        {
            "Name": "gemm_0", "LayerType": "gemm",
            "Inputs": [{"Name": "c", "Format": "Linear", "Datatype": "Int8"}, {"Name": "w", "Format": "Linear", "Datatype": "Int8"}],
            "Outputs": [{"Name": "d", "Format": "Linear", "Datatype": "Half"}],
            "TacticName": "sm90_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128",
        },
        {"Name": "gemm_1", "LayerType": "gemm", "Inputs": [{"Name": "c", "DataType": "FP8"}], "Outputs": [], "TacticName": "sm90_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn"},
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "INPUT"}],
}  # fmt: skip


def census(layers, times, quantized=True):
    return layers_census("image", layers, times, "tensorrt 10", quantized)


def test_both_schemas():
    ten, eleven = parse_layers(json.dumps(TEN)), parse_layers(json.dumps(ELEVEN))
    assert [layer.precision for layer in ten] == ["", "int8", "fp16", ""]
    assert [(layer.multiplies, layer.reformats) for layer in ten] == [
        (False, True),
        (True, False),
        (True, False),
        (False, False),
    ]
    assert [layer.precision for layer in eleven] == ["int8", "fp8"]
    assert eleven[0].inputs == ("Int8", "Int8") and ten[2].inputs == ("Half",)


def test_names_alone():
    """Below DETAILED verbosity a layer is its name: nothing is proved."""
    layers = parse_layers('{"Layers": ["conv1 + relu", "softmax"]}')
    assert census(layers, {"conv1 + relu": 1.0}).verdict == "unknown"


def test_shares_are_of_time():
    names = [layer["Name"] for layer in TEN["Layers"]]
    found = census(parse_layers(json.dumps(TEN)), dict(zip(names, (1.0, 6.0, 2.0, 1.0), strict=True)))
    assert found.integer_share == pytest.approx(0.75) and found.verdict == "mixed"
    assert found.precision_time_shares == pytest.approx({"int8": 0.75, "fp16": 0.25})
    assert found.reformat_share == pytest.approx(0.1) and found.matmul_time_share == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64", "int8"),
        ("ampere_int8_i16832gemm_int8_128x128_ldg16_relu_stages_64x3_tn", "int8"),
        ("turing_i8816cudnn_int8_128x128_ldg16_relu_small", "int8"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn", "fp8"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n", "tf32"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32", "bf16"),
        ("ampere_h16816gemm_128x64_ldg8_stages_64x3_tn", "fp16"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn", "fp16"),
        ("ampere_sgemm_128x64_tn", "fp32"),
        ("sm90_xmma_gemm_i8i32_i8i32_f32_tn_n_tilesize64x64x128_igmma", "int8"),
        ("cutlass3x_sm100_tensorop_i128x128x32gemm_s8_s8_s32_s8_s8_nnn_align16_bias_f32", "int8"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8_stage3_ffma", "fp32"),
        ("__myl_FcMul_0x93ab", ""),
    ],
)  # fmt: skip
def test_what_kernel_names_say(tactic, precision):
    assert Layer("l", "gemm", tactic, (), ()).precision == precision


def test_int8_tensors_prove_nothing_without_a_kernel_name():
    """Myelin may fuse the dequantization into a floating-point kernel that reads int8."""
    fused = Layer("{ForeignNode[a...b]}", "Myelin", "", ("Int8",), ("Half",))
    assert census((fused,), {fused.name: 1.0}).verdict == "unknown"
    hidden = Layer("{ForeignNode[a...b]}", "Myelin", "", ("Half",), ("Half",))
    assert census((hidden,), {hidden.name: 1.0}).verdict == "unknown"
    assert census((hidden,), {"another name": 1.0}).verdict == "unknown"
    half = Layer("l", "gemm", "", ("Half",), ("Half",))
    assert census((half,), {"l": 1.0}).verdict == "float"
    assert census((fused,), {fused.name: 1.0}, quantized=False).verdict == "float"


@pytest.mark.parametrize("quantized", [True, False])
def test_a_block_without_kernel_names_has_no_known_precision(quantized):
    """On an H200, 8.6.0 made ViT-B-32's transformer one block; with float32 before it, INT8's census said 92 % fp32."""
    hidden = Layer("{ForeignNode[a...b]}", "Myelin", "", ("Float",), ("Half",))
    named = Layer(
        "l", "CaskConvolution", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc", ("Half",), ("Half",)
    )
    found = census((hidden, named), {hidden.name: 3.0, "l": 1.0}, quantized=quantized)
    assert found.precision_time_shares == {"unknown": 0.75, "fp16": 0.25}
    assert found.verdict == ("unknown" if quantized else "float")


@pytest.mark.parametrize(
    ("kernel", "arithmetic", "precision"),
    [
        ("void cutlass::Kernel2<cutlass_80_tensorop_i16832gemm_s8_256x128_64x3_tn_align16>(Params)", "integer", "int8"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x64x64", "float", "fp16"),
        ("void fpA_intB_gemm_kernel<half, cutlass::uint4b_t>(half*)", "float", "int4 weights"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "float", "fp16"),
        ("mystery_gemm", "unknown", "unknown"),
    ],
)
def test_kernels_of_any_runtime(kernel, arithmetic, precision):
    (group,) = census((Layer(kernel, "kernel", kernel, (), ()),), {kernel: 1.0}).groups
    assert (group.arithmetic, group.precision) == (arithmetic, precision)


def test_an_engine_without_products_is_unknown():
    assert census((), {}).verdict == "unknown"
