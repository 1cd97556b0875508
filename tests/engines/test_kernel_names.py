"""Kernel names held against those in the libraries that ship (``list_kernel_names.py`` makes the lists)."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from clipq.engines.kernel_names import demangle, multiplies, own_name, precision


def names(library):
    (path,) = (Path(__file__).parent / "kernel_names").glob(f"{library}-*.txt.gz")
    return [demangle(name) for name in gzip.decompress(path.read_bytes()).decode().splitlines()]


# What multiplies in ONNX Runtime's own library, by hand from its sources; everything else there prepares or gathers.
PRODUCTS = r"""
    MatMulFloat(2b|8b|4Bits|4Batched|Int4)\w+ | MatMulBlock(Scaled|Quantized)\w+ | kgemm_4bit_inference_naive
    fpA_intB_gemv::(kernel|kernel_paired|moe_gemv_(?!.*transpose)\w+) | SmallNGemv(Vec)?SplitKKernel | TinyGemm2Kernel
    sm90_fp8_gemm_1d[12]d_impl | flash_fwd_kernel | flash_fwd_splitkv_kernel | kernel_mha
    attention_kernel_batched_impl(_right_padding)? | masked_multihead_attention_kernel
    (Varlen)?CausalConv(Decode|Prefill)?Kernel(FixedK|Batched|ChannelsLast)? | MoeGemv\w+ | cutlass::(device_kernel|Kernel2?)
"""
PRODUCT = re.compile("(^|::)(" + "|".join(re.split(r"\s+\|?\s*", PRODUCTS.strip())) + ")$")


def test_products_of_onnxruntime():
    found = {own_name(name) for name in names("onnxruntime") if not name.startswith("_Z") and multiplies(name)}
    wrong = {name for name in found if not PRODUCT.search(name)}
    assert not wrong
    every = {own_name(name) for name in names("onnxruntime") if not name.startswith("_Z")}
    assert {name for name in every if PRODUCT.search(name)} == found


def test_onnxruntime_has_no_integer_product_of_its_own():
    """Its integer products are cuBLAS's; all that its own kernels hold in integers is widened first."""
    for name in names("onnxruntime"):
        if multiplies(name):
            assert precision(name) not in ("int8", ""), name[:300]


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (r"MatMulFloat4B|MatMulFloatInt4|kgemm_4bit|Int4DetailsW|DqMma.*integer_subbyteILi4", "int4 weights"),
        (r"MatMulFloat8b|Int8DetailsW|^(?!.*integer_subbyte|.*e2m1).*DqMma", "int8 weights"),
        (r"MatMulFloat2b|Int2DetailsW|DqMma.*integer_subbyteILi2", "int2 weights"),
        (r"BlockQuantizedFp4|float_e2m1", "fp4 weights"),
        (r"BlockScaledFp8|sm90_fp8_gemm", "fp8"),
        (r"flash_fwd_kernel<.*half_t|SmallNGemv\w+<.*__half", "fp16"),
        (r"flash_fwd_kernel<.*bfloat16|SmallNGemv\w+<.*bfloat16", "bf16"),
        (r"attention_kernel_batched_impl<.*<float, cutlass", "fp32"),
    ],
)
def test_precisions_of_onnxruntime(says, kind):
    found = [name for name in names("onnxruntime") if re.search(says, name) and multiplies(name)]
    assert found
    for name in found:
        if kind != "fp4 weights" or "moe" not in name.lower():
            assert precision(name) == kind, name[:300]


# The factors' type as cuBLAS writes it into its names, or the first template argument of its small kernels.
CUBLAS = (
    (r"gemm_i8|i161616gemm_s8|IgemmTraits|(?<!un)signed char", "int8"),
    (r"gemm_e[45]m[23]", "fp8"),
    (r"gemm_bf16|_bf16_s\d+gemm|s\d+gemm_bf16", "bf16"),
    (r"gemm_f32f32_tf32|_tf32f32_|s1688gemm_(?!f16|bf16)", "tf32"),
    (r"gemm_f16|h\d+gemm|s\d+gemm_f16", "fp16"),
    (r"gemm_f32f32_f32|simt_sgemm|gemvx::kernel<int, int, float, float", "fp32"),
)


@pytest.mark.parametrize(("says", "kind"), CUBLAS)
def test_precisions_of_cublas(says, kind):
    earlier = [pattern for pattern, _ in CUBLAS[: [pattern for pattern, _ in CUBLAS].index(says)]]
    found = [name for name in names("cublas") if re.search(says, name) and not any(re.search(p, name) for p in earlier)]
    assert found
    for name in found:
        if multiplies(name):
            assert precision(name) == kind, name[:300]


@pytest.mark.parametrize("library", ["cublas", "cudnn"])
def test_every_integer_product_has_integer_factors(library):
    for name in names(library):
        if multiplies(name) and precision(name) == "int8":
            # cuBLAS multiplies doubles in slices of integers too; no engine of clipq's asks for those.
            assert re.search(r"i8|s8|Igemm|signed char|imma|int8", name, re.I), name[:300]
            assert not re.search(r"f16f16|half|hmma|bf16|[^n]float_?16", name.split("<")[0].split("(")[0]), name[:300]


def test_convolutions_of_cudnn():
    """Forward convolutions, by what cuDNN calls them, its own copy of CUTLASS among them; none that reorders for one."""
    found = [name for name in names("cudnn") if re.search(r"fprop|convolve_|implicit_gemm|grouped_direct_kernel", name)]
    beside = re.compile(r"(?<!no_)reorder|workspace|Metadata|valid_masks|convert|^.*fmha")
    assert sum("cutlass__5x_cudnn::Kernel" in name for name in found) > 5
    for name in found:
        if not beside.search(name):
            assert multiplies(name), name[:300]
    for name in names("cudnn"):
        if re.search(r"(?<!no_)reorder|workspace|Metadata|pooling|Tensor_kernel|im2col", own_name(name)):
            assert not multiplies(name), name[:300]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "fp16"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "fp16"),
        ("nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopA_TNN", "bf16"),
        ("nvjet_qqtst_128x128_128x6_4x2_h_bz_coopA_TNT", "fp8"),
        ("mystery_gemm", ""),
        # Older GPUs' convolutions, which the lists of sm_90 do not hold.
        ("ampere_scudnn_128x64_relu_medium_nn_v1", "fp32"),
        ("turing_h1688cudnn_256x64_sliced1x2_ldg8_relu_exp_small_nhwc_tn_v1", "fp16"),
        ("turing_i8816cudnn_int8_128x128_ldg16_relu_small", "int8"),
    ],
)
def test_kernels_that_no_list_holds(kernel, kind):
    """cuBLAS writes some as it needs them."""
    assert multiplies(kernel) and precision(kernel) == kind


@pytest.mark.parametrize(
    "kernel",
    [
        # The mangler's S4_ is no 4-bit type, and converting is no convolution.
        "_ZN11onnxruntime4cuda13cuApplyLayerNormI6__halffS2_Lb0EEEvPT1_PT0_S6_PKT_iiS5_PKS4_S9_S8_S8_",
        "void onnxruntime::contrib::cuda::ConvertAndCopyQK<float>(int, float const*, float*)",
        "void onnxruntime::contrib::cuda::Dequantize4BitsKernel<__half, __half>(__half*, unsigned char const*)",
        "void onnxruntime::cuda::QuantizeLinearKernelStd<256, 4, signed char, __half>(__half const*, signed char*)",
        "void onnxruntime::contrib::cuda::GemmaRotaryEmb<__half>(__half*)",
    ],
)
def test_what_multiplies_nothing(kernel):
    assert not multiplies(demangle(kernel))


def test_names_are_read():
    assert demangle("_ZN3foo3barIfEEvT_") == "void foo::bar<float>(float)"
    assert own_name("void foo::bar<a::b<1, (c)2> >(float (*)(int))") == "foo::bar"
    assert demangle("ampere_sgemm_128x64_tn") == "ampere_sgemm_128x64_tn"
